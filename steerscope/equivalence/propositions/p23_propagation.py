r"""P23, error propagation: how a distance to the fine-tuned stream at one layer grows into one at the output.

Let the fine-tuned blocks be :math:`F_k` and the steered run make the error :math:`\epsilon_l` at layer l on top of
what it inherits, :math:`h^{st}_l = F_l(h^{st}_{l-1}) + e_l`. Then
:math:`d_l \le \mathrm{Lip}_l\, d_{l-1} + \epsilon_l`, and unrolled

.. math:: |h^{st}_L - h^{FT}_L| \le \sum_l \epsilon_l \prod_{k > l} \mathrm{Lip}_k .

For small errors :math:`\mathrm{Lip}_k` is the norm of the block's Jacobian :math:`J_k`, over the whole sequence because
attention couples tokens. A single error at layer l is carried by the product: its worst case is *exactly*
:math:`\epsilon_l\, |J_L \cdots J_{l+1}|`, along the product's first singular vector, and the product of norms bounds
that from above. Both are tried: every :math:`\mathrm{Lip}_k` on its own block, the product on the blocks together.

The authors' post states the aim (small errors per layer, small error at the output) without this form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.runs import (
    FIRST_ORDER,
    block_alone,
    fine_tuning,
    post,
    run_at,
    shortened,
    unit,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import slope_of
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import Edit

GROUP = "error control"

# Errors relative to the stream; beyond 1e-3 curvature shows, below 1e-7 rounding does.
SCALES = (1e-3, 1e-4, 1e-5, 1e-6)
# Size of a single error along a worst direction: curvature is of relative size 1e-7 times a constant.
WORST = 1e-7
# The bound is exact to first order; curvature adds what it adds at SCALES[-1] and WORST.
BOUND = 1.001
# An eigenpair of J^T J: what it misses, over the eigenvalue. The norm's own error is of the square of it.
SINGULAR = 1e-4
# Two ways to a norm: Lanczos steps, and singular values of the dense matrix where it is small enough to be made.
NORM = 1e-6
DENSE = 512
# An attained bound, up to rounding.
ROUNDING = 1e-12
# Blocks the error passes through, and the most steps of Lanczos' method for the norm of each.
BLOCKS_ABOVE = 3
STEPS = 60


class Linearised(NamedTuple):
    """A block's derivative at one stream: ``push`` is J v, ``pull`` is J^T u; both keep the shape of the stream."""

    push: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor], Tensor]


# --- formulas ---


def propagated_bound(errors: Sequence[float], lipschitz: Sequence[float]) -> float:
    """Return ``sum_l eps_l prod_{k > l} Lip_k``; both per layer, lowest first. Source: P23.

    Args:
        errors: eps, the length of the error made at every layer.
        lipschitz: A Lipschitz constant of every layer's map of the stream.

    Returns:
        A bound on the length of the final error.
    """
    total = 0.0
    for error, constant in zip(errors, lipschitz, strict=True):
        total = constant * total + error
    return total


def composed(maps: Sequence[Linearised]) -> Linearised:
    """Return the product of blocks' derivatives, the lowest block first in ``maps``.

    Args:
        maps: Derivatives of blocks that follow each other.

    Returns:
        ``J_L ... J_{l+1}`` and its transpose.
    """

    def push(v: Tensor) -> Tensor:
        for one in maps:
            v = one.push(v)
        return v

    def pull(u: Tensor) -> Tensor:
        for one in reversed(maps):
            u = one.pull(u)
        return u

    return Linearised(push, pull)


def leading_singular(of: Linearised, start: Tensor) -> tuple[float, Tensor]:
    """Return the spectral norm of a linear map and the direction it stretches most, by Lanczos' method on ``J^T J``.

    Args:
        of: The map and its transpose.
        start: Any direction with a part along the wanted one.

    Returns:
        The norm, from below, and a direction of length 1 in the shape of ``start``.

    Cost: at most :data:`STEPS` pushes and pulls, and the square of it in products of vectors.
    """
    basis: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    following = unit(start).flatten()
    while True:
        basis.append(following)
        image = of.pull(of.push(following.view_as(start))).flatten()
        diagonal.append(float(image @ following))
        known = torch.stack(basis)
        for _ in range(2):  # twice, or rounding brings back directions that are there already
            image = image - (image @ known.T) @ known
        values, vectors = torch.linalg.eigh(_tridiagonal(diagonal, beside))
        left = float(image.norm())
        if left * abs(float(vectors[-1, -1])) <= 0.1 * SINGULAR * float(values[-1]) or len(basis) == min(
            STEPS, len(following)
        ):
            break
        beside.append(left)
        following = image / left
    direction = unit((vectors[:, -1] @ known).view_as(start))
    return float(of.push(direction).norm()), direction


