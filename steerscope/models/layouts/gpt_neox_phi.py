"""Parallel blocks: attention and MLP read the same stream, out = h + A(n1 h) + M(n2 h)."""

from __future__ import annotations

from dataclasses import replace

from steerscope.models.description import BlockDescription

NEOX = BlockDescription(
    layout="parallel, two norms, plain MLP",
    attn="attention",
    attn_reads=("attention.query_key_value",),
    attn_write="attention.dense",
    mlp_in="mlp",
    mlp_reads=("mlp.dense_h_to_4h",),
    mlp_write="mlp.dense_4h_to_h",
    activation="mlp.act",
    gated=False,
    attn_norm="input_layernorm",
    mlp_norm="post_attention_layernorm",
    parallel=True,
)

NEOX_SEQUENTIAL = replace(NEOX, layout="sequential LayerNorm, plain MLP", parallel=False)

# One norm feeds both branches: mlp_in is the MLP's own input, so that an edit there spares the attention.
PHI = BlockDescription(
    layout="parallel, one shared norm, plain MLP",
    attn="self_attn",
    attn_reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_write="self_attn.dense",
    mlp_in="mlp",
    mlp_reads=("mlp.fc1",),
    mlp_write="mlp.fc2",
    activation="mlp.activation_fn",
    gated=False,
    attn_norm="input_layernorm",
    mlp_norm="input_layernorm",
    parallel=True,
)

FAMILIES = {"gpt_neox": NEOX, "phi": PHI}
