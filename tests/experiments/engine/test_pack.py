"""Packs of runs: equal to the stock Trainer, to each run alone, in any order, and after an interruption."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from steerscope import SteeringConfig, get_steering_model, wrap_model
from steerscope.errors import InputError
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.frozen import FrozenStreams
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import training_rows
from steerscope.steering.joint import JointConstraint
from studies.families.tiny import tiny_model as any_model
from tests.experiments.engine.stock_trainer import Collator, supervised_loss
from tests.steering.cases import SETTINGS
from tests.tiny import FAMILIES, VOCAB, tiny_model, tiny_tokenizer

STEPS, SIZE = 6, 4
SCHEDULE = Schedule(steps=STEPS, batch_size=SIZE, warmup=0.34, clip=0.5)


def loaded_model(family="llama"):
    return wrap_model(tiny_model(family, torch.float64), tiny_tokenizer())


def sequences(count=20):
    generator = torch.Generator().manual_seed(3)
    found = []
    for i in range(count):
        length = 4 + i % 5
        ids = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
        found.append(SupervisedSequence(tuple(ids), length - 1 - i % 2))
    return found


def data_of(*seeds):
    return {seed: training_rows(sequences(), STEPS, SIZE, seed) for seed in seeds}


def spec(sites="1.resid_post", rate=0.01, seed=0, **config):
    fixed = {"family": "linear", "rank": 2, "dtype": "float64", "seed": seed}
    return RunSpec(SteeringConfig(sites=sites, **(fixed | config)), rate, seed)


def many(parallel=False):
    """Runs that differ in site, rate, seed, rank, family, positions and number of sites."""
    return [
        spec("1.resid_post"),
        spec("1.resid_post", 0.03),
        spec("1.mlp_out", 0.03, seed=1),
        spec("0.attn_out" if parallel else "0.resid_mid", rank=3),
        spec("1.resid_post", seed=1, positions="last"),
        spec("1.resid_post", positions="completion"),
        spec(("0.attn_heads.1", "1.mlp_in"), 0.02, positions="first:2"),
        spec("1.resid_post", family="loreft", start="published"),
        spec("1.resid_post", family="loreft"),
        spec("0.attn_heads", family="lofit_offset", rank=None),
        spec("1.mlp_hidden", family="nonlinear"),
        spec("1.resid_post", bias=False),
    ]


def trained(loaded, specs, **more):
    return train_pack(EditPack(loaded, specs), data_of(0, 1), SCHEDULE, **more)


def close(found, expected, tolerance=1e-10):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
def test_a_run_in_a_pack_equals_the_run_alone(family):
    loaded = loaded_model(family)
    specs = many(parallel=family == "gpt_neox")
    together = trained(loaded, specs)
    backwards = trained(loaded, specs[::-1])[::-1]
    start = EditPack(loaded, specs)
    for index, one in enumerate(specs):
        alone = trained(loaded, [one])[0]
        moved = [(alone.tensors[name] - value).abs().max() for name, value in start.edits.tensors_of(index).items()]
        assert max(moved) > 1e-3, "a run that does not train would equal anything"
        for other in (together[index], backwards[index]):
            close(other.tensors, alone.tensors)
            assert other.losses == pytest.approx(alone.losses, abs=1e-10, rel=0)


def stock_losses(model, folder, rate, told, callbacks=()):
    """Train with transformers' Trainer on the same rows; return the losses of its steps."""
    seen = []

    def loss(outputs, labels, num_items_in_batch=None):
        value = supervised_loss(outputs, labels, num_items_in_batch)
        seen.append(float(value.detach()))
        return value

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=SIZE,
        learning_rate=rate,
        lr_scheduler_type="linear",
        warmup_steps=round(SCHEDULE.warmup * STEPS),
        weight_decay=0.0,
        max_grad_norm=SCHEDULE.clip,
        optim="adamw_torch",
        train_sampling_strategy="sequential",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=True,
    )
    collate = Collator(2, True, told)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=data_of(0)[0],
        data_collator=collate,
        compute_loss_func=loss,
        callbacks=list(callbacks),
    )
    trainer.train()
    assert abs(seen[0] - seen[-1]) > 1e-3
    return seen


@pytest.mark.parametrize(("family", "sites"), [(f, s["sites"]) for f, s in SETTINGS.items() if f != "lofit_scale"])
def test_a_pack_of_one_equals_the_stock_trainer(family, sites, tmp_path):
    loaded = loaded_model()
    one = spec(sites, 0.02, family=family, rank=SETTINGS[family].get("rank"), positions="last:2")
    model = get_steering_model(loaded, one.config)
    seen = stock_losses(model, tmp_path, one.learning_rate, True)
    expected = {name: value.clone() for name, value in model.steering_tensors().items()}
    model.unload()
    found = trained(loaded, [one])[0]
    assert found.losses == pytest.approx(seen, abs=1e-9, rel=0)
    close(found.tensors, expected, 1e-9)


