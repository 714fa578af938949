r"""What one attention computes, and its first-order shift under updates of its four maps, written out.

Pure functions of tensors, no model. For one head, at token t with the tokens u it sees:

.. math:: q_t = N_q(W_q z_t + b_q),\quad k_u = N_k(W_k z_u + b_k),\quad v_u = W_v z_u + b_v,\quad
    s_{tu} = c\big(\kappa\, (R_t q_t) \cdot (R_u k_u)\big)

.. math:: \alpha_{t\cdot} = \mathrm{softmax}_u(s_{tu} + mask_{tu}),\quad a_t = \sum_u \alpha_{tu} v_u,\quad
    A_t = W_O a_t + b_O

with norms N on queries and keys (the identity in most families), rotations R by position, a scale kappa, and a soft cap
c on scores. Query heads share keys and values in groups. Shapes: ``z`` is ``batch token d``; queries are
``batch head token d_head``, keys and values the same with fewer heads; scores ``batch head token token``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class AttentionMaps(NamedTuple):
    """The four maps of an attention, or changes of them, output-first; biases zero where there are none.

    Queries ``(heads*d_head, d)``, keys and values ``(kv_heads*d_head, d)``, output ``(d, heads*d_head)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    query_bias: Tensor
    key_bias: Tensor
    value_bias: Tensor
    output_bias: Tensor


class Norm(NamedTuple):
    """A norm of queries or keys: ``gain * x / sqrt(mean x^2 + eps)``, its mean taken off first where ``centred``.

    ``whole``: over all heads of a token at once (OLMo-2), else over each head.
    """

    gain: Tensor
    bias: Tensor
    eps: float
    centred: bool
    whole: bool


@dataclass(frozen=True)
class AttentionForm:
    """Everything about an attention but its maps.

    Attributes:
        d_head: Width of a head.
        scale: kappa.
        mask: Added to scores, broadcast to ``batch head token token``: 0 or very negative.
        rotation: Cosines and sines, ``(batch or 1, token, r)`` with ``r <= d_head`` channels rotated; ``None`` without.
        query_norm: Norm of queries.
        key_norm: Norm of keys.
        soft_cap: Scores are ``cap * tanh(score / cap)``; ``None`` for no cap.
    """

    d_head: int
    scale: float
    mask: Tensor
    rotation: tuple[Tensor, Tensor] | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    soft_cap: float | None = None


