"""Sequential pre-norm blocks with a gated MLP: m = h + A(n1 h), out = m + M(n2 m)."""

from __future__ import annotations

from dataclasses import replace

from steerscope.models.description import BlockDescription

LLAMA = BlockDescription(
    layout="sequential pre-norm, gated MLP",
    attn="self_attn",
    attn_reads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attn_write="self_attn.o_proj",
    mlp_in="mlp",
    mlp_reads=("mlp.gate_proj", "mlp.up_proj"),
    mlp_write="mlp.down_proj",
    activation="mlp.act_fn",
    gated=True,
    attn_norm="input_layernorm",
    # The name says "post attention", the tensor is the MLP's input: hooking this norm edits mlp_in.
    mlp_norm="post_attention_layernorm",
)

PHI3 = replace(
    LLAMA,
    attn_reads=("self_attn.qkv_proj",),
    mlp_reads=("mlp.gate_up_proj",),
    activation="mlp.activation_fn",
)

FAMILIES = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "smollm3": LLAMA,
    "phi3": PHI3,
}
