"""Sandwich norms: a norm on what attention and MLP write, so m = h + p1 A(n1 h), out = m + p2 M(n2 m)."""

from __future__ import annotations

from dataclasses import replace

from steerscope.models.description import BlockDescription
from steerscope.models.layouts.llama_qwen_phi3 import LLAMA

GEMMA = replace(
    LLAMA,
    layout="sequential, norms on reads and writes, gated MLP",
    mlp_norm="pre_feedforward_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

# OLMo-2 has no norm on what is read.
OLMO2 = replace(GEMMA, layout="sequential, norms on writes only, gated MLP", attn_norm=None, mlp_norm=None)

FAMILIES: dict[str, BlockDescription] = {"gemma2": GEMMA, "gemma3_text": GEMMA, "olmo2": OLMO2}
