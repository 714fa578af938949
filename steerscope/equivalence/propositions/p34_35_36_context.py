r"""P34 to P36: context as a change of weights: what tokens before a token do to it, written into the block.

Context reaches a block through attention alone: without it attention writes another vector, and adding the
difference :math:`\Delta_A = A(C, h) - A(h)` where attention writes gives the block with context (P36).

It can also be written into weights. Let a map W read a without context and a' with it. Then

.. math:: \Delta W = \frac{W (a' - a)\, a^\top}{|a|^2} \quad\Rightarrow\quad (W + \Delta W)\, a = W a',

of rank 1 and, since any solution has :math:`|\Delta W|_F \ge |W(a'-a)| / |a|`, the smallest one (Dherin et al.,
2507.16003, P34). A gated MLP reads its input twice, and both maps have to be patched. What attention adds to the skip
connection is absorbed by the map that writes, :math:`\Delta W_d = (v' - v)\, m^\top / |m|^2`, or by the scale of a norm
behind it, :math:`\Delta g = (v' - v) / f` with f the norm's output before its scale (Goldwaser et al., 2511.17864,
P35). Patches are made layer by layer, each on the stream that the patches below have made; they are specific to a
token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from steerscope.equivalence.closed_forms import GatedWeights
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.norms import norm_parts
from steerscope.equivalence.propositions.parts import (
    MLPWeights,
    as_parameters,
    mlp_alone,
    mlp_parts,
    parameter_name,
    relative_error,
    with_down,
)
from steerscope.equivalence.propositions.runs import Pass, post, run_at
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.subspaces import rank_excess
from steerscope.models.hooks import Edit
from steerscope.sites import Site, SiteKind

GROUP = "context as weights"

# One block: products of float64, with errors near 1e-15. Wrong forms are off by 1e-3 and more.
EXACT = 1e-13
# Several blocks, or the whole model.
EXACT_RUN = 1e-12
# Blocks that are patched one after the other.
PATCHED = 4
# Context must matter: what attention writes changes by at least this share.
MATTERS = 1e-3


# --- formulas ---


def context_shift(with_context: Tensor, without: Tensor) -> Tensor:
    """Return ``A(C, h) - A(h)``: what context adds to what attention writes. Source: P36.

    Args:
        with_context: What attention writes with the context, ``(..., d)``.
        without: The same without it.

    Returns:
        ``(..., d)``.
    """
    return with_context - without


def read_patch(weight: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Return ``W (a' - a) a^T / |a|^2`` (out d): with it W makes of a what it made of a' (both ``(d,)``).

    Args:
        weight: W, ``(out, d)``.
        before: a, what the map reads without context, ``(d,)``; not zero.
        after: a', what it reads with it, ``(d,)``.

    Returns:
        The change of the weight, ``(out, d)``, of rank 1.
    """
    return torch.outer(weight @ (after - before), before) / before.square().sum()


def sequential_patch(weight: Tensor, states: Sequence[Tensor]) -> Tensor:
    r"""Return ``W prod_i (I + h_i (a_i - a_{i-1}) a_{i-1}^T)``, ``h_i = 1 / |a_{i-1}|^2``, latest factor leftmost.

    ``states`` are what the map reads with 0, 1, ... tokens of context. Source: arXiv 2507.16003, sequential form.

    Args:
        weight: W, ``(out, d)``.
        states: What the map reads with 0, 1, ... tokens of context, ``(d,)`` each.

    Returns:
        The patched weight, ``(out, d)``.
    """
    for before, after in reversed(list(pairwise(states))):
        weight = weight + read_patch(weight, before, after)
    return weight


def write_patch(shift: Tensor, hidden: Tensor) -> Tensor:
    """Return ``s m^T / |m|^2`` (d d_ff): with it the down projection adds s where it reads m. Source: P35.

    Args:
        shift: s, ``(d,)``.
        hidden: m, ``(d_ff,)``; not zero.

    Returns:
        The change of the weight, ``(d, d_ff)``, of rank 1.
    """
    return torch.outer(shift, hidden) / hidden.square().sum()


def scale_patch(shift: Tensor, unscaled: Tensor) -> Tensor:
    """Return ``s / f`` (d): with it a norm's scale adds s where its unscaled output is f. Source: P35.

    Args:
        shift: s, ``(d,)``.
        unscaled: f, ``(d,)``; no entry zero.

    Returns:
        The change of the norm's scale, ``(d,)``.
    """
    return shift / unscaled


# --- runs with and without context ---


def _positions(subject: Subject, kept: int) -> tuple[Subject, Tensor]:
    """Return the subject on the last ``kept`` tokens of its first sequence, and their positions in it."""
    total = subject.input_ids.shape[1]
    return (
        replace(subject, input_ids=subject.input_ids[:1, total - kept :]),
        torch.arange(total - kept, total)[None],
    )


def _first_sequence(subject: Subject) -> Subject:
    return replace(subject, input_ids=subject.input_ids[:1])


def _towards(target: Tensor) -> Edit:
    return lambda h: context_shift(target, h)


