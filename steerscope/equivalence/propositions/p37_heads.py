r"""P37: edits of attention heads as fixed vectors and as weights.

With :math:`W_O^{(i)}` the columns of the output projection that read head i, attention writes
:math:`\sum_i W_O^{(i)} z_i`. Hence an offset of heads, :math:`z_i \to z_i + v_i` (LoFiT, 2406.01563), writes one
fixed vector more, :math:`\sum_i W_O^{(i)} v_i`, and a scaling :math:`z \to (1 + A) * z` is the weight edit
:math:`W_O \to W_O\,\mathrm{diag}(1 + A)`. JoLA (2502.01179) gates both, :math:`z + g_m m * z + g_a a`; with gates at
zero nothing happens. Heads are those of the queries, also where several share keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import output_first, relative_error
from steerscope.equivalence.propositions.runs import as_update, output_mapped, run_at
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.hooks import Edit
from steerscope.sites import Site, SiteKind

GROUP = "heads"

# The same sums in another order, through the rest of the model.
EXACT = 1e-13


# --- formulas ---


def head_columns(weight: Tensor, head: int, num_heads: int) -> Tensor:
    """Return ``W_O^(i)`` (d d_head): the columns of the output projection that read one head.

    Args:
        weight: W_O, ``(d, heads * d_head)``.
        head: Which head, from 0.
        num_heads: How many there are.

    Returns:
        ``(d, d_head)``.
    """
    return weight.unflatten(1, (num_heads, -1))[:, head]


def offset_as_vector(weight: Tensor, offsets: Tensor) -> Tensor:
    """Return ``sum_i W_O^(i) v_i`` (d) for offsets (head d_head). Source: P37.

    Args:
        weight: W_O, ``(d, heads * d_head)``.
        offsets: One vector per head, ``(heads, d_head)``.

    Returns:
        ``(d,)``.
    """
    return torch.stack([head_columns(weight, i, len(offsets)) @ v for i, v in enumerate(offsets)]).sum(0)


def scaled_columns(weight: Tensor, scalings: Tensor) -> Tensor:
    """Return ``W_O diag(1 + A)`` (d head*d_head) for scalings (head d_head). Source: P37.

    Args:
        weight: W_O, ``(d, heads * d_head)``.
        scalings: A, ``(heads, d_head)``; 0 leaves a channel as it is.

    Returns:
        ``(d, heads * d_head)``.
    """
    return weight * (1 + scalings.flatten())


def gated_edit(z: Tensor, gate_scale: float, scale: Tensor, gate_offset: float, offset: Tensor) -> Tensor:
    """Return JoLA's change ``g_m m * z + g_a a`` of one head's output.

    Args:
        z: The head's output, ``(..., d_head)``.
        gate_scale: g_m.
        scale: m, ``(d_head,)``.
        gate_offset: g_a.
        offset: a, ``(d_head,)``.

    Returns:
        What is added to ``z``, ``(..., d_head)``.
    """
    return gate_scale * scale * z + gate_offset * offset


# --- check ---


def _check(subject: Subject) -> Evidence:
    block, heads = subject.block, subject.site_map.n_heads
    weight = output_first(block.attn_write)
    size = weight.shape[1] // heads
    offsets = subject.draw(heads, size, salt=51)
    offsets[::2] = 0  # chosen heads only: every second
    scalings = 0.5 * subject.draw(heads, size, salt=52)

    def at_heads(edits: dict[int, Edit]) -> Tensor:
        sites = {Site(subject.layer, SiteKind.ATTN_HEADS, head): edit for head, edit in edits.items()}
        return run_at(subject, edits=sites).logits

    def offset(head: int) -> Edit:
        return lambda z: offsets[head].expand_as(z)

    def scaling(head: int) -> Edit:
        return lambda z: scalings[head] * z

    def gated(head: int, gate: float) -> Edit:
        return lambda z: gated_edit(z, gate, scalings[head], gate, offsets[head])

    def vector(value: Tensor) -> Tensor:
        with output_mapped(block.attn_write, lambda out: out + value):
            return run_at(subject).logits

    plain = run_at(subject).logits
    moved = at_heads({head: offset(head) for head in range(heads)})
    scaled = at_heads({head: scaling(head) for head in range(heads)})
    v = offset_as_vector(weight, offsets)
    by_weight = run_at(subject, update=as_update(subject, block.attn_write, scaled_columns(weight, scalings) - weight))
    at_site = run_at(subject, edits={Site(subject.layer, SiteKind.ATTN_OUT): lambda h: v.expand_as(h)}).logits
    behind = Measurement("offsets as a fixed vector at attn_out", relative_error(at_site, moved), high=EXACT)
    turned = scaled_columns(weight, scalings.roll(1, 0)) - weight
    wrong_scaling = run_at(subject, update=as_update(subject, block.attn_write, turned)).logits
    claim = [
        Measurement("offsets as a vector added to the output projection", relative_error(vector(v), moved), high=EXACT),
        Measurement(
            "scalings as columns of the output projection", relative_error(by_weight.logits, scaled), high=EXACT
        ),
        Measurement(
            "gates at zero: largest change of a logit",
            float((at_heads({head: gated(head, 0.0) for head in range(heads)}) - plain).abs().max()),
            high=0.0,  # an edit of zero leaves the logits bit-equal
        ),
    ]
    wrong_vector = vector(offset_as_vector(weight, offsets.roll(1, 0)))
    controls = [
        Measurement("offsets given to the neighbouring head", relative_error(wrong_vector, moved), high=EXACT),
        Measurement("scalings given to the neighbouring head", relative_error(wrong_scaling, scaled), high=EXACT),
        Measurement(
            "gates at one: largest change of a logit",
            float((at_heads({head: gated(head, 1.0) for head in range(heads)}) - plain).abs().max()),
            high=0.0,
        ),
    ]
    notes = [f"{heads} heads, offsets on every second"]
    if block.attn_post_norm is None:
        claim.append(behind)
    else:
        controls.append(behind)
        notes.append("behind the norm on what attention writes, offsets are no fixed vector")
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        37,
        GROUP,
        "edits of heads",
        "Offsets of heads (LoFiT) are the fixed vector sum_i W_O^(i) v_i, scalings are "
        "W_O diag(1 + A), and JoLA's edit "
        "with its gates at zero is none.",
        "The vector stands before a norm on what attention writes, if there is one.",
        Source.OURS,
        _check,
    ),
)