def _tridiagonal(diagonal: Sequence[float], beside: Sequence[float]) -> Tensor:
    off = torch.diag(torch.tensor(beside, dtype=torch.float64), 1)
    return torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + off + off.T


def lipschitz_constants(maps: Sequence[Linearised], starts: Sequence[Tensor]) -> list[tuple[float, Tensor]]:
    """Return the norm of every block's derivative and its worst direction.

    Args:
        maps: Derivatives of blocks.
        starts: Where the search for each begins.

    Returns:
        Norm and direction per block.
    """
    return [leading_singular(one, start) for one, start in zip(maps, starts, strict=True)]


# --- check ---


def _linearised(subject: Subject, layer: int) -> Linearised:
    function, stream = block_alone(subject, layer)
    pull = torch.func.vjp(function, stream)[1]
    return Linearised(lambda v: torch.func.jvp(function, (stream,), (v,))[1].detach(), lambda u: pull(u)[0].detach())


def _dense(of: Linearised, like: Tensor) -> Tensor:
    columns = [of.push(row.view_as(like)).flatten() for row in torch.eye(like.numel(), dtype=like.dtype)]
    return torch.stack(columns, 1)


def _dense_norms(maps: Sequence[Linearised], like: Tensor) -> list[float]:
    """Return the norms of blocks' derivatives and of their product by singular values of dense matrices."""
    matrices = [_dense(one, like) for one in maps]
    product = matrices[0]
    for matrix in matrices[1:]:
        product = matrix @ product
    return [float(torch.linalg.svdvals(matrix)[0]) for matrix in (*matrices, product)]


def _singular_misfit(of: Linearised, found: tuple[float, Tensor]) -> float:
    """Return how far a direction is from being a singular vector of that norm: 0 for one, of order 1 for any other."""
    norm, direction = found
    return float((of.pull(of.push(direction)) - norm**2 * direction).norm()) / norm**2


def _aligned_chain(subject: Subject) -> float:
    """Return the final error over its bound for maps that turn and scale, every error along what arrives: 1."""
    factors, errors, width = (0.5, 3.0, 1.7, 0.4), (1.0, 0.2, 2.0, 0.7), 6
    arriving = torch.zeros(width, dtype=torch.float64)
    for index, (factor, error) in enumerate(zip(factors, errors, strict=True)):
        turn = torch.linalg.qr(subject.draw(width, width, salt=330 + index)).Q
        carried = factor * (turn @ arriving)
        arriving = carried + error * (unit(carried) if index else turn[0])
    return float(arriving.norm()) / propagated_bound(errors, factors)


