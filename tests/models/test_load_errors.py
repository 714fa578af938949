"""Why a model cannot be loaded: one sentence for every cause, with the advice that helps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from steerscope.errors import InputError
from steerscope.models import load_model
from steerscope.models.load_errors import not_loaded
from tests.cli.runs import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model") / "model")


def says(**settings):
    """Return what changes a folder's configuration."""

    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return change


def without(pattern: str):
    def change(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return change


def pointer(folder: Path) -> None:
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def damaged(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 200)


def cut_off(folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes()[:-200])


def marked(folder: Path) -> None:
    (folder / "config.json").write_text((folder / "config.json").read_text(), encoding="utf-8-sig")


QUANTISED = ("asks for a quantisation", "install the package", "or take the model that it was made from")
ATTENTION = ("asks for an attention", "expected sdpa or eager", 'set "attn_implementation": "sdpa"')
CASES = {
    "flash attention 2": (says(attn_implementation="flash_attention_2"), ATTENTION),
    "flash attention 3": (says(attn_implementation="flash_attention_3"), ATTENTION),
    "bitsandbytes": (
        says(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}), ("bitsandbytes", *QUANTISED)
    ),
    "gptq": (says(quantization_config={"quant_method": "gptq", "bits": 4}), ("gptq", *QUANTISED)),
    "awq": (says(quantization_config={"quant_method": "awq", "bits": 4}), ("awq", *QUANTISED)),
    "a quantisation nobody knows": (says(quantization_config={"bits": 4}), ("no named method", *QUANTISED)),
    "a data type nobody knows": (
        says(dtype="float17"), ("names a data type that torch does not have", "expected float32, bfloat16 or float16")
    ),
    "a family nobody knows": (says(model_type="llamma"), ("`llamma`", "upgrade transformers", "correct model_type")),
    "a rotary embedding nobody knows": (
        says(rope_parameters={"rope_type": "odd"}), ("rope_type in its config.json is a name", "correct it there")
    ),
    "heads that do not divide the width": (
        says(num_attention_heads=3), ("not a multiple", "a value that this family does not take: correct it there")
    ),
    "a width in words": (says(hidden_size="16"), ("hidden_size", "correct it there")),
    "code of its own": (
        says(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}), ("code of its own", "trust_remote_code=True")
    ),
    "no tokenizer": (without("token*"), ("It has no tokenizer; expected tokenizer.json", "Copy the tokenizer's files")),
    "a pointer of git lfs": (pointer, ("model.safetensors is a pointer of Git LFS", "git lfs pull")),
    "damaged weights": (damaged, ("deserializing header", "copy or download the folder again")),
    "a tokenizer that was cut off": (cut_off, ("tokenizer.json is no whole JSON file", "copy or download it again")),
    "a byte order mark": (marked, ("config.json begins with a byte order mark", "save it as UTF-8 without one")),
    "no weights": (without("*.safetensors"), ("no file named model.safetensors", "copy or download the folder again")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_cause_has_its_own_advice(saved, tmp_path, name):
    change, wanted = CASES[name]
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    change(folder)
    with pytest.raises(InputError) as caught:
        load_model(folder)
    said = str(caught.value)
    for part in wanted:
        assert part in said
    others = "copy or download the folder again"
    assert (others in said) == (others in wanted or name == "a family nobody knows")
    assert "\n" not in said


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
            "not enough memory: load it with dtype=",
        ),
        (MemoryError(), "MemoryError). There is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
        (ModuleNotFoundError("No module named 'sentencepiece'"), "needs a package that is not installed: install it"),
        (ValueError("Odd does not support Flash Attention 2.0 yet"), "expected sdpa or eager"),
        (OSError("We couldn't connect"), "or a Hugging Face name"),
    ],
)
def test_causes_that_no_folder_shows(error, wanted):
    assert wanted in str(not_loaded("owner/name", Path("owner/name"), error))


def test_a_converted_copy_is_not_deleted_for_want_of_memory(tmp_path):
    said = str(not_loaded("model.gguf", tmp_path, MemoryError()))
    assert "Delete" not in said
    assert "Delete the folder" in str(not_loaded("model.gguf", tmp_path, ValueError("odd")))
