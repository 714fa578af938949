"""A message names options as they are called where it appears: dashes at the command line, fields in Python."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import steerscope.experiments.training.train
import steerscope.experiments.verification.run
import steerscope.models
from steerscope.analysis.scoring.options import RankOptions
from steerscope.cli import app
from steerscope.errors import InputError, typed, words
from steerscope.experiments.evaluation.command import EvaluateOptions
from steerscope.experiments.searching import SearchOptions
from steerscope.experiments.sweeping import SweepOptions
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.verification.run import VerifyOptions
from steerscope.steering import SteeringConfig
from tests.cli.runs import one_sentence, run

COMMANDS = typer.main.get_command(app).commands
CLASSES = (
    RankOptions, EvaluateOptions, TrainOptions, SearchOptions, SweepOptions, ValidateOptions, VerifyOptions,
    SteeringConfig,
)  # fmt: skip
FIELDS = {one.name for made in CLASSES for one in fields(made)}
# What has to be refused before a model is loaded, so that none of the cases below is skipped unseen.
REFUSED = {
    "rank": {"data", "max_examples", "score", "seed", "kinds", "num_probes", "rank", "budget", "max_sites",
             "batch_size", "limit", "json"},
    "train": {"task", "method", "site", "rank", "positions", "activation", "constraint", "heads", "sparsity", "start",
              "steps", "batch_size", "learning_rate", "learning_rate_of", "tries", "lr_steps", "warmup", "seed",
              "data_dir", "train_examples", "validation_examples", "test_examples", "max_length", "max_new_tokens",
              "eval_batch_size", "save_every", "dtype"},
    "validate": {"data", "task", "sites", "rank", "seeds", "steps", "batch_size", "num_ranking",
                 "num_test", "dtype", "seed"},
    "search": {"task", "candidates", "start", "family", "rank", "scale", "steps", "batch_size", "budget",
               "num_ranking", "num_selection", "num_test", "seed"},
    "sweep": {"task", "sites", "family", "rank", "scale", "rates", "seeds", "steps", "batch_size", "budget",
              "num_selection", "num_test", "seed"},
    "evaluate": {"task", "adapter", "split", "max_examples", "data_dir", "batch_size", "max_new_tokens"},
    "verify": {"only", "json", "seed"},
}  # fmt: skip


# Little data where an option is not refused before it is drawn.
SMALL = {
    "rank": ["--max-examples=24"],
    "train": ["--steps=1", "--batch-size=1", "--max-examples=2"],
    "validate": ["--max-examples=24", "--test-examples=16"],
    "search": ["--max-examples=24", "--test-examples=16", "--selection-examples=16"],
    "sweep": ["--test-examples=16", "--selection-examples=16"],
    "evaluate": ["--max-examples=2"],
}


class Loaded(Exception):
    """Nothing was refused before the model."""


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    def load(*arguments, **options):
        raise Loaded

    for module in (
        steerscope.models,
        steerscope.experiments.training.train,
    ):
        monkeypatch.setattr(module, "load_model", load)
    monkeypatch.setattr(steerscope.experiments.verification.run, "verify_random", load)
    monkeypatch.chdir(tmp_path)


def sentences_of(command: str, option: str, values, capsys) -> list[str]:
    said = []
    for value in values:
        try:
            code = run(
                command, "--quiet", *SMALL.get(command, ()), *([option] if value is None else [f"{option}={value}"])
            )
        except Loaded:
            capsys.readouterr()
            continue
        err = capsys.readouterr().err
        assert code == 2, (command, option, value, err)
        said.append(one_sentence(err) if "Usage:" not in err else "")
    return said


def check_names(said: str, command: str) -> None:
    known = {name for one in COMMANDS[command].params for name in (*one.opts, *one.secondary_opts)}
    for name in re.findall(r"(?<![\w-])--[a-z][a-z-]*", said):
        assert name in known, said
    for name in FIELDS:
        assert not re.search(rf"(?<![\w'/.-]){name}(?==)", said), said
        assert "_" not in name or not re.search(rf"(?<![\w'/.-]){name}(?![\w'/.-])", said), said


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_says_whether_it_takes_a_value(unloaded, capsys, command):
    options = [one for one in COMMANDS[command].params if one.opts[0].startswith("-")]
    assert len(options) > 2
    for one in options:
        name = one.opts[0]
        if one.is_flag:
            for typed in ([f"{name}=true"], [name, "False"], [name, "0"]):
                assert run(command, *typed) == 2
                said = one_sentence(capsys.readouterr().err)
                assert f"{name} takes no value, it is on where it is typed. Type {name}, or " in said
            if one.secondary_opts:
                assert f"or {one.secondary_opts[0]}." in said
            continue
        for follows, told in (
            ([], "nothing"),
            (["--", "3"], "nothing"),
            (["--quiet"], "the option --quiet"),
            ([f"{name}=1"], "the option "),
        ):
            if follows == ["--quiet"] and not any("--quiet" in other.opts for other in options):
                continue
            assert run(command, name, *follows) == 2
            said = one_sentence(capsys.readouterr().err)
            assert f"{name} takes a value, and {told}" in said
            assert f"expected: {one.help.rstrip('.')}. Type {name} VALUE." in said


def test_no_value_behind_the_sign_is_none(unloaded, capsys):
    assert run("train", "model", "--scale=", "rms") == 2
    assert "--scale takes a value, and nothing follows it" in one_sentence(capsys.readouterr().err)


def test_scale_without_its_value(unloaded, capsys):
    assert run("train", "model", "--scale", "--steps", "3") == 2
    said = one_sentence(capsys.readouterr().err)
    assert "--scale takes a value, and the option --steps follows it; expected: rms: divide" in said


def test_a_value_may_look_like_an_option(unloaded, capsys):
    assert run("rank", "--quiet", "--seed", "-1") == 2  # a number below zero is none
    assert "--seed is -1; expected an integer from 0" in one_sentence(capsys.readouterr().err)
    assert run("rank", "--no-such", "--seed") == 2
    assert "--seed takes a value" in capsys.readouterr().err


@pytest.mark.parametrize("command", REFUSED)
def test_bad_values_of_every_option(unloaded, capsys, command):
    found = set()
    for one in COMMANDS[command].params:
        option = one.opts[0]
        if not option.startswith("--") or one.name in ("out", "quiet"):
            continue
        values = (None,) if getattr(one, "is_flag", False) else ("0", "-1", "nonsense", "no/such/place")
        if one.name == "json":  # any other value is the name of a file that could be written
            values = ("no/such/place",)
        for said in sentences_of(command, option, values, capsys):
            check_names(said, command)
            if said:
                found.add(one.name)
    assert found >= REFUSED[command], REFUSED[command] - found


PAIRS = [
    ("train", ["--method=sft", "--rank=2"], "leave out --rank"),
    ("train", ["--method=lora", "--site=resid_post"], "leave out --site"),
    ("train", ["--method=lora", "--no-bias"], "leave out --bias"),
    ("train", ["--method=lora", "--scale=rms"], "leave out --positions, --scale and --start"),
    ("train", ["--method=loreft", "--scale=rms"], "got --scale rms. Leave it out"),
    ("train", ["--method=vector", "--rank=2"], "has no rank; got --rank 2. Leave it out"),
    ("train", ["--activation=silu"], "Use --method nonlinear"),
    ("train", ["--heads=2"], "leave out --heads, or use --method lofit"),
    ("train", ["--constraint=input"], "use --method joint"),
    ("train", ["--method=sft", "--dtype=bfloat16"], "Use --dtype float32"),
    ("train", ["--lr-steps=3"], "--lr-steps is of the search for a learning rate; add --learning-rate auto"),
    ("train", ["--learning-rate=auto", "--tries=2"], "--tries is 2; expected at least 3"),
    ("train", ["--max-examples=0"], "--max-examples is 0; expected at least 1"),
    ("train", ["--task=gsm8k", "--data-dir=no/such/place"], "there is no folder 'no/such/place'"),
    ("rank", ["--probes=0"], "--probes is 0; expected at least 1"),
    ("validate", ["--max-examples=3"], "--max-examples is 3; expected at least 24"),
    ("validate", ["--test-examples=3"], "--test-examples is 3; expected at least 16"),
    ("validate", ["--task=listops_gen"], "give the folder that holds them (--data-dir)"),
    ("validate", ["--sites=3"], "--sites asks for 3; expected at least 6"),
]


@pytest.mark.parametrize(("command", "options", "part"), PAIRS, ids=[" ".join(case[1]) for case in PAIRS])
def test_options_that_do_not_go_together(unloaded, capsys, command, options, part):
    assert run(command, "--quiet", *options) == 2
    said = one_sentence(capsys.readouterr().err)
    assert part in said
    check_names(said, command)


OF_COMMANDS = {
    "rank": RankOptions, "evaluate": EvaluateOptions, "train": TrainOptions, "search": SearchOptions,
    "sweep": SweepOptions, "validate": ValidateOptions, "verify": VerifyOptions,
}  # fmt: skip
# Read from a text; and what only Python sets, or what is given to the function beside the options.
READ = {"sites", "rates", "extra", "shard"}
IN_PYTHON_ALONE = {
    "rank": {"num_training", "ridge", "num_groups", "padding_side", "exact", "exact_bytes", "sketch"},
    "train": {"sites"},
    "validate": {"num_selection"},
    "verify": {"steps", "batch_size", "learning_rate", "pool", "rows", "few_rows", "layers", "few_layers", "positions",
               "random_updates", "block_updates"},
}  # fmt: skip


@pytest.mark.parametrize("command", OF_COMMANDS)
def test_every_field_has_an_option_with_its_default(command):
    given = {one.name: one.default for one in COMMANDS[command].params}
    own = {one.name: one.default for one in fields(OF_COMMANDS[command])}
    assert set(own) - set(given) == IN_PYTHON_ALONE.get(command, set())
    shared = set(own) & set(given) - READ - {"task"}
    assert {name: given[name] for name in shared} == {name: own[name] for name in shared}


IN_PYTHON = [
    (RankOptions(num_probes=0), "num_probes is 0; expected at least 1."),
    (ValidateOptions(num_ranking=3), "num_ranking is 3; expected at least 24."),
    (TrainOptions("listops", "post-block", test_examples=0), "test_examples is 0; expected at least 1."),
    (TrainOptions("listops", "sft", dtype="bfloat16"), "Use dtype='float32', or a method"),
    (TrainOptions("listops", "lora", sites=("resid_post",)), "leave out sites."),
    (TrainOptions("listops", "post-block", lr_steps=3), "add learning_rate='auto'."),
    (VerifyOptions(seed=-1), "seed is -1; expected at least 0."),
]


@pytest.mark.parametrize(("options", "part"), IN_PYTHON, ids=[case[1] for case in IN_PYTHON])
def test_in_python_they_are_fields(options, part):
    with pytest.raises(InputError) as caught:
        options.check()
    assert part in str(caught.value)
    assert "--" not in str(caught.value)
    assert "[[" not in str(caught.value)


def test_every_mark_in_the_package_names_something():
    """A field, an argument or an option: a mark with a slip in it would show as it stands."""
    names = FIELDS | {parameter.name for command in COMMANDS.values() for parameter in command.params}
    names |= {"data_dir", "keep", "seeds", "num_groups", "which"}
    root = Path(steerscope.__file__).parent
    mark = re.compile(r"\[\[([a-z_]+)(?:=[^\[\]]*)?\]\]")
    marks = {name for file in root.rglob("*.py") for name in mark.findall(file.read_text("utf-8"))}
    assert len(marks) > 20
    assert marks <= names, marks - names


def test_a_sentence_in_both_spellings():
    sentence = words("[[steps]] is 0; add [[resume=True]], [[likelihoods=False]] or [[start='published']]")
    assert sentence == "steps is 0; add resume=True, likelihoods=False or start='published'"
    assert typed(sentence) == "--steps is 0; add --resume, --no-likelihoods or --start published"
    assert typed(InputError(sentence)) == typed(sentence)
    assert typed("as it is") == "as it is"
    assert typed(ValueError("as it is")) == "as it is"