# --- checks ---


def _check_steering(subject: Subject) -> Evidence:
    kept, layers = 3, range(len(subject.site_map.blocks))
    full = _first_sequence(subject)
    alone, positions = _positions(subject, kept)
    attn, mlp_in, end = (
        Site(subject.layer, SiteKind.ATTN_OUT),
        Site(subject.layer, SiteKind.MLP_IN),
        post(subject.layer),
    )
    writes = [Site(layer, SiteKind.ATTN_OUT) for layer in layers]
    below = [post(subject.layer - 1)] if subject.layer else []
    seen = run_at(full, {*writes, mlp_in, end, *below})
    target = {site: value[:, -kept:] for site, value in seen.tensors.items()}
    # The same stream enters the block as with context: only what attention looks at is missing.
    stream: dict[Site, Edit] = {site: _towards(target[site]) for site in below}

    def passed(edits: dict[Site, Edit]) -> Pass:
        return run_at(alone, (attn, mlp_in, end), edits=edits, position_ids=positions)

    without = passed(stream)
    shift = context_shift(target[attn], without[attn])
    steered = passed({**stream, attn: lambda a: shift})
    mlp_only = passed({**stream, mlp_in: _towards(target[mlp_in])})
    own = passed({site: _towards(target[site]) for site in writes})
    single = passed({attn: lambda a: shift})
    logits = seen.logits[:, -kept:]
    claim = [
        Measurement("block's output with the shift injected", relative_error(steered[end], target[end]), high=EXACT),
        Measurement("logits, every layer with its own shift", relative_error(own.logits, logits), high=EXACT_RUN),
        Measurement(
            "size of the shift over what attention writes", float(shift.norm() / target[attn].norm()), low=MATTERS
        ),
    ]
    controls = [
        Measurement("block's output, no shift", relative_error(without[end], target[end]), high=EXACT),
        Measurement(
            "block's output, the MLP alone given its input with context",
            relative_error(mlp_only[end], target[end]),
            high=EXACT,
        ),
    ]
    if len(layers) > 1:
        controls.append(
            Measurement("logits, this layer's shift alone", relative_error(single.logits, logits), high=EXACT_RUN)
        )
    return Evidence(
        tuple(claim),
        tuple(controls),
        notes=(f"last {kept} tokens of {full.input_ids.shape[1]}, at their positions, with the others removed",),
    )


def _patched_reads(weights: MLPWeights, before: Tensor, after: Tensor, *, both: bool = True) -> MLPWeights:
    """Return the weights with every map that reads patched; with ``both`` off, the gate alone."""
    if isinstance(weights, GatedWeights):
        up = weights.up + read_patch(weights.up, before, after) if both else weights.up
        return weights._replace(gate=weights.gate + read_patch(weights.gate, before, after), up=up)
    return weights._replace(first=weights.first + read_patch(weights.first, before, after))


def _check_read_patch(subject: Subject) -> Evidence:
    site = Site(subject.layer, SiteKind.MLP_IN)
    states = []
    for kept in (1, 2, 3, 4):
        alone, positions = _positions(subject, kept)
        states.append(run_at(alone, (site,), position_ids=positions)[site][0, -1])
    before, after = states[0], states[-1]
    if subject.block.description.parallel and subject.layer == 0:
        return Evidence(inapplicable="in the first block of a parallel layout the MLP reads nothing of the context")
    parts = mlp_parts(subject)
    weights = parts.weights
    first = weights.gate if isinstance(weights, GatedWeights) else weights.first
    target = mlp_alone(subject, after)

    def output(patched: MLPWeights) -> float:
        return relative_error(mlp_alone(subject, before, as_parameters(subject, patched)), target)

    patch = read_patch(first, before, after)
    least = (first @ (after - before)).norm() / before.norm()
    wrong_order = first
    for a, b in pairwise(states):
        wrong_order = wrong_order + read_patch(wrong_order, a, b)
    claim = [
        Measurement(
            "MLP's output, every map that reads patched", output(_patched_reads(weights, before, after)), high=EXACT
        ),
        Measurement("second singular value of the patch over the first", rank_excess(patch, 1), high=EXACT),
        Measurement(
            "norm of the patch over the least possible, minus 1", abs(float(patch.norm() / least) - 1), high=EXACT
        ),
        Measurement(
            "product of patches for 1, 2, 3 tokens of context",
            relative_error(sequential_patch(first, states) @ before, first @ after),
            high=EXACT,
        ),
    ]
    controls = [
        Measurement("MLP's output, no patch", output(weights), high=EXACT),
        Measurement(
            "product of patches, factors in the other order",
            relative_error(wrong_order @ before, first @ after),
            high=EXACT,
        ),
    ]
    published: tuple[Measurement, ...] = ()
    if parts.is_gated:
        gate_only = output(_patched_reads(weights, before, after, both=False))
        published = (Measurement("MLP's output, one map patched as for an MLP without a gate", gate_only, high=EXACT),)
    return Evidence(tuple(claim), tuple(controls), published)


