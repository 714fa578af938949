"""What the command line refuses: exit code 2 and one clear sentence, before the model is loaded where possible."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import steerscope.models
from steerscope.models import load as load_module
from tests.cli.runs import CHOICES, lines, one_sentence, question, run, save_model, write_jsonl


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    save_model(folder / "model")
    save_model(folder / "parallel", "gpt_neox")
    write_jsonl(folder / "data.jsonl", lines(60))
    return folder


@pytest.fixture
def unloaded(monkeypatch):
    """Fail the test if anything loads a model."""
    monkeypatch.setattr(steerscope.models, "load_model", lambda *a, **k: pytest.fail("the model was loaded"))


def refusal(capsys, *arguments: object) -> str:
    """Return the sentence with which the command line refuses its arguments."""
    assert run(*arguments, "--quiet") == 2
    out, err = capsys.readouterr()
    assert out == ""
    return one_sentence(err)


# --- data, before the model --------------------------------------------------------------------------------

GOOD = json.dumps(lines(1)[0])
BAD_FILES = {
    "empty": ("", ["data.jsonl, line 1: the file holds no examples", "expected one JSON object per line", "Write"]),
    "malformed": (f"{GOOD}\n{GOOD[:-5]}\n", ["data.jsonl, line 2: malformed JSON at column", "expected one whole"]),
    "not an object": (f"{GOOD}\n\n[1, 2]\n", ["line 3: received [1, 2] (list); expected a JSON object"]),
    "misspelt field": ('{"promt": "a", "completion": "b"}', ["line 1: unknown field 'promt'", "Did you mean 'prompt'"]),
    "answer out of range": (
        json.dumps({"prompt": "a", "choices": CHOICES, "answer_index": 3}),
        ["line 1: answer_index is 3 for 3 choices; expected 0 to 2", "Count the choices from 0"],
    ),
    "mixed": (f'{GOOD}\n{{"prompt": "a", "completion": "b"}}', ["line 2: the file mixes two sorts of examples"]),
    "too few": (
        (GOOD + "\n") * 30,
        ["has 1 different examples, too few for a ranking", "where 24 are needed. Give at least 60 different prompts"],
    ),
    "all answers equal": (
        "".join(json.dumps({**row, "answer_index": 1}) + "\n" for row in lines(30)),
        ["all 30 examples have the completion ' 2'; expected at least two different answers", "Add examples"],
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_data(unloaded, tmp_path, capsys, case):
    content, parts = BAD_FILES[case]
    (tmp_path / "data.jsonl").write_text(content)
    out = tmp_path / "out"
    said = refusal(capsys, "rank", "--data", tmp_path / "data.jsonl", "--out", out)
    assert all(part in said for part in parts), said
    assert not out.exists()


def test_missing_data(unloaded, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text(GOOD)
    said = refusal(capsys, "rank", "--data", tmp_path / "trian.jsonl")
    assert f"{tmp_path / 'trian.jsonl'} does not exist; expected a file of JSON lines" in said
    assert "Did you mean 'train.jsonl'? Check the path." in said


def test_data_is_a_folder(unloaded, tmp_path, capsys):
    assert "is a folder; expected a file of JSON lines. Name one file" in refusal(capsys, "rank", "--data", tmp_path)


# --- options, before the model -----------------------------------------------------------------------------

BAD_OPTIONS = {
    "score": (["--score", "learnable_shar"], ["unknown score 'learnable_shar'. Did you mean 'learnable_share'"]),
    "kind": (["--kinds", "mlp_out,resid_pots"], ["unknown site kind 'resid_pots'. Did you mean 'resid_post'"]),
    "unlike any kind": (["--kinds", "qqq"], ["unknown site kind 'qqq'. Kinds: resid_pre, attn_heads,"]),
    "ambiguous kind": (
        ["--kinds", "pre-mlp"],
        ["'pre-mlp' is ambiguous", "'attn_out'", "'mlp_in'", "Name one of the two"],
    ),
    "a layer is no kind": (["--kinds", "3.mlp_out"], ["unknown site kind '3.mlp_out'. Did you mean 'mlp_out'"]),
    "no kind": (["--kinds", " , "], ["--kinds is ' , '; expected names such as resid_post,mlp_out"]),
    "too few asked for": (["--max-examples", "23"], ["--max-examples is 23; expected at least 24"]),
    "negative seed": (["--seed", "-1"], ["--seed is -1; expected an integer from 0"]),
    "endless seed": (["--seed", "9" * 30], [f"--seed is {'9' * 30}; expected an integer from 0 to 2**63 - 1"]),
    "no probes": (["--probes", "0"], ["--probes is 0; expected at least 1"]),
    "no rank": (["--rank", "0"], ["--rank is 0; expected at least 1"]),
    "no budget": (["--budget", "0"], ["--budget is 0 parameters; expected at least 1"]),
    "no sites": (["--max-sites", "0"], ["--max-sites is 0; expected at least 1"]),
    "negative limit": (["--limit", "-1"], ["--limit is -1; expected at least 0"]),
    "no batch": (["--batch-size", "-4"], ["--batch-size is -4; expected at least 1"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_option(unloaded, place, tmp_path, capsys, case):
    options, parts = BAD_OPTIONS[case]
    out = tmp_path / "out"
    said = refusal(capsys, "rank", place / "model", "--data", place / "data.jsonl", "--out", out, *options)
    assert all(part in said for part in parts), said
    assert not out.exists()


BAD_USAGE = {
    "not a number": (["rank", "--seed", "one"], ["--seed", "valid integer"]),
    "half a number": (["rank", "--max-examples", "24.5"], ["--max-examples", "valid integer"]),
    "unknown option": (["rank", "--sed", "1"], ["No such option: --sed", "--seed"]),
    "unknown command": (["rnak"], ["No such command 'rnak'"]),
    "two models": (["rank", "a", "b"], ["unexpected extra argument"]),
}


@pytest.mark.parametrize("case", BAD_USAGE)
def test_bad_usage(unloaded, capsys, case):
    arguments, parts = BAD_USAGE[case]
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert all(part in err for part in parts), err
    assert "python" not in err  # the program calls itself by its own name


# --- where to write, before the model ----------------------------------------------------------------------


def test_folder_that_is_not_empty(unloaded, place, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    said = refusal(capsys, "rank", place / "model", "--data", place / "data.jsonl", "--out", tmp_path)
    assert f"--out {str(tmp_path)!r} is not empty; nothing was touched" in said
    assert "add --overwrite to replace the report in it" in said
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_that_is_a_file(unloaded, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    for overwrite in ([], ["--overwrite"]):
        said = refusal(capsys, "rank", "--out", tmp_path / "taken", *overwrite)
        assert "taken' is a file; expected a folder" in said
        said = refusal(capsys, "rank", "--out", tmp_path / "taken" / "report", *overwrite)
        assert f"is below the file {str(tmp_path / 'taken')!r}; expected a folder. Name another" in said
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("made", [True, False], ids=["there", "to be made"])
def test_folder_that_cannot_be_written(unloaded, tmp_path, monkeypatch, capsys, made):
    out = tmp_path / "report" if made else tmp_path / "report" / "of" / "today"
    (tmp_path / "report").mkdir()
    access = os.access
    # root may write anywhere, so a read-only folder cannot be had by permissions alone
    protected = tmp_path / "report"
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == protected) and access(path, mode)
    )
    said = refusal(capsys, "rank", "--out", out)
    assert f"folder {str(tmp_path / 'report')!r} cannot be written to. Name another one" in said
    assert list((tmp_path / "report").iterdir()) == []


def test_folder_with_an_impossible_name(unloaded, tmp_path, capsys):
    said = refusal(capsys, "rank", "--out", tmp_path / ("x" * 300))
    assert "(File name too long). Name another folder" in said


@pytest.mark.parametrize("name", ["nowhere/ranking.json", "", "data.jsonl/ranking.json"])
def test_json_that_cannot_be_written(unloaded, place, capsys, name):
    said = refusal(capsys, "rank", "--json", place / name)
    assert "cannot be written; expected a file in an existing folder, or '-'" in said


# --- the model ---------------------------------------------------------------------------------------------


@pytest.fixture
def no_weights(monkeypatch):
    """Fail the test if weights are read: all that is refused here shows before."""

    def fail(*args, **kwargs):
        pytest.fail("weights were read")

    monkeypatch.setattr(load_module.AutoModelForCausalLM, "from_pretrained", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config_folder(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(content)
    return folder


BAD_CONFIGS = {
    "not JSON": ("{nope", ["not a valid JSON file", "config.json is no whole JSON file", "copy or download it again"]),
    "a list": ("[]", ["cannot load the model in folder", "copy or download the folder again"]),
    "no family": ("{}", ["Should have a `model_type`", "copy or download the folder again"]),
    "a family nobody knows": ('{"model_type": "llamma"}', ["model type `llamma`", "copy or download"]),
    "wrong types": ('{"model_type": "llama", "hidden_size": "wide"}', ["'hidden_size' expected int, got str"]),
    "GPT-2 with cross-attention": (
        '{"model_type": "gpt2", "add_cross_attention": true}',
        ["cross-attention", "use a decoder-only model"],
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(no_weights, tmp_path, place, capsys, case):
    content, parts = BAD_CONFIGS[case]
    folder = config_folder(tmp_path / "model", content)
    said = refusal(capsys, "rank", folder, "--data", place / "data.jsonl")
    assert all(part in said for part in parts), said


BAD_NAMES = {
    "near the bundled one": (
        "smollm2-135",
        ["there is no model 'smollm2-135' here", "Did you mean 'smollm2-135m'?"],
    ),
    "unlike it": (
        "qqq",
        [
            "there is no model 'qqq' here, and a Hugging Face name is OWNER/NAME",
            "Give 'smollm2-135m', a model folder, a .gguf file",
        ],
    ),
    "no folder": ("./nowhere/model", ["there is no model folder './nowhere/model'. Check the path"]),
    "no GGUF file": ("nowhere.gguf", ["there is no file 'nowhere.gguf'. Give the path of a GGUF file that exists"]),
}


@pytest.mark.parametrize("case", BAD_NAMES)
@pytest.mark.parametrize("command", ["rank", "sites"])
def test_bad_model_name(no_weights, capsys, case, command):
    name, parts = BAD_NAMES[case]
    assert run(command, name) == 2
    said = one_sentence(capsys.readouterr().err.replace("loading the model and checking its sites\n", ""))
    assert all(part in said for part in parts), said


def test_folder_without_config(no_weights, tmp_path, place, capsys):
    said = refusal(capsys, "rank", tmp_path, "--data", place / "data.jsonl")
    assert f"folder {str(tmp_path)!r} has no config.json; expected a transformers model folder. Check the path" in said


def test_file_that_is_no_model(no_weights, place, capsys):
    said = refusal(capsys, "rank", place / "data.jsonl")
    assert "is a file; expected a transformers model folder or a .gguf file. Name one" in said


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--device", "meta"], "device 'meta' cannot be used here"),
        (["--dtype", "float31"], "unknown dtype 'float31'. Valid: float32, float64, bfloat16, float16"),
        (["--dtype", "int8"], "unknown dtype 'int8'. Valid: float32"),
    ],
)
def test_bad_device_and_dtype(no_weights, place, capsys, options, part):
    said = refusal(capsys, "rank", place / "model", "--data", place / "data.jsonl", *options)
    assert part in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_gpu(no_weights, place, capsys):
    said = refusal(capsys, "rank", place / "model", "--data", place / "data.jsonl", "--device", "cuda")
    assert "device 'cuda' cannot be used here" in said
    assert "Use 'cpu', or a device you have" in said


# --- weights -----------------------------------------------------------------------------------------------

UP = "model.layers.1.mlp.up_proj.weight"


def with_weights(folder: Path, change) -> Path:
    """Save a tiny model whose weights were changed afterwards."""
    save_model(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def damage(change):
    def build(folder: Path) -> Path:
        save_model(folder)
        change(folder)
        return folder

    return build


def halve(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def gguf(content: bytes):
    def build(folder: Path) -> Path:
        folder.mkdir()
        (folder / "model.gguf").write_bytes(content)
        return folder / "model.gguf"

    return build


AGAIN = "copy or download the folder again"
BAD_WEIGHTS = {
    "missing": (damage(lambda f: (f / "model.safetensors").unlink()), ["no file named model.safetensors", AGAIN]),
    "empty": (damage(lambda f: (f / "model.safetensors").write_bytes(b"")), ["header", AGAIN]),
    "truncated": (damage(lambda f: halve(f / "model.safetensors")), ["cannot load the model in folder", AGAIN]),
    "not safetensors": (damage(lambda f: (f / "model.safetensors").write_bytes(b"<html>" * 99)), ["header", AGAIN]),
    "no tokenizer": (damage(lambda f: (f / "tokenizer.json").unlink()), ["It has no tokenizer", "Copy the"]),
    "broken tokenizer": (
        damage(lambda f: halve(f / "tokenizer.json")),
        ["cannot load the model in folder", "tokenizer.json is no whole JSON file"],
    ),
    "one tensor missing": (
        lambda folder: with_weights(folder, lambda w: w.pop(UP)),
        ["do not fill its configuration", UP, "expected every tensor in its shape"],
    ),
    "one tensor misshapen": (
        lambda folder: with_weights(folder, lambda w: w.update({UP: torch.zeros(3, 4)})),
        [f"{UP} ((3, 4) instead of (20, 16))", "correct its config.json"],
    ),
    "NaN": (
        lambda folder: with_weights(folder, lambda w: w[UP].view(-1)[7:8].fill_(float("nan"))),
        [f"weight {UP!r}", "holds NaN or infinite values", "Check the checkpoint"],
    ),
    "infinity": (
        lambda folder: with_weights(folder, lambda w: w[UP].view(-1)[7:8].fill_(float("-inf"))),
        [f"weight {UP!r}", "holds NaN or infinite values", "Check the checkpoint"],
    ),
    "GGUF: empty": (gguf(b""), ["cannot read model.gguf as a GGUF model (cannot mmap an empty file)", "download"]),
    "GGUF: something else": (gguf(b"<html>" * 99), ["cannot read model.gguf as a GGUF model", "magic"]),
    "GGUF: magic alone": (gguf(b"GGUF"), ["cannot read model.gguf as a GGUF model", "Expected a complete file"]),
    "GGUF: header alone": (
        gguf(b"GGUF" + (3).to_bytes(4, "little") + (10).to_bytes(8, "little") * 2),
        ["cannot read model.gguf as a GGUF model", "Expected a complete file", "copy or download it again"],
    ),
    "GGUF: endless": (
        gguf(b"GGUF" + (3).to_bytes(4, "little") + (2**63).to_bytes(8, "little") * 2 + bytes(64)),
        ["cannot read model.gguf as a GGUF model", "Expected a complete file", "copy or download it again"],
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_bad_weights(place, tmp_path, monkeypatch, capsys, case):
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    build, parts = BAD_WEIGHTS[case]
    model = build(tmp_path / "model")
    capsys.readouterr()
    said = refusal(capsys, "rank", model, "--data", place / "data.jsonl", "--out", tmp_path / "out")
    assert all(part in said for part in parts), said
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "cache").glob("*"))  # nothing half-converted stays


# --- model and data together -------------------------------------------------------------------------------


@pytest.fixture
def no_passes(monkeypatch):
    """Fail the test if the capture begins: what is refused here shows before."""
    monkeypatch.setattr("steerscope.analysis.ranking.capture", lambda *a, **k: pytest.fail("the capture began"))


def test_prompt_longer_than_the_context(no_passes, place, tmp_path, capsys):
    rows = lines(60)
    rows[5]["prompt"] = " ".join(["1"] * 64)
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    said = refusal(capsys, "rank", place / "model", "--data", data)
    assert "has 65 tokens with its completion; the model's context is 64. Shorten or drop it" in said


@pytest.mark.parametrize("completion", [" ", "\n"])
def test_completion_without_a_token(no_passes, place, tmp_path, capsys, completion):
    rows = [{"prompt": question(i), "completion": f" {i % 5}"} for i in range(60)]
    rows[3]["completion"] = completion
    data = write_jsonl(tmp_path / "blank.jsonl", rows)
    said = refusal(capsys, "rank", place / "model", "--data", data)
    assert "has no supervised token: its completion adds no token to the prompt. Give a completion" in said


def test_prompt_without_a_token(no_passes, place, tmp_path, capsys):
    rows = [{"prompt": question(i), "completion": f" {i % 5}"} for i in range(60)]
    rows[3]["prompt"] = " "
    data = write_jsonl(tmp_path / "blank.jsonl", rows)
    said = refusal(capsys, "rank", place / "model", "--data", data)
    assert "the first token would have to be predicted from nothing. Give a prompt" in said


def test_resid_mid_of_a_parallel_layout(no_passes, place, capsys):
    arguments = ["--data", place / "data.jsonl", "--kinds", "mlp_out,resid_mid"]
    said = refusal(capsys, "rank", place / "parallel", *arguments)
    assert "a block of layout 'parallel, two norms, plain MLP' has no site 'resid_mid'" in said
    assert "It has: resid_pre, attn_heads, attn_out, mlp_in, mlp_hidden, mlp_out, resid_post" in said


def test_tokenizer_of_another_model(no_passes, place, tmp_path, capsys):
    model = save_model(tmp_path / "small", vocab_size=20)
    said = refusal(capsys, "rank", model, "--data", place / "data.jsonl")
    assert "the model knows tokens 0 to 19, the 20 rows of its embedding. Load the model with the tokenizer" in said
    assert "resize_token_embeddings" in said
