"""Constraints of joint adaptation: right with B = 0, held after every step, moments included, over both projections."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.models import reading
from steerscope.steering import SteeringConfig, get_steering_model
from steerscope.steering.joint import JointConstraint, principal_angles
from tests.steering.cases import padded, prompts, randomise
from tests.steering.test_trainer import assert_same, killed, trainer_of
from tests.tiny import tiny_model

BATCH = padded(prompts(), "left")
WRITERS = {"llama": ["o_proj", "down_proj"], "gpt2": ["attn.c_proj", "mlp.c_proj"], "phi": ["dense", "fc2"]}
# Projections in float64, by orthonormal bases of matrices of order one.
EXACT = 1e-13


def joint(
    family: str = "llama", targets=None, dtype=torch.float64, sites="resid_post", edit="linear", lora=None, **options
):
    torch.manual_seed(0)
    own = {"r": 2, "target_modules": targets or WRITERS[family], "fan_in_fan_out": family == "gpt2"} | (lora or {})
    wrapped = peft.get_peft_model(tiny_model(family, dtype), peft.LoraConfig(**own)).to(dtype)
    name = str(dtype).removeprefix("torch.")
    return randomise(get_steering_model(wrapped, SteeringConfig(sites, edit, rank=3, dtype=name, **options))).eval()


def moved_lora(steering):
    generator = torch.Generator().manual_seed(2)
    for name, parameter in steering.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return steering


def lora_writes(steering, layer: int) -> list[Tensor]:
    block = steering.site_map.blocks[layer]
    return [module.lora_B["default"].weight.detach() for module in (block.attn_write, block.mlp_write)]


def off(steering, constraint: str) -> float:
    """The largest entry that the constraint says is zero, relative to the sizes of the factors."""
    worst = 0.0
    for layer in range(2):
        edit = steering.edit_at(f"{layer}.resid_post")
        factors = [edit.D] if constraint == "input" else [edit.U.T, edit.b[None]]
        for b in lora_writes(steering, layer):
            for factor in factors:
                size = float(factor.detach().norm() * b.norm())
                worst = max(worst, float((factor @ b).detach().abs().max()) / size if size else 0.0)
    return worst


def train(steering, constraint: str, steps: int = 4, optimizer_type=torch.optim.AdamW):
    parameters = [p for p in steering.parameters() if p.requires_grad]
    optimizer = optimizer_type(parameters, lr=0.02)
    held = JointConstraint(steering, constraint)
    held.attach(optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        steering(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        optimizer.step()
        yield optimizer, held


@pytest.mark.parametrize("constraint", ["input", "output"])
@pytest.mark.parametrize("family", WRITERS)
def test_held_after_every_step(family, constraint):
    steering = joint(family)
    other = "output" if constraint == "input" else "input"
    for optimizer, held in train(steering, constraint):
        assert all(float(b.norm()) > 0 for layer in (0, 1) for b in lora_writes(steering, layer))
        assert off(steering, constraint) < EXACT
        assert off(steering, other) > 1e-3
        for layer in range(2):
            edit = steering.edit_at(f"{layer}.resid_post")
            basis = held.basis(f"{layer}.resid_post")
            assert basis.shape == (16, 4)  # two of each projection
            moment = optimizer.state[edit.D if constraint == "input" else edit.U]["exp_avg"]
            inside = moment @ basis if constraint == "input" else basis.T @ moment
            assert float(inside.abs().max()) < EXACT * float(moment.abs().max())


def test_without_a_constraint_both_overlap():
    steering = joint()
    before = steering.edit_at("0.resid_post").D.detach().clone()
    JointConstraint(steering, "none").project()
    assert torch.equal(steering.edit_at("0.resid_post").D, before)
    for _ in train(steering, "none"):
        assert min(off(steering, "input"), off(steering, "output")) > 1e-3


@pytest.mark.parametrize("constraint", ["input", "output"])
def test_a_zero_b_takes_nothing_away(constraint):
    """The singular vectors of a zero matrix are the first axes; projecting these out would delete channels."""
    steering = joint()
    assert all(float(b.norm()) == 0 for b in lora_writes(steering, 0))
    before = {name: p.clone() for name, p in steering.edits.named_parameters()}
    held = JointConstraint(steering, constraint)
    held.project()
    assert all(torch.equal(p, before[name]) for name, p in steering.edits.named_parameters())
    assert held.basis("0.resid_post").shape == (16, 0)
    assert held.overlaps()[0].read_angles == ()


def test_sgd_with_momentum():
    steering = joint()
    sgd = lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9)  # noqa: E731
    for optimizer, held in train(steering, "input", optimizer_type=sgd):
        edit = steering.edit_at("0.resid_post")
        inside = optimizer.state[edit.D]["momentum_buffer"] @ held.basis("0.resid_post")
        assert float(inside.abs().max()) < EXACT
        assert off(steering, "input") < EXACT


def test_float32_holds_to_float32():
    for _ in train(joint(dtype=torch.float32), "output"):
        pass
    steering = joint(dtype=torch.float32)
    for _ in train(steering, "output"):
        assert off(steering, "output") < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("edit", ["linear", "nonlinear"])
def test_input_form_makes_the_edit_blind_and_interaction_is_what_it_says(edit):
    steering = moved_lora(joint(edit=edit, sites="0.resid_post"))
    held = JointConstraint(steering, "input")
    free = held.interaction(BATCH)["0.resid_post"]
    assert free > 1e-2
    if edit == "linear":  # U D B A m over U D x + b, from the tensors of the model
        block, found = steering.site_map.blocks[0], steering.edit_at("0.resid_post")
        with (
            steering.disable_adapter(keep_lora=True),
            reading(steering.site_map, ["0.resid_post", "0.attn_heads", "0.mlp_hidden"]) as seen,
        ):
            steering(**BATCH)
        real = BATCH["attention_mask"] != 0
        x, heads, hidden = (
            seen[steering.site_map.resolve(f"0.{kind}")][real] for kind in ("resid_post", "attn_heads", "mlp_hidden")
        )
        written = sum(
            value @ module.lora_A["default"].weight.T @ module.lora_B["default"].weight.T * 4  # alpha / r
            for value, module in [(heads, block.attn_write), (hidden, block.mlp_write)]
        )
        expected = (written @ found.D.T @ found.U.T).norm() / (x @ found.D.T @ found.U.T + found.b).norm()
        assert free == pytest.approx(float(expected), rel=1e-9)
    held.project()
    assert held.interaction(BATCH)["0.resid_post"] < 1e-10
    assert held.overlaps()[0].read_product < EXACT
    assert min(held.overlaps()[0].read_angles) == pytest.approx(90, abs=1e-6)


@torch.no_grad()
def test_interaction_is_over_the_edited_tokens():
    steering = moved_lora(joint(sites="0.resid_post", positions="first:1"))
    held = JointConstraint(steering, "none")
    alone = {name: value[:, -1:] for name, value in padded([row[:1] for row in prompts()], "left").items()}
    found, expected = (held.interaction(batch)["0.resid_post"] for batch in (BATCH, alone))
    assert found == pytest.approx(expected, rel=1e-6)
    everywhere = moved_lora(joint(sites="0.resid_post"))
    assert JointConstraint(everywhere, "none").interaction(BATCH)["0.resid_post"] != pytest.approx(found, rel=1e-3)


def test_principal_angles_of_known_spaces():
    e = torch.eye(4, dtype=torch.float64)
    tilted = torch.stack([(e[0] + e[2]) / 2**0.5, e[3]], 1)
    assert principal_angles(e[:, :2], tilted) == pytest.approx((45, 90))
    assert principal_angles(3 * e[:, :2], e[:, :2] @ torch.tensor([[1.0, 2], [0, 1]]).double()) == pytest.approx((0, 0))
    assert principal_angles(e[:, :2], 0 * tilted) == ()


def test_one_projection_alone_is_covered():
    for target, kind in [("o_proj", "attn_out"), ("down_proj", "mlp_out"), ("o_proj", "resid_post")]:
        steering = moved_lora(joint(targets=[target], sites=f"0.{kind}"))
        held = JointConstraint(steering, "input")
        held.project()
        block = steering.site_map.blocks[0]
        module = block.attn_write if target == "o_proj" else block.mlp_write
        inside = steering.edit_at(f"0.{kind}").D @ module.lora_B["default"].weight
        assert float(inside.detach().abs().max()) < EXACT * 10


def test_under_the_trainer_with_a_history(tmp_path):
    steering = joint(dtype=torch.float32)
    callback = JointConstraint(steering, "input").callback(BATCH)
    trainer_of(steering, tmp_path, callbacks=[callback], logging_strategy="steps", logging_steps=2).train()
    assert [entry["step"] for entry in callback.history][:3] == [2, 4, 6]
    for entry in callback.history:
        assert entry["largest_read_product"] < 1e-6
        assert entry["smallest_read_angle"] > 89.9
        assert entry["smallest_write_angle"] < 89
        assert entry["largest_interaction"] < 1e-4
    assert off(steering, "input") < 1e-6


@pytest.mark.parametrize("constraint", ["input", "output"])
def test_a_killed_run_resumes_to_the_same_weights(tmp_path, constraint):
    def fresh():
        steering = joint(dtype=torch.float32)
        return steering, JointConstraint(steering, constraint).callback()

    whole, callback = fresh()
    trainer_of(whole, tmp_path / "whole", callbacks=[callback]).train()
    first, callback = fresh()
    checkpoint = killed(first, tmp_path / "killed", [callback])
    again, callback = fresh()
    trainer_of(again, tmp_path / "killed", callbacks=[callback]).train(resume_from_checkpoint=checkpoint)
    assert_same(again.state_dict(), whole.state_dict())
    assert off(again, constraint) < 1e-6


def test_a_history_goes_on_too(tmp_path):
    logged = {"logging_strategy": "steps", "logging_steps": 1}

    def fresh():
        steering = joint(dtype=torch.float32)
        return steering, JointConstraint(steering, "none").callback(BATCH)

    whole, expected = fresh()
    trainer_of(whole, tmp_path / "whole", callbacks=[expected], **logged).train()
    first, callback = fresh()
    checkpoint = killed(first, tmp_path / "killed", [callback], **logged)
    again, callback = fresh()
    trainer_of(again, tmp_path / "killed", callbacks=[callback], **logged).train(resume_from_checkpoint=checkpoint)
    assert callback.history == expected.history
    assert {"step", "largest_interaction", "smallest_read_angle"} < set(callback.history[0])


def test_a_training_that_diverged_is_not_stopped_by_its_measurements(tmp_path):
    for constraint in ("none", "input", "output"):
        steering = joint(dtype=torch.float32)
        callback = JointConstraint(steering, constraint).callback(BATCH)
        for name, parameter in steering.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(float("nan"))
        options = {"callbacks": [callback], "logging_strategy": "steps", "logging_steps": 1, "max_steps": 2}
        trainer_of(steering, tmp_path / constraint, **options).train()
        assert callback.history == []


def test_without_a_constraint_nothing_needs_to_meet():
    """A norm after the LoRA's map, or no LoRA there at all: nothing to hold, and nothing to measure."""
    for steering in (joint("gemma2", targets=["down_proj"]), joint(targets=["q_proj"])):
        held = JointConstraint(moved_lora(steering), "none")
        held.project()
        assert [one.read_angles for one in held.overlaps()] == [(), ()]
        assert set(held.interaction({"input_ids": BATCH["input_ids"][:1]}).values()) == {0.0}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: joint(targets=["q_proj"]), "no LoRA writes where '0.resid_post' acts"),
        (lambda: joint(targets=["down_proj"], sites="0.attn_out"), "no LoRA writes where '0.attn_out' acts"),
        (lambda: joint(edit="loreft"), "defined for families 'linear' and 'nonlinear'"),
        (lambda: joint(sites="mlp_in"), "no LoRA of a block writes to the tensor of '0.mlp_in'"),
        (lambda: joint("gemma2", targets=["down_proj"]), "a norm stands between"),
        (lambda: joint("gpt2", lora={"lora_bias": True}), "writes a bias besides B"),
        (lambda: get_steering_model(tiny_model("llama"), SteeringConfig("mlp_out")), "needs a LoRA underneath"),
    ],
)
def test_what_means_nothing_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        JointConstraint(make(), "input")


def test_unknown_constraints_are_refused():
    with pytest.raises(InputError, match=r"unknown constraint 'inputs'\. Did you mean 'input'"):
        JointConstraint(joint(), "inputs")
