"""Sequential blocks with LayerNorm and a plain MLP: m = h + A(n1 h), out = m + M(n2 m), M z = W2 phi(W1 z)."""

from __future__ import annotations

from steerscope.models.description import BlockDescription

GPT2 = BlockDescription(
    layout="sequential LayerNorm, plain MLP",
    layers="h",
    attn="attn",
    attn_reads=("attn.c_attn",),
    attn_write="attn.c_proj",
    mlp_in="mlp",
    mlp_reads=("mlp.c_fc",),
    mlp_write="mlp.c_proj",
    activation="mlp.act",
    gated=False,
    attn_norm="ln_1",
    mlp_norm="ln_2",
)

OPT = BlockDescription(
    layout="sequential LayerNorm, plain MLP",
    attn="self_attn",
    attn_reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_write="self_attn.out_proj",
    mlp_in="fc1",  # OPT has no MLP module, and its MLP sees tokens flattened to one axis
    mlp_reads=("fc1",),
    mlp_write="fc2",
    activation="activation_fn",
    gated=False,
    attn_norm="self_attn_layer_norm",
    mlp_norm="final_layer_norm",
)

FAMILIES = {"gpt2": GPT2, "opt": OPT}
