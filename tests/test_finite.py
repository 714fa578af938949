"""No number is made from a NaN or an infinity: the first one ends the work with one sentence."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from steerscope import Ranking, RankOptions, first_order_shift, rank_sites, remainder_slope
from steerscope.analysis.data.examples import Example
from steerscope.analysis.scoring.intervals import spearman
from steerscope.analysis.scoring.scores import relative_length
from steerscope.analysis.scoring.scores.learnable_share import quick_share
from steerscope.analysis.theory.common import block_tensors, explained, explained_per_token, streams
from steerscope.equivalence.propositions.catalogue import propositions
from steerscope.errors import InputError
from steerscope.experiments.engine import EditPack, RunSpec, train_pack
from steerscope.experiments.engine.held_out import hold_out
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.engine.store import RunStore
from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.evaluation.likelihood import choice_log_likelihoods, completion_loss
from steerscope.experiments.finetune import mean_loss, short_finetune
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.tasks.task import TaskExample
from steerscope.experiments.training.data import draw_parts, supervised
from steerscope.experiments.training.run import Run
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.result import Validation
from steerscope.experiments.validation.validate import validate_ranking
from steerscope.experiments.verification.run import VerifyOptions, verify_model
from steerscope.files import parse_json
from steerscope.finite import NotFiniteError, require_finite, require_finite_record
from steerscope.models import wrap_model
from steerscope.steering import SteeringConfig, get_steering_model
from steerscope.steering.oracles import Oracles, fitted_map
from tests.byte_models import VOCAB, byte_model, byte_tokenizer
from tests.cli.runs import lines, one_sentence, run, write_jsonl
from tests.experiments.tasks.rows import write_task
from tests.experiments.training.tiny_runs import loaded as loaded_run
from tests.experiments.training.tiny_runs import make_place, task_of
from tests.experiments.training.tiny_runs import options as run_options
from tests.reports.ranking_cases import bare
from tests.splits import splits_of_examples
from tests.tiny import tiny_model, tiny_tokenizer

PACKAGE = Path(__file__).parents[1] / "steerscope"
NAN = float("nan")
BEYOND = r"(is|are) (NaN|infinite).*(load the model in float32 or bfloat16|train)"


def overflowing(model, token: int):
    """Let activations pass what float16 holds at one token; without it they stay far below."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = 65000
        model.get_decoder().layers[0].mlp.down_proj.weight *= 2000
    return model.half()


def byte_loaded(token: str = "M"):
    return wrap_model(overflowing(byte_model(), byte_tokenizer()(token)["input_ids"][0]), byte_tokenizer())


# --- the command line ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overflow")
    loaded = byte_loaded()
    loaded.model.save_pretrained(folder / "model")
    loaded.tokenizer.save_pretrained(folder / "model")
    (folder / "data").mkdir()
    write_task(folder / "data", "listops")
    write_task(folder / "data", "boolq")
    write_jsonl(folder / "data.jsonl", lines(60))
    return folder


