r"""P39, coverage: how much of fine-tuning's tangent an edit's tangent holds.

A weight update moves outputs by :math:`J_\theta\,d\theta`; steering can follow inside the image of its own
:math:`J_h`. What it leaves is the sine of the angle to that image, at most :math:`\sqrt{1 - \gamma^2}` with
:math:`\gamma` the smallest cosine of the principal angles between the two images, attained by one update. With more
directions of weights than of steering :math:`\gamma = 0`, the bound is 1 and attained: it then says nothing, which is
the case in any real comparison. What can be said there is the average over updates whose shifts are spread evenly over
the image of :math:`J_\theta`: the mean of what is left, squared, is one minus the mean of the squared cosines (P39).
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import as_stored, parameter_name, run
from steerscope.equivalence.propositions.runs import low_rank_change, shortened
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import SiteKind

GROUP = "tangent space"

# Angles from SVDs of small matrices.
ANGLE = 1e-8
# In the model: central differences at this size, whose error is of its square.
SMALL = 1e-3
IN_MODEL = 1e-4


# --- formulas ---


def residual_bound(smallest_cosine: float) -> float:
    """Return ``sqrt(1 - gamma^2)``. Source: P39."""
    return max(0.0, 1 - smallest_cosine**2) ** 0.5


def mean_left(cosines: Tensor, directions: int) -> float:
    """Return the mean squared residual over shifts spread evenly over the image of ``J_theta``. Source: P39.

    Args:
        cosines: Of the principal angles between the two images.
        directions: Dimensions of the image of ``J_theta``; those without an angle of their own have cosine 0.

    Returns:
        ``1 - sum cos^2 / directions``.
    """
    return 1 - float(cosines.square().sum()) / directions


def left_over(target: Tensor, jacobian: Tensor) -> float:
    """Return the share of ``target`` (q) that no combination of the columns of ``jacobian`` (q k) explains.

    Args:
        target: ``(q,)``.
        jacobian: ``(q, k)``.

    Returns:
        From 0 to 1, a ratio of lengths.
    """
    best = torch.linalg.lstsq(jacobian, target[:, None]).solution
    return float((target - (jacobian @ best)[:, 0]).norm() / target.norm())


def sine_to(target: Tensor, jacobian: Tensor) -> float:
    """Return the sine of the angle between ``target`` and the columns' span, from the projection's length.

    Args:
        target: ``(q,)``.
        jacobian: ``(q, k)``, of full column rank.

    Returns:
        From 0 to 1.
    """
    cosine = (torch.linalg.qr(jacobian).Q.T @ target).norm() / target.norm()
    return float((1 - cosine.clamp(max=1).square()).sqrt())


# --- check ---


class _Comparison:
    """Random directions of steering and of weights, and outputs of the last token as a function of both."""

    def __init__(self, subject: Subject, steering: int, tuning: int, outputs: int) -> None:
        block, width = subject.block, subject.site_map.d_model
        self._subject, self._steering = subject, steering
        self._directions = subject.draw(width, steering, salt=910)
        modules = [block.attn_write, block.mlp_write]
        self._changes = []
        for index in range(tuning):
            module = modules[index % 2]
            write, read = low_rank_change(subject, module, salt=920 + index)
            self._changes.append((parameter_name(subject, module), as_stored(module, write @ read)))
        self._named = dict(subject.model.named_parameters())
        vocabulary = run(subject).logits.shape[-1]
        self._probe = subject.draw(outputs, vocabulary, salt=930)

    def outputs(self, amounts: Tensor) -> Tensor:
        """Return the outputs for amounts of all directions, of steering first."""
        vector = self._directions @ amounts[: self._steering]
        weights = {name: self._named[name].detach() for name, _ in self._changes}
        for amount, (name, change) in zip(amounts[self._steering :], self._changes, strict=True):
            weights[name] = weights[name] + amount * change
        edits = {SiteKind.RESID_POST: lambda h: vector.expand_as(h)}
        return self._probe @ run(self._subject, edits=edits, weights=weights).logits[0, -1]

    def jacobians(self) -> tuple[Tensor, Tensor]:
        """Return ``J_h`` (outputs steering) and ``J_theta`` (outputs tuning)."""
        start = torch.zeros(self._steering + len(self._changes), dtype=torch.float64)
        basis = torch.eye(len(start), dtype=torch.float64)
        columns = [torch.func.jvp(self.outputs, (start,), (one,))[1] for one in basis]
        return torch.stack(columns[: self._steering], 1), torch.stack(columns[self._steering :], 1)

    def measured_left(self, by_steering: Tensor, update: Tensor, shift: Tensor) -> float:
        """Return what the best edit leaves of an update's shift in the model, over that shift, at a small size.

        Args:
            by_steering: ``J_h``.
            update: Amounts of the first directions of weights.
            shift: What ``J_theta`` makes of it.
        """
        rest = torch.zeros(len(self._changes) - len(update), dtype=update.dtype)
        update = torch.cat((update, rest))
        best = torch.linalg.lstsq(by_steering, shift[:, None]).solution[:, 0]
        scale = SMALL / float(torch.cat((best, update)).norm())

        def central(amounts: Tensor) -> Tensor:
            return (self.outputs(scale * amounts) - self.outputs(-scale * amounts)) / (2 * scale)

        tuned = central(torch.cat((torch.zeros_like(best), update)))
        return float((tuned - central(torch.cat((best, torch.zeros_like(update))))).norm() / tuned.norm())


def _check_coverage(subject: Subject) -> Evidence:
    few = shortened(subject, 3)
    compared = _Comparison(few, steering=6, tuning=9, outputs=12)
    by_steering, by_all = compared.jacobians()
    by_weights = by_all[:, :4]
    inner = torch.linalg.qr(by_weights)
    turned = torch.linalg.svd(torch.linalg.qr(by_steering).Q.T @ inner.Q, full_matrices=False)
    smallest, largest = float(turned.S[-1]), float(turned.S[0])
    bound = residual_bound(smallest)
    shifts = [by_weights @ amounts for amounts in subject.draw(20, by_weights.shape[1], salt=940)]
    residuals = [left_over(shift, by_steering) for shift in shifts]
    sines = [sine_to(shift, by_steering) for shift in shifts]
    # The update whose shift lies worst, and what the model itself does with it and with the best edit.
    worst_update = torch.linalg.solve_triangular(inner.R, turned.Vh[-1][:, None], upper=True)[:, 0]
    worst = left_over(by_weights @ worst_update, by_steering)
    measured = compared.measured_left(by_steering, worst_update, by_weights @ worst_update)
    # More directions of weights than of steering, as in any real comparison: what is left of an orthonormal basis.
    basis = torch.linalg.qr(by_all).Q
    cosines = torch.linalg.svdvals(torch.linalg.qr(by_steering).Q.T @ basis)
    mean = sum(left_over(one, by_steering) ** 2 for one in basis.T) / basis.shape[1]
    unreached = torch.linalg.svd(torch.linalg.qr(by_steering).Q.T @ basis).Vh[-1]
    claim = (
        Measurement(
            "largest |residual minus sine of the angle|",
            max(abs(r - s) for r, s in zip(residuals, sines, strict=True)),
            high=ANGLE,
        ),
        Measurement("largest residual minus sqrt(1 - gamma^2)", max(residuals) - bound, high=ANGLE),
        Measurement("worst update: |residual minus sqrt(1 - gamma^2)|", abs(worst - bound), high=ANGLE),
        Measurement(
            "worst update in the model, at a small size: |left over minus sqrt(1 - gamma^2)|",
            abs(measured - bound),
            high=IN_MODEL,
        ),
        Measurement(
            "9 directions of weights: |mean squared residual minus one plus the mean squared cosine|",
            abs(mean - mean_left(cosines, basis.shape[1])),
            high=ANGLE,
        ),
        Measurement(
            "9 directions of weights, worst update: |residual minus 1|, gamma being 0",
            abs(left_over(basis @ unreached, by_steering) - residual_bound(0.0)),
            high=ANGLE,
        ),
    )
    controls = (
        Measurement(
            "worst update: residual minus the bound with the largest cosine",
            worst - residual_bound(largest),
            high=ANGLE,
        ),
        Measurement(
            "9 directions of weights: |mean squared residual minus one plus the largest squared cosine|",
            abs(mean - mean_left(cosines[:1].repeat(basis.shape[1]), basis.shape[1])),
            high=ANGLE,
        ),
    )
    return Evidence(
        claim,
        controls,
        limit="for no more directions of weights than of steering; in any real comparison gamma is 0 and the bound 1",
        notes=(
            f"12 outputs, 6 directions of steering, 4 of weights: cosines {smallest:.3g} to {largest:.3g}, residuals "
            f"{min(residuals):.3g} to {max(residuals):.3g} of at most {bound:.3g}",
            f"9 of weights: mean squared residual {mean:.3g}, squared cosines "
            + ", ".join(f"{float(cosine) ** 2:.2g}" for cosine in cosines),
        ),
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        39,
        GROUP,
        "what steering leaves of an update",
        "At first order the best steering leaves sin(angle(J_theta dtheta, Im J_h)) <= sqrt(1 - gamma^2), gamma the "
        "smallest cosine of the principal angles (Unified First-Order Framework for Steering and Data Influence, "
        "OpenReview hQZQVLJrH9); spread evenly over Im J_theta, shifts leave 1 - mean cos^2 of their energy.",
        "First order. With more directions of weights than of steering gamma is 0 and the bound 1.",
        Source.LITERATURE,
        _check_coverage,
    ),
)
