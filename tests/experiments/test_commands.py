"""What the commands do, from Python: a model in memory or by name, the same results, and the model as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

import steerscope
from steerscope import (
    EvaluateOptions,
    FileTask,
    InputError,
    Ranking,
    SearchOptions,
    SiteTable,
    SteeringConfig,
    SteeringModel,
    SweepOptions,
    TrainOptions,
    ValidateOptions,
    Validation,
    VerifyOptions,
    evaluate,
    get_steering_model,
    load_model,
    propositions,
    search,
    sweep,
    train,
    validate,
    verify,
    wrap_model,
)
from steerscope.models.weight_hashes import digest_of_parameters
from steerscope.steering import steered_by
from tests.byte_models import byte_model, byte_tokenizer
from tests.cli.runs import lines, run, save_model, write_jsonl

SMALL = TrainOptions(rank=2, steps=3, batch_size=4, test_examples=6, learning_rate=0.01, likelihoods=False)
ASKED = EvaluateOptions(max_examples=6, likelihoods=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    byte_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture
def loaded(place):
    return load_model(place / "model")


def written(loaded) -> torch.Tensor:
    """Return what the model gives, so that an adapter left on it shows."""
    return loaded.model(**loaded.tokenizer("[MAX 3 5]=", return_tensors="pt")).logits


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """A run of each sort, trained on one model in memory; its outputs before and after."""
    folder, loaded = tmp_path_factory.mktemp("runs"), load_model(place / "model")
    before = written(loaded)
    found = {
        method: train(
            loaded, "listops", replace(SMALL, method=method, rank=None if method == "sft" else 2), folder / method
        )
        for method in ("post-block", "lora", "sft")
    }
    assert torch.equal(written(loaded), before)
    return folder, found


def plain(results) -> dict:
    clocks = (
        "seconds",
        "tokens_per_second",
        "peak_memory",
        "model",
        "training",
        "evaluation",
        "before",
        "model_from_files",
    )
    return {name: value for name, value in vars(results).items() if name not in clocks}


def test_a_model_in_memory_trains_as_the_same_model_by_name(place, trained, tmp_path):
    folder, found = trained
    again = train(place / "model", "listops", SMALL, tmp_path / "run")
    assert plain(again) == plain(found["post-block"])
    assert again.training["losses"] == found["post-block"].training["losses"]
    assert again.test_accuracy == found["post-block"].test_accuracy
    assert again.before.correct == found["post-block"].before.correct
    weights = [where / "adapter" / "adapter_model.safetensors" for where in (folder / "post-block", tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("method", ["post-block", "lora", "sft"])
def test_a_model_in_memory_is_evaluated_with_an_adapter_and_is_then_as_it_was(place, trained, loaded, method):
    folder, found = trained
    before, digest = written(loaded), digest_of_parameters(loaded.model)
    tested = evaluate(loaded, "listops", ASKED, adapter=folder / method)
    assert tested.correct == found[method].correct
    assert torch.equal(written(loaded), before)
    assert digest_of_parameters(loaded.model) == digest
    named = evaluate(place / "model", "listops", ASKED, adapter=folder / method)
    assert (named.correct, named.test_set) == (tested.correct, tested.test_set)


def test_an_interrupted_test_leaves_the_model_as_it_was(loaded, tmp_path, monkeypatch):
    before = written(loaded)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("steerscope.experiments.training.run.evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(loaded, "listops", SMALL, tmp_path / "run")
    assert torch.equal(written(loaded), before)
    assert steered_by(loaded.model) is None


def test_an_adapter_that_fails_in_use_comes_off(trained, loaded):
    before = written(loaded)

    def stop(stage, done, total):
        if stage == "generate":
            raise KeyboardInterrupt

    for method in trained[1]:
        with pytest.raises(KeyboardInterrupt):
            evaluate(loaded, "listops", ASKED, adapter=trained[0] / method, progress=stop)
        assert torch.equal(written(loaded), before)


def test_a_float64_model_in_memory_is_trained_in_float64(place, tmp_path):
    exact = load_model(place / "model", dtype="float64")
    train(exact, "listops", SMALL, tmp_path / "run")
    weights = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float64}


def test_the_command_is_the_function(place, tmp_path, capsys):
    evaluated = ["evaluate", place / "model", "--max-examples", 6, "--no-likelihoods", "--quiet"]
    assert run(*evaluated) == 0
    assert capsys.readouterr().out.splitlines()[-1] == evaluate(place / "model", "listops", ASKED).line
    assert run("verify", "--only", "P1,P7", "--json", "-", "--quiet") == 0
    said = json.loads(capsys.readouterr().out)
    found = json.loads(verify(only=["P1", "P7"]).to_json())
    kept = [[(one["name"], one["verdict"]) for one in each["propositions"]] for each in (said, found)]
    assert kept[0] == kept[1] == [("P1", "holds"), ("P7", "holds")]


def test_a_validation(tmp_path):
    loaded = load_model(save_model(tmp_path / "model"))
    task = FileTask.read(write_jsonl(tmp_path / "data.jsonl", lines(240)))
    options = ValidateOptions(
        sites=6, seeds=1, rank=2, steps=2, batch_size=4, num_ranking=24, num_selection=16, num_test=16, references=False
    )
    digest = digest_of_parameters(loaded.model)
    found = validate(loaded, task, options, tmp_path / "out")
    assert digest_of_parameters(loaded.model) == digest
    assert Validation.load(tmp_path / "out" / "validation.json") == found
    ranking = Ranking.load(tmp_path / "out" / "ranking.json")
    assert ranking.evidence.spearman == found.agreements[found.score].spearman
    assert not {"device", "dtype", "revision", "trust_remote_code"} & set(found.as_dict()["options"])
    again = validate(loaded, task, options, tmp_path / "out")  # goes on; nothing is left to do
    assert again.sites == found.sites
    steerscope.write_report(ranking, tmp_path / "out")
    assert (tmp_path / "out" / "index.html").is_file()


def test_a_search_and_a_sweep(tmp_path):
    loaded = load_model(save_model(tmp_path / "model"))
    task = FileTask.read(write_jsonl(tmp_path / "data.jsonl", lines(240)))
    before, sizes = digest_of_parameters(loaded.model), {"batch_size": 4, "num_selection": 16, "num_test": 16}
    found = search(
        loaded,
        task,
        SearchOptions(candidates=2, steps=10, num_ranking=24, sets=False, references=False, rank=2, **sizes),
        tmp_path / "search",
    )
    assert SteeringModel.from_pretrained(loaded, found.adapter).unload() is loaded.model
    table = sweep(
        loaded,
        task,
        SweepOptions(sites=("0.resid_post", "1.mlp_out"), seeds=1, steps=4, longer=0, rates=(1e-2,), rank=2, **sizes),
        tmp_path / "sweep",
    )
    assert SiteTable.load(tmp_path / "sweep" / "table.json") == table
    assert [str(one.site) for one in table.outcomes()] == ["0.resid_post", "1.mlp_out"]
    assert digest_of_parameters(loaded.model) == before


def test_a_verification_of_a_model(place):
    asked = []

    def load(dtype):
        asked.append(dtype)
        return load_model(place / "model", dtype=dtype)

    quick = VerifyOptions(quick=True)
    found = verify(load, quick, only="P1")
    assert asked == ["float64"]
    named = verify(place / "model", quick, only="P1")
    assert found.propositions[0].claims == named.propositions[0].claims
    assert not {"revision", "trust_remote_code"} & set(named.as_dict()["settings"])


def test_propositions():
    every = propositions()
    assert [one.name for one in every] == [f"P{number}" for number in range(1, 47)]
    assert [one.number for one in propositions("p23,P7")] == [7, 23]


REFUSED = {
    "a model of transformers": (lambda m, f: evaluate(m.model, "listops"), "expected a name, load_model"),
    "no task": (lambda m, f: evaluate(m, 5), "task is a int; expected the name of a task"),
    "a task's name with a slip": (lambda m, f: train(m, "listop", SMALL, f), "Did you mean 'listops'"),
    "options of another sort": (lambda m, f: train(m, "listops", ASKED, f), "expected TrainOptions"),
    "two tasks": (lambda m, f: train(m, "listops", replace(SMALL, task="boolq"), f), "task is 'boolq' in the options"),
    "two models": (lambda m, f: train("other", "listops", replace(SMALL, model="one"), f), "model is 'one' in the"),
    "a data type of a loaded model": (
        lambda m, f: train(m, "listops", replace(SMALL, dtype="float64"), f), "dtype is 'float64', and the model is",
    ),
    "a revision of a loaded model": (
        lambda m, f: evaluate(m, "listops", replace(ASKED, revision="main")), "revision is 'main', and the model is",
    ),
    "no such part": (lambda m, f: evaluate(m, "listops", EvaluateOptions(split="tests")), "Did you mean 'test'"),
    "no questions": (lambda m, f: evaluate(m, "listops", EvaluateOptions(max_examples=0)), "max_examples is 0"),
    "a loaded model to verify": (lambda m, f: verify(m), "which has one data type"),
    "no such proposition": (lambda m, f: verify(only="P99"), "unknown proposition 'P99'"),
    "a revision of a loaded model to search": (
        lambda m, f: search(m, "listops", SearchOptions(revision="main"), f), "revision is 'main', and the model is",
    ),
    "no sweep's options": (lambda m, f: sweep(m, "listops", ASKED, f), "expected SweepOptions"),
    "a rate of zero": (lambda m, f: sweep(m, "listops", SweepOptions(rates=(0.0,)), f), "rates has 0.0; expected"),
    "a data type that does not train": (
        lambda m, f: validate("m", "listops", ValidateOptions(dtype="bfloat16"), f), "trains in float32 or float64",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_any_work(loaded, tmp_path, monkeypatch, case):
    monkeypatch.setattr("steerscope.models.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    call, said = REFUSED[case]
    with pytest.raises(InputError, match=said):
        call(loaded, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_under_an_adapter_is_refused(loaded, tmp_path):
    """Its numbers would be those of the edits, under the name of the model alone."""
    steered = get_steering_model(loaded, SteeringConfig("resid_post", rank=2))
    for call in (lambda: evaluate(loaded, "listops", ASKED), lambda: train(loaded, "listops", SMALL, tmp_path / "run")):
        with pytest.raises(InputError, match=r"is being steered by an adapter\. Call unload"):
            call()
    steered.unload()
    assert evaluate(loaded, "listops", ASKED).n == 6


def test_peft_on_the_model_stays():
    """A LoRA that a user put on the model is part of it."""
    torch.manual_seed(0)
    lora = get_peft_model(byte_model(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    loaded = wrap_model(lora, byte_tokenizer(), name="with a LoRA")
    before = written(loaded)
    evaluate(loaded, "listops", ASKED)
    assert torch.equal(written(loaded), before)
