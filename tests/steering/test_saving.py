"""What is saved is what is loaded, bit for bit and in another process; everything else is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from steerscope.errors import InputError
from steerscope.models import wrap_model
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.steering.cases import SETTINGS, config_of, padded, prompts, randomise
from tests.tiny import tiny_model, tiny_tokenizer

ROOT = Path(__file__).parents[2]
BATCH = padded(prompts(), "left")
CARD, CONFIG, WEIGHTS = "README.md", "adapter_config.json", "adapter_model.safetensors"

IN_ANOTHER_PROCESS = """
import sys, torch
from steerscope.steering import SteeringModel
from tests.steering.cases import padded, prompts
from tests.tiny import tiny_model
torch.set_num_threads(1)
for folder in sys.argv[2:]:
    model = SteeringModel.from_pretrained(tiny_model("llama"), folder).eval()
    with torch.no_grad():
        torch.save(model(**padded(prompts(), "left")).logits, f"{folder}/{sys.argv[1]}")
"""


def trained(family: str, **changes) -> SteeringModel:
    """An adapter in float32 after two steps of an optimizer, so that rotations have really moved."""
    steering = get_steering_model(tiny_model("llama"), config_of(family, dtype="float32", **changes))
    if changes.get("scale") == "rms":
        steering.measure_scales([BATCH])
    randomise(steering, size=0.1)
    optimizer = torch.optim.AdamW([p for p in steering.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        steering(**BATCH, labels=BATCH["input_ids"]).loss.backward()
        optimizer.step()
    return steering.eval()


def test_another_process_gets_the_same_logits_bit_for_bit(tmp_path):
    folders, expected = [], []
    for family in SETTINGS:
        scaled = {"scale": "rms"} if family in ("linear", "direft") else {}
        steering = trained(family, **scaled)
        folder = tmp_path / family
        steering.save_pretrained(folder)
        folders.append(folder)
        with torch.no_grad():
            expected.append(steering(**BATCH).logits)
            with steering.disable_adapter():
                assert not torch.equal(steering(**BATCH).logits, expected[-1])
    code = [sys.executable, "-W", "ignore", "-c", IN_ANOTHER_PROCESS, "logits.pt", *map(str, folders)]
    subprocess.run(code, check=True, cwd=ROOT)
    for folder, logits in zip(folders, expected, strict=True):
        assert torch.equal(torch.load(folder / "logits.pt"), logits), folder.name


def test_the_file_states_what_it_is(tmp_path):
    base = wrap_model(tiny_model("gemma2"), tiny_tokenizer(), name="some/model", revision="abc123")
    get_steering_model(base, SteeringConfig("mlp_out", "vector")).save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CARD, CONFIG, WEIGHTS]
    told = json.loads((tmp_path / CONFIG).read_text())
    assert told["equation"] == "x + v"
    assert told["sites"] == {"0.mlp_out": "p2 (W_down mlp_hidden)", "1.mlp_out": "p2 (W_down mlp_hidden)"}
    model = told["base_model"]
    assert (model["name"], model["revision"], model["family"]) == ("some/model", "abc123", "gemma2")
    assert (model["layers"], model["d_model"]) == (2, 16)
    assert len(model["fingerprint"]) == 64
    assert set(load_file(tmp_path / WEIGHTS)) == {"0.mlp_out.v", "1.mlp_out.v"}


def test_the_card_says_what_the_folder_is(tmp_path):
    base = wrap_model(tiny_model("llama"), tiny_tokenizer(), name="some/model", revision="abc123")
    model = get_steering_model(base, SteeringConfig("1.mlp_out", rank=3, positions="last"))
    model.set_strength(2.5)
    model.save_pretrained(tmp_path, measured={"Task": "boolq", "Accuracy": 0.8125})
    card = (tmp_path / CARD).read_text()
    head = card.split("---")[1]
    assert "base_model: some/model" in head
    assert "library_name: steerscope" in head
    for row in (
        "| Base model | `some/model` at revision `abc123` |",
        "| Edit | family `linear`: x becomes `x + U (D x / s) + b` |",
        "| Rank | 3 |",
        "| Tokens | last |",
        "| Strength | 2.5 |",
        "| Task | boolq |",
        "| Accuracy | 0.8125 |",
        "| `1.mlp_out` | `W_down mlp_hidden` |",
        "**The files are not PEFT's**",
    ):
        assert row in card
    model.set_strength(1)
    model.save_pretrained(tmp_path)  # ours is replaced
    assert "Strength" not in (tmp_path / CARD).read_text()
    (tmp_path / CARD).write_text("My own words.")
    model.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "My own words."


def test_the_card_names_no_folder_of_a_machine(tmp_path):
    model = tiny_model("llama")
    model.config._name_or_path = str(tmp_path / "somewhere" / "my-model")
    get_steering_model(model, SteeringConfig("1.mlp_out")).save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / CARD).read_text()
    assert str(tmp_path) not in card
    assert "`my-model`" in card
    assert "base_model:" not in card  # nothing that a hub could link to


def test_a_configuration_alone(tmp_path):
    config = SteeringConfig(("1.mlp_out", "0.resid_post"), rank=3, positions="last:2", scale="rms")
    config.save_pretrained(tmp_path / "alone")
    assert SteeringConfig.from_pretrained(tmp_path / "alone") == config
    get_steering_model(tiny_model("llama"), SteeringConfig("1.mlp_out", "vector")).save_pretrained(tmp_path / "adapter")
    assert SteeringConfig.from_pretrained(tmp_path / "adapter") == SteeringConfig("1.mlp_out", "vector")
    for text, message in (
        ("{", "cannot be read"),
        ('{"peft_type": "LORA"}', "is not of a steering adapter"),
        ('{"steering": {"sites": ["1.mlp_out"]}}', "configuration lacks"),
    ):
        (tmp_path / "adapter" / CONFIG).write_text(text)
        with pytest.raises(InputError, match=message):
            SteeringConfig.from_pretrained(tmp_path / "adapter")
    with pytest.raises(InputError, match="configuration lacks"):  # as a run's folder, it stands for what is in it
        SteeringConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        SteeringConfig.from_pretrained(tmp_path / "alone" / "nothing")


def test_pickling_the_model_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(InputError, match="a steering model cannot be copied or pickled; save_pretrained"):
        torch.save(trained("linear"), tmp_path / "model.pt")


@pytest.fixture
def saved(tmp_path) -> Path:
    trained("linear").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder: Path, message: str, model=None, **options) -> None:
    model = model or tiny_model("llama")
    before = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with pytest.raises(InputError, match=message):
        SteeringModel.from_pretrained(model, folder, **options)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == before


def test_the_wrong_model_is_refused(saved):
    refused(saved, "with family 'llama', but .* has family 'mistral'", tiny_model("mistral"))
    refused(saved, "has layers 3", tiny_model("llama", num_hidden_layers=3))
    refused(saved, "has d_model 8", tiny_model("llama", hidden_size=8, num_attention_heads=2, num_key_value_heads=1))
    refused(saved, "has fingerprint", tiny_model("llama", seed=1))
    moved = tiny_model("llama")
    moved.model.layers[1].mlp.up_proj.weight.data.mul_(1 + 1e-3)  # what a little fine-tuning does
    refused(saved, "has fingerprint", moved)
    SteeringModel.from_pretrained(moved, saved, check_weights=False).unload()


def test_the_data_type_of_the_model_is_free(saved):
    for dtype in (torch.bfloat16, torch.float64):
        model = SteeringModel.from_pretrained(tiny_model("llama", dtype), saved)
        assert model.edit_at("0.resid_post").D.dtype is torch.float32


def test_a_wrong_revision_is_refused(tmp_path):
    first, second = (wrap_model(tiny_model("llama"), tiny_tokenizer(), name="m", revision=r) for r in ("aa", "bb"))
    unknown = wrap_model(tiny_model("llama"), tiny_tokenizer(), name="m")
    get_steering_model(first, SteeringConfig("mlp_out", "vector")).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"with revision 'aa', but .* has revision 'bb'\. Load 'm' at revision aa"):
        SteeringModel.from_pretrained(second, tmp_path)
    SteeringModel.from_pretrained(unknown, tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_refused(saved, keep):
    whole = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(whole[:keep])
    refused(saved, "is no whole safetensors file .* Copy it again")


def test_a_truncated_or_foreign_configuration_is_refused(saved):
    text = (saved / CONFIG).read_text()
    (saved / CONFIG).write_text(text[: len(text) // 2])
    refused(saved, "cut off or damaged")
    (saved / CONFIG).write_text('{"peft_type": "LORA"}')
    refused(saved, "one of PEFT; load it with PeftModel")
    (saved / CONFIG).write_text("[" * 100_000)
    refused(saved, "nested too deeply.* cut off or damaged")
    (saved / CONFIG).write_text(text, encoding="utf-8-sig")  # as Windows writes it
    SteeringModel.from_pretrained(tiny_model("llama"), saved).unload()
    (saved / CONFIG).write_text("[]")
    refused(saved, "holds a list; expected a JSON object")
    told = json.loads(text)
    for key, value, message in [
        ("format_version", 2, "has format 2; this steerscope reads 1"),
        ("extra", 1, "has fields"),
        ("sites", {"0.resid_post": "resid_mid + mlp_out", "1.mlp_hidden": "phi(W_in z)"}, "sites of these names are"),
        ("steering", {**told["steering"], "rank": 4}, r"'0.resid_post.D' of shape \(3, 16\).*expected \(4, 16\)"),
        ("steering", {**told["steering"], "gain": 4}, r"unknown \['gain'\]"),
        ("base_model", {}, "names its base model with"),
        ("base_model", [], r"base_model is \[\]; expected an object"),
        ("base_model", {**told["base_model"], "fingerprint": None}, "fingerprint is None; expected a text"),
        ("base_model", {**told["base_model"], "fingerprint": 5}, "fingerprint is 5; expected a text"),
        ("format_version", "1", "format_version '1'; expected a whole number"),
        ("format_version", True, "format_version True; expected a whole number"),
        ("equation", None, "equation is None; expected a text"),
        ("lora", 5, "lora is 5; expected the name of a LoRA, or null"),
        *(
            ("steering", {**told["steering"], field: value}, f"steering.{field} is .*(expected|more than any tensor)")
            for field, value in [
                ("sites", None),
                ("sites", 5),
                ("sites", [5]),
                ("bias", "False"),
                ("rank", True),
                ("rank", 10**12),
                ("seed", 10**30),
                ("seed", None),
                ("family", 3),
                ("dtype", None),
            ]
        ),
    ]:
        (saved / CONFIG).write_text(json.dumps({**told, key: value}))
        refused(saved, message)
    (saved / CONFIG).unlink()
    refused(saved, "there is no adapter in .*adapter_config.json is missing")
    (saved / "trainer_state.json").touch()
    refused(saved, "It looks like a checkpoint of a Trainer")


def test_tensors_that_do_not_belong_are_refused(saved):
    tensors = load_file(saved / WEIGHTS)
    name = "0.resid_post.U"
    for changed, message in [
        ({k: v for k, v in tensors.items() if k != name}, f"lacks {name}; expected"),
        ({**tensors, "2.resid_post.U": tensors[name].clone()}, "safetensors has unknown 2.resid_post.U"),
        ({**tensors, name: tensors[name].T.contiguous()}, r"of shape \(3, 16\) in torch.float32; expected \(16, 3\)"),
        ({**tensors, name: tensors[name].double()}, "in torch.float64; expected"),
        ({**tensors, name: tensors[name] * float("nan")}, "holds NaN"),
    ]:
        save_file(changed, saved / WEIGHTS)
        refused(saved, message)
    (saved / WEIGHTS).unlink()
    refused(saved, "has no adapter_model.safetensors")


def test_numbers_that_could_not_be_loaded_are_not_saved(saved):
    model = get_steering_model(tiny_model("llama"), SteeringConfig("mlp_out", scale="rms"))
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(InputError, match=r"'0.mlp_out.scale' of the adapter is NaN.*Call measure_scales"):
        model.save_pretrained(saved)
    other = trained("vector")
    with torch.no_grad():
        next(other.edits.parameters())[0] = float("inf")
    with pytest.raises(InputError, match=r"of the adapter is infinite.*The training diverged"):
        other.save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_folder_is_a_path(saved):
    for folder in (None, 3, "", "a\0b", ["a"]):
        with pytest.raises(InputError, match="for a folder; expected its path"):
            trained("vector").save_pretrained(folder)
        with pytest.raises(InputError, match="for a folder; expected its path"):
            SteeringModel.from_pretrained(tiny_model("llama"), folder)
    for model in ("M", None, 5):
        with pytest.raises(InputError, match="expected a causal language model of transformers, got"):
            SteeringModel.from_pretrained(model, saved)


def test_an_adapter_goes_on_a_plain_model(saved):
    once = SteeringModel.from_pretrained(tiny_model("llama"), saved)
    refused(saved, "got SteeringModel, which has an adapter already", once)
    with pytest.raises(InputError, match="steered already"):
        get_steering_model(once, SteeringConfig("mlp_out"))


def test_trainable_or_not(saved):
    frozen = SteeringModel.from_pretrained(tiny_model("llama"), saved)
    assert frozen.get_nb_trainable_parameters()[0] == 0
    training = SteeringModel.from_pretrained(tiny_model("llama"), saved, is_trainable=True)
    assert training.get_nb_trainable_parameters()[0] == sum(p.numel() for p in training.edits.parameters())
