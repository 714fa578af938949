r"""P14, P15: ReFT after the MLP is a low-rank update of the down projection; LoReFT's two identities.

A ReFT edit ``R^T (W y + b - R y)`` of the MLP's output ``y = W_d m + b_d`` is linear in ``m`` up to a constant:

.. math:: R^\top (W y + b - R y) = \Delta W_d\, m + \Delta b, \quad
    \Delta W_d = (R^\top W - R^\top R)\, W_d, \quad \Delta b = R^\top b + (R^\top W - R^\top R)\, b_d

so ``DW_d`` has rank at most r and writes into rowspace(R). With ``R R^T = I`` the edited ``h'`` obeys
``R h' = W h + b`` and ``(I - R^T R) h' = (I - R^T R) h``: the subspace is overwritten, the rest untouched.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import (
    as_stored,
    bias_of,
    orthonormal_rows,
    output_first,
    parameter_name,
    relative_error,
    run,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

# Products in another order: rounding of sums over d_ff.
IDENTITY = 1e-13
# Through the layers above the block as well.
THROUGH_MODEL = 1e-12
# A singular value that is zero by construction, relative to the largest.
ZERO = 1e-12
RANK = 4


class ReftParameters(NamedTuple):
    """``R`` (r, d) with orthonormal rows, ``W`` (r, d), ``b`` (r,)."""

    rotation: Tensor
    weight: Tensor
    bias: Tensor


# --- formulas under test ---


def reft_edit(x: Tensor, reft: ReftParameters) -> Tensor:
    """Return LoReFT's edit ``R^T (W x + b - R x)`` of ``x`` (..., d). Source: arXiv 2404.03592.

    Args:
        x: What is edited, ``(..., d)``.
        reft: LoReFT's parameters.

    Returns:
        What is added to ``x``, ``(..., d)``.
    """
    return (x @ reft.weight.T + reft.bias - x @ reft.rotation.T) @ reft.rotation


def effective_update(reft: ReftParameters, down: Tensor, down_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the update of the down projection's weight (d, d_ff) and bias (d,) that equals the edit. Source: P14.

    Args:
        reft: LoReFT's parameters.
        down: The down projection's weight, ``(d, d_ff)``.
        down_bias: Its bias, ``(d,)``; zero where it has none.

    Returns:
        Changes of the weight ``(d, d_ff)`` and of the bias ``(d,)``.
    """
    both = reft.rotation.T @ (reft.weight - reft.rotation)  # R^T W - R^T R
    return both @ down, reft.rotation.T @ reft.bias + both @ down_bias


def overwritten(x: Tensor, reft: ReftParameters) -> Tensor:
    """Return ``W x + b``: what the subspace coordinates ``R h'`` become.

    Args:
        x: What is edited, ``(..., d)``.
        reft: LoReFT's parameters.

    Returns:
        Coordinates in the subspace, ``(..., r)``.
    """
    return x @ reft.weight.T + reft.bias


def untouched(x: Tensor, reft: ReftParameters) -> Tensor:
    """Return ``(I - R^T R) x``: the part outside the subspace.

    Args:
        x: What is edited, or what came of it, ``(..., d)``.
        reft: LoReFT's parameters.

    Returns:
        ``(..., d)``.
    """
    return x - (x @ reft.rotation.T) @ reft.rotation