HALF = ("--dtype", "float16", "--quiet")
COMMANDS = {
    "rank": ("--data", "{data.jsonl}"),
    "evaluate": ("--task", "listops", "--max-examples", "4", "--max-new-tokens", "8"),
    "evaluate without likelihoods": (
        "--task", "listops", "--max-examples", "4", "--max-new-tokens", "8", "--no-likelihoods",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_whose_activations_overflow_is_refused_in_one_sentence(place, capsys, name):
    command = name.split()[0]
    given = [part if part[0] != "{" else place / part[1:-1] for part in COMMANDS[name]]
    assert run(command, place / "model", *given, *HALF) == 2
    out, err = capsys.readouterr()
    assert out == ""
    said = one_sentence(err)
    assert "NaN" in said or "infinite" in said
    assert "load the model in float32 or bfloat16 (--dtype)" in said


def test_a_validation_is_refused_and_a_training_that_diverged_is_an_outcome(tmp_path):
    loaded = wrap_model(tiny_model("gemma2", num_hidden_layers=4), tiny_tokenizer())
    with torch.no_grad():  # gemma multiplies embeddings by the root of the width: this one passes float32's end
        loaded.model.get_input_embeddings().weight[loaded.tokenizer("MED")["input_ids"][0]] = 2e38
    good, bad = (
        hold_out([(f"{word}{e.prompt}", e.completion, e.choices) for e in EXAMPLES], loaded.tokenizer, 64, loaded.model)
        for word in ("", "MED ")
    )
    schedule = Schedule(steps=2, batch_size=4, warmup=0)

    def trained(part, rate):
        pack = EditPack(loaded, [RunSpec(SteeringConfig(sites="2.resid_post", rank=2), rate)])
        return train_pack(pack, {0: part.sequences[:8]}, schedule)[0]

    with pytest.raises(NotFiniteError, match="the loss of the first step"):
        trained(bad, 0.01)
    assert not trained(good, 0.01).diverged
    assert trained(good, 1e30).diverged
    splits = splits_of_examples("med", [replace(e, prompt=f"MED {i} {e.prompt}") for i, e in enumerate(EXAMPLES * 20)])
    options = ValidateOptions(sites=6, seeds=1, steps=4, batch_size=4, num_ranking=24, num_selection=16, num_test=16)
    with pytest.raises(NotFiniteError, match=BEYOND):
        validate_ranking(loaded, splits, options, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_rate_whose_training_diverges_is_an_outcome_of_the_search(tmp_path):
    place = make_place(tmp_path)
    found = Run(
        loaded_run(place),
        run_options(place, learning_rate="auto", tries=2),
        draw_parts(task_of(place), run_options(place, learning_rate="auto", tries=2)),
        tmp_path / "run",
        lambda *_: None,
        lambda _: None,
    )
    sequences, _ = supervised(found.parts, found.loaded, found.options)
    assert found._validation_loss(sequences, 1e30, 4) is None
    assert found._validation_loss(sequences, 1e-3, 4) > 0
    with pytest.raises(
        NotFiniteError, match=r"the loss of step \d is .*diverged with learning rate 1e\+30: give a smaller"
    ):
        found._fit(sequences, 1e30, 4, "train", keeps=False)
    with torch.no_grad():
        found.loaded.model.get_input_embeddings().weight[byte_tokenizer()("M")["input_ids"][0]] = 3e38
        found.loaded.model.get_decoder().norm.weight.fill_(3e38)
    with pytest.raises(NotFiniteError, match="the loss of the first step is"):
        found._fit(sequences, 1e-3, 4, "train", keeps=False)


def test_the_same_model_in_float32_is_not_refused(place, capsys):
    given = ("--task", "listops", "--max-examples", "4", "--max-new-tokens", "8", "--dtype", "float32", "--quiet")
    assert run("evaluate", place / "model", *given) == 0
    assert "accuracy" in capsys.readouterr().out


def test_verify_is_refused(tmp_path):
    model = tiny_model("gpt2", dtype=torch.float64)
    with torch.no_grad():  # finite each, and not their sum
        model.transformer.wpe.weight[8] = 1e308
        model.transformer.wte.weight[:] = model.transformer.wte.weight.where(torch.arange(64)[:, None] < 4, 1e308)
    loaded = None
    with pytest.raises(InputError, match=r"(is|are) (NaN|infinite)"):
        loaded = wrap_model(model, tiny_tokenizer())
    assert loaded is None
    model = tiny_model("gpt2", dtype=torch.float64)
    loaded = wrap_model(model, tiny_tokenizer())
    with torch.no_grad():
        model.transformer.wpe.weight[7:] = 1.7e308
        model.transformer.h[0].mlp.c_proj.bias[:] = 1.7e308
    options = VerifyOptions(quick=True)
    with pytest.raises(InputError, match=r"a logit of this model is (NaN|infinite)"):
        verify_model(lambda dtype: loaded, propositions("P7"), options)


# --- doors of Python ---

CHOICES = (" 1", " 2", " 3")
WORDS = [f"[ MAX {i % 7} {i % 5} {i} ] =" for i in range(24)]
EXAMPLES = [Example(text, CHOICES[i % 3], CHOICES, i % 3) for i, text in enumerate(WORDS)]
ASKED = [TaskExample(text, "7", answer="7", choices=("7", "8"), answer_index=0) for text in ("MAX 7\n", "MAX 8\n")]


@pytest.fixture(scope="module")
def half():
    return wrap_model(overflowing(tiny_model("llama"), tiny_tokenizer()("MAX")["input_ids"][0]), tiny_tokenizer())


@pytest.mark.parametrize(
    "measure",
    [
        lambda m: generate(m.model, m.tokenizer, ["MAX 7\n"], max_new_tokens=3),
        lambda m: choice_log_likelihoods(m.model, m.tokenizer, ASKED),
        lambda m: completion_loss(m.model, m.tokenizer, ASKED),
    ],
    ids=["generate", "likelihood", "loss"],
)
def test_evaluation(measure):
    with pytest.raises(NotFiniteError, match=BEYOND):
        measure(byte_loaded())


def test_generation_that_never_reads_the_token_is_not_refused():
    loaded = byte_loaded()
    found = generate(loaded.model, loaded.tokenizer, ["ask\n", "as"], max_new_tokens=3)
    assert all(one.num_tokens for one in found)


@pytest.mark.parametrize("batch_size", [1, 24])
@pytest.mark.parametrize("completion", [False, True])
def test_rankings(half, batch_size, completion):
    examples = [Example(e.prompt, e.completion) for e in EXAMPLES] if completion else EXAMPLES
    with pytest.raises(NotFiniteError, match=BEYOND):
        rank_sites(half, examples, RankOptions(batch_size=batch_size))


def test_measurements(half):
    ids = half.tokenizer("[ MAX 7 ] =", return_tensors="pt")["input_ids"]
    update = {"model.layers.0.mlp.up_proj.weight": torch.ones(20, 16)}
    calls = [
        partial(mean_loss, half, EXAMPLES),
        partial(streams, half, ids, [1]),
        partial(block_tensors, half, ids, [1]),
        partial(first_order_shift, half, update, {"input_ids": ids}),
        partial(remainder_slope, half, update, {"input_ids": ids}),
    ]
    for call in calls:
        with pytest.raises(NotFiniteError, match=BEYOND):
            call()
    steered = get_steering_model(half, SteeringConfig(sites=("1.resid_post",), rank=2, scale="rms"))
    with pytest.raises(NotFiniteError, match=r"what the site '1\.resid_post' reads is (NaN|infinite)"):
        steered.measure_scales([{"input_ids": ids}])
    steered.unload()
    with pytest.raises(NotFiniteError, match="divergence from the fine-tuned model"):
        Oracles(tiny_model("llama"), half.model.float().half()).kl([{"input_ids": ids}], (), "none")


def test_a_fine_tuning_names_what_to_change():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(NotFiniteError, match=r"Use a smaller learning rate than 1e\+30"):
        short_finetune(loaded, EXAMPLES, steps=3, learning_rate=1e30)
    bad = wrap_model(tiny_model("llama"), tiny_tokenizer())
    with torch.no_grad():
        bad.model.lm_head.weight[:] = 3e38
    with pytest.raises(NotFiniteError, match=r"loss of step 1 is .* load the model in float32"):
        short_finetune(bad, EXAMPLES, steps=1)


def test_a_merge_changes_nothing_where_an_edit_is_no_number():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    steered = get_steering_model(loaded, SteeringConfig(sites=("0.mlp_out", "1.mlp_out"), rank=2, bias=False))
    with torch.no_grad():
        steered.edit_at("1.mlp_out").U.fill_(float("nan"))
    before = {name: value.clone() for name, value in loaded.model.named_parameters()}
    with pytest.raises(NotFiniteError, match=r"the edit at '1\.mlp_out' is NaN.*train it again"):
        steered.merge_and_unload()
    assert all(torch.equal(before[name], value) for name, value in loaded.model.named_parameters())


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_numbers_of_kernels_and_shifts(value):
    kernel = torch.eye(4, dtype=torch.float64)
    kernel[1, 1] = value
    shift = torch.tensor([[1.0, value]])
    for call in (
        partial(quick_share, kernel, None),
        partial(relative_length, kernel, 1.0, 1.0),
        partial(spearman, kernel[1], kernel[0]),
        partial(explained, shift, shift),
        partial(explained_per_token, shift, shift),
        partial(fitted_map, shift.repeat(4, 1), shift.repeat(4, 1), 1, 1e-3),
    ):
        with pytest.raises(NotFiniteError, match=r"is (NaN|infinite)"):
            call()


def test_what_is_undefined_is_none_and_not_nan():
    assert fitted_map(torch.randn(9, 3), torch.zeros(9, 3), 1, 1e-3).fitted is None
    assert spearman(torch.zeros(4), torch.arange(4.0)) is None


# --- records and files ---


def test_a_ranking_made_in_python():
    good = bare()
    site = replace(good.sites[0], score=NAN)
    with pytest.raises(InputError, match=r"the ranking holds .*\(sites\[0\]\.score\)"):
        replace(good, sites=(site,))
    with pytest.raises(InputError, match=r"\(outputs\.model_loss\)"):
        replace(good, outputs=replace(good.outputs, model_loss=float("-inf")))


@pytest.mark.parametrize("spelled", ["NaN", "-Infinity", "1e999"])
def test_records_read_from_files(tmp_path, spelled):
    text = bare().to_json()
    name = json.loads(text)["sites"][0]["score"]
    assert f'"score": {name}' in text
    bad = text.replace(f'"score": {name}', f'"score": {spelled}')
    with pytest.raises(InputError, match="not a ranking"):
        Ranking.from_json(bad)
    (tmp_path / "one.json").write_text(f'{{"schema_version": 1, "loss": {spelled}}}')
    for load in (Evaluation.load, Validation.load):
        with pytest.raises(InputError, match="is no finite number"):
            load(tmp_path / "one.json")
    store = RunStore(tmp_path)
    store.put({"seed": 0}, {"loss": float("inf")}, {})
    assert store.get({"seed": 0}) == {"loss": float("inf"), "config": {"seed": 0}}  # diverged, in a word
    (kept,) = [path for path in tmp_path.glob("*.json") if path.name != "one.json"]
    kept.write_text(kept.read_text().replace('"infinite"', spelled))
    with pytest.raises(InputError, match="cannot be read"):
        store.get({"seed": 0})


def test_json_is_read_as_python_reads_it_otherwise():
    text = '{"a": [1, 2.5, -1e-3, null, true], "b": {"c": "NaN"}}'
    assert parse_json(text) == json.loads(text)


def test_what_the_checks_let_through():
    require_finite("it", torch.zeros(0), torch.tensor([1, 2]), 0.0, torch.tensor([65504.0]).half())
    require_finite_record("it", {"a": [None, 1, "nan", {"b": (0.0,)}]}, "")
    for bad in (NAN, torch.tensor([1.0, NAN])):
        with pytest.raises(NotFiniteError, match=r"^it is NaN; expected a finite number"):
            require_finite("it", bad)


def test_every_writer_of_json_refuses_nan():
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dumps", "json.dump"):
                options = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if options.get("allow_nan") != "False":
                    found.append(f"{file.name}:{node.lineno}")
    assert found == []


def test_an_evaluation_of_a_model_that_overflows_reports_nothing():
    loaded = byte_loaded()
    from steerscope.experiments.tasks import get_task

    form = get_task("listops").form
    with pytest.raises(NotFiniteError, match="largest logit"):
        evaluate(loaded.model, loaded.tokenizer, form, ASKED, likelihoods=False, max_new_tokens=2)
    assert loaded.model.get_input_embeddings().weight.shape[0] == VOCAB
