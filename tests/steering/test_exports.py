"""Exports: what other programs load does what the steered model did, and what they cannot do is refused by name."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file

from steerscope.errors import InputError
from steerscope.models.site_map import find_sites
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model, servable_as_lora
from tests.steering.cases import padded, prompts, randomise
from tests.tiny import tiny_model

POST_NORM = ("gemma2", "gemma3_text", "olmo2")
BATCH = padded(prompts(), "right")
TOLERANCE = 1e-5


@dataclass
class Case:
    """One adapter on one model."""

    model: str
    sites: str | tuple[str, ...]
    family: str = "linear"
    rank: int | None = 3
    lora_bias: bool = False
    strength: float = 1.0
    options: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        sites = self.sites if isinstance(self.sites, str) else "+".join(self.sites)
        return f"{self.model}-{self.family}-{sites}-{self.strength}-{self.lora_bias}"


READS, WRITES = ("attn_heads", "mlp_hidden", "mlp_in"), ("attn_out", "mlp_out")
NO_BIAS = {"bias": False}
CASES = [
    *(Case("llama", kind, options=NO_BIAS) for kind in (*READS, *WRITES)),
    *(Case("gpt2", kind, options=NO_BIAS) for kind in READS),
    *(Case("gpt2", kind, lora_bias=True, options=NO_BIAS) for kind in WRITES),  # W's own bias is edited too
    *(Case("gemma2", kind, options=NO_BIAS) for kind in READS),
    *(Case("phi3", kind, options=NO_BIAS) for kind in ("mlp_in", "mlp_out")),
    *(Case(model, kind, lora_bias=True) for model in ("gpt_neox", "phi", "opt", "llama") for kind in (*READS, *WRITES)),
    # all the linear maps of a block at once, one behind the other; heads by themselves
    Case("llama", ("0.attn_heads.1", "0.attn_heads.3", "0.attn_out", "0.mlp_hidden", "0.mlp_out"), options=NO_BIAS),
    Case("gpt2", ("0.attn_heads", "0.attn_out", "0.mlp_in", "0.mlp_hidden", "0.mlp_out", "1.mlp_out"), lora_bias=True),
    *(
        Case("llama", ("0.mlp_out", "1.attn_heads"), family, lora_bias=True)
        for family in ("loreft", "direft", "noreft")
    ),
    Case("llama", "attn_heads", "lofit_scale", None),
    Case("llama", "attn_heads", "lofit_offset", None, lora_bias=True),
    Case("llama", ("0.resid_post", "1.resid_mid", "1.mlp_hidden"), "vector", None, lora_bias=True),
    Case("llama", "mlp_out", strength=-1.7, options=NO_BIAS),
    Case("gpt2", "mlp_hidden", strength=0.3, lora_bias=True),
]

# Run where steerscope is never imported.
STOCK = """
import json, sys, warnings
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
found = {}
for place in sorted(Path(sys.argv[1]).iterdir()):
    told = load_file(place / "told.safetensors")
    inputs = {name: told[name] for name in ("input_ids", "attention_mask", "position_ids")}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`lora_bias=True` was passed")
        base = AutoModelForCausalLM.from_pretrained(place / "model", attn_implementation="eager").eval()
        model = PeftModel.from_pretrained(base, place / "lora")
    with torch.no_grad():
        logits = model(**inputs).logits
    real = told["attention_mask"] != 0
    size = max(1.0, float(logits[real].abs().max()))
    found[place.name] = float((logits - told["logits"])[real].abs().max()) / size
