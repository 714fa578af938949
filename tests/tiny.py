"""A tiny random model of every family, and a tokenizer small enough to read."""

from __future__ import annotations

import warnings

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from steerscope.models.attention import keep_softcapping

VOCAB = 64
_GATED = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_HEADED = {**_GATED, "head_dim": 6}  # heads x head_dim (24) differs from d_model (16)
_PLAIN = {k: v for k, v in _GATED.items() if k != "num_key_value_heads"}

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", _GATED),
    "mistral": ("mistral", _GATED),
    "qwen2": ("qwen2", _GATED),
    "qwen3": ("qwen3", _HEADED),
    "smollm3": ("smollm3", _GATED),
    "phi3": ("phi3", _GATED),
    "gemma2": ("gemma2", _HEADED),
    "gemma3_text": ("gemma3_text", _HEADED),
    "olmo2": ("olmo2", _GATED),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": VOCAB,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "n_inner": 20,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
    ),
    "opt": (
        "opt",
        {
            "vocab_size": VOCAB,
            "hidden_size": 16,
            "ffn_dim": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        },
    ),
    "gpt_neox": ("gpt_neox", _PLAIN),
    "gpt_neox_sequential": ("gpt_neox", {**_PLAIN, "use_parallel_residual": False}),
    "phi": ("phi", _PLAIN),
}

# One family per layout, where a test of every family would only cost time.
LAYOUTS = ("llama", "gemma2", "gpt2", "gpt_neox", "phi")


def tiny_config(family: str, **overrides):
    model_type, options = FAMILIES[family]
    return AutoConfig.for_model(model_type, **{**options, **overrides})


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides):
    """Build a random model whose weights, biases and norms all differ from zero and one."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # The default 0.02 makes every branch vanish beside the stream: nothing would be tested.
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.0 if "embed" in name or "wte" in name else 0.35))
            else:
                parameter.add_(0.2 * noise)
    keep_softcapping(model)  # as on load
    return model.to(dtype).eval()


def tiny_tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """A word-level tokenizer over the numbers 0 to 40 and a few signs."""
    words = ["<bos>", "<eos>", "<pad>", "<unk>", "[", "]", "=", "MAX", "MIN", "MED", "SM", "?", "yes", "no", "maybe"]
    words += [str(n) for n in range(VOCAB - len(words))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side=padding_side,
    )
