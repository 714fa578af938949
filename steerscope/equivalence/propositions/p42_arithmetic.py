r"""P42: task arithmetic with adapters: do two edits trained apart add up?

Parameters :math:`\theta_0 + a_1\tau_1 + a_2\tau_2` of adapters (task vectors :math:`\tau_t`). In the tangent model
:math:`f_{lin} = f_0 + \nabla f^\top \tau` (Ortiz-Jimenez et al., 2305.12827) they add exactly. In the model itself
the mixed difference

.. math:: f(a_1, a_2) - f(a_1, 0) - f(0, a_2) + f(0, 0) = a_1 a_2\, \partial_1\partial_2 f + \dots

is of order :math:`a_1 a_2`: of second order when both grow, of first when one does. At the lowest adapted site it is
written out: nothing below is edited, and with ``U = 0`` at the start the adapters' own mixed difference is exactly
:math:`a_1 a_2 (u_1 d_2 + u_2 d_1) h`, which needs both factors to move. The error of weight disentanglement in that
paper, :math:`\xi = E\,\mathrm{dist}(f(a_1, 0), f(a_1, a_2))`, is another quantity: it is of first order in :math:`a_2`
unless the second task does not act on the first one's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.edit_forms import edit_form
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.parts import relative_error
from steerscope.equivalence.propositions.runs import FIRST_ORDER, SECOND_ORDER, Pass, post, run_at, shortened
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import slope_of
from steerscope.models.hooks import Edit
from steerscope.sites import Site

GROUP = "task arithmetic"
LOW_RANK = edit_form("low_rank")
RANK = 2

# Small enough that the next order changes a slope by less than 0.05, large enough for the square to stand above
# rounding: 1e-8 against 1e-15.
SCALES = (1e-2, 1e-3, 1e-4)
# Linearity of a derivative: rounding.
EXACT = 1e-11


class Factors(NamedTuple):
    """A task's change of one adapter: of U ``(d, r)`` and of D ``(r, d)``."""

    up: Tensor
    down: Tensor


# A pass of the adapted model at strengths (a1, a2), and its logits alone.
Adapted = Callable[[Tensor, Tensor], Pass]
Logits = Callable[[Tensor, Tensor], Tensor]


# --- formulas ---


def mixed_term(both: Tensor, first: Tensor, second: Tensor, neither: Tensor) -> Tensor:
    """Return ``f(a1, a2) - f(a1, 0) - f(0, a2) + f(0, 0)``. Source: P42.

    Args:
        both: Outputs with both edits, at strengths a1 and a2.
        first: Outputs with the first alone.
        second: Outputs with the second alone.
        neither: Outputs without edits.

    Returns:
        In the shape of the outputs; zero where the edits do not interact.
    """
    return both - first - second + neither


def disentanglement_error(both: Tensor, alone: Tensor) -> Tensor:
    """Return the distance of one task's outputs with and without the other: one term of ``xi``, 2305.12827.

    Args:
        both: Outputs on one task's inputs with both edits.
        alone: The same with that task's edit alone.

    Returns:
        A scalar in the units of the outputs.
    """
    return (both - alone).norm()


def tangent_shift(adapted: Logits, first: float, second: float) -> Tensor:
    """Return the shift of logits in the tangent model at ``(0, 0)`` along ``a1 tau_1 + a2 tau_2``.

    Args:
        adapted: The logits as a function of the strengths of the two edits.
        first: a1.
        second: a2.

    Returns:
        In the shape of the logits.
    """
    zero = torch.zeros((), dtype=torch.float64)
    along = (torch.full_like(zero, first), torch.full_like(zero, second))
    return torch.func.jvp(adapted, (zero, zero), along)[1]


# --- check ---


