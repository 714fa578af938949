"""The equation of one block per family, written out by hand: what :mod:`.reference` runs in place of a block.

They share nothing with the layouts that the fast paths read, so that a mistake in one shows against the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.sites import SiteKind

# at(kind, x) is x wherever nothing is edited, and x + edit(x) at the site.
At = Callable[[SiteKind, Tensor], Tensor]
# attend(attention module, its output projection, input): attention, with attn_heads passed through ``at``.
Attend = Callable[[nn.Module, nn.Module, Tensor], Tensor]
# A block of any family; the equations below name its parts, so its type stays open.
AnyBlock = Any

PRE, MID, POST = SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST
HEADS, ATTN_OUT = SiteKind.ATTN_HEADS, SiteKind.ATTN_OUT
MLP_IN, HIDDEN, MLP_OUT = SiteKind.MLP_IN, SiteKind.MLP_HIDDEN, SiteKind.MLP_OUT


def _llama(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn_out = at(ATTN_OUT, attend(block.self_attn, block.self_attn.o_proj, block.input_layernorm(h)))
    m = at(MID, h + attn_out)
    z = at(MLP_IN, block.post_attention_layernorm(m))
    hidden = at(HIDDEN, block.mlp.act_fn(block.mlp.gate_proj(z)) * block.mlp.up_proj(z))
    return at(POST, m + at(MLP_OUT, block.mlp.down_proj(hidden)))


def _phi3(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn_out = at(ATTN_OUT, attend(block.self_attn, block.self_attn.o_proj, block.input_layernorm(h)))
    m = at(MID, h + attn_out)
    z = at(MLP_IN, block.post_attention_layernorm(m))
    both = block.mlp.gate_up_proj(z)
    gate, up = both[..., : both.shape[-1] // 2], both[..., both.shape[-1] // 2 :]
    hidden = at(HIDDEN, block.mlp.activation_fn(gate) * up)
    return at(POST, m + at(MLP_OUT, block.mlp.down_proj(hidden)))


def _gemma(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn = attend(block.self_attn, block.self_attn.o_proj, block.input_layernorm(h))
    m = at(MID, h + at(ATTN_OUT, block.post_attention_layernorm(attn)))
    z = at(MLP_IN, block.pre_feedforward_layernorm(m))
    hidden = at(HIDDEN, block.mlp.act_fn(block.mlp.gate_proj(z)) * block.mlp.up_proj(z))
    return at(POST, m + at(MLP_OUT, block.post_feedforward_layernorm(block.mlp.down_proj(hidden))))


def _olmo2(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn = attend(block.self_attn, block.self_attn.o_proj, h)
    m = at(MID, h + at(ATTN_OUT, block.post_attention_layernorm(attn)))
    z = at(MLP_IN, m)
    hidden = at(HIDDEN, block.mlp.act_fn(block.mlp.gate_proj(z)) * block.mlp.up_proj(z))
    return at(POST, m + at(MLP_OUT, block.post_feedforward_layernorm(block.mlp.down_proj(hidden))))


def _gpt2(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn_out = at(ATTN_OUT, attend(block.attn, block.attn.c_proj, block.ln_1(h)))
    m = at(MID, h + attn_out)
    z = at(MLP_IN, block.ln_2(m))
    hidden = at(HIDDEN, block.mlp.act(block.mlp.c_fc(z)))
    return at(POST, m + at(MLP_OUT, block.mlp.c_proj(hidden)))


def _opt(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    if not block.do_layer_norm_before:
        raise UnsupportedModelError("the reference knows OPT with norms before attention and MLP only.")
    h = at(PRE, h)
    attn_out = at(ATTN_OUT, attend(block.self_attn, block.self_attn.out_proj, block.self_attn_layer_norm(h)))
    m = at(MID, h + attn_out)
    z = at(MLP_IN, block.final_layer_norm(m))
    hidden = at(HIDDEN, block.activation_fn(block.fc1(z)))
    return at(POST, m + at(MLP_OUT, block.fc2(hidden)))


def _gpt_neox(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    attn_out = at(ATTN_OUT, attend(block.attention, block.attention.dense, block.input_layernorm(h)))
    read_by_mlp = h if block.use_parallel_residual else at(MID, h + attn_out)
    z = at(MLP_IN, block.post_attention_layernorm(read_by_mlp))
    mlp_out = at(MLP_OUT, block.mlp.dense_4h_to_h(at(HIDDEN, block.mlp.act(block.mlp.dense_h_to_4h(z)))))
    return at(POST, h + attn_out + mlp_out if block.use_parallel_residual else read_by_mlp + mlp_out)


def _phi(block: AnyBlock, h: Tensor, attend: Attend, at: At) -> Tensor:
    h = at(PRE, h)
    normed = block.input_layernorm(h)
    attn_out = at(ATTN_OUT, attend(block.self_attn, block.self_attn.dense, normed))
    z = at(MLP_IN, normed)  # the MLP's own copy: attention has read ``normed`` without the edit
    mlp_out = at(MLP_OUT, block.mlp.fc2(at(HIDDEN, block.mlp.activation_fn(block.mlp.fc1(z)))))
    return at(POST, h + attn_out + mlp_out)


# Per model_type: where the blocks are in the causal language model, and the equation of one block.
BLOCKS: dict[str, tuple[str, Callable[[AnyBlock, Tensor, Attend, At], Tensor]]] = {
    "llama": ("model.layers", _llama),
    "mistral": ("model.layers", _llama),
    "qwen2": ("model.layers", _llama),
    "qwen3": ("model.layers", _llama),
    "smollm3": ("model.layers", _llama),
    "phi3": ("model.layers", _phi3),
    "gemma2": ("model.layers", _gemma),
    "gemma3_text": ("model.layers", _gemma),
    "olmo2": ("model.layers", _olmo2),
    "gpt2": ("transformer.h", _gpt2),
    "opt": ("model.decoder.layers", _opt),
    "gpt_neox": ("gpt_neox.layers", _gpt_neox),
    "phi": ("model.layers", _phi),
}