assert not any(name.startswith("steerscope") for name in sys.modules)
print(json.dumps(found))
"""


def steered(case: Case) -> SteeringModel:
    model = tiny_model(case.model, attn_implementation="eager")
    config = SteeringConfig(case.sites, case.family, rank=case.rank, **case.options)
    steering = randomise(get_steering_model(model, config).eval(), size=0.1)
    steering.set_strength(case.strength)
    return steering


@pytest.fixture(scope="module")
def differences(tmp_path_factory) -> dict[str, float]:
    """The largest difference of logits per case, found by PEFT in a process of its own."""
    root: Path = tmp_path_factory.mktemp("exports")
    assert len({case.name for case in CASES}) == len(CASES)
    for case in CASES:
        place = root / case.name
        steering = steered(case)
        with torch.no_grad():
            told = {"logits": steering(**BATCH).logits.contiguous(), **BATCH}
            with steering.disable_adapter():
                moved = (steering(**BATCH).logits - told["logits"]).abs().max()
        assert moved > 1e-2, case.name
        steering.export_lora(place / "lora", lora_bias=case.lora_bias)
        steering.unload().save_pretrained(place / "model")
        save_file(told, place / "told.safetensors")
    done = subprocess.run([sys.executable, "-c", STOCK, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_stock_peft_gives_the_logits_of_the_steered_model(differences, case):
    assert differences[case.name] < TOLERANCE


def test_the_folder_is_one_that_servers_read(tmp_path):
    case = Case("llama", ("0.mlp_in", "1.mlp_out"), options=NO_BIAS)
    steering = steered(case)
    steering.base_model.config._name_or_path = "owner/model"
    steering.export_lora(tmp_path / "lora")
    told = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert told["peft_type"] == "LORA"
    assert told["base_model_name_or_path"] == "owner/model"
    assert told["r"] == told["lora_alpha"] == 3  # one rank and one scale, of 1, for all
    assert not told["lora_bias"]
    ends = ("0.mlp.gate_proj", "0.mlp.up_proj", "1.mlp.down_proj")
    assert told["target_modules"] == [f"model.layers.{end}" for end in ends]
    tensors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert set(tensors) == {f"base_model.model.model.layers.{e}.lora_{x}.weight" for e in ends for x in "AB"}
    assert {value.dtype for value in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("llama", "1.resid_post"), r"'1\.resid_post' acts on the whole stream"),
        (Case("llama", "0.resid_mid"), r"'0\.resid_mid' acts on the whole stream"),
        (Case("llama", "0.resid_pre", "vector", None), "adds to the embeddings"),
        (Case("gemma2", "0.mlp_out"), "behind a norm"),
        (Case("llama", "0.mlp_out", "nonlinear"), "no affine map"),
        (Case("llama", "0.mlp_out", options={"positions": "last"}), "weights act on every token"),
        (Case("llama", "0.mlp_out"), r"adds a constant behind 'model\.layers\.0\.mlp\.down_proj'.*lora_bias=True"),
        (Case("gpt2", "0.mlp_out", options=NO_BIAS), r"adds a constant behind 'transformer\.h\.0\.mlp\.c_proj'"),
    ],
    ids=str,
)
def test_what_is_no_lora_is_refused_and_nothing_written(tmp_path, case, message):
    steering = steered(case)
    with pytest.raises(InputError, match=message):
        steering.export_lora(tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
    asked = servable_as_lora(steering.sites[0], steering.site_map, steering.steering_config)
    assert not asked.everywhere
    assert asked.needs_bias == ("lora_bias" in message or case.model == "gpt2")


@pytest.mark.parametrize("model", ["llama", "gpt2", "gemma2", "gpt_neox"])
def test_what_is_said_before_training_is_what_the_export_does(tmp_path, model):
    site_map = find_sites(tiny_model(model))
    for site in site_map.sites():
        for family, rank, bias in (("linear", 2, False), ("linear", 2, True), ("vector", None, None)):
            config = SteeringConfig(str(site), family, rank=rank, bias=bias)
            said = servable_as_lora(site, site_map, config)
            steering = randomise(get_steering_model(tiny_model(model), config))
            for lora_bias, expected in ((False, said.everywhere), (True, not said.why_not)):
                try:
                    steering.export_lora(tmp_path / f"{site}-{family}-{bias}-{lora_bias}", lora_bias=lora_bias)
                    written = True
                except InputError:
                    written = False
                assert written == expected, (site, family, bias, said)


def test_an_adapter_on_peft_is_refused(tmp_path):
    import peft

    wrapped = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    steering = get_steering_model(wrapped, SteeringConfig("0.mlp_out", bias=False))
    with pytest.raises(InputError, match="stands on an adapter of PEFT"):
        steering.export_lora(tmp_path / "lora")
    vectors = get_steering_model(steering.unload(), SteeringConfig("1.resid_post", "vector"))
    with pytest.raises(InputError, match="stands on an adapter of PEFT"):
        vectors.export_gguf(tmp_path / "vector.gguf")


def test_nothing_else_is_overwritten(tmp_path):
    steering = steered(Case("llama", "0.mlp_out", options=NO_BIAS))
    steering.save_pretrained(tmp_path / "own")
    with pytest.raises(InputError, match="holds a steering adapter"):
        steering.export_lora(tmp_path / "own")
    for _ in range(2):  # an earlier export is replaced
        steering.export_lora(tmp_path / "lora")


# --- control vectors ---------------------------------------------------------------------------------------


def read_back(file: Path) -> dict[str, torch.Tensor]:
    return {tensor.name: torch.tensor(tensor.data) for tensor in GGUFReader(file).tensors}


def test_a_control_vector_is_read_back_to_the_bit(tmp_path):
    model = tiny_model("llama", num_hidden_layers=4)
    steering = randomise(get_steering_model(model, SteeringConfig(("1.resid_post", "3.resid_post"), "vector")))
    file = tmp_path / "vector.gguf"
    for strength in (1.0, 0.5):  # the second replaces the first
        steering.set_strength(strength)
        steering.export_gguf(file)
        found = read_back(file)
        assert set(found) == {"direction.1", "direction.3"}
        for layer in (1, 3):
            expected = strength * steering.edit_at(f"{layer}.resid_post").v.detach()
            assert torch.equal(found[f"direction.{layer}"], expected)
    fields = GGUFReader(file).fields
    assert fields["general.architecture"].contents() == "controlvector"
    assert fields["controlvector.model_hint"].contents() == "llama"
    assert fields["controlvector.layer_count"].contents() == 3


@pytest.mark.parametrize("model", ["llama", "gemma2", "gpt_neox"])
@torch.no_grad()
def test_directions_added_to_the_stream_after_a_block_are_the_adapter(tmp_path, model):
    """What llama.cpp does with the file, done by hand; edits of what a branch adds last are the same."""
    base = tiny_model(model)
    sites = ("1.mlp_out", "1.resid_post", *(["1.attn_out"] if model == "gpt_neox" else []))
    steering = randomise(get_steering_model(base, SteeringConfig(sites, "vector")).eval())
    expected = steering(**BATCH).logits
    steering.export_gguf(tmp_path / "vector.gguf")
    vector = read_back(tmp_path / "vector.gguf")["direction.1"]
    block = steering.site_map.blocks[1].module
    steering.unload()

    def add(module, args, output):
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    handle = block.register_forward_hook(add)
    found = base(**BATCH).logits
    handle.remove()
    real = BATCH["attention_mask"] != 0
    assert (expected - base(**BATCH).logits)[real].abs().max() > 1e-2
    assert (expected - found)[real].abs().max() < TOLERANCE


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (Case("llama", "1.resid_post"), "depends on what it reads"),
        (Case("llama", "0.resid_post", "vector", None), r"after the first one \(0\)"),
        (Case("llama", "0.resid_pre", "vector", None), "before the first one"),
        (Case("llama", "1.attn_out", "vector", None), "before the MLP"),
        (Case("llama", "1.resid_mid", "vector", None), "before the MLP"),
        (Case("llama", "1.mlp_hidden", "vector", None), "added inside one"),
        (
            Case("llama", "1.resid_post", "vector", None, options={"positions": "last"}),
            "a control vector acts on every",
        ),
    ],
    ids=str,
)
def test_what_is_no_control_vector_is_refused(tmp_path, case, message):
    with pytest.raises(InputError, match=message):
        steered(case).export_gguf(tmp_path / "vector.gguf")
    assert not list(tmp_path.iterdir())


def test_other_files_are_left_alone(tmp_path):
    steering = steered(Case("llama", "1.resid_post", "vector", None))
    (tmp_path / "model.gguf").write_bytes(b"GGUF of something else")
    with pytest.raises(InputError, match="holds no control vector"):
        steering.export_gguf(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes() == b"GGUF of something else"
    with pytest.raises(InputError, match="a control vector is one file"):
        steering.export_gguf(tmp_path)
