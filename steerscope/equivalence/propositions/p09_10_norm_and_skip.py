r"""P9, P10: what the norm before the MLP takes from an edit of the stream, and what the skip connection gives back.

To first order an edit of the MLP's input moves its output by ``A`` (P7), an edit of the stream before the norm by
``A D_N``. The norm forgets the length of what it reads, LayerNorm also its mean (P9); but the stream goes on beside the
MLP as well, so that the block's output moves by ``I + A D_N``, which is generically invertible again. By the inverse
function theorem an edit then reaches every output in some neighbourhood, and how far that goes is measured (P10).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.mlp_expansion import at_last_token, input_jacobian
from steerscope.equivalence.propositions.norms import NormParts, norm_parts
from steerscope.equivalence.propositions.parts import (
    as_parameters,
    drawn_update,
    mlp_alone,
    mlp_parts,
    moved,
    relative_error,
    run,
    stream_before_mlp,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.blocks import Block
from steerscope.sites import SiteKind

GROUP = "column space"

# Singular values below this share of the largest count as zero: rounding leaves fewer.
ZERO = 1e-12
# Hand-written Jacobian of a norm against autodiff.
JACOBIAN = 1e-12
# Newton's method ends at rounding.
NEWTON = 1e-12
NEWTON_STEPS = 12
# Relative changes of the weights of the tuned block in P10, "nearby": two per power of ten. The radius is the largest
# of them up to which Newton's method, started at no edit, ends at the tuned block. In a real block a change of 1e-2
# asks for edits far outside the region where one linearisation holds.
SIZES = tuple(10 ** (-5 + k / 2) for k in range(9))


# --- formulas under test ---


def norm_jacobian(x: Tensor, norm: NormParts, eps: float) -> Tensor:
    r"""Return the derivative ``(d, d)`` of an RMSNorm or LayerNorm at one token ``x`` (d,).

    .. math:: D_N = \mathrm{diag}(g)\,\frac{1}{r}\left(C - \frac{c\,c^\top}{d\,r^2}\right),
        \quad r^2 = |c|^2/d + \epsilon

    with ``c = x`` and ``C = I`` in RMSNorm; in LayerNorm ``c = x - mean`` and ``C = I - 1 1^T / d``. At
    ``eps = 0`` it maps ``c`` to zero. Source: P9.

    Args:
        x: What the norm receives at one token, ``(d,)``.
        norm: Its gain, and whether it subtracts the mean.
        eps: Its epsilon; 0 for the limit without one.

    Returns:
        ``(d, d)`` indexed ``[output channel, input channel]``.
    """
    d = x.shape[0]
    centring = torch.eye(d, dtype=x.dtype)
    if norm.is_centred:
        centring = centring - 1 / d
    c = centring @ x
    r = (c.square().mean() + eps).sqrt()
    return norm.gain[:, None] * (centring - torch.outer(c, c) / (d * r**2)) / r


def block_jacobian(mlp: Tensor, norm: Tensor) -> Tensor:
    """Return ``I + A D_N``: how an edit of the stream before the MLP moves the block's output. Source: P10.

    Args:
        mlp: A, the MLP's derivative by its input, ``(d, d)``.
        norm: D_N, the derivative of the norm before it, ``(d, d)``.

    Returns:
        ``(d, d)``.
    """
    return torch.eye(mlp.shape[0], dtype=mlp.dtype) + mlp @ norm


# --- checks ---


def check_norm_rank(subject: Subject) -> Evidence:
    """P9: the norm before the MLP costs one dimension (LayerNorm two)."""
    before = subject.block.mlp_norm
    if before is None:
        return Evidence(inapplicable="the MLP reads the stream itself, no norm stands before it")
    parts, z = at_last_token(subject)
    x = stream_before_mlp(subject)[0, -1]
    norm = norm_parts(before, x.shape[0])
    mlp = input_jacobian(z, parts)
    whole = mlp @ norm_jacobian(x, norm, 0.0)
    answered = jacfwd(lambda stream: mlp_alone(subject, before(stream)))(x)
    lost = 2 if norm.is_centred else 1
    # The directions the norm forgets: the length of x, in LayerNorm also the mean.
    forgotten = torch.stack((x - x.mean(), torch.ones_like(x)) if norm.is_centred else (x,), dim=1)
    forgotten = forgotten / forgotten.norm(dim=0)
    values = torch.linalg.svdvals(whole)
    with_eps = mlp @ norm_jacobian(x, norm, norm.eps) @ forgotten

    def passed_on(matrix: Tensor) -> float:
        return float((matrix @ forgotten).norm() / matrix.norm())

    return Evidence(
        claim=(
            Measurement(
                "norm's Jacobian against autodiff, relative",
                relative_error(norm_jacobian(x, norm, norm.eps), jacrev(before)(x)),
                high=JACOBIAN,
            ),
            Measurement(
                "A D_N against the model's own MLP behind its norm, relative",
                relative_error(mlp @ norm_jacobian(x, norm, norm.eps), answered),
                high=JACOBIAN,
            ),
            Measurement("what A D_N passes on of the forgotten directions, eps = 0", passed_on(whole), high=ZERO),
            Measurement(
                f"singular value {lost} from below of A D_N, relative", float(values[-lost] / values[0]), high=ZERO
            ),
        ),
        controls=(Measurement("what A alone passes on of them", passed_on(mlp), high=ZERO),),
        notes=(
            f"{'LayerNorm' if norm.is_centred else 'RMSNorm'}: {lost} dimension{'s' * (lost - 1)} lost; next singular "
            f"value {float(values[-lost - 1] / values[0]):.1e} of the largest; with the model's eps = {norm.eps:g} "
            f"A D_N passes on {float(with_eps.norm() / whole.norm()):.1e}",
        ),
    )


def _jacobian_of(norm: nn.Module | None, x: Tensor) -> Tensor:
    if norm is None:
        return torch.eye(x.shape[0], dtype=x.dtype)
    parts = norm_parts(norm, x.shape[0])
    return norm_jacobian(x, parts, parts.eps)


def _rest_of_block(block: Block, stream: Tensor) -> Tensor:
    """Return the block's output from the stream between attention and MLP."""
    z = stream if block.mlp_norm is None else block.mlp_norm(stream)
    return stream + block.mlp_output(block.hidden(z))