def _drawn(subject: Subject, width: int, size: float, salt: int) -> ReftParameters:
    rank = min(RANK, width // 2)
    rotation = orthonormal_rows(subject, rank, width, salt=salt)
    weight = subject.draw(rank, width, salt=salt + 1) / width**0.5
    return ReftParameters(rotation, weight, size * subject.draw(rank, salt=salt + 2))


def check_effective_update(subject: Subject) -> Evidence:
    """P14: the edit equals an update of W_d, of rank at most r, writing into rowspace(R)."""
    block = subject.block
    hidden, site = tensors_at(subject, (SiteKind.MLP_HIDDEN, SiteKind.MLP_OUT))
    raw = block.mlp_write(hidden)
    down, down_bias = output_first(block.mlp_write), bias_of(block.mlp_write)
    size = float(raw.square().mean().sqrt())
    reft = _drawn(subject, raw.shape[-1], size, salt=400)
    update, bias = effective_update(reft, down, down_bias)
    edit = reft_edit(raw, reft)
    singular = torch.linalg.svdvals(update @ orthonormal_rows(subject, 2 * len(reft.bias), down.shape[1], salt=405).T)
    unrelated = subject.draw(*down.shape, salt=407)

    def outside(matrix: Tensor) -> float:
        return float(untouched(matrix.T, reft).norm() / matrix.norm())

    claim = [
        Measurement(
            "edit against DW_d m + Db, relative", relative_error(hidden @ update.T + bias, edit), high=IDENTITY
        ),
        Measurement("share of DW_d outside rowspace(R)", outside(update), high=IDENTITY),
        Measurement(
            f"singular value {len(reft.bias) + 1} of DW_d, relative",
            float(singular[len(reft.bias)] / singular[0]),
            high=ZERO,
        ),
    ]
    controls = [
        Measurement(
            "edit against the update without - R y", _without_read(raw, hidden, reft, down, down_bias), high=IDENTITY
        ),
        Measurement("share of an unrelated update outside rowspace(R)", outside(unrelated), high=IDENTITY),
    ]
    notes = []
    weights = {parameter_name(subject, block.mlp_write): as_stored(block.mlp_write, down + update)}
    # The new bias is added after the map, as a fixed vector: Llama's down projection has none to replace.
    own_edit = reft_edit(site, reft)
    through_weights = run(
        subject, (SiteKind.MLP_OUT,), weights=weights, edits={SiteKind.MLP_OUT: lambda y: bias.expand_as(y)}
    )
    through_site = run(subject, (SiteKind.MLP_OUT,), edits={SiteKind.MLP_OUT: lambda y: reft_edit(y, reft)})
    if block.mlp_post_norm is None:
        claim.append(
            Measurement(
                "logits, edit at mlp_out against tuned W_d, relative",
                relative_error(through_weights.logits, through_site.logits),
                high=THROUGH_MODEL,
            )
        )
    else:
        off = relative_error(through_weights[SiteKind.MLP_OUT] - site, own_edit)
        notes.append(
            f"stated for the MLP's output before its post-norm; after the norm the two differ (relative {off:.2g})"
        )
    return Evidence(claim=tuple(claim), controls=tuple(controls), notes=tuple(notes))


def _without_read(raw: Tensor, hidden: Tensor, reft: ReftParameters, down: Tensor, down_bias: Tensor) -> float:
    only_written = reft.rotation.T @ reft.weight
    found = hidden @ (only_written @ down).T + reft.rotation.T @ reft.bias + only_written @ down_bias
    return relative_error(found, reft_edit(raw, reft))


def check_subspace_identities(subject: Subject) -> Evidence:
    """P15: the subspace is overwritten and the rest untouched, if R has orthonormal rows."""
    (h,) = tensors_at(subject, (SiteKind.RESID_POST,))
    reft = _drawn(subject, h.shape[-1], float(h.square().mean().sqrt()), salt=410)

    def errors(chosen: ReftParameters) -> tuple[float, float]:
        edited = run(subject, (SiteKind.RESID_POST,), edits={SiteKind.RESID_POST: lambda x: reft_edit(x, chosen)})
        after = edited[SiteKind.RESID_POST]
        return (
            relative_error(after @ chosen.rotation.T, overwritten(h, chosen)),
            relative_error(untouched(after, chosen), untouched(h, chosen)),
        )

    inside, rest = errors(reft)
    skewed_inside, skewed_rest = errors(reft._replace(rotation=1.1 * reft.rotation))
    return Evidence(
        claim=(
            Measurement("R h' against W h + b, relative", inside, high=IDENTITY),
            Measurement("(I - R^T R) h' against (I - R^T R) h, relative", rest, high=IDENTITY),
        ),
        controls=(
            Measurement("R h' against W h + b with rows of length 1.1", skewed_inside, high=IDENTITY),
            Measurement("(I - R^T R) h' with rows of length 1.1", skewed_rest, high=IDENTITY),
        ),
    )


_GROUP = "ReFT"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        14,
        _GROUP,
        "ReFT after the MLP is an update of W_d",
        "R^T(W y + b - R y) = DW_d m + Db with DW_d = (R^T W - R^T R) W_d, rank at most r, writing into rowspace(R).",
        "y is the MLP's output before a post-norm; a bias b_d of W_d adds (R^T W - R^T R) b_d to Db",
        Source.POST,
        check_effective_update,
    ),
    Proposition(
        15,
        _GROUP,
        "LoReFT overwrites a subspace",
        "R h' = W h + b and (I - R^T R) h' = (I - R^T R) h.",
        "R R^T = I",
        Source.LITERATURE,
        check_subspace_identities,
    ),
)