def _check_propagation(subject: Subject) -> Evidence:
    few = shortened(subject, 3)
    top = len(few.site_map.blocks) - 1
    if top == 0:
        return Evidence(inapplicable="one block has nothing above it that an error could pass through")
    layers = tuple(range(max(0, top - BLOCKS_ABOVE), top + 1))
    end = post(top)
    with with_update(few.model, fine_tuning(few, layers)):  # the blocks are the fine-tuned ones throughout
        exact = run_at(few, [post(layer) for layer in layers])
        like = exact[end]
        size = float(exact[post(layers[0])].norm())
        maps = [_linearised(few, layer) for layer in layers[1:]]
        starts = [few.draw(*like.shape, salt=300 + layer) for layer in layers]
        gains = lipschitz_constants(maps, starts[1:])
        product = composed(maps)
        largest = leading_singular(product, starts[0])
        directions = [unit(few.draw(*like.shape, salt=310 + layer)) for layer in layers]

        def final_error(errors: Sequence[float], along: Sequence[Tensor], at: int = top) -> float:
            def made(size: float, direction: Tensor) -> Edit:
                return lambda h: size * direction

            edits = {post(k): made(e, v) for k, e, v in zip(layers, errors, along, strict=True) if e}
            return float((run_at(few, (post(at),), edits=edits)[post(at)] - exact[post(at)]).norm())

        def worst_error(made_at: int, direction: Tensor, seen_at: int) -> float:
            """Return the error at one of the layers for one made at a lower one, over its size."""
            errors = [WORST * size if k == made_at else 0.0 for k in range(len(layers))]
            return final_error(errors, [direction] * len(layers), layers[seen_at]) / (WORST * size)

        at_scale = {scale: [scale * size] * len(layers) for scale in SCALES}
        found = [final_error(at_scale[scale], directions) for scale in SCALES]
        through_one = [worst_error(k, gains[k][1], k + 1) / gains[k][0] for k in range(len(maps))]
        through_all = worst_error(0, largest[1], len(maps))
        at_random = worst_error(0, directions[0], len(maps))
        every, norms = [*maps, product], [*gains, largest]
        misfit = max(_singular_misfit(one, found) for one, found in zip(every, norms, strict=True))
        dense: list[float] = []
        if like.numel() <= DENSE:
            dense = [norm / right for (norm, _), right in zip(norms, _dense_norms(maps, like), strict=True)]
        shorter = leading_singular(composed(maps[:-1]), starts[0])[0]
    lipschitz = [1.0, *(gain for gain, _ in gains)]
    bounds = [propagated_bound(at_scale[scale], lipschitz) for scale in SCALES]
    of_first = propagated_bound([1.0] + [0.0] * len(maps), lipschitz)
    blocks = f"{len(maps)} block{'s' * (len(maps) > 1)} above"

    def exactly(name: str, value: float) -> Measurement:
        return Measurement(name, value, low=1 / BOUND, high=BOUND)

    def furthest(values: Sequence[float]) -> float:
        return max(values, key=lambda value: abs(value - 1))

    claim = [
        Measurement("error at the output over its bound, smallest errors", found[-1] / bounds[-1], high=BOUND),
        Measurement("slope of the error at the output against the errors made", slope_of(SCALES, found), *FIRST_ORDER),
        exactly("worst error below one block, behind it, over that block's Lip", furthest(through_one)),
        exactly(f"worst error {blocks}, over the norm of the product of Jacobians", through_all / largest[0]),
        Measurement(f"worst error {blocks}, over its bound", through_all / of_first, high=BOUND),
        Measurement("worst directions as singular vectors of the Jacobians: misfit", misfit, high=SINGULAR),
        Measurement(
            "chain of turns and factors, errors aligned: error over its bound",
            _aligned_chain(subject),
            low=1 - ROUNDING,
            high=1 + ROUNDING,
            of_subject=False,
        ),
    ]
    if dense:
        claim.append(
            Measurement(
                "norms by Lanczos' method over singular values of the dense Jacobians",
                furthest(dense),
                low=1 - NORM,
                high=1 + NORM,
            )
        )
    return Evidence(
        claim=tuple(claim),
        controls=(
            exactly(
                f"worst error {blocks}, over the norm of the product without its last block", through_all / shorter
            ),
            exactly(f"an error in a random direction {blocks}, over the norm of the product", at_random / largest[0]),
        ),
        notes=(
            f"errors made at layers {layers[0]} to {top}; norms of the blocks' Jacobians over the sequence: "
            + ", ".join(f"{gain:.3g}" for gain, _ in gains)
            + f"; of their product {largest[0]:.3g}, which the product of the norms, {of_first:.3g}, bounds",
        ),
        series={
            "measured": curve("error per layer over the stream", SCALES, "error at the output", found),
            "bound": curve("error per layer over the stream", SCALES, "error at the output", bounds),
        },
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        23,
        GROUP,
        "errors propagate with Lipschitz factors",
        "Errors eps_l made at every layer end in |h_L - h_L^FT| <= sum_l eps_l prod_{k>l} Lip_k, linear in their size; "
        "the worst single error ends in exactly eps_l |J_L ... J_{l+1}|.",
        "Small errors; Lip_k is the norm of the block's Jacobian over the whole sequence (attention couples tokens).",
        Source.OURS,
        _check_propagation,
    ),
)