class _Oracle(NamedTuple):
    """An edit of the stream before the MLP and how it was found: steps, and invertibility of the first Jacobian."""

    edit: Tensor
    misfit: float
    steps: int
    invertible: float


def _newton(subject: Subject, stream: Tensor, wanted: Tensor) -> _Oracle:
    """Seek the edit of one token's stream after which the rest of the block returns ``wanted``, by Newton's steps."""
    block, parts = subject.block, mlp_parts(subject)
    edit, invertible, steps = torch.zeros_like(stream), 0.0, 0
    while True:
        x = stream + edit
        missing = wanted - _rest_of_block(block, x)
        misfit = float(missing.norm() / wanted.norm())
        # Not finite: the steps have left every region in which the block is near linear.
        if misfit <= 0.01 * NEWTON or steps == NEWTON_STEPS or not misfit < 1e3:
            return _Oracle(edit, misfit, steps, invertible)
        z = x if block.mlp_norm is None else block.mlp_norm(x)
        written = _jacobian_of(block.mlp_post_norm, block.mlp_write(block.hidden(z)))
        jacobian = block_jacobian(written @ input_jacobian(z, parts), _jacobian_of(block.mlp_norm, x))
        inverse = torch.linalg.inv(jacobian)
        if steps == 0:
            # In Frobenius norms: never above the ratio of the smallest to the largest singular value.
            invertible = 1 / float(jacobian.norm() * inverse.norm())
        edit = edit + inverse @ missing
        steps += 1


def check_block_oracle(subject: Subject) -> Evidence:
    """P10: an edit of the stream before the MLP can produce the block output of a nearby fine-tuned block exactly."""
    block = subject.block
    if block.description.parallel:
        return Evidence(inapplicable="in a parallel block no stream stands between attention and MLP")
    parts = mlp_parts(subject)
    update = drawn_update(subject, parts, 1.0, salt=230)
    before, streams = tensors_at(subject, (SiteKind.RESID_POST, SiteKind.RESID_MID))
    stream, unedited = streams[0, -1], before[0, -1]

    def tuned(size: float) -> Tensor:
        weights = as_parameters(subject, moved(parts.weights, update, size))
        return run(subject, (SiteKind.RESID_POST,), weights=weights)[SiteKind.RESID_POST][0, -1]

    radius, beyond = 0.0, ""
    wanted = tuned(SIZES[0])
    found = _newton(subject, stream, wanted)
    for size in SIZES:
        aim = wanted if size == SIZES[0] else tuned(size)
        oracle = found if size == SIZES[0] else _newton(subject, stream, aim)
        if not oracle.misfit <= NEWTON:
            beyond = f"; for {size:.2g} of the weights Newton's steps end {oracle.misfit:.2g} away"
            break
        radius, wanted, found = size, aim, oracle
    change = wanted - unedited
    at_last_token = torch.zeros_like(streams)
    at_last_token[0, -1] = found.edit

    def misfit(kind: SiteKind) -> float:
        reached = run(subject, (SiteKind.RESID_POST,), edits={kind: lambda h: at_last_token})[SiteKind.RESID_POST]
        return relative_error(reached[0, -1], wanted)

    return Evidence(
        claim=(
            Measurement(
                f"block tuned by {radius:.2g} of its weights against the edited block, relative",
                misfit(SiteKind.RESID_MID),
                high=NEWTON,
            ),
            Measurement("1 / condition number of I + A D_N, from below", found.invertible, low=ZERO),
            Measurement("radius: size of the update, over the weights", radius, low=SIZES[0]),
        ),
        controls=(
            Measurement(
                "the same edit at mlp_in, which spares the skip connection", misfit(SiteKind.MLP_IN), high=NEWTON
            ),
            Measurement("no edit", relative_error(unedited, wanted), high=NEWTON),
        ),
        limit=f"locally: random updates of up to {radius:.2g} of the weights{'' if beyond else ', the largest tried'}",
        notes=(
            f"{found.steps} Newton steps; the edit is {float(found.edit.norm() / change.norm()):.2g} times as long "
            f"as the change of the block's output and {float(found.edit.norm() / stream.norm()):.1e} of the "
            f"stream{beyond}",
        ),
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        9,
        GROUP,
        "a norm costs a dimension",
        "rank(A D_N) <= d - 1 for RMSNorm, d - 2 for LayerNorm: the norm forgets the length (and the mean).",
        "epsilon of the norm 0",
        Source.OURS,
        check_norm_rank,
    ),
    Proposition(
        10,
        GROUP,
        "with the skip connection nothing is lost locally",
        "An edit of the stream before the MLP moves the block by I + A D_N, of full rank: it reaches every nearby "
        "output, also that of a tuned block whose weights differ little.",
        "a sequential block; the tuned block within the reported radius; an edit of its own for every token",
        Source.OURS,
        check_block_oracle,
    ),
)
