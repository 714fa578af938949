r"""P29 to P31: forms of the post-block adapter: nonlinear against linear, the start, and what it decomposes into.

``SiLU(x) = x/2 + x^2/4 + O(x^4)``, so ``(2/e) U SiLU(e D h) = U D h + (e/2) U (D h)^2 + ...``: every linear adapter
is a limit of nonlinear ones (P29), and where ``D h`` is small a nonlinear adapter is half a linear one, which halves
the gradient of U at the start (P30). With ``U = 0`` either adapter adds exactly nothing, D gets no gradient and U
does. A linear adapter of the block's output ``h + W_O a + W_d m`` is

.. math:: U D\,(h + W_O a + W_d m) = U D\, h + (U D W_O)\, a + (U D W_d)\, m

weight updates of the two maps that write, acting at the block's output only, and a read of the skip (P31).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.parts import (
    as_stored,
    bias_of,
    output_first,
    parameter_name,
    relative_error,
    run,
    tensors_at,
)
from steerscope.equivalence.propositions.runs import FIRST_ORDER
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import fit_remainder
from steerscope.sites import SiteKind

# Scales e of P29, with D h of root mean square 1: the next order is e times smaller, rounding 1e-16 / e.
SCALES = (1e-2, 1e-3, 1e-4)
# P30's ratio 1/2, to first order in D h, where D h is kept below SMALL.
RATIO_TOLERANCE = 1e-3
SMALL = 1e-3
# Sums in another order: rounding alone.
DECOMPOSED = 1e-13
# The same through the layers above.
THROUGH_MODEL = 1e-12
RANK = 4
# The authors' code scales D's uniform initialisation (kaiming with a = sqrt(5): bound 1 / sqrt(d)) by this.
CODE_SCALE = 1e-3


# --- formulas under test ---


def nonlinear_adapter(up: Tensor, down: Tensor, h: Tensor) -> Tensor:
    """Return ``U SiLU(D h)`` for U (d, r), D (r, d), h (..., d). Source: arXiv 2603.00425.

    Args:
        up: U, ``(d, r)``.
        down: D, ``(r, d)``.
        h: The residual stream at a site, ``(..., d)``.

    Returns:
        What is added, ``(..., d)``.
    """
    return functional.silu(h @ down.T) @ up.T


def linear_adapter(up: Tensor, down: Tensor, h: Tensor) -> Tensor:
    """Return ``U D h``. Source: arXiv 2603.00425, without its activation.

    Args:
        up: U, ``(d, r)``.
        down: D, ``(r, d)``.
        h: The residual stream at a site, ``(..., d)``.

    Returns:
        What is added, ``(..., d)``.
    """
    return (h @ down.T) @ up.T


def rescaled_nonlinear(up: Tensor, down: Tensor, h: Tensor, scale: float) -> Tensor:
    """Return ``(2/e) U SiLU(e D h)``, which tends to ``U D h``. Source: P29.

    Args:
        up: U, ``(d, r)``.
        down: D, ``(r, d)``.
        h: The residual stream at a site, ``(..., d)``.
        scale: e, positive.

    Returns:
        What is added, ``(..., d)``.
    """
    return 2 / scale * nonlinear_adapter(up, scale * down, h)


def written_update(up: Tensor, down: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``U D W`` and ``U D b``: the adapter's share of a map that writes to the stream. Source: P31.

    Args:
        up: U, ``(d, r)``.
        down: D, ``(r, d)``.
        weight: W, ``(d, in)``, of a map that writes to the stream.
        bias: Its bias, ``(d,)``.

    Returns:
        Changes of the weight ``(d, in)`` and of the bias ``(d,)``.
    """
    return up @ (down @ weight), up @ (down @ bias)


def skip_read(up: Tensor, down: Tensor, h: Tensor) -> Tensor:
    """Return ``U D h``: the share that reads the stream entering the block. Source: P31.

    Args:
        up: U, ``(d, r)``.
        down: D, ``(r, d)``.
        h: The residual stream entering the block, ``(..., d)``.

    Returns:
        ``(..., d)``.
    """
    return (h @ down.T) @ up.T


def _drawn(subject: Subject, h: Tensor, salt: int) -> tuple[Tensor, Tensor]:
    """Return U and D; D such that ``D h`` has root mean square 1."""
    width = h.shape[-1]
    rank = min(RANK, width)
    down = subject.draw(rank, width, salt=salt)
    return subject.draw(width, rank, salt=salt + 1) / rank**0.5, down / (h @ down.T).square().mean().sqrt()


# --- checks ---


