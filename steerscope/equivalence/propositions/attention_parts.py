"""The attention of a block as tensors: its maps output-first, and what else its closed form needs, of any layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from steerscope.equivalence.attention_forms import AttentionForm, AttentionMaps, Norm
from steerscope.equivalence.propositions.norms import norm_parts
from steerscope.equivalence.propositions.parts import as_stored, bias_of, output_first, parameter_name
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.calls import calls_of, stream_of
from steerscope.models.wrappers import acting_layer

# Names of norms on queries and keys, in the families that have them.
_QUERY_NORMS, _KEY_NORMS = ("q_norm", "q_layernorm"), ("k_norm", "k_layernorm")


def attention_call(subject: Subject) -> tuple[Tensor, dict[str, Any]]:
    """Return what the block's attention reads, ``batch token d``, and the other arguments of its call by name.

    Args:
        subject: Inside ``subject.ready()``.
    """
    with calls_of([subject.block.attn]) as calls:
        subject.model(input_ids=subject.input_ids, use_cache=False)
    call = calls[subject.block.attn]
    return stream_of(call.args, call.kwargs).detach(), call.kwargs


def attention_form(subject: Subject, kwargs: dict[str, Any], tokens: int) -> AttentionForm:
    """Return everything about the block's attention but its maps.

    Args:
        subject: The model.
        kwargs: Arguments of the attention's call, of :func:`attention_call`.
        tokens: Length of the sequences.

    Returns:
        Head width, scale, mask, rotation, norms and cap, in float64.
    """
    attn: Any = subject.block.attn
    heads = subject.site_map.n_heads
    d_head = output_first(subject.block.attn_write).shape[1] // heads
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = torch.full((tokens, tokens), -torch.inf, dtype=torch.float64).triu(1)
    rotation = kwargs.get("position_embeddings") if getattr(attn, "use_rope", True) else None
    return AttentionForm(
        d_head=d_head,
        scale=float(getattr(attn, "scaling", d_head**-0.5)),
        mask=mask.double(),
        rotation=None if rotation is None else (rotation[0].double(), rotation[1].double()),
        query_norm=_norm(attn, _QUERY_NORMS, d_head, heads * d_head),
        key_norm=_norm(attn, _KEY_NORMS, d_head, None),
        soft_cap=getattr(attn, "attn_logit_softcapping", None),
    )


def _norm(attn: nn.Module, names: tuple[str, ...], d_head: int, width: int | None) -> Norm | None:
    found = next((getattr(attn, name) for name in names if isinstance(getattr(attn, name, None), nn.Module)), None)
    if found is None:
        return None
    size = int(found.weight.numel())
    parts = norm_parts(found, size)
    bias = getattr(found, "bias", None)
    return Norm(
        parts.gain,
        torch.zeros_like(parts.gain) if bias is None else bias.detach(),
        parts.eps,
        parts.is_centred,
        whole=size != d_head,
    )


def split_reads(subject: Subject, fused: Tensor, d_head: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rows of a fused map that make queries, keys and values.

    Args:
        subject: The model.
        fused: ``(out, ...)``: a weight, output-first, or a bias.
        d_head: Width of a head.

    Returns:
        Three tensors with the rest of the axes as they were.
    """
    heads = subject.site_map.n_heads
    if subject.block.description.attn_reads[0].endswith("query_key_value"):
        # GPT-NeoX: query, key and value of one head stand together.
        by_head = fused.unflatten(0, (heads, 3, d_head))
        query, key, value = (by_head[:, i].flatten(0, 1) for i in range(3))
        return query, key, value
    queries = heads * d_head
    shared = (len(fused) - queries) // 2
    query, key, value = fused.split((queries, shared, shared))
    return query, key, value


def joined_reads(subject: Subject, query: Tensor, key: Tensor, value: Tensor, d_head: int) -> Tensor:
    """Return the fused map of three: the inverse of :func:`split_reads`.

    Args:
        subject: The model.
        query: Rows that make queries.
        key: Rows that make keys.
        value: Rows that make values.
        d_head: Width of a head.

    Returns:
        ``(out, ...)``.
    """
    if subject.block.description.attn_reads[0].endswith("query_key_value"):
        parts = [one.unflatten(0, (-1, d_head)) for one in (query, key, value)]
        return torch.stack(parts, dim=1).flatten(0, 2)
    return torch.cat((query, key, value))


def attention_maps(subject: Subject, d_head: int) -> AttentionMaps:
    """Return the block's four attention maps and their biases, output-first.

    Args:
        subject: The model.
        d_head: Width of a head.

    Returns:
        Zeros for biases that the model does not have.
    """
    block = subject.block
    weights = [output_first(module) for module in block.attn_reads]
    biases = [bias_of(module) for module in block.attn_reads]
    if len(weights) == 1:
        weights, biases = list(split_reads(subject, weights[0], d_head)), list(split_reads(subject, biases[0], d_head))
    query, key, value = weights
    query_bias, key_bias, value_bias = biases
    output, output_bias = output_first(block.attn_write), bias_of(block.attn_write)
    return AttentionMaps(query, key, value, output, query_bias, key_bias, value_bias, output_bias)


def attention_parameters(subject: Subject, change: AttentionMaps, d_head: int) -> dict[str, Tensor]:
    """Return a change of the attention's maps by the model's parameter names; biases it does not have are left out.

    Args:
        subject: The model.
        change: Output-first.
        d_head: Width of a head.

    Returns:
        Change per parameter name.
    """
    block = subject.block
    reads = [(change.query, change.query_bias), (change.key, change.key_bias), (change.value, change.value_bias)]
    if len(block.attn_reads) == 1:
        weight = joined_reads(subject, change.query, change.key, change.value, d_head)
        bias = joined_reads(subject, change.query_bias, change.key_bias, change.value_bias, d_head)
        reads = [(weight, bias)]
    pairs = zip((*block.attn_reads, block.attn_write), (*reads, (change.output, change.output_bias)), strict=True)
    found = {}
    for module, (weight, bias) in pairs:
        found[parameter_name(subject, module)] = as_stored(module, weight)
        if getattr(acting_layer(module), "bias", None) is not None:
            found[parameter_name(subject, module, "bias")] = bias
    return found
