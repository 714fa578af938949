"""Adapters on the hub: only their own files go up and come down, and what is refused is said. No network is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import filter_repo_objects

from steerscope.errors import InputError
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import padded, prompts, randomise
from tests.tiny import tiny_model

BATCH = padded(prompts(), "left")
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def copy_allowed(source: Path, target: Path, patterns: list[str]) -> None:
    names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    for name in filter_repo_objects(names, allow_patterns=patterns):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / name, target / name)


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A hub of one repository, me/adapter, that is a folder; downloads land in another."""
    there = tmp_path / "hub"
    made: list[str] = []

    def create_repo(repo_id, *, private, token, exist_ok):
        assert exist_ok
        made.append(repo_id)
        there.mkdir(exist_ok=True)

    def upload_folder(*, repo_id, folder_path, allow_patterns, **told):
        assert repo_id in made
        copy_allowed(Path(folder_path), there, allow_patterns)
        return f"https://hub/{repo_id}/commit/1"

    def list_repo_files(repo_id, *, token, revision):
        assert repo_id == made[-1]
        return [str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()]

    def snapshot_download(repo_id, *, revision, token, allow_patterns):
        assert token in (None, "mine")
        if repo_id != "me/adapter" or revision not in (None, "main"):
            raise FileNotFoundError(f"no {repo_id} at {revision}")
        copy_allowed(there, tmp_path / "cache", allow_patterns)
        return str(tmp_path / "cache")

    def hf_hub_download(repo_id, filename, *, revision, token):
        assert (repo_id, filename.rpartition("/")[2]) == (made[-1], "README.md")
        return str(there / filename)

    for fake in (create_repo, list_repo_files, upload_folder, snapshot_download, hf_hub_download):
        monkeypatch.setattr(huggingface_hub, fake.__name__, fake)
    return there


def adapter() -> SteeringModel:
    return randomise(get_steering_model(tiny_model("llama"), SteeringConfig("resid_post", rank=2)).eval())


@torch.no_grad()
def test_up_and_down_again(repository):
    steering = adapter()
    assert steering.push_to_hub("me/adapter") == "https://hub/me/adapter/commit/1"
    assert {path.name for path in repository.rglob("*")} == {*FILES, "README.md"}
    # What others put into a repository stays there.
    (repository / "pytorch_model.bin").write_bytes(b"pickled")
    (repository / "code.py").write_text("1 / 0")
    again = SteeringModel.from_pretrained(tiny_model("llama").train(), "me/adapter", revision="main", token="mine")
    assert not any(module.training for module in again.modules())  # as PEFT's, unless training goes on
    assert torch.equal(again(**BATCH).logits, steering(**BATCH).logits)
    assert {path.name for path in repository.parent.joinpath("cache").rglob("*")} == FILES


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "data/train.parquet", "rows.jsonl"])
def test_a_repository_of_something_else_is_left_alone(repository, file):
    (repository / file).parent.mkdir(parents=True)
    (repository / file).write_text("{}")
    with pytest.raises(InputError, match=f"repository 'me/adapter' holds (a model|data).*{file}.*nothing was uploaded"):
        adapter().push_to_hub("me/adapter")
    assert [path for path in repository.rglob("*") if path.is_file()] == [repository / file]


@torch.no_grad()
def test_a_lora_underneath_goes_along_and_names_no_path(repository, tmp_path):
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    base = tiny_model("llama")
    base.config._name_or_path = "someone/tiny"
    wrapped = peft.get_peft_model(base, config)
    # PEFT writes the folder a model was loaded from, and looks for its configuration there.
    base.config.save_pretrained(tmp_path / "cache-of-mine")
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "cache-of-mine")
    steering = randomise(get_steering_model(wrapped, SteeringConfig("resid_post", rank=2)).eval())
    steering.push_to_hub("me/adapter")
    told = json.loads((repository / "lora" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "someone/tiny"
    again = SteeringModel.from_pretrained(tiny_model("llama"), "me/adapter").eval()
    assert torch.equal(again(**BATCH).logits, steering(**BATCH).logits)


def test_refusals(repository, tmp_path, monkeypatch):
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"'me/other', which is no folder here.*no me/other at None"):
        SteeringModel.from_pretrained(model, "me/other")
    with pytest.raises(InputError, match="which has none"):
        SteeringModel.from_pretrained(model, tmp_path, revision="main")
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        SteeringModel.from_pretrained(model, tmp_path / "nowhere")

    def offline(*_, **__):
        raise transport("no route")

    transport = HfHubHTTPError.__mro__[1]
    monkeypatch.setattr(huggingface_hub, "create_repo", offline)
    with pytest.raises(InputError, match=r"cannot upload the adapter to 'me/adapter' \(no route\)"):
        adapter().push_to_hub("me/adapter")


def test_a_card_of_ones_own_stays(repository):
    steering = adapter()
    steering.push_to_hub("me/adapter")
    card = repository / "README.md"
    assert "rank" in card.read_text().lower()
    steering.set_strength(7.0)
    steering.push_to_hub("me/adapter")
    assert "| Strength | 7 |" in card.read_text()  # ours says what is there now
    card.write_text("My own words.")
    steering.push_to_hub("me/adapter")
    assert card.read_text() == "My own words."


@torch.no_grad()
def test_all_named_adapters_go_up_and_each_comes_down(repository):
    steering = adapter()
    steering.add_adapter("polite", SteeringConfig("0.mlp_out", rank=1))
    steering.add_adapter("rude", SteeringConfig("1.mlp_out", rank=1))
    for name in ("polite", "rude"):
        steering.set_adapter(name)
        randomise(steering)
    steering.set_adapter("default")
    with pytest.raises(InputError, match="no adapter 'rud'"):
        steering.push_to_hub("me/adapter", selected_adapters=["rud"])
    steering.push_to_hub("me/adapter", selected_adapters=["default", "polite"], measured={"Accuracy": 0.5})
    assert {path.parent.name for path in repository.rglob("adapter_config.json")} == {"hub", "polite"}
    assert "Accuracy | 0.5" in (repository / "polite" / "README.md").read_text()
    (repository / "polite" / "README.md").write_text("mine")
    steering.push_to_hub("me/adapter")
    assert {path.parent.name for path in repository.rglob("adapter_config.json")} == {"hub", "polite", "rude"}
    assert (repository / "polite" / "README.md").read_text() == "mine"
    again = SteeringModel.from_pretrained(tiny_model("llama"), "me/adapter")
    again.load_adapter("me/adapter", "p", subfolder="polite")
    alone = SteeringModel.from_pretrained(tiny_model("llama"), "me/adapter", subfolder="rude")
    for name, loaded, own in (("default", again, "default"), ("polite", again, "p"), ("rude", alone, "default")):
        steering.set_adapter(name)
        loaded.set_adapter(own)
        assert torch.equal(loaded(**BATCH).logits, steering(**BATCH).logits)