def check_closure(subject: Subject) -> Evidence:
    """P29: the rescaled nonlinear adapter tends to the linear one with slope 1."""
    (h,) = tensors_at(subject, (SiteKind.RESID_POST,))
    up, down = _drawn(subject, h, salt=450)
    linear = linear_adapter(up, down, h)

    def slope(found: Callable[[float], Tensor]) -> float:
        # fit_remainder compares with t times its second argument; here the limit itself is subtracted.
        return fit_remainder(lambda e: found(e) - linear + e * linear, linear, SCALES).slope

    errors = [relative_error(rescaled_nonlinear(up, down, h, e), linear) for e in SCALES]
    low, high = FIRST_ORDER  # an error linear in e; without the factor 2 it does not fall at all
    return Evidence(
        claim=(
            Measurement("slope of the error against e", slope(lambda e: rescaled_nonlinear(up, down, h, e)), low, high),
            Measurement(f"error at e = {SCALES[-1]:g}, relative", errors[-1], high=10 * SCALES[-1]),
        ),
        controls=(
            Measurement(
                "slope without the factor 2", slope(lambda e: rescaled_nonlinear(up, down, h, e) / 2), low, high
            ),
            Measurement(
                "error of the nonlinear adapter as it is",
                relative_error(nonlinear_adapter(up, down, h), linear),
                high=10 * SCALES[-1],
            ),
        ),
        notes=("U grows like 1/e: a limit of the class, not a member of it",),
        series={"closure": curve("e", SCALES, "|rescaled nonlinear - linear| / |linear|", errors)},
    )


