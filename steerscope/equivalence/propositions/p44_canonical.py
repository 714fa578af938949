r"""P44, direction by direction: canonical correlations between what edits read and what a map reads.

Over n tokens the shifts of all updates of the map that writes at the block's output are :math:`R^d \otimes row(M)`, and
those of all edits :math:`R^d \otimes row(X)` (P43 has the setting; ``M`` is ``token k``, ``X`` ``token p``). The
cosines of the principal angles between these two spaces are the canonical correlations :math:`\rho_i` of X and M, each
d times: the left factor is the whole of :math:`R^d` in both. With :math:`v_i` the canonical variates of M, which are
orthonormal over tokens, an update with the shift :math:`\delta` (token d)

.. math:: \text{can be made up to the share}\quad
    \frac{\sum_i \rho_i^2 |\delta^T v_i|^2}{|\delta|^2} \;\geq\; \rho_{min}^2 .

*Proof.* The best edit projects every column of :math:`\delta` on row(X). Columns lie in span(v), and
:math:`v_i^T P_x v_j = \rho_i^2` for i = j and 0 otherwise, so that :math:`|P_x \delta|^2 = tr \delta^T P_x \delta` is
the sum above. The update :math:`u w^T` with :math:`M w = v_{min}` attains the bound. QED.

With more directions of M than of X, :math:`rank(M) > rank(X)`, the last correlations are 0 and the worst update cannot
be imitated at all; with fewer tokens than :math:`rank(M) + rank(X)` some are 1 whatever the model. An edit that reads
:math:`y = W_d m` has no correlations but 1, d times, and 0: it reads d directions of m whole and nothing of the rest
(P17). The one smallest
angle (P39) therefore says little, the spectrum says which updates can be made; P43 is its mean, weighed by how much m
varies along each direction, and updates isotropic in *whitened* m have the plain mean :math:`\frac1k \sum_i \rho_i^2`.

**Effective dimension.** Shifts are only seen with noise of some variance :math:`\sigma^2` per number. Of updates with
independent entries of variance c the shifts have the token kernel :math:`c K, K = M M^T`, and with
:math:`l = \sigma^2 / c` the least expected error of any estimate of a shift from its noisy values is

.. math:: E|\hat\delta - \delta|^2 = \sigma^2 d\; tr K (K + l)^{-1} ,

as if there were :math:`tr K (K + l)^{-1}` free dimensions per output channel and not rank(M) of them. *Proof.* With
:math:`\lambda` an eigenvalue of K, the best estimate shrinks by :math:`\lambda / (\lambda + l)`, which leaves
:math:`c\lambda l^2/(\lambda + l)^2 + \sigma^2 \lambda^2/(\lambda + l)^2 = \sigma^2 \lambda / (\lambda + l)`. QED.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve, together
from steerscope.equivalence.propositions.block_tokens import (
    READS,
    BlockTokens,
    mean_and_error,
    side_by_side,
    without_norm_behind,
    z_score,
)
from steerscope.equivalence.propositions.p43_shared_edit import GROUP, SMALL, isotropic_design
from steerscope.equivalence.propositions.shared_edit import PLAIN, SharedEdit
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.reach import (
    effective_dimension,
    orthonormal_basis,
    reachable_share,
    token_spectrum,
    variates_between,
)
from steerscope.sites import SiteKind

# Shares between 0 and 1, by two decompositions of streams whose channels differ a thousandfold in size.
EXACT = 1e-6
ERRORS = 5.0
# A correlation this near to 0 or 1 counts as such.
ONE = 1e-9
# Directions of the spectrum tried one by one, and updates with a falling spectrum.
DIRECTIONS, UPDATES, RANK = 7, 4, 4
# Noise relative to the mean square of a shift; draws of updates and noise, in output channels.
NOISE = (1.0, 0.1, 0.01)
ROWS = 4000


def direct_shares(edit: SharedEdit, shifts: Tensor) -> Tensor:
    """Return the share of each shift that the best edit makes, by least squares: ``(draw, token, d)`` to ``(draw,)``.

    Args:
        edit: What edits read.
        shifts: One per update.

    Returns:
        From 0 to 1.
    """
    left, whole = (one.reshape(len(shifts), -1).sum(1) for one in edit.errors(PLAIN, side_by_side(shifts)))
    return 1 - left / whole


def mean_share(correlations: Tensor) -> float:
    """Return the mean of ``rho^2``: the reachable share of updates isotropic in whitened reads. Source: P44."""
    return float(correlations.square().mean())


def least_share(correlations: Tensor) -> float:
    """Return ``rho_min^2``, the share of the update that edits reach least. Source: P44."""
    return float(correlations.min().square())


def posterior_errors(reads: Tensor, shifts: Tensor, noise: Tensor, level: float) -> Tensor:
    """Return the squared error of the best estimate of shifts from noisy ones, per column.

    Args:
        reads: M, ``(token, k)``.
        shifts: ``(token, column)``.
        noise: Added to them, in the same shape.
        level: l, noise variance over that of an update's entries.

    Returns:
        ``(column,)``, summed over tokens.
    """
    identity = torch.eye(reads.shape[1], dtype=reads.dtype)
    found = reads @ torch.linalg.solve(reads.T @ reads + level * identity, reads.T @ (shifts + noise))
    return (found - shifts).square().sum(0)


def _check_spectrum(subject: Subject) -> Evidence:
    return without_norm_behind(subject, _on_data)


def _on_data(subject: Subject, data: BlockTokens) -> Evidence:
    hidden = data.rows(data.tensors[SiteKind.MLP_HIDDEN])[: data.fitted]
    names = [name for name in READS if data.identifies(name)]
    if not names:
        return Evidence()
    of = _Updates.of(subject, data, hidden)
    parts = [*(_edit(subject, data, name, of) for name in names), _noisy(subject, data, hidden)]
    return together(parts)


class _Updates(NamedTuple):
    """What is the same for all that edits read.

    Attributes:
        hidden: M of the tokens fitted on.
        inverse: ``M^+``: ``M w = v`` is solved by ``w = M^+ v``.
        basis: Of what the channels of M span.
        falling: Real shifts of updates with a falling spectrum, ``(update, row, d)``.
        expected: Their shifts of the tokens fitted on, by the formula.
    """

    hidden: Tensor
    inverse: Tensor
    basis: Tensor
    falling: Tensor
    expected: tuple[Tensor, ...]

    @classmethod
    def of(cls, subject: Subject, data: BlockTokens, hidden: Tensor) -> _Updates:
        changes = falling_spectrum(subject, subject.site_map.d_model, hidden.shape[1])
        return cls(
            hidden,
            torch.linalg.pinv(hidden),
            orthonormal_basis(hidden),
            data.shifts(subject.block.mlp_write, changes),
            tuple(hidden @ change.T for change in changes),
        )


def _edit(subject: Subject, data: BlockTokens, name: str, of: _Updates) -> Evidence:
    """Try updates of known directions on one edit, each through the model and by least squares."""
    n, width, label = len(of.hidden), subject.site_map.d_model, f"{data.name}, reads {name}"
    edit = data.edit(name)
    correlations, variates = variates_between(edit.basis, of.basis)
    count = len(correlations)

    def shifts(changes: Tensor) -> Tensor:
        return data.shifts(subject.block.mlp_write, changes)

    index = torch.linspace(0, count - 1, min(DIRECTIONS, count)).round().long()
    writes = torch.nn.functional.normalize(subject.draw(len(index), width, salt=4410), dim=1)
    directions = variates.T @ of.inverse.T
    single = direct_shares(edit, shifts(writes[:, :, None] * directions[index][:, None, :]))
    whitened = torch.stack(isotropic_design(subject, width, count, salt=4420)) @ directions
    left, whole = edit.errors(PLAIN, side_by_side(shifts(whitened)))
    mean = 1 - float(left.sum() / whole.sum())
    measured = direct_shares(edit, of.falling)

    def apart(correlations: Tensor) -> float:
        found = [reachable_share(shift, correlations, variates) for shift in of.expected]
        return float((measured - measured.new_tensor(found)).abs().max())

    worst, largest = float(single[-1]), float(correlations.max())
    errors = {
        "one canonical direction each, largest |reachable share - rho^2|": float(
            (single - correlations[index].square()).abs().max()
        ),
        "worst update, |reachable share - smallest rho^2|": abs(worst - least_share(correlations)),
        "isotropic in whitened m, |reachable share - mean rho^2|": abs(mean - mean_share(correlations)),
        "updates of falling spectrum, largest |reachable share - sum over directions|": apart(correlations),
    }
    wrong = {
        "updates of falling spectrum, correlations in the other order": apart(correlations.flip(0)),
        "worst update, |reachable share - largest rho^2|": abs(worst - largest**2),
        "isotropic in whitened m, |reachable share - mean rho|": abs(mean - float(correlations.mean())),
    }
    quartiles = correlations.square().quantile(correlations.new_tensor([0.25, 0.5, 0.75])).tolist()
    ones, rank = int((correlations > 1 - ONE).sum()), edit.basis.shape[1]
    note = (
        f"{label}: {count} directions of m, {rank} of x, {n} tokens; {ones} "
        f"correlations are 1, {int((correlations < ONE).sum())} are 0; rho^2: mean {mean_share(correlations):.3f}, "
        f"quartiles {quartiles[0]:.3f}, {quartiles[1]:.3f}, {quartiles[2]:.3f}, least {least_share(correlations):.2g}"
    )
    return Evidence(
        tuple(Measurement(f"{label}: {what}", value, high=EXACT) for what, value in errors.items()),
        # An edit that reads y = W_d m has no correlation but 0 and 1: there some wrong forms are right.
        tuple(Measurement(f"{label}: {what}", value, high=EXACT) for what, value in wrong.items() if name == "h'"),
        notes=(note,),
        series={
            f"{label}: canonical correlations": curve("direction of m", range(count), "rho", correlations.tolist())
        },
    )


def falling_spectrum(subject: Subject, out: int, into: int) -> Tensor:
    """Return updates of rank :data:`RANK` with singular values 1, 1/2, 1/4, ...: ``(update, out, in)``.

    Args:
        subject: Seeds the draw.
        out: Channels written.
        into: Channels read.

    Returns:
        :data:`UPDATES` matrices with orthonormal factors.
    """
    values = 0.5 ** torch.arange(RANK, dtype=torch.float64)
    write = torch.linalg.qr(subject.draw(UPDATES, out, RANK, salt=4430)).Q
    read = torch.linalg.qr(subject.draw(UPDATES, into, RANK, salt=4431)).Q
    return (write * values) @ read.mT


def _noisy(subject: Subject, data: BlockTokens, hidden: Tensor) -> Evidence:
    """Estimate real shifts of random updates from noisy ones: the error is the effective dimension."""
    n, width = len(hidden), subject.site_map.d_model
    count = -(-ROWS // width) if width <= SMALL else 1
    changes = subject.draw(count, width, hidden.shape[1], salt=4440)
    shifts = side_by_side(data.shifts(subject.block.mlp_write, changes)[:, :n])
    noise = subject.draw(*shifts.shape, salt=4441)
    spectrum = token_spectrum(hidden)
    of_reads = {name: token_spectrum(data.reads(name)[:n]) for name in READS}
    claim, controls, notes = [], [], []
    for relative in NOISE:
        # Entries of the updates have variance 1: the mean square of a shift is tr K / n.
        level = relative * float(hidden.square().sum()) / n
        errors = posterior_errors(hidden, shifts, level**0.5 * noise, level)
        found = mean_and_error(errors, torch.full_like(errors, level))
        expected = effective_dimension(spectrum, level)
        label = f"{data.name}, noise {relative:g}: error of the best estimate"
        claim.append(
            Measurement(f"{label} minus tr K (K + l)^-1, in standard errors", z_score(found, expected), -ERRORS, ERRORS)
        )
        if relative == max(NOISE):
            rank = z_score(found, effective_dimension(spectrum, 0.0))
            controls.append(Measurement(f"{label} minus rank K, in standard errors", rank, -ERRORS, ERRORS))
        reads = (
            f"{name} {effective_dimension(own, relative * float(own.sum()) / n):.1f}" for name, own in of_reads.items()
        )
        notes.append(
            f"{data.name}, noise {relative:g}: effective dimension of m {expected:.1f} (estimated from shifts "
            f"{found[0]:.1f} +- {found[1]:.1f}), of edits reading " + ", ".join(reads)
        )
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        44,
        GROUP,
        "which updates one edit can make",
        "Edits make an update's shift up to sum_i rho_i^2 |delta^T v_i|^2 / |delta|^2, rho the canonical correlations "
        "of x and m over the tokens, v their variates; the worst up to rho_min^2, 0 where m has more directions than "
        "x. Above noise stand tr K (K + l)^-1 dimensions per channel, K = M M^T.",
        "More tokens than directions of x; no norm follows what the MLP writes.",
        Source.OURS,
        _check_spectrum,
    ),
)