def combined(start: Tensor, tasks: Sequence[Factors], strengths: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return the adapter at ``theta_0 + a_1 tau_1 + a_2 tau_2``: ``U = sum a_t u_t``, ``D = D_0 + sum a_t d_t``.

    Args:
        start: ``D_0``, ``(r, d)``; U starts at zero.
        tasks: Per task the changes of U ``(d, r)`` and of D ``(r, d)``.
        strengths: a, one per task.

    Returns:
        ``U`` and ``D``.
    """
    pairs = list(zip(strengths, tasks, strict=True))
    up = torch.stack([strength * task.up for strength, task in pairs]).sum(0)
    down = start + torch.stack([strength * task.down for strength, task in pairs]).sum(0)
    return {"U": up, "D": down}


def mixed_at_lowest(first: Factors, second: Factors, h: Tensor) -> Tensor:
    """Return ``(u_1 d_2 + u_2 d_1) h``: the mixed difference at the lowest adapted site, over ``a_1 a_2``.

    Args:
        first: Changes of the first task's adapter there.
        second: Those of the second's.
        h: What both read, ``(..., d)``.

    Returns:
        In the shape of ``h``.
    """
    return (h @ second.down.T) @ first.up.T + (h @ first.down.T) @ second.up.T


def _adapted(subject: Subject) -> tuple[Adapted, tuple[int, ...], tuple[Factors, Factors]]:
    """Return the model with two task vectors of low-rank adapters, at ``U = 0`` and a common random D.

    Returns:
        Logits and the lowest adapted site's state at two strengths, the adapted layers, and the lowest one's tasks.
    """
    layers = tuple(sorted({0, subject.layer}))
    width = subject.site_map.d_model

    def drawn(rows: int, columns: int, salt: int) -> Tensor:
        return subject.draw(rows, columns, salt=salt) / width**0.5

    start = {layer: drawn(RANK, width, 800 + layer) for layer in layers}
    tasks = [
        {
            layer: Factors(drawn(width, RANK, 1000 * t + layer), drawn(RANK, width, 1500 + 1000 * t + layer))
            for layer in layers
        }
        for t in (1, 2)
    ]

    def adapted(first: Tensor, second: Tensor) -> Pass:
        def edit(layer: int) -> Edit:
            now = combined(start[layer], [task[layer] for task in tasks], (first, second))
            return lambda h: LOW_RANK.delta(now, h)

        edits: dict[Site, Edit] = {post(layer): edit(layer) for layer in layers}
        return run_at(subject, (post(layers[0]),), edits=edits)

    return adapted, layers, (tasks[0][layers[0]], tasks[1][layers[0]])


def _check(subject: Subject) -> Evidence:
    run, layers, lowest = _adapted(shortened(subject, 4))

    def adapted(first: Tensor, second: Tensor) -> Tensor:
        return run(first, second).logits

    def pass_at(first: float, second: float) -> Pass:
        return run(torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))

    def at(first: float, second: float) -> Tensor:
        return pass_at(first, second).logits

    neither = at(0, 0)
    one, two, both = tangent_shift(adapted, 1, 0), tangent_shift(adapted, 0, 1), tangent_shift(adapted, 1, 1)
    site = post(layers[0])
    states = [pass_at(a, b)[site] for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))]
    written_out = mixed_at_lowest(*lowest, states[-1])
    alone1, alone2 = [at(a, 0) for a in SCALES], [at(0, a) for a in SCALES]
    together = [at(a, a) for a in SCALES]
    mixed = [float(mixed_term(t, f, s, neither).norm()) for t, f, s in zip(together, alone1, alone2, strict=True)]
    fixed = SCALES[0]  # the second task's strength while the first one's shrinks
    half = [float(mixed_term(at(a, fixed), f, alone2[0], neither).norm()) for a, f in zip(SCALES, alone1, strict=True)]
    xi = [float(disentanglement_error(t, f)) for t, f in zip(together, alone1, strict=True)]
    left = [float((t - neither - a * both).norm()) for a, t in zip(SCALES, together, strict=True)]
    real = relative_error(alone1[0] + alone2[0] - 2 * neither, together[0] - neither)
    size = float(neither.norm())
    return Evidence(
        claim=(
            Measurement(
                "tangent model: sum of two shifts minus the shift of the sum",
                relative_error(one + two, both),
                high=EXACT,
            ),
            Measurement("tangent model: slope of what it leaves over", slope_of(SCALES, left), *SECOND_ORDER),
            Measurement(
                "lowest adapted site: mixed difference at strengths 1 against (u_1 d_2 + u_2 d_1) h",
                relative_error(mixed_term(states[0], states[1], states[2], states[3]), written_out),
                high=EXACT,
            ),
            Measurement("mixed difference, both strengths shrink: slope", slope_of(SCALES, mixed), *SECOND_ORDER),
            Measurement("mixed difference, one strength shrinks: slope", slope_of(SCALES, half), *FIRST_ORDER),
        ),
        controls=(
            Measurement("disentanglement error xi, both strengths shrink: slope", slope_of(SCALES, xi), *SECOND_ORDER),
            Measurement(f"the model itself at strengths {fixed:g}: sum minus the shift of the sum", real, high=EXACT),
        ),
        notes=(f"rank-{RANK} adapters at layers {', '.join(map(str, layers))}, started at U = 0 with a common D",),
        series={
            "mixed difference": curve("strength of both tasks", SCALES, "over the logits", [m / size for m in mixed]),
            "disentanglement error": curve("strength of both tasks", SCALES, "over the logits", [x / size for x in xi]),
        },
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        42,
        GROUP,
        "task arithmetic of adapters",
        "In the tangent model of Ortiz-Jimenez et al. (2305.12827) the shifts of two task vectors add exactly; in the "
        "model their mixed difference is of order a1 a2, at the lowest adapted site a1 a2 (u1 d2 + u2 d1) h.",
        "The mixed difference, not that paper's xi, which is of first order unless one task leaves the other's data "
        "alone.",
        Source.LITERATURE,
        _check,
    ),
)