def _block_patch(
    subject: Subject, layer: int, seen: Pass, now: Pass, *, reads: bool = True, writes: bool = True
) -> dict[str, Tensor]:
    """Return the changes of one block's weights that make its output for one token what it is with context.

    Args:
        subject: The model.
        layer: The block.
        seen: The run with context, read at ``mlp_in``, ``mlp_hidden``, ``mlp_out`` and ``resid_post``.
        now: The same without context, on the patched stream.
        reads: Whether to patch the maps that read.
        writes: Whether to patch what writes.
    """
    block = subject.site_map.blocks[layer]
    weights = mlp_parts(subject, block).weights

    def last(found: Pass, kind: SiteKind) -> Tensor:
        return found[Site(layer, kind)][0, -1]

    before, after = last(now, SiteKind.MLP_IN), last(seen, SiteKind.MLP_IN)
    hidden, out = last(seen, SiteKind.MLP_HIDDEN), last(seen, SiteKind.MLP_OUT)
    skip = last(now, SiteKind.RESID_POST) - last(now, SiteKind.MLP_OUT)  # everything that goes past the MLP
    shift = (last(seen, SiteKind.RESID_POST) - out) - skip
    zero = type(weights)(*(torch.zeros_like(weight) for weight in weights))
    change: MLPWeights = zero
    if reads:
        patched = _patched_reads(weights, before, after)
        change = type(weights)(*(new - old for new, old in zip(patched, weights, strict=True)))
    if writes and block.mlp_post_norm is None:
        change = with_down(change, write_patch(shift, hidden))
    update = as_parameters(subject, change, block)
    if writes and block.mlp_post_norm is not None:
        gain = norm_parts(block.mlp_post_norm, subject.site_map.d_model).gain
        update[parameter_name(subject, block.mlp_post_norm)] = scale_patch(shift, out / gain)
    return update


def _check_block_patch(subject: Subject) -> Evidence:
    count = min(PATCHED, len(subject.site_map.blocks))
    kinds = (SiteKind.MLP_IN, SiteKind.MLP_HIDDEN, SiteKind.MLP_OUT, SiteKind.RESID_POST)
    full = _first_sequence(subject)
    alone, positions = _positions(subject, 1)
    seen = run_at(full, [Site(layer, kind) for layer in range(count) for kind in kinds])

    def patched(reads: bool = True, writes: bool = True) -> tuple[Tensor, Tensor]:
        update: dict[str, Tensor] = {}
        for layer in range(count):
            now = run_at(alone, [Site(layer, kind) for kind in kinds], update=update, position_ids=positions)
            update |= _block_patch(subject, layer, seen, now, reads=reads, writes=writes)
        end = run_at(alone, (post(count - 1),), update=update, position_ids=positions)
        return end[post(count - 1)][0, -1], end.logits[0, -1]

    target = seen[post(count - 1)][0, -1]
    state, logits = patched()
    claim = [Measurement(f"stream after {count} patched blocks", relative_error(state, target), high=EXACT_RUN)]
    if count == len(subject.site_map.blocks):
        claim.append(Measurement("logits", relative_error(logits, seen.logits[0, -1]), high=EXACT_RUN))
    controls = [
        Measurement(
            "stream, writing maps not patched", relative_error(patched(writes=False)[0], target), high=EXACT_RUN
        )
    ]
    block = subject.block
    notes = ["last token of the first sequence; all tokens before it removed"]
    if block.description.parallel:
        notes.append("parallel blocks: the MLP reads the same with context, so only the writing map absorbs it")
    else:
        controls.append(
            Measurement(
                "stream, reading maps not patched", relative_error(patched(reads=False)[0], target), high=EXACT_RUN
            )
        )
    if block.mlp_post_norm is not None:
        notes.append("the skip's part is absorbed by the scale of the norm on what the MLP writes")
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        34,
        GROUP,
        "rank-1 patch of a reading map",
        "W (a' - a) a^T / |a|^2 makes an MLP that reads a without context compute what "
        "it computes with it (a'): exact, "
        "rank 1, of least norm, and the product over single tokens of context gives the "
        "same (Dherin et al., 2507.16003).",
        "Every map that reads is patched: gate and up of a gated MLP. One token; a is not zero.",
        Source.LITERATURE,
        _check_read_patch,
        published="One patch of the first weight, stated for an MLP without a gate.",
    ),
    Proposition(
        35,
        GROUP,
        "patches of whole blocks",
        "Reading maps patched by rank 1 and the skip's change absorbed by the down "
        "projection, or by the scale of a norm "
        "behind it, block after block: the stream with context, exactly (Goldwaser et al., 2511.17864).",
        "One token; each patch is made on the patched stream; the unscaled norm has no zero coordinate.",
        Source.LITERATURE,
        _check_block_patch,
    ),
    Proposition(
        36,
        GROUP,
        "context is steering of attention's output",
        "Adding A(C, h) - A(h) where attention writes, before the skip and the MLP, gives the block's output with "
        "context; deeper layers need their own shift.",
        "The tokens keep their positions.",
        Source.PRE_MLP_POST,
        _check_steering,
    ),
)
