"""A tiny random model of any causal family of the installed transformers: its default configuration, made small."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steerscope.models.attention import keep_softcapping
from studies.families.overrides import NOT_SMALL, OVERRIDES

VOCAB = 64
WIDTH = 32
# Fields of configurations by their name's beginning or end, the first that fits.
SIZES: tuple[tuple[tuple[str, ...], int], ...] = (
    (("vocab_size", "vocab_size_per_layer_input"), VOCAB),
    (("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim", "dim_model", "emb_dim"), WIDTH),
    (("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    (
        (
            "num_attention_heads",
            "n_head",
            "num_heads",
            "attention_heads",
            "n_heads",
            "decoder_attention_heads",
            "encoder_attention_heads",
        ),
        4,
    ),
    (("num_key_value_heads", "num_heads_kv", "num_kv_heads", "n_head_kv"), 2),
    (("head_dim",), 8),
    (
        (
            "intermediate_size",
            "ffn_dim",
            "n_inner",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "decoder_ffn_dim",
            "encoder_ffn_dim",
            "dim_ff",
            "dff",
            "ffn_hidden_size",
        ),
        40,
    ),
    (("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "n_experts"), 4),
    (("num_experts_per_tok", "moe_top_k", "moe_k", "num_experts_per_token", "top_k_experts"), 2),
    (("n_group", "topk_group"), 1),
    (("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"), 128),
    (("q_lora_rank", "kv_lora_rank"), 12),
    (("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "qk_head_dim"), 8),
    (("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads", "kda_num_heads"), 4),
    (("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim", "kda_head_dim"), 8),
    (("first_k_dense_replace", "moe_layer_start_index"), 1),
)
PLAIN = {name: size for names, size in SIZES for name in names}


def families() -> list[str]:
    """Return every causal family that the installed transformers names, but those of :data:`NOT_SMALL`."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_SMALL))


def tiny_config(family: str, **overrides: Any) -> PretrainedConfig:
    """Return a family's default configuration with every size made small.

    Args:
        family: The ``model_type``.
        overrides: Fields that are set last.

    Returns:
        The configuration. Fields that a list per layer sets (``layer_types``) are made again for its few layers.
    """
    told = OVERRIDES.get(family, {})
    config_class = type(AutoConfig.for_model(family))
    default = config_class()
    fields = {**_small(default), **told, **overrides}
    return AutoConfig.for_model(family, **fields)


def _small(config: PretrainedConfig) -> dict[str, Any]:
    """Return the fields of a configuration that have to be smaller, those of configurations inside it too."""
    names = {**config.attribute_map}
    found: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        inner = vars(config).get(name)
        if isinstance(inner, PretrainedConfig):
            found[name] = _small(inner)
        elif name in PLAIN and isinstance(value, int) and not isinstance(value, bool):
            found[name] = min(PLAIN[name], value) if name.startswith(("first_k", "moe_layer")) else PLAIN[name]
        elif name == "layer_types":
            found[name] = None
        elif name.endswith("token_id") and isinstance(value, int):
            found[name] = {"bos": 0, "eos": 1, "pad": 2}.get(name[:3], 3)
        elif name.endswith("token_id") and isinstance(value, list):
            found[name] = [1]
    if {"qk_nope_head_dim", "qk_rope_head_dim"} <= set(found):  # latent attention: every head has its own key
        found.pop("qk_head_dim", None)
        found["num_key_value_heads"] = PLAIN["num_attention_heads"]
    for alias, name in names.items():  # only one of the two names may be given
        if alias in found and name in found:
            del found[alias]
    return found


def tiny_model(family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any) -> nn.Module:
    """Build a random model of a family whose weights, biases and norms all differ from zero and one.

    Args:
        family: The ``model_type``.
        dtype: Data type of its weights.
        seed: Seed of its weights.
        overrides: Fields of its configuration.

    Returns:
        The model in evaluation mode.
    """
    torch.manual_seed(seed)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_config(tiny_config(family, **overrides))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * (1.0 if "embed" in name or "wte" in name else 0.25))
            elif parameter.is_floating_point():
                parameter.add_(0.2 * noise)
        own = {name for name, _ in model.named_parameters()}
        for name, buffer in model.state_dict().items():  # numbers that checkpoints bring beside weights
            if name not in own and buffer.is_floating_point() and buffer.numel() <= WIDTH:
                buffer.add_(0.2 * torch.randn(buffer.shape, generator=generator))
    keep_softcapping(model)
    return model.to(dtype).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of words over numbers and a few signs, as many as tiny models have tokens."""
    words = ["<bos>", "<eos>", "<pad>", "<unk>", "=", "yes", "no"]
    words += [str(number) for number in range(VOCAB - len(words))]
    backend = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)
