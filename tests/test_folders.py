"""What a folder is for stays what it was: adapters, reports and results go where nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.files import UNFINISHED
from steerscope.folders import Kind, require_folder_for
from steerscope.models import load_model
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from steerscope.steering.weights import WeightModel
from tests.cli.runs import save_model
from tests.reports.ranking_cases import two_layers_parallel
from tests.tiny import tiny_model, tiny_tokenizer


def steering() -> SteeringModel:
    return get_steering_model(tiny_model("llama"), SteeringConfig("resid_post", rank=2))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def text(value: object) -> bytes:
    return json.dumps(value).encode()


OTHERS = {
    "a model": {"config.json": text({"model_type": "llama"}), "model.safetensors": b"weights"},
    "weights alone": {"model-00001-of-00002.safetensors": b"weights"},
    "a pickled model": {"pytorch_model.bin": b"weights"},
    "a GGUF file": {"model.gguf": b"weights"},
    "an adapter of PEFT": {"adapter_config.json": text({"peft_type": "LORA"}), "adapter_model.safetensors": b"weights"},
    "an adapter of another program": {"adapter_config.json": b"{}"},
    "changed weights": {"adapter_config.json": text({"format": "steerscope weights"})},
    "a dataset": {"dataset_info.json": b"{}", "data-00000-of-00001.arrow": b"rows"},
    "rows": {"train.jsonl": b"{}\n"},
    **{name: {name: b"1"} for name in ("data.csv", "data.json", "notes.txt", "train.tsv", "TEST.CSV", "data.csv.gz")},
    **{name: {name: b"weights"} for name in ("x.bin", "model.pth", "weights.pt", "optimizer.pt", "last.ckpt")},
    "a run": {"config.json": text({"task": "listops", "method": "lora", "settings": {}})},
    "a ranking": {"ranking.json": b"{}", "index.html": b""},
    "a validation": {"runs/0123.json": b"{}", "ranking.json": b"{}"},
    "a verification": {"verify.json": b"{}"},
    "a comparison": {"comparison.json": b"{}"},
}


@pytest.mark.parametrize("case", OTHERS)
def test_an_adapter_goes_into_no_folder_of_something_else(tmp_path, case):
    for name, value in OTHERS[case].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(value)
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"holds .*; a steering adapter in it would .* nothing was touched\. Name ano"):
        steering().save_pretrained(tmp_path)
    assert content(tmp_path) == before


def test_the_base_model_still_loads_after_a_save_into_its_folder(tmp_path):
    """The folder of the base model, here and in transformers; changed weights as well."""
    save_model(tmp_path / "model")
    before = content(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    model = get_steering_model(loaded, SteeringConfig("resid_post", rank=2))
    with pytest.raises(InputError, match="holds a model"):
        model.save_pretrained(tmp_path / "model")
    model.unload()
    with pytest.raises(InputError, match="holds a model"):
        WeightModel(loaded, "bitfit").save_pretrained(tmp_path / "model")
    assert content(tmp_path / "model") == before
    assert load_model(tmp_path / "model").identity.sha256 == loaded.identity.sha256
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")


def test_texts_about_a_folder_and_files_beside_an_earlier_save_are_in_nobodys_way(tmp_path):
    for name in ("requirements.txt", "LICENSE.txt", "all_results.json", "trainer_state.json", "optimizer.pt"):
        (tmp_path / name).write_text("{}")
    two_layers_parallel().save(tmp_path / "mine.json")
    steering().save_pretrained(tmp_path)
    (tmp_path / "logits.pt").write_bytes(b"1")
    (tmp_path / "notes.txt").write_text("mine")
    steering().save_pretrained(tmp_path)


@pytest.mark.parametrize("config", ["{", "[]", '{"task": "listops", "method": "lora"}'])
def test_a_run_whose_configuration_is_damaged_is_no_model(tmp_path, config):
    for name, value in (("config.json", config), ("results.json", "{}"), ("generations.jsonl", "")):
        (tmp_path / name).write_text(value)
    require_folder_for(tmp_path, Kind.RUN)
    with pytest.raises(InputError, match="holds a run of train or evaluate"):
        require_folder_for(tmp_path, Kind.RANKING)


@pytest.mark.parametrize("first", ["tokenizer", "adapter"])
def test_a_tokenizer_and_an_adapter_share_a_folder(tmp_path, first):
    tiny_tokenizer().save_pretrained(tmp_path) if first == "tokenizer" else steering().save_pretrained(tmp_path)
    steering().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("a model card")
    steering().save_pretrained(tmp_path)
    SteeringModel.from_pretrained(tiny_model("llama"), tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tiny_tokenizer().get_vocab()


def test_another_kind_of_lora_folder_is_left_alone(tmp_path):
    save_model(tmp_path / "lora")
    with pytest.raises(InputError, match="lora' holds a model"):
        steering().save_pretrained(tmp_path)


def test_a_save_that_fails_leaves_the_adapter_that_was_there(tmp_path, monkeypatch):
    """Also one that fails in its last file."""
    model = steering()
    model.save_pretrained(tmp_path)
    before = content(tmp_path)
    with torch.no_grad():
        next(model.edit_at(model.sites[0]).parameters()).add_(1)
    monkeypatch.setattr(type(model.steering_config), "to_dict", lambda self: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(
        InputError, match=r"cannot write the adapter to .* \(No space left on device\)\. Free some space"
    ):
        model.save_pretrained(tmp_path)
    assert content(tmp_path) == before


TAKEN = ["config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "model.safetensors"]


@pytest.mark.parametrize("name", TAKEN)
def test_a_result_takes_no_name_that_other_programs_read(tmp_path, name):
    with pytest.raises(InputError, match=r"other programs read files of that name\. Name another file"):
        two_layers_parallel().save(tmp_path / name)
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("there", ["not JSON", "[1]", '{"prompt": "a"}', '{"schema_version": 1, "test_accuracy": 1}'])
def test_a_result_replaces_only_its_like(tmp_path, there):
    file = tmp_path / "result.json"
    file.write_text(there)
    with pytest.raises(InputError, match="is there and holds something else"):
        two_layers_parallel().save(file)
    assert file.read_text() == there
    file.unlink()
    two_layers_parallel().save(file)
    two_layers_parallel().save(file)
    assert Ranking.load(file) == two_layers_parallel()


def test_an_empty_or_missing_folder_is_free(tmp_path):
    for folder in (tmp_path, tmp_path / "new"):
        for kind in Kind:
            require_folder_for(folder, kind)


@pytest.mark.parametrize("suffix", [".json", ".safetensors", ".jsonl"])
def test_what_another_process_is_about_to_write_is_no_result(suffix, tmp_path):
    """Processes that share a folder begin at the same time: each sees what the others have not finished."""
    (tmp_path / f"{UNFINISHED}0123456789ab{suffix}").write_text('{"cut')
    for kind in Kind:
        require_folder_for(tmp_path, kind)
    (tmp_path / f"0123456789ab{suffix}").write_text('{"cut')
    with pytest.raises(InputError, match="holds"):
        require_folder_for(tmp_path, Kind.SWEEP)