class AttentionState(NamedTuple):
    """What stands between input and output, keys and values once per query head; heads are joined for the output map.

    Queries and keys are after norm and rotation, raw scores before the cap.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    raw_scores: Tensor
    weights: Tensor
    heads: Tensor


def attention(z: Tensor, maps: AttentionMaps, form: AttentionForm) -> Tensor:
    """Return what attention writes, ``batch token d``.

    Args:
        z: What it reads, ``batch token d``.
        maps: Its maps.
        form: The rest.

    Returns:
        ``A_t`` for every token, before any norm on it.
    """
    return attention_state(z, maps, form).heads @ maps.output.T + maps.output_bias


def attention_state(z: Tensor, maps: AttentionMaps, form: AttentionForm) -> AttentionState:
    """Return queries, keys, values, scores and weights.

    Args:
        z: What attention reads, ``batch token d``.
        maps: Its maps.
        form: The rest.

    Returns:
        Everything between what it reads and what it writes.
    """
    queries = _rotated(_normed(z @ maps.query.T + maps.query_bias, form.query_norm, form.d_head), form)
    keys = _rotated(_normed(z @ maps.key.T + maps.key_bias, form.key_norm, form.d_head), form)
    values = _by_head(z @ maps.value.T + maps.value_bias, form.d_head)
    keys, values = _shared(keys, queries), _shared(values, queries)
    raw = form.scale * queries @ keys.mT
    scores = raw if form.soft_cap is None else form.soft_cap * torch.tanh(raw / form.soft_cap)
    weights = torch.softmax(scores + form.mask, dim=-1)
    return AttentionState(queries, keys, values, raw, weights, joined_heads(weights @ values))


def attention_shift(z: Tensor, maps: AttentionMaps, update: AttentionMaps, form: AttentionForm) -> Tensor:
    r"""Return the first-order shift of what attention writes under an update of its maps.

    .. math:: \delta A_t = \Delta W_O a_t + \Delta b_O + W_O \sum_u
        \big(\delta\alpha_{tu} v_u + \alpha_{tu} \delta v_u\big),\quad
        \delta\alpha_{tu} = \alpha_{tu}\Big(\delta s_{tu} - \sum_w \alpha_{tw} \delta s_{tw}\Big)

    .. math:: \delta s_{tu} = c'\,\kappa \big( (R_t \delta q_t) \cdot (R_u k_u) + (R_t q_t) \cdot (R_u \delta k_u)\big),
        \quad \delta q_t = D_{N_q} (\Delta W_q z_t + \Delta b_q)

    with keys like queries and :math:`\delta v_u = \Delta W_v z_u + \Delta b_v`. The four maps add up: each alone gives
    its own term.

    Args:
        z: What attention reads, ``batch token d``; it does not move.
        maps: Where the expansion starts.
        update: Changes of the maps, in the same shapes.
        form: The rest.

    Returns:
        ``batch token d``; the remainder is of second order.

    Cost: about twice an attention. Source: P46.
    """
    state = attention_state(z, maps, form)
    d_scores = score_shift(z, maps, update, form, state.queries, state.keys)
    if form.soft_cap is not None:
        d_scores = d_scores * cap_slope(state.raw_scores, form.soft_cap)
    d_values = _shared(_by_head(z @ update.value.T + update.value_bias, form.d_head), state.queries)
    d_heads = joined_heads(softmax_shift(state.weights, d_scores) @ state.values + state.weights @ d_values)
    return d_heads @ maps.output.T + state.heads @ update.output.T + update.output_bias


def score_shift(
    z: Tensor, maps: AttentionMaps, update: AttentionMaps, form: AttentionForm, queries: Tensor, keys: Tensor
) -> Tensor:
    """Return the first-order shift of scores before the cap: of queries against keys, and of keys against queries.

    Args:
        z: What attention reads, ``batch token d``.
        maps: Where the expansion starts.
        update: Changes of the maps.
        form: The rest.
        queries: After norm and rotation, ``batch head token d_head``.
        keys: The same, repeated to the queries' heads.

    Returns:
        ``batch head token token``.
    """
    d_queries = _norm_shift(
        z @ maps.query.T + maps.query_bias, z @ update.query.T + update.query_bias, form.query_norm, form.d_head
    )
    d_keys = _norm_shift(z @ maps.key.T + maps.key_bias, z @ update.key.T + update.key_bias, form.key_norm, form.d_head)
    turned = _rotated(_shared(d_keys, queries), form)
    return form.scale * (_rotated(d_queries, form) @ keys.mT + queries @ turned.mT)


def softmax_shift(weights: Tensor, d_scores: Tensor) -> Tensor:
    """Return ``alpha * (ds - sum alpha ds)``: how attention's weights move with its scores.

    Args:
        weights: alpha, ``batch head token token``.
        d_scores: ds, in the same shape.

    Returns:
        Changes that sum to zero over the tokens seen.
    """
    return weights * (d_scores - (weights * d_scores).sum(-1, keepdim=True))


def cap_slope(raw_scores: Tensor, cap: float) -> Tensor:
    """Return the derivative of ``cap * tanh(s / cap)``.

    Args:
        raw_scores: s.
        cap: The soft cap.

    Returns:
        From 0 to 1, in the shape of s.
    """
    return 1 - torch.tanh(raw_scores / cap).square()


def _rotated(x: Tensor, form: AttentionForm) -> Tensor:
    """Return heads turned by position: channels i and i + r/2 of the first r as pairs."""
    if form.rotation is None:
        return x
    cosine, sine = (one.unsqueeze(1) for one in form.rotation)
    turned, rest = x[..., : cosine.shape[-1]], x[..., cosine.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    return torch.cat((turned * cosine + torch.cat((-second, first), dim=-1) * sine, rest), dim=-1)


def _normed(flat: Tensor, norm: Norm | None, d_head: int) -> Tensor:
    """Return ``batch head token d_head`` of ``batch token heads*d_head``, after the norm if there is one."""
    if norm is None:
        return _by_head(flat, d_head)
    x = flat if norm.whole else _by_head(flat, d_head)
    centred = x - x.mean(-1, keepdim=True) if norm.centred else x
    y = norm.gain * centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() + norm.bias
    return _by_head(y, d_head) if norm.whole else y


def _norm_shift(flat: Tensor, d_flat: Tensor, norm: Norm | None, d_head: int) -> Tensor:
    """Return ``D_N dx`` by head: ``gain * (dc - c <c, dc> / (n r^2)) / r`` with ``r^2 = |c|^2 / n + eps`` (P9)."""
    if norm is None:
        return _by_head(d_flat, d_head)
    x, dx = (flat, d_flat) if norm.whole else (_by_head(flat, d_head), _by_head(d_flat, d_head))
    if norm.centred:
        x, dx = x - x.mean(-1, keepdim=True), dx - dx.mean(-1, keepdim=True)
    size = x.square().mean(-1, keepdim=True) + norm.eps
    y = norm.gain * (dx - x * (x * dx).mean(-1, keepdim=True) / size) / size.sqrt()
    return _by_head(y, d_head) if norm.whole else y


def _by_head(flat: Tensor, d_head: int) -> Tensor:
    return flat.unflatten(-1, (-1, d_head)).transpose(1, 2)


def joined_heads(heads: Tensor) -> Tensor:
    """Return ``batch token heads*d_head`` of ``batch head token d_head``."""
    return heads.transpose(1, 2).flatten(2)


def _shared(grouped: Tensor, queries: Tensor) -> Tensor:
    """Return keys or values once per query head: neighbouring query heads share one."""
    return grouped.repeat_interleave(queries.shape[1] // grouped.shape[1], dim=1)
