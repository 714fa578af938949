r"""P38, tangent features: what sites can learn at first order.

With :math:`g_t` the derivative of an output with respect to the block's output at token t, the tangent kernel of an
edit that writes there is (P38)

.. math:: K(x, x') = \sum_{t,s} \langle \psi_t, \psi'_s \rangle \langle g_t, g'_s \rangle,

with the feature :math:`\psi` that the edit reads: 1 for a vector, m for the down projection, y for a linear edit of
the MLP's output, h for one of the block's output and :math:`D h` for an adapter at U = 0, whose D has no kernel
there. Sites that add at one point of the stream thus differ in what they read alone (a norm behind the down
projection gives the latter a g of its own). For D of independent entries of variance 1/r the adapter's kernel is the
linear edit's on average, with an error of order :math:`r^{-1/2}`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerscope.equivalence.edit_forms import edit_form
from steerscope.equivalence.kernels import gram
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.parts import relative_error
from steerscope.equivalence.propositions.runs import output_mapped, post, run_at
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.remainder import slope_of
from steerscope.equivalence.tangents import linear_tangent
from steerscope.models.blocks import linear_weight
from steerscope.sites import Site, SiteKind

GROUP = "tangent space"
LOW_RANK = edit_form("low_rank")

# Two orders of summation of the same products (2.5e-9 was observed in another arithmetic).
EXACT = 1e-8
# Monte Carlo over ranks 4 to 256: the error falls as r^-1/2; 64 draws leave a few percent of noise in the slope.
DRAWS = 64
RANKS = (4, 16, 64, 256)
SLOPE = (-0.6, -0.4)
# The mean kernel of 64 draws at rank 256: error of one, about sqrt(2 / 256) times the number of terms, over 8.
MEAN = 0.1


# --- formulas ---


def site_kernel(grads: Tensor, features: Tensor) -> Tensor:
    """Return ``sum_{t,s} <psi_t, psi'_s> <g_t, g'_s>``: ``row token d`` and ``row token f`` to ``row row``.

    Args:
        grads: g, ``(row, token, d)``.
        features: psi, ``(row, token, f)``.

    Returns:
        The empirical neural tangent kernel of the site, ``(row, row)``.
    """
    read = torch.einsum("itf,jsf->ijts", features, features)
    written = torch.einsum("itd,jsd->ijts", grads, grads)
    return (read * written).sum((2, 3))


def token_kernel(grads: Tensor, features: Tensor) -> Tensor:
    """Return the same sum over equal tokens alone, ``s = t``: not the kernel, as edits are shared by tokens.

    Args:
        grads: g, ``(row, token, d)``.
        features: psi, ``(row, token, f)``.

    Returns:
        ``(row, row)``.
    """
    read = torch.einsum("itf,jtf->ijt", features, features)
    return (read * torch.einsum("itd,jtd->ijt", grads, grads)).sum(2)


# --- check ---


@dataclass(frozen=True)
class _Derivatives:
    """Per row (one output of one sequence): autodiff gradients by edit, and the factors they are made of."""

    by_edit: dict[str, Tensor]  # row parameter
    grads: Tensor  # row token d: with respect to the block's output
    raw_grads: Tensor  # row token d: with respect to what the down projection writes
    hidden: Tensor
    written: Tensor
    stream: Tensor
    reader: Tensor


def _differentiated(subject: Subject, probes: int = 2, rank: int = 4) -> _Derivatives:
    block, width = subject.block, subject.site_map.d_model
    batch, tokens = subject.input_ids.shape
    out, hidden, end = (
        Site(subject.layer, SiteKind.MLP_OUT),
        Site(subject.layer, SiteKind.MLP_HIDDEN),
        post(subject.layer),
    )
    weight = linear_weight(block.mlp_write)
    reader = subject.draw(rank, width, salt=900) / rank**0.5

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, requires_grad=True)

    with torch.enable_grad():
        moved = {
            "vector": zeros(width),
            "post-MLP linear": zeros(width, width),
            "post-block linear": zeros(width, width),
            "adapter U": zeros(width, rank),
            "adapter D": reader.clone().requires_grad_(),
        }
        at_end, at_raw = zeros(batch, tokens, width), zeros(batch, tokens, width)

        def edit(h: Tensor) -> Tensor:
            low_rank = LOW_RANK.delta({"U": moved["adapter U"], "D": moved["adapter D"]}, h)
            return at_end + moved["vector"] + h @ moved["post-block linear"].T + low_rank

        weight.requires_grad_(True)
        try:
            with output_mapped(block.mlp_write, lambda y: y + at_raw.reshape(y.shape)):
                found = run_at(
                    subject, (out, hidden, end), edits={end: edit, out: lambda y: y @ moved["post-MLP linear"].T}
                )
            wanted = {**moved, "down projection": weight, "end": at_end, "raw": at_raw}
            rows: dict[str, list[Tensor]] = {name: [] for name in wanted}
            directions = subject.draw(probes, found.logits.shape[-1], salt=901)
            for direction in directions:
                for sequence in range(batch):
                    # All tokens count: with the last one alone, g would be zero elsewhere above the last attention.
                    output = found.logits[sequence].sum(0) @ direction
                    for name, gradient in zip(
                        wanted, torch.autograd.grad(output, list(wanted.values()), retain_graph=True), strict=True
                    ):
                        token_wise = name in ("end", "raw")
                        rows[name].append(gradient[sequence] if token_wise else gradient.flatten())
        finally:
            weight.requires_grad_(False)

    def repeated(site: Site) -> Tensor:
        return found[site].detach().repeat(probes, 1, 1)

    stacked = {name: torch.stack(values) for name, values in rows.items()}
    return _Derivatives(
        {name: stacked[name] for name in (*moved, "down projection")},
        stacked["end"],
        stacked["raw"],
        repeated(hidden),
        repeated(out),
        repeated(end),
        reader,
    )


def _check_kernels(subject: Subject) -> Evidence:
    few = replace(subject, input_ids=subject.input_ids[:2, :4])
    found = _differentiated(few)
    one = torch.ones_like(found.stream[..., :1])
    factors = {
        "vector": (found.grads, one),
        "down projection": (found.raw_grads, found.hidden),
        "post-MLP linear": (found.grads, found.written),
        "post-block linear": (found.grads, found.stream),
        "adapter U": (found.grads, found.stream @ found.reader.T),
    }
    claim = [
        Measurement(
            f"{name}: factored kernel minus Gram matrix of autodiff gradients",
            relative_error(site_kernel(*pair), gram(found.by_edit[name])),
            high=EXACT,
        )
        for name, pair in factors.items()
    ]
    full = site_kernel(found.grads, found.stream)
    library = gram(linear_tangent(found.grads, found.stream).flatten(1))
    claim.append(
        Measurement("post-block linear: the library's tangent features", relative_error(library, full), high=EXACT)
    )
    largest = float(found.by_edit["adapter D"].abs().max())
    claim.append(Measurement("adapter D at U = 0: largest derivative", largest, high=0.0))

    errors, means = [], []
    width = found.stream.shape[-1]
    for rank in RANKS:
        kernels = []
        for draw in range(DRAWS):
            reader = few.draw(rank, width, salt=10_000 + 1000 * rank + draw) / rank**0.5
            kernels.append(site_kernel(found.grads, found.stream @ reader.T))
        errors.append(sum(relative_error(kernel, full) for kernel in kernels) / DRAWS)
        means.append(torch.stack(kernels).mean(0))
    claim.append(Measurement("adapter's kernel: slope of its error against the rank", slope_of(RANKS, errors), *SLOPE))
    mean_error = relative_error(means[-1], full)
    claim.append(
        Measurement(f"adapter's kernel: error of the mean of {DRAWS} draws at rank 256", mean_error, high=MEAN)
    )
    autodiff = gram(found.by_edit["post-block linear"])
    controls = (
        Measurement(
            "post-block linear, sum over tokens instead of pairs",
            relative_error(token_kernel(found.grads, found.stream), autodiff),
            high=EXACT,
        ),
        Measurement(
            "post-block linear with the feature y instead of h",
            relative_error(site_kernel(found.grads, found.written), autodiff),
            high=EXACT,
        ),
    )
    notes: tuple[str, ...] = ()
    if few.block.mlp_post_norm is not None:
        shared = relative_error(site_kernel(found.grads, found.hidden), gram(found.by_edit["down projection"]))
        notes = (
            "behind a norm the down projection has a derivative g of its own; with the block's it would be off by "
            f"{shared:.2g}",
        )
    series = {"adapter's kernel": curve("rank", RANKS, "relative error to the linear edit's kernel", errors)}
    return Evidence(tuple(claim), controls, notes=notes, series=series)


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        38,
        GROUP,
        "tangent kernels of sites",
        "K = sum_{t,s} <psi_t, psi'_s><g_t, g'_s>: edits that add at one point differ in "
        "the feature they read (1, m, y, "
        "h, D h) alone; D of an adapter has no kernel at U = 0; the adapter's kernel is "
        "the linear edit's on average over "
        "D, with an error of order r^-1/2.",
        "D with independent entries of variance 1/r. Behind a norm on writes the down projection has its own g.",
        Source.OURS,
        _check_kernels,
    ),
)