# Blocks that give a list and normalise the stream; blocks that read keys and values of those below, and tokens.
CHANGED = {
    "openai-gpt": {"num_hidden_layers": 3, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    "gemma4_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
}


@pytest.mark.parametrize("family", CHANGED)
def test_above_blocks_that_change_the_stream_a_pack_equals_the_stock_trainer(family, tmp_path):
    loaded = wrap_model(any_model(family, torch.float64, **CHANGED[family]), tiny_tokenizer())
    one = spec(("2.resid_mid", "2.resid_post"), 0.02, positions="last:2")
    model = get_steering_model(loaded, one.config)
    seen = stock_losses(model, tmp_path, one.learning_rate, True)
    expected = {name: value.clone() for name, value in model.steering_tensors().items()}
    model.unload()
    for found in (trained(loaded, [one])[0], trained(loaded, [spec("2.mlp_out"), one])[1]):
        assert found.losses == pytest.approx(seen, abs=1e-9, rel=0)
        close(found.tensors, expected, 1e-9)


def lora_of(model):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["down_proj", "o_proj", "q_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, config).to(torch.float64)


@pytest.mark.parametrize("method", ["lora", "full", "joint none", "joint output"])
def test_other_methods_equal_the_stock_trainer(method, tmp_path):
    results = []
    for engine in (True, False):
        base, constraint, rate = tiny_model("llama", torch.float64), None, 0.02
        model = base if method == "full" else lora_of(base)
        if method == "full":
            rate = 0.002
        if method.startswith("joint"):
            model = get_steering_model(model, spec("1.resid_post").config)
            constraint = JointConstraint(model, method.split()[1])
        if engine:
            pack = ModelPack(model.eval(), RunSpec(spec().config, rate), 2, constraint)
            found = train_pack(pack, data_of(0), SCHEDULE)[0]
            results.append((list(found.losses), found.tensors))
        else:
            callbacks = () if constraint is None else (constraint.callback(),)
            losses = stock_losses(model, tmp_path, rate, method.startswith("joint"), callbacks)
            results.append((losses, {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-9, rel=0)
    # Adam divides by the size of gradients: where these are rounding errors alone, so is the direction.
    close(results[0][1], results[1][1], 1e-7)


def test_a_training_that_was_interrupted_goes_on_to_the_same_bits():
    loaded, specs = loaded_model(), many()
    whole = trained(loaded, specs)
    for stop in (1, 4):
        kept = []

        def keep(now, stop=stop, kept=kept):
            if now.step == stop:
                kept.append(copy.deepcopy(now))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trained(loaded, specs, keep=keep, keep_every=1)
        rest = trained(loaded, specs, start=kept[0])
        for found, expected in zip(rest, whole, strict=True):
            assert found.losses == expected.losses
            close(found.tensors, expected.tensors, 0.0)


def test_first_steps_and_the_rest_are_one_training():
    loaded, specs = loaded_model(), many()
    whole = trained(loaded, specs)
    kept = []
    first = trained(loaded, specs, until=2, keep=kept.append)
    assert [one.step for one in kept] == [2]
    for found, expected in zip(first, whole, strict=True):
        assert found.losses == expected.losses[:2]
    trained(loaded, specs, start=kept[0], until=5, keep=kept.append)
    assert [one.step for one in kept] == [2, 5]
    for start in (kept[0], kept[1], kept[0]):  # more than one training can go on from one progress
        for found, expected in zip(trained(loaded, specs, start=start), whole, strict=True):
            assert found.losses == expected.losses
            close(found.tensors, expected.tensors, 0.0)
    for until, start in ((0, None), (STEPS + 1, None), (4, kept[1])):
        with pytest.raises(InputError, match=f"until is {until}; expected a step of the schedule, from . to {STEPS}"):
            trained(loaded, specs, until=until, start=start)


def test_a_run_that_diverges_changes_no_other():
    loaded = loaded_model()
    wild = spec("1.resid_post", 1e200)
    found = trained(loaded, [spec(rate=0.01), wild, spec(rate=0.03)])
    assert [one.diverged for one in found] == [False, True, False]
    assert len(found[1].losses) < STEPS
    for one, rate in ((found[0], 0.01), (found[2], 0.03)):
        close(one.tensors, trained(loaded, [spec(rate=rate)])[0].tensors)


def test_kept_streams_give_the_losses_of_whole_passes():
    loaded = loaded_model()
    pack, data = EditPack(loaded, [spec("1.mlp_out"), spec("1.resid_post", seed=1)]), data_of(0, 1)
    batches = [data[0][:SIZE], data[1][:SIZE]]
    with torch.no_grad():
        for edits in pack.edits.by_run:
            for edit in edits.values():
                edit.U.normal_(generator=torch.Generator().manual_seed(0))
    kept = pack.losses([0, 1], batches)
    assert pack.streams.layer == 1
    whole = EditPack(loaded, pack.specs)
    whole.edits = pack.edits
    whole.streams.move_to = lambda layer: None
    torch.testing.assert_close(whole.losses([0, 1], batches), kept, rtol=1e-12, atol=0)
    # Moving up from block to block gives what starting from the embeddings gives.
    stepwise = FrozenStreams(loaded.model, loaded.site_map, 2)
    stepwise.layer = 0
    rows = sequences()
    assert stepwise.entering(rows) is None
    direct = FrozenStreams(loaded.model, loaded.site_map, 2)
    direct.move_to(1)
    assert direct.entering(rows).shape[:2] == (len(rows), max(len(row.ids) for row in rows))


@pytest.mark.parametrize(
    ("sites", "computed"), [(["1.resid_post"], 0), (["0.resid_post"], 1), (["0.resid_post", "0.mlp_out"], 2)]
)
def test_what_an_edit_follows_is_not_computed_again(sites, computed):
    loaded, data = loaded_model(), data_of(0)[0]
    pack = EditPack(loaded, [spec(site) for site in sites])
    pack.losses(list(range(len(sites))), [data[:SIZE]] * len(sites))  # the streams are kept now
    ran = []
    handles = [
        block.attn.register_forward_hook(lambda *_, index=block.index: ran.append(index))
        for block in loaded.site_map.blocks
    ]
    pack.losses(list(range(len(sites))), [data[:SIZE]] * len(sites))
    for handle in handles:
        handle.remove()
    assert len(ran) == computed


def test_what_cannot_be_trained_is_refused():
    loaded = loaded_model()
    with pytest.raises(InputError, match="at least one run"):
        EditPack(loaded, [])
    with pytest.raises(InputError, match="seed 7 has 0 training sequences; 6 steps of 4 need 24"):
        train_pack(EditPack(loaded, [spec(seed=7)]), data_of(0), SCHEDULE)
    with pytest.raises(InputError, match="pass scales"):
        EditPack(loaded, [spec(scale="rms")])
    with pytest.raises(InputError, match="positions 'mask'"):
        spec(positions="mask")
    with pytest.raises(InputError, match="learning_rate is -1"):
        spec(rate=-1)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_entered_at_any_block(family):
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    loaded = wrap_model(tiny_model(family, **layers), tiny_tokenizer())
    rows = sequences(9)
    streams = FrozenStreams(loaded.model, loaded.site_map, 2)
    expected = None
    # Up, what leaves the last block included, down again, and to the embeddings.
    for layer, site in ((0, "0.mlp_out"), (1, "0.resid_post"), (4, "3.resid_post"), (3, "3.mlp_out"), (0, "0.mlp_out")):
        config = SteeringConfig(sites=site, family="vector")
        pack = EditPack(loaded, [RunSpec(config, 0.1)], None, streams)
        with torch.no_grad():
            found, _ = pack.logits([0], [rows])
        assert streams.layer == layer
        expected = found if expected is None else expected
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
        stream = streams.entering(rows)
        assert (stream is None) == (layer == 0)
        if stream is not None:  # and it is not simply ignored
            group, kept = streams._group, streams._group.streams
            group.streams = [(at, own.flip(-1)) for at, own in kept]
            with torch.no_grad():
                assert float((pack.logits([0], [rows])[0] - found).abs().max()) > 1e-3
            group.streams = kept


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_streams_do_not_depend_on_what_was_asked_for_before(family):
    """To the bit: packs come to the same numbers in whatever process and order they are trained."""
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    loaded = wrap_model(tiny_model(family, **layers), tiny_tokenizer())
    first, second = sequences(24)[:20], sequences(24)[3:]
    fresh = FrozenStreams(loaded.model, loaded.site_map, 2)
    fresh.move_to(3)
    fresh.begin(second)
    used = FrozenStreams(loaded.model, loaded.site_map, 2)
    for layer in (1, 2, 3):
        used.move_to(layer)
        for rows in (first, second[:5]):
            used.entering(rows)
    used.begin(second)
    assert torch.equal(used.entering(second[4:9]), fresh.entering(second[4:9]))
    used.begin(first)
    assert not torch.equal(used.entering(first[:5]), fresh.entering(second[:5]))