def check_start(subject: Subject) -> Evidence:
    """P30: an exact no-op at U = 0; no gradient for D; half the gradient for U where D h is small."""
    (h,) = tensors_at(subject, (SiteKind.RESID_POST,))
    width = h.shape[-1]
    rank = min(RANK, width)
    uniform = torch.rand(rank, width, generator=subject.generator(460), dtype=h.dtype)
    as_in_code = CODE_SCALE * (2 * uniform - 1) / width**0.5
    largest = float((h @ as_in_code.T).abs().max())
    small = as_in_code * (SMALL / largest)
    zero, nonzero = torch.zeros(width, rank, dtype=h.dtype), subject.draw(width, rank, salt=461)
    plain = run(subject).logits
    loss_weights = subject.draw(*plain.shape, salt=462)

    def gradients(
        form: Callable[[Tensor, Tensor, Tensor], Tensor], up: Tensor, down: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and the gradients of U and D of a random linear loss."""
        with torch.enable_grad():
            u, d = up.clone().requires_grad_(), down.clone().requires_grad_()
            logits = run(subject, edits={SiteKind.RESID_POST: lambda x: form(u, d, x)}).logits
            of_u, of_d = torch.autograd.grad((logits * loss_weights).sum(), (u, d))
        return logits.detach(), of_u, of_d

    logits, of_linear, of_down = gradients(linear_adapter, zero, small)
    silu_logits, of_silu, silu_down = gradients(nonlinear_adapter, zero, small)
    moved_logits, _, moved_down = gradients(nonlinear_adapter, nonzero, small)
    if largest <= SMALL:
        as_coded = float(of_silu.norm() / of_linear.norm())
    else:
        as_coded = float(gradients(nonlinear_adapter, zero, as_in_code)[1].norm() / of_linear.norm() * SMALL / largest)
    # Control: D h of order one, where SiLU is not linear.
    large = as_in_code / largest * 3
    of_large_silu, of_large = (gradients(form, zero, large)[1] for form in (nonlinear_adapter, linear_adapter))

    def exact(name: str, value: float) -> Measurement:
        return Measurement(name, value, 0.0, 0.0)

    return Evidence(
        claim=(
            exact("largest change of a logit, linear form", float((logits - plain).abs().max())),
            exact("largest change of a logit, SiLU form", float((silu_logits - plain).abs().max())),
            exact("largest gradient of D, linear form", float(of_down.abs().max())),
            exact("largest gradient of D, SiLU form", float(silu_down.abs().max())),
            Measurement(
                f"gradient of U, SiLU over linear, |D h| <= {SMALL:g}",
                float(of_silu.norm() / of_linear.norm()),
                0.5 - RATIO_TOLERANCE,
                0.5 + RATIO_TOLERANCE,
            ),
            Measurement(
                f"gradient of U, SiLU against half the linear, |D h| <= {SMALL:g}",
                relative_error(of_silu, of_linear / 2),
                high=RATIO_TOLERANCE,
            ),
        ),
        controls=(
            exact("largest gradient of U, linear form", float(of_linear.abs().max())),
            exact("largest change of a logit with U not 0", float((moved_logits - plain).abs().max())),
            exact("largest gradient of D with U not 0", float(moved_down.abs().max())),
            Measurement(
                "gradient of U, SiLU against half the linear, |D h| up to 3",
                relative_error(of_large_silu, of_large / 2),
                high=RATIO_TOLERANCE,
            ),
        ),
        notes=(f"with the authors' initialisation |D h| is up to {largest:.1e} here and the ratio {as_coded:.4f}",),
    )


def check_decomposition(subject: Subject) -> Evidence:
    """P31: a linear post-block adapter is two weight updates at the block's output and a read of the skip."""
    block = subject.block
    if block.mlp_post_norm is not None or block.attn_post_norm is not None:
        return Evidence(
            inapplicable="norms stand between the maps that write and the stream: no update of W_d or W_O fits"
        )
    kinds = (SiteKind.RESID_PRE, SiteKind.ATTN_HEADS, SiteKind.MLP_HIDDEN, SiteKind.RESID_POST)
    stream, heads, hidden, after = tensors_at(subject, kinds)
    up, down = _drawn(subject, after, salt=470)
    up = 0.1 * up * after.square().mean().sqrt()
    of_mlp = written_update(up, down, output_first(block.mlp_write), bias_of(block.mlp_write))
    of_attention = written_update(up, down, output_first(block.attn_write), bias_of(block.attn_write))
    from_mlp = hidden @ of_mlp[0].T + of_mlp[1]
    from_attention = heads @ of_attention[0].T + of_attention[1]
    from_skip = skip_read(up, down, stream)
    adapter = linear_adapter(up, down, after)

    # In the model: W_d really updated; W_O's share and the skip's are added at the block's output.
    def name(part: torch.nn.Module) -> str:
        return parameter_name(subject, part)

    tuned_down = as_stored(block.mlp_write, output_first(block.mlp_write) + of_mlp[0])
    tuned_writer = as_stored(block.attn_write, output_first(block.attn_write) + of_attention[0])
    steered = run(subject, edits={SiteKind.RESID_POST: lambda x: linear_adapter(up, down, x)}).logits
    output_only = run(
        subject,
        weights={name(block.mlp_write): tuned_down},
        edits={SiteKind.RESID_POST: lambda x: of_mlp[1] + from_attention + from_skip},
    ).logits
    both_updated = run(
        subject,
        weights={name(block.mlp_write): tuned_down, name(block.attn_write): tuned_writer},
        edits={SiteKind.RESID_POST: lambda x: of_mlp[1] + of_attention[1] + from_skip},
    ).logits
    really = Measurement(
        "logits, W_O really updated, relative", relative_error(both_updated, steered), high=THROUGH_MODEL
    )
    claim = (
        Measurement(
            "sum of the three shares against U D h', relative",
            relative_error(from_mlp + from_attention + from_skip, adapter),
            high=DECOMPOSED,
        ),
        Measurement(
            "logits, W_d updated and the rest at the output, relative",
            relative_error(output_only, steered),
            high=THROUGH_MODEL,
        ),
    )
    controls = (
        Measurement(
            "without the read of the skip", relative_error(from_mlp + from_attention, adapter), high=DECOMPOSED
        ),
    )
    if block.description.parallel:  # the MLP does not read what attention writes: updating W_O is harmless
        return Evidence(claim=(*claim, really), controls=controls)
    return Evidence(
        claim=claim,
        controls=(*controls, really),
        notes=("updating W_O itself moves the MLP's input as well, which the adapter does not",),
    )


_GROUP = "forms of steering"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        29,
        _GROUP,
        "linear adapters are limits of nonlinear ones",
        "(2/e) U SiLU(e D h) tends to U D h with an error linear in e.",
        "phi(0) = 0 and phi'(0) = 1/2, as for SiLU and GELU; D h bounded",
        Source.OURS,
        check_closure,
    ),
    Proposition(
        30,
        _GROUP,
        "the start of training",
        "With U = 0 (as in the authors' code) logits are bit-equal and D gets no gradient; SiLU halves U's gradient.",
        "the factor 1/2 only where |D h| is small, which a stream of large size breaks",
        Source.OURS,
        check_start,
    ),
    Proposition(
        31,
        _GROUP,
        "a linear adapter in parts",
        "U D h' = (U D W_d) m + (U D W_O) a + U D h: two updates acting at the block's output, and a read of the skip.",
        "no norms on what is written; the update of W_O must not reach the MLP's input",
        Source.OURS,
        check_decomposition,
    ),
)
