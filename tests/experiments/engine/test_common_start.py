"""What all rows begin with is computed once per run: the losses and gradients of whole rows, or whole rows."""

from __future__ import annotations

import pytest
import torch

from steerscope import SteeringConfig, get_steering_model, wrap_model
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.shared_prefix import SHORTEST
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.precision import true_float64
from steerscope.steering.joint import JointConstraint
from tests.experiments.engine.test_pack import close, loaded_model, lora_of, many, spec
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

START = tuple(range(20, 32))


def rows(seed=0, count=4):
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(count):
        length = 3 + (2 * i + seed) % 5
        own = (10 + i, *torch.randint(3, 60, (length,), generator=generator).tolist())
        found.append(SupervisedSequence(START + own, len(START) + length - i % 2))
    return found


BATCHES = {seed: rows(seed) for seed in (0, 1)}


def moved(pack):
    """Move parameters away from where edits do nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for run in range(len(pack.specs)):
            for parameter in pack.parameters_of(run):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter.dtype))
    return pack


def steps(pack, batches):
    """Return losses and gradients of a pack, by whole rows and with their start computed once."""
    found = []
    for share in (False, True):
        pack._shares = False
        if share:
            pack.prepare([row for batch in batches for row in batch])
            assert pack._shares
        runs = list(range(len(pack.specs)))
        for run in runs:
            for parameter in pack.parameters_of(run):
                parameter.grad = None
        with true_float64(pack.language_model):
            losses = pack.losses(runs, batches)
            losses.sum().backward()
        found.append((losses.detach(), [[p.grad for p in pack.parameters_of(run)] for run in runs]))
    return found


def assert_same_steps(pack, batches, tolerance=1e-10):
    (losses, gradients), (shared_losses, shared_gradients) = steps(pack, batches)
    torch.testing.assert_close(shared_losses, losses, rtol=tolerance, atol=0)
    for run, (own, shared) in enumerate(zip(gradients, shared_gradients, strict=True)):
        largest = max(float(value.abs().max()) for value in own)
        assert largest > 1e-6, f"run {run} has no gradient"
        for value, other in zip(own, shared, strict=True):
            torch.testing.assert_close(other, value, rtol=0, atol=tolerance * largest)


def widths(loaded, pack, batches):
    """Return shape ``(row, token)`` of what enters the last block in one pass of a pack."""
    seen = []
    block = loaded.site_map.blocks[-1].module
    handle = block.register_forward_hook(lambda m, args, out: seen.append(tuple(args[0].shape[:2])))
    with torch.no_grad():
        pack.losses(list(range(len(pack.specs))), batches)
    handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox", "phi"])
def test_losses_and_gradients_are_those_of_whole_rows(family):
    loaded = loaded_model(family)
    parallel = family in ("gpt_neox", "phi")
    specs = many(parallel) + [
        spec("0.resid_post", positions=rule) for rule in ("prompt", "last:2", "first:14", "first:3")
    ]
    pack = moved(EditPack(loaded, [one for one in specs if one.config.family != "loreft"]))
    batches = [BATCHES[one.seed] for one in pack.specs]
    assert_same_steps(pack, batches)
    # Once per run, and the rows without it: the longest of them ends the batch.
    rest = max(len(row.ids) for batch in batches for row in batch) - len(START)
    assert widths(loaded, pack, batches) == [(len(specs) - 2, len(START)), (4 * (len(specs) - 2), rest)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_every_family_goes_on_from_a_start_at_any_block(family, layer):
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    loaded = wrap_model(tiny_model(family, torch.float64, **layers), tiny_tokenizer())
    pack = moved(EditPack(loaded, [spec(f"{layer}.resid_post"), spec(f"{layer}.resid_post", seed=1)]))
    assert_same_steps(pack, [BATCHES[0], BATCHES[1]])


@pytest.mark.parametrize("method", ["lora", "full", "joint none", "edits"])
def test_models_go_on_from_a_start_too(method):
    base, constraint = tiny_model("llama", torch.float64), None
    model = lora_of(base) if method in ("lora", "joint none") else base
    if method in ("joint none", "edits"):
        model = get_steering_model(model, spec("1.resid_post", positions="last:3").config)
    if method == "joint none":
        constraint = JointConstraint(model, "none")
    if method == "full":
        model.requires_grad_(True)
    pack = ModelPack(model.eval(), RunSpec(spec().config, 0.1), 2, constraint)
    assert_same_steps(pack if method == "full" else moved(pack), [BATCHES[0]], 1e-9 if method == "full" else 1e-10)


def test_loreft_goes_on_from_a_start_too():
    loaded = loaded_model()
    both = [spec("1.resid_post", family="loreft", start="published"), spec("0.resid_post", family="direft")]
    assert_same_steps(EditPack(loaded, both), [BATCHES[0], BATCHES[0]])


def test_trainings_and_tests_share_the_start_and_come_to_the_same():
    loaded, schedule = loaded_model(), Schedule(steps=4, batch_size=4)
    data = {seed: rows(seed, 16) for seed in (0, 1)}
    specs = [spec("1.resid_post", 0.03), spec("1.mlp_out", seed=1), spec("0.mlp_in", positions="completion")]
    found, passes = [], []
    block = loaded.site_map.blocks[-1].module
    block.register_forward_hook(lambda m, args, out: passes.append(args[0].shape[1]))
    for share in (True, False):
        pack = EditPack(loaded, specs)
        if not share:
            pack.prepare = lambda sequences: None
        passes.clear()
        trained = train_pack(pack, data, schedule)
        assert (len(START) in passes) == share
        passes.clear()
        judged = judge_pack(pack, rows(2, 9))
        assert (len(START) in passes) == share
        found.append((trained, judged))
    for (run, test), (other, other_test) in zip(zip(*found[0], strict=True), zip(*found[1], strict=True), strict=True):
        close(run.tensors, other.tensors, 1e-5)  # the model rounds to single precision here and there
        assert run.losses == pytest.approx(other.losses, rel=1e-6)
        torch.testing.assert_close(test.losses, other_test.losses, rtol=1e-5, atol=0)


def test_whole_rows_where_it_would_not_pay_or_not_be_right(monkeypatch):
    loaded = loaded_model()

    def shares(sequences, positions="all", **changes):
        pack = EditPack(loaded, [spec("1.resid_post", positions=positions)])
        pack.prepare(sequences)
        return pack._start(sequences)

    assert shares(BATCHES[0]) == len(START)
    assert shares(BATCHES[0][:1]) == 0
    cut = len(START) - SHORTEST + 1
    assert shares([SupervisedSequence(row.ids[cut:], row.first_target - cut) for row in BATCHES[0]]) == 0
    same = [SupervisedSequence((*START, 1), len(START))] * 4
    assert [shares(same, rule) for rule in ("all", "last:3", "last:9")] == [len(START) - 1, len(START) - 3, 0]
    # A batch without the others' start is run whole, whatever was prepared.
    pack = EditPack(loaded, [spec("1.resid_post")])
    pack.prepare(BATCHES[0])
    other = [SupervisedSequence(row.ids[::-1], row.first_target) for row in BATCHES[0]]
    expected = EditPack(loaded, [spec("1.resid_post")]).losses([0], [other])
    assert torch.equal(pack.losses([0], [other]), expected)
    attention = loaded.site_map.blocks[0].module.self_attn
    loaded.model.train()
    attention.attention_dropout = 0.1
    assert shares(BATCHES[0]) == 0
    loaded.model.eval()
    assert shares(BATCHES[0]) == len(START)
    forward = loaded.model.forward

    def wrong_cache(*args, past_key_values=None, **kwargs):  # goes on without what stands before
        if past_key_values is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, -kwargs["input_ids"].shape[1] :]
        return forward(*args, **kwargs)

    monkeypatch.setattr(loaded.model, "forward", wrong_cache)
    assert shares(BATCHES[0]) == 0
    monkeypatch.setattr(loaded.model, "forward", lambda *args, use_cache=None, **kwargs: forward(*args, **kwargs))
    monkeypatch.setattr(loaded.model.config, "use_cache", False)
    assert shares(BATCHES[0]) == 0


def test_edits_act_on_the_start_itself():
    loaded = loaded_model()
    first = moved(EditPack(loaded, [spec("0.resid_post", positions="first:3")]))
    config = SteeringConfig(sites="0.resid_post", family="linear", rank=2, dtype="float64")
    none = EditPack(loaded, [RunSpec(config, 0.1)])
    for pack in (first, none):
        pack.prepare(BATCHES[0])
    with torch.no_grad():
        assert float((first.losses([0], [BATCHES[0]]) - none.losses([0], [BATCHES[0]])).abs()) > 1e-3


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt"])
def test_the_last_mlp_is_computed_where_logits_are_asked_for(family):
    loaded = wrap_model(tiny_model(family, torch.float64), tiny_tokenizer())
    last, sizes = loaded.site_map.blocks[-1], []
    last.mlp_write.register_forward_hook(lambda m, args, out: sizes.append(args[0].shape[:-1].numel()))
    supervised = sum(len(row.ids) - row.first_target for row in BATCHES[0])
    tokens = len(BATCHES[0]) * max(len(row.ids) for row in BATCHES[0])
    found = []
    for specs in ([spec("0.resid_post")], [spec("0.resid_post"), spec("1.mlp_in")]):
        pack = EditPack(loaded, specs)
        with torch.no_grad():
            pack.edits.by_run[0][next(iter(pack.edits.by_run[0]))].U.normal_(generator=torch.Generator().manual_seed(0))
        with true_float64(loaded.model):
            losses = pack.losses(list(range(len(specs))), [BATCHES[0]] * len(specs))
            losses[0].backward()
        found.append((losses[0].detach(), [p.grad for p in pack.parameters_of(0)]))
    assert sizes == [supervised, 2 * tokens]  # an edit inside it sees every token
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
