"""Whole runs on tiny models: every method learns and is kept; a killed run goes on to the same bits."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from steerscope.errors import InputError
from steerscope.experiments.comparison import compare
from steerscope.experiments.evaluation.adapters import read_adapter, with_adapter
from steerscope.experiments.evaluation.likelihood import completion_loss
from steerscope.experiments.tasks import get_task
from steerscope.experiments.training import read_results
from steerscope.experiments.training import run as run_module
from steerscope.experiments.training.data import draw_parts
from steerscope.experiments.training.fit import CHECKPOINT
from steerscope.experiments.training.methods import METHODS as TABLE
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.training.run import Run
from steerscope.experiments.training.train import train
from steerscope.experiments.training.trainee import build
from steerscope.models.weight_hashes import digest_of_parameters
from tests.experiments.training.tiny_runs import METHODS, loaded, make_place, options, task_of

# What differs between two runs that are equal.
CLOCKS = ("seconds", "tokens_per_second", "peak_memory", "command")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("train"))


def outcome(folder) -> dict:
    """Results without clocks, generations, and every byte of what was saved."""
    found = json.loads((folder / "results.json").read_text())
    for name in CLOCKS:
        found.pop(name)
    found["training"].pop("training_seconds")
    found["evaluation"].pop("seconds")
    found["before"].pop("seconds")
    weights = {str(p.relative_to(folder)): p.read_bytes() for p in (folder / "adapter").rglob("*.safetensors")}
    return {"results": found, "generations": (folder / "generations.jsonl").read_text(), "weights": weights}


def test_the_table_and_the_tests_name_the_same_methods():
    assert {*METHODS, "none"} == set(TABLE)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_its_saved_adapter_is_what_was_tested(place, tmp_path, method):
    task = task_of(place)
    rates = {"sft": 0.003, "lofit": 0.1, "vector": 0.1, "bitfit": 0.1}
    run = options(
        place, method, steps=12, learning_rate=rates.get(method, 0.02), heads=3 if method == "lofit" else None
    )
    base = loaded(place)
    digest = digest_of_parameters(base.model)
    train(run, task, tmp_path / "run")
    found = read_results(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "adapter", "config.json", "generations.jsonl", "results.json",
    ]  # fmt: skip
    examples = task.split("train", None, 0)[:48]
    before = completion_loss(base.model, base.tokenizer, examples)
    saved = with_adapter(base, read_adapter(tmp_path / "run"))
    assert completion_loss(saved, base.tokenizer, examples) < before - 0.03
    assert found.tokens_per_second > 0
    assert found.training["losses"][-1][0] == 12
    if method in ("post-block", "joint"):
        trained = sum(p.numel() for p in saved.parameters()) - sum(p.numel() for p in loaded(place).model.parameters())
        assert found.trainable_parameters == trained
    if method == "lofit":
        assert len(found.training["heads"]) == 3
        assert found.trainable_parameters == 3 * 4
    assert digest_of_parameters(loaded(place).model) == digest


class Killed(BaseException):
    """A process that is gone: nothing after it runs."""


def killed_after(steps: int):
    """Return a progress that kills the run after so many steps of whatever it trains, before they are kept."""
    last: dict[str, int] = {}
    seen = []

    def show(stage, done, total):
        if stage in ("train", "scales") or stage.startswith("trying"):
            seen.extend([stage] if done == last.get(stage, done) + 1 else [])
            last[stage] = done
            if len(seen) == steps:
                raise Killed

    return show


@pytest.mark.parametrize(
    ("method", "changes", "steps"),
    [
        ("post-block", {"scale": "rms", "positions": "last:3"}, (5, 1)),
        ("loreft", {}, (5,)),
        ("lora", {}, (3,)),
        ("sft", {"learning_rate": 0.003}, (5,)),
        ("bitfit", {}, (5,)),
        ("joint", {"constraint": "output"}, (5,)),
        ("lofit", {"heads": 2}, (5, 7)),
        ("post-block", {"model": "gpt2", "learning_rate": "auto", "tries": 3, "lr_steps": 3}, (5, 9)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_a_killed_run_goes_on_to_the_same_bits(place, tmp_path, method, changes, steps):
    """gpt2 has dropout, so the random numbers have to go on too; the search is killed in its second run."""
    task = task_of(place)
    model = str(place / changes.pop("model", "model"))
    run = options(place, method, steps=6, save_every=2, model=model, **changes)
    train(run, task, tmp_path / "whole")
    expected = outcome(tmp_path / "whole")
    for count in steps:
        with pytest.raises(Killed):
            train(run, task, tmp_path / "killed", resume=True, progress=killed_after(count))
        assert not (tmp_path / "killed" / "results.json").exists()
    seen = []
    train(run, task, tmp_path / "killed", resume=True, progress=lambda *told: seen.append(told))
    assert ("train", 6, 6) in seen
    assert not any(stage == "train" and done == 1 for stage, done, _ in seen) or run.searches
    assert outcome(tmp_path / "killed") == expected
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_killed_while_saving_and_testing(place, tmp_path, monkeypatch):
    task, run = task_of(place), options(place, steps=4, keep_checkpoints=True)
    train(run, task, tmp_path / "whole")
    for name in ("_save", "_test"):
        with monkeypatch.context() as patch:
            patch.setattr(Run, name, lambda *a, **k: (_ for _ in ()).throw(Killed()))
            with pytest.raises(Killed):
                train(run, task, tmp_path / "killed", resume=True)
    # And while a checkpoint was written: what is not whole is no checkpoint.
    checkpoint = tmp_path / "killed" / "checkpoints" / CHECKPOINT
    whole = checkpoint.read_bytes()
    checkpoint.with_name(".unfinished-0.pt").write_bytes(whole[:100])
    checkpoint.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"progress.pt' cannot be read .* Delete that file"):
        train(run, task, tmp_path / "killed", resume=True)
    checkpoint.unlink()
    train(run, task, tmp_path / "killed", resume=True)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    assert checkpoint.exists()
    complete = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.json")}
    assert train(run, task, tmp_path / "killed", resume=True).line == read_results(tmp_path / "whole").line
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").rglob("*.json")} == complete
    with pytest.raises(InputError, match="was begun with other steps"):
        train(options(place, steps=5), task, tmp_path / "killed", resume=True)
    with pytest.raises(InputError, match="is not empty"):
        train(run, task, tmp_path / "killed")


def test_a_run_of_the_earlier_loop_is_read_but_not_gone_on_with(place, tmp_path):
    task, run = task_of(place), options(place)
    train(run, task, tmp_path / "run")
    kept = tmp_path / "run" / "checkpoints" / "scales" / "checkpoint-2"
    kept.mkdir(parents=True)
    assert train(run, task, tmp_path / "run", resume=True).seed == 0
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(InputError, match=r"are of an earlier steerscope.*name another folder"):
        train(run, task, tmp_path / "run", resume=True)
    assert kept.exists()


def test_seeds_differ_in_start_and_data_and_share_the_test(place, tmp_path):
    task = task_of(place)
    found = [train(options(place, seed=seed), task, tmp_path / str(seed)) for seed in (0, 1)]
    again = train(options(place), task, tmp_path / "again")
    weights = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("0", "1", "again")]
    assert not torch.equal(weights[0]["0.resid_post.D"], weights[1]["0.resid_post.D"])
    assert all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert found[0].settings == found[1].settings
    assert found[0].test_set == found[1].test_set
    assert found[0].training["train_set"] != found[1].training["train_set"]
    assert again.training["losses"] == found[0].training["losses"]


def test_a_search_chooses_on_validation_and_says_what_it_tried(place, tmp_path):
    task, said = task_of(place), []
    run = options(place, learning_rate="auto", tries=4, lr_steps=3, steps=6, train_examples=12)
    found = train(run, task, tmp_path / "run", say=said.append)
    facts = found.training
    tried = {float(rate): loss for rate, loss in facts["learning_rates_tried"].items()}
    assert 3 <= len(tried) <= 4
    assert facts["learning_rate"] == min(tried, key=tried.get)
    assert any("in runs of 3 steps instead of 6" in sentence for sentence in said)
    if not facts["learning_rate_is_interior"]:
        assert any("is at the edge of the 4 tried" in sentence for sentence in said)
    # The same run, trained alone with the chosen rate, is the same.
    alone = train(
        options(place, learning_rate=facts["learning_rate"], steps=6, train_examples=12), task, tmp_path / "alone"
    )
    assert alone.training["losses"] == facts["losses"]
    # What was chosen on is the validation part.
    base = loaded(place)
    rate = facts["learning_rate"]
    train(options(place, learning_rate=rate, steps=3), task, tmp_path / "trial")
    steered = with_adapter(base, read_adapter(tmp_path / "trial"))
    chosen_on = task.split("validation", None, 0)[:6]
    assert completion_loss(steered, base.tokenizer, chosen_on, ends=False) == pytest.approx(tried[rate], rel=1e-6)


def test_a_seed_takes_over_the_search_of_another(place, tmp_path):
    task, said = task_of(place), []
    search = {"learning_rate": "auto", "tries": 3, "lr_steps": 2}
    first = train(options(place, **search), task, tmp_path / "0")
    takes = options(place, seed=1, learning_rate_of=str(tmp_path / "0"), **search)
    second = train(takes, task, tmp_path / "1", say=said.append)
    assert any(f"learning rate {first.training['learning_rate']:g}, found by the search in" in one for one in said)
    for name in ("learning_rate", "learning_rates_tried", "learning_rate_is_interior"):
        assert second.training[name] == first.training[name]
    assert [one.training["learning_rate_of_seed"] for one in (first, second)] == [0, 0]
    # It is what this seed gives at that rate, and a repetition of the run that searched.
    alone = train(options(place, seed=1, learning_rate=first.training["learning_rate"]), task, tmp_path / "alone")
    assert alone.training["losses"] == second.training["losses"]
    (entry,) = compare([tmp_path / "0", tmp_path / "1"]).entries
    assert entry.seeds == (0, 1)
    # Taken over from one that took it over, it is still the first one's.
    third = train(replace(takes, seed=2, learning_rate_of=str(tmp_path / "1")), task, tmp_path / "2")
    assert third.training["learning_rate_of_seed"] == 0


def test_a_run_does_not_go_on_at_another_rate(place, tmp_path, monkeypatch):
    task, search = task_of(place), {"learning_rate": "auto", "tries": 3, "lr_steps": 2}
    train(options(place, **search), task, tmp_path / "0")
    changed = json.loads((tmp_path / "0" / "results.json").read_text())
    changed["training"]["learning_rate"] = 0.5
    (tmp_path / "0" / "results.json").write_text(json.dumps(changed))
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_save", lambda self, *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(options(place, seed=1, **search), task, tmp_path / "1")
    other = options(place, seed=1, learning_rate_of=str(tmp_path / "0"), **search)
    with pytest.raises(InputError, match=r"began to train at learning rate .*, and 0\.5 was found now"):
        train(other, task, tmp_path / "1", resume=True)
    train(options(place, seed=1, **search), task, tmp_path / "1", resume=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 5}, "with other steps; only the seed may differ"),
        ({"method": "post-mlp"}, "with other method"),
        ({"rank": 3}, "with other rank"),
        ({"model": "gpt2"}, "with other model"),
        ({"test_examples": 5}, "with other test_examples, test data, test_set"),
        ({"learning_rate": 0.01, "tries": 7, "lr_steps": None}, "add learning_rate='auto'"),
    ],
)
def test_the_search_of_another_configuration_is_refused(place, tmp_path_factory, tmp_path, changes, message):
    task, search = task_of(place), {"learning_rate": "auto", "tries": 3, "lr_steps": 2}
    searched = tmp_path_factory.getbasetemp() / "searched"
    if not searched.exists():
        train(options(place, **search), task, searched)
    if "model" in changes:
        changes = {"model": str(place / changes["model"])}
    with pytest.raises(InputError, match=message):
        train(
            options(place, **({"learning_rate_of": str(searched), "seed": 1} | search | changes)), task, tmp_path / "x"
        )
    assert not (tmp_path / "x").exists()


def test_a_run_that_searched_nothing_has_no_search_to_take_over(place, tmp_path):
    train(options(place), task_of(place), tmp_path / "0")
    with pytest.raises(InputError, match="with other learning_rate"):
        train(
            options(place, learning_rate="auto", learning_rate_of=str(tmp_path / "0")), task_of(place), tmp_path / "1"
        )


def test_a_run_that_diverges_is_refused(place, tmp_path):
    with pytest.raises(InputError, match="diverged with learning rate 1e\\+30"):
        train(options(place, "sft", learning_rate=1e30), task_of(place), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


@pytest.mark.parametrize("constraint", ["none", "output"])
def test_joint_training_that_diverges_loses_the_search(place, tmp_path, constraint):
    run = options(place, "joint", constraint=constraint, learning_rate="auto", tries=3)
    before = digest_of_parameters(loaded(place).model)
    found = train(run, task_of(place), tmp_path / "run")
    history = found.training["joint"]
    assert history[-1]["step"] == run.steps
    assert history[-1]["largest_interaction"] > 0
    assert (history[-1]["largest_write_product"] < 1e-6) == (constraint == "output")
    with pytest.raises(InputError, match="diverged with learning rate"):
        train(replace(run, learning_rate=1e30), task_of(place), tmp_path / "diverged")
    assert digest_of_parameters(loaded(place).model) == before


def test_a_run_that_is_refused_leaves_its_folder_to_the_corrected_one(place, tmp_path):
    folder = tmp_path / "run"
    for changes, message in (
        ({"method": "lofit", "heads": 99}, "heads is 99"),
        ({"max_new_tokens": 5000}, "no prompt fits"),
        ({"max_length": 9}, "examples fits"),
    ):
        with pytest.raises(InputError, match=message):
            train(options(place, **changes), task_of(place), folder)
        assert list(folder.iterdir()) == []
    train(options(place), task_of(place), folder)


def test_prompts_without_room_are_refused_before_training(place, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "fit", None)
    with pytest.raises(InputError, match="no prompt fits"):
        train(options(place, max_new_tokens=5000, learning_rate="auto"), task_of(place), tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("lora", {"bias": False}, "edits no site; leave out bias"),
        ("post-block", {"sparsity": 0.1}, "leave out sparsity"),
        ("post-block", {"lr_steps": 3}, "add learning_rate='auto'"),
    ],
)
def test_what_a_method_has_not_is_refused(place, method, changes, message):
    with pytest.raises(InputError, match=message):
        options(place, method, **changes).check()


def test_nothing_trained_is_the_model_as_it_is(place, tmp_path):
    found = train(options(place, "none", learning_rate="auto"), task_of(place), tmp_path / "run")
    assert (found.trainable_parameters, found.training, found.sites) == (0, {}, ())
    assert not (tmp_path / "run" / "adapter").exists()


def test_long_examples_are_left_out_and_said(place, tmp_path):
    task, said = task_of(place, "boolq"), []
    examples = task.split("train")
    # A byte is a token, and one more ends the sequence.
    sizes = [len((one.prompt + one.completion).encode()) + 1 for one in examples]
    assert min(sizes) < max(sizes)
    limits = options(place, task="boolq", steps=20, before=False)
    whole = train(limits, task, tmp_path / "whole", say=said.append)
    (memory,) = said
    assert memory.startswith("memory about ")
    assert whole.training["train_examples"] == len(examples)
    found = train(replace(limits, max_length=max(sizes) - 1), task, tmp_path / "cut", say=said.append)
    left_out = sizes.count(max(sizes))
    assert found.training["train_examples_too_long"] == left_out
    assert f"{left_out} of {len(examples)} training examples are too long and were left out" in said[1:]
    assert len(said) == 3
    with pytest.raises(InputError, match=f"none of {len(examples)} examples fits"):
        train(replace(limits, max_length=9), task, tmp_path / "none")


@pytest.mark.parametrize("method", ["post-block", "nonlinear", "loreft", "vector", "lofit", "lora", "joint"])
def test_a_bfloat16_base_has_float32_adapters(place, tmp_path, method):
    changes = {"heads": 3} if method == "lofit" else {}
    found = train(options(place, method, dtype="bfloat16", **changes), task_of(place), tmp_path / "run")
    assert all(math.isfinite(loss) for _, loss in found.training["losses"])
    files = list((tmp_path / "run" / "adapter").rglob("adapter_model.safetensors"))
    assert len(files) == (2 if method == "joint" else 1)
    assert {value.dtype for file in files for value in load_file(file).values()} == {torch.float32}
    assert read_results(tmp_path / "run").model.dtype == "bfloat16"


def test_lofit_chooses_heads_once_at_its_own_rate_and_searches_offsets(place, tmp_path):
    run = options(place, "lofit", heads=3, learning_rate="auto", tries=3, lr_steps=2, validation_examples=6)
    stages: list[str] = []

    def show(stage, done, total):
        if stage not in stages:
            stages.append(stage)

    found = train(run, task_of(place), tmp_path / "run", progress=show)
    assert stages.count("scales") == 1
    assert stages.index("scales") < min(stages.index(one) for one in stages if one.startswith("trying"))
    # Which heads they are does not depend on the rate of the offsets.
    other = train(replace(run, learning_rate=0.5, tries=7, lr_steps=None), task_of(place), tmp_path / "other")
    assert other.training["heads"] == found.training["heads"]


@pytest.mark.parametrize("start", ["no-op", "published"])
def test_the_start_slope_of_nonlinear_edits_is_measured_on_real_tokens(place, tmp_path, start):
    found = train(options(place, "nonlinear", start=start), task_of(place), tmp_path / "run").training["start_slopes"]
    assert set(found) == {"0.resid_post", "1.resid_post"}
    for slope, share in found.values():
        assert 0 < slope < 1.1  # of SiLU: at most 1.0998
        assert start == "no-op" or slope == pytest.approx(0.5, abs=1e-3)
        assert 0 < share <= 1 + 1e-9
        assert (share > 0.999) == (start == "published")
    assert read_results(tmp_path / "run").settings.get("start") == (None if start == "no-op" else start)


def test_edits_start_as_published_where_asked(place):
    usual = build(loaded(place), options(place, "loreft"), [])
    assert torch.equal(usual.model.edit_at("0.resid_post").b, torch.zeros(2))
    published = build(loaded(place), options(place, "loreft", start="published"), [])
    assert float(published.model.edit_at("0.resid_post").b.detach().abs().min()) > 0
    with pytest.raises(InputError, match="leave out positions, scale and start"):
        options(place, "lora", start="published").check()
    with pytest.raises(InputError, match="has one start"):
        options(place, "vector", start="published").check()


def test_generated_examples_are_as_many_as_the_steps_need():
    task = get_task("listops")
    run = TrainOptions("listops", "post-block", steps=330, batch_size=32, test_examples=2)
    parts = draw_parts(task, run)
    assert len({one.prompt for one in parts.train}) == 330 * 32 > 10_000
    fewer = draw_parts(task, replace(run, steps=2))
    assert parts.train[:64] == fewer.train
    assert len(draw_parts(task, replace(run, train_examples=50)).train) == 50


# --- before training -----------------------------------------------------------------------------------------


def stages(run, task, out, **more):
    """Train, and return the results with the stages that progress told of and what was said."""
    seen, said = [], []
    found = train(run, task, out, progress=lambda stage, done, total: seen.append(stage), say=said.append, **more)
    return found, set(seen), " ".join(said)


def test_the_untrained_model_is_asked_the_same_questions_first(place, tmp_path):
    task = task_of(place)
    alone = train(options(place, "none"), task, tmp_path / "elsewhere" / "none")
    found, seen, said = stages(options(place), task, tmp_path / "runs" / "run")
    before = found.before
    assert {"generate_before", "generate"} <= seen
    assert said.count("before training: test accuracy") == 1
    assert replace(before, seconds=0.0) == replace(alone.evaluation, seconds=0.0)
    assert before.test_set == found.test_set
    assert found.outcome.startswith(found.line + "; before training ")
    assert found.outcome in str(found)
    kept = read_results(tmp_path / "runs" / "run")
    assert kept.before == before
    # Results that contradict themselves are refused.
    path = tmp_path / "runs" / "run" / "results.json"
    values = json.loads(path.read_text())
    values["before"]["test_set"] = "0" * 64
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="other questions before the training"):
        read_results(tmp_path / "runs" / "run")


def test_a_folder_beside_the_run_spares_the_evaluation(place, tmp_path):
    task = task_of(place)
    train(options(place, "none"), task, tmp_path / "none")
    found, seen, said = stages(options(place), task, tmp_path / "run")
    assert "generate_before" not in seen
    assert f"(as {str(tmp_path / 'none')!r} has it of the same model and questions)" in said
    (tmp_path / "none" / "results.json").unlink()
    again, seen, _ = stages(options(place, seed=1), task, tmp_path / "other seed")  # from a training
    assert "generate_before" not in seen
    assert again.before == found.before
    _, seen, _ = stages(options(place, seed=2, test_examples=5), task, tmp_path / "other questions")
    assert "generate_before" in seen
    _, seen, _ = stages(options(place, seed=3, dtype="float64"), task, tmp_path / "other model")
    assert "generate_before" in seen
    (tmp_path / "run" / "results.json").write_text("{")
    (tmp_path / "other seed" / "results.json").unlink()
    _, seen, _ = stages(options(place, seed=4), task, tmp_path / "beside a damaged one")
    assert "generate_before" in seen


def test_without_it_nothing_is_asked_before(place, tmp_path):
    found, seen, said = stages(options(place, before=False), task_of(place), tmp_path / "run")
    assert (found.before, found.outcome) == (None, found.line)
    assert "generate_before" not in seen
    assert "before training" not in said
