r"""The best edit of one form for all tokens: least squares through one matrix per token.

An edit of a form reads :math:`x_t`, and what it adds moves the output by :math:`M_t R A x_t`, with :math:`M_t` one
dense matrix per token and :math:`R` a constant one. Sites whose edits pass through the same :math:`M_t` (attention's
heads, its output, the stream after it) are fitted together: reading the matrices from memory is what a fit costs, and
one reading then serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ITERATIONS = 15
_CONVERGED = 1e-2
# Directions in which the mean effect of an edit is smaller than this part of the largest are left out.
_KEPT = 1e-8


@dataclass(frozen=True)
class Form:
    """What one form of edit reads and how it reaches the maps.

    Attributes:
        read: What it reads, ``token channel``; a column of ones for a fixed vector.
        right: ``d_model width``, the constant map between the edit and the matrices; ``None`` for the identity.
        ridge: Relative to standardised channels.
    """

    read: Tensor
    right: Tensor | None = None
    ridge: float = 0.0

    def of(self, tokens: slice) -> Form:
        """Return the form on some tokens."""
        return Form(self.read[tokens], self.right, self.ridge)


# From maps and one read per form to one effect per form, each ``token weight d_model``.
Effects = Callable[[Tensor | None, Sequence[Tensor]], list[Tensor]]


def shared_edits(maps: Tensor | None, forms: Sequence[Form], target: Tensor) -> Effects:
    r"""Fit :math:`\min_A \sum_t |M_t R A x_t - \delta_t|^2` for every form and target; return what the edits do.

    Conjugate gradients on the normal equations, in coordinates in which channels are standardised, ``x`` is white and
    the mean of :math:`(M R)^T M R` is the identity: a few tens of steps then suffice, and one where there are no
    ``maps``. The ridge acts on :math:`G^{1/2} A` with :math:`G` that mean, so that edits are weighed by what they do,
    not by their own size. A form stops when all its targets have converged.

    Args:
        maps: ``token d_model d_model``, or ``None`` for the identity.
        forms: At least one, on the tokens of ``maps``.
        target: ``token weight d_model``.

    Returns:
        A function of maps and reads of any tokens, which gives the effect of every form's edits.

    Cost: per step two products of every token's matrix with one column per form and target.
    """
    mean = _mean_square(maps)
    fits = [_Fit(form, mean) for form in forms]
    pulled = target if maps is None else torch.bmm(target, maps)
    for fit in fits:
        fit.begin(fit.gather(pulled))
    for _ in range(ITERATIONS):
        live = [fit for fit in fits if not fit.converged]
        if not live:
            break
        moved = _moved(maps, [(fit.seen, fit.effect(fit.direction)) for fit in live])
        back = moved if maps is None else list(torch.bmm(torch.cat(moved, dim=1), maps).split(target.shape[1], dim=1))
        for fit, one in zip(live, back, strict=True):
            fit.step(fit.gather(one))
    found = [fit.effect(fit.edit) for fit in fits]

    def effects(maps: Tensor | None, reads: Sequence[Tensor]) -> list[Tensor]:
        return _moved(maps, [(fit.whiten(x), a) for fit, x, a in zip(fits, reads, found, strict=True)])

    return effects


def _moved(maps: Tensor | None, edits: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Return ``M_t B x_t`` (``token weight d_model``) for pairs of ``x`` and ``B`` (``weight d_model channel``)."""
    inner = [(x @ b.flatten(0, 1).T).unflatten(-1, b.shape[:2]) for x, b in edits]
    if maps is None:
        return inner
    # Rows times the transposed matrices: several times faster than the matrices times a few columns.
    return list(torch.bmm(torch.cat(inner, dim=1), maps.mT).split([one.shape[1] for one in inner], dim=1))


def _mean_square(maps: Tensor | None) -> Tensor | None:
    """Return the mean of ``M^T M`` over some tokens, float64."""
    if maps is None:
        return None
    some = maps[:: max(len(maps) // 32, 1)]
    return torch.bmm(some.mT, some).double().mean(0)


class _Fit:
    """Conjugate gradients of one form. ``edit`` and its kin are ``weight rank channel`` in whitened coordinates."""

    def __init__(self, form: Form, mean: Tensor | None) -> None:
        read = form.read
        scale = read.square().mean(0).sqrt()
        self._scale = scale.clamp_min(1e-6 * float(scale.max()) + 1e-30)
        x = read / self._scale
        values, basis = torch.linalg.eigh(x.T @ x / len(x))
        floor = max(form.ridge, 1e-6)
        values = values.clamp_min(0)
        self._white = basis / (values + floor).sqrt()
        self._penalty = form.ridge / (values + floor)
        self._write = _write(form.right, mean, read)
        self._count, self._tiny = len(read), torch.finfo(read.dtype).tiny
        self.seen = x @ self._white

    def whiten(self, read: Tensor) -> Tensor:
        """Return what other tokens read in whitened coordinates."""
        return (read / self._scale) @ self._white

    def effect(self, edit: Tensor) -> Tensor:
        """Return ``R G^{-1/2} A``: from what is read to what meets the maps."""
        return edit if self._write is None else self._write @ edit

    def gather(self, back: Tensor) -> Tensor:
        """Return the gradient by ``A`` of a pairing with ``back`` (``token weight d_model``)."""
        inner = (back.flatten(1).T @ self.seen).unflatten(0, back.shape[1:]) / self._count
        return inner if self._write is None else self._write.T @ inner

    def begin(self, goal: Tensor) -> None:
        """Start at zero, with the right-hand side of the normal equations."""
        self.edit, self._rest, self.direction = torch.zeros_like(goal), goal.clone(), goal
        self._size = goal.square().sum((1, 2))
        self._start = self._size.clamp_min(self._tiny)

    @property
    def converged(self) -> bool:
        """Whether every target's gradient has fallen to a hundredth."""
        return bool((self._size <= _CONVERGED**2 * self._start).all())

    def step(self, image: Tensor) -> None:
        """Take one step; ``image`` is the normal matrix times the direction, without the ridge."""
        image = image + self.direction * self._penalty
        length = self._size / (self.direction * image).sum((1, 2)).clamp_min(self._tiny)
        self.edit = self.edit + length[:, None, None] * self.direction
        self._rest = self._rest - length[:, None, None] * image
        new = self._rest.square().sum((1, 2))
        self.direction = self._rest + (new / self._size.clamp_min(self._tiny))[:, None, None] * self.direction
        self._size = new


def _write(right: Tensor | None, mean: Tensor | None, like: Tensor) -> Tensor | None:
    """Return ``R G^{-1/2}`` on the range of ``G``, the mean of ``(M R)^T M R``; ``None`` for the identity."""
    if mean is None:
        if right is None:
            return None
        # R G^{-1/2} is an isometry: its columns are the left singular vectors of R.
        values, basis = torch.linalg.eigh((right @ right.T).double())
        return basis[:, values > _KEPT * values[-1]].to(like)
    square = mean if right is None else right.double().T @ mean @ right.double()
    values, basis = torch.linalg.eigh(square)
    kept = values > _KEPT * values[-1]
    root = basis[:, kept] / values[kept].sqrt()
    return (root if right is None else right.double() @ root).to(like)
