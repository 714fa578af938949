r"""P12, P13, P16, P17: the skip connection, and what an edit can read at a site.

A block's output is ``I' + y``: everything that skips the MLP (``I' = h + attn_out``) and what the MLP adds. An
edit at ``mlp_out`` adds ``f(y)``, one at ``resid_post`` adds ``f(I' + y)``, both to the same sum. So with a free
``D`` per token, or a fixed vector, the two are the same edit (P13), and a post-MLP oracle reproduces a tuned MLP
exactly but not a change of ``I'`` (P12). They differ in what ``f`` reads: with W_d = 0 the MLP's output is the same
for every token and so is ``f(y)`` (P16); with W_d of low rank ``f(y)`` sees nothing of the hidden layer's part in
the kernel of W_d (P17).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from steerscope.equivalence.edit_forms import edit_form
from steerscope.equivalence.oracles import oracle_shift
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import (
    as_parameters,
    as_stored,
    drawn_update,
    mlp_parts,
    moved,
    orthonormal_rows,
    output_first,
    parameter_name,
    relative_error,
    run,
    skip_and_mlp,
    tensors_at,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.hooks import Edit
from steerscope.sites import SiteKind

# Adding a difference back: one rounding of the sum per entry.
ORACLE = 1e-14
# The same numbers added in another order, then carried through the layers above.
SAME_EDIT = 1e-12
# Tokens that read the same numbers may still differ in the last bit, as matrix products split rows into tiles.
CONSTANT = 1e-14
# What a kernel component does to a product that annihilates it, up to rounding.
INVISIBLE = 1e-12
# Relative size of updates and edits: large enough to be seen, small enough to keep the stream's size.
UPDATE = 0.1
RANK = 4


# --- formulas under test ---


def read_at_mlp_out(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return what an edit at ``mlp_out`` reads: ``y`` alone.

    Args:
        skip: ``I'``, what the skip connection carries past the MLP, ``(..., d)``.
        mlp: ``y``, what the MLP writes, ``(..., d)``.

    Returns:
        ``(..., d)``.
    """
    return mlp


def read_at_resid_post(skip: Tensor, mlp: Tensor) -> Tensor:
    """Return what an edit at ``resid_post`` reads: ``I' + y``.

    Args:
        skip: ``I'``, what the skip connection carries past the MLP, ``(..., d)``.
        mlp: ``y``, what the MLP writes, ``(..., d)``.

    Returns:
        ``(..., d)``.
    """
    return skip + mlp


def adapter(parameters: Mapping[str, Tensor], read: Tensor, activation: Callable[[Tensor], Tensor] | None) -> Tensor:
    """Return ``U D x + b``, with an activation ``U phi(D x) + b``; ``x`` is ``(..., d)``.

    Args:
        parameters: ``U`` ``(d, r)``, ``D`` ``(r, d)`` and ``b`` ``(d,)``.
        read: What the site reads, ``(..., d)``.
        activation: phi, or None for a linear edit.

    Returns:
        What is added, ``(..., d)``.
    """
    if activation is None:
        return edit_form("low_rank").delta({k: parameters[k] for k in ("U", "D")}, read) + parameters["b"]
    return activation(read @ parameters["D"].T) @ parameters["U"].T + parameters["b"]


def bias_of_down(block_write: nn.Module, vector: Tensor) -> Tensor:
    """Return the bias of the down projection that adds ``vector`` to what it writes.

    Args:
        block_write: The map through which the MLP writes.
        vector: ``(d,)``.

    Returns:
        ``(d,)``: the map's own bias, where it has one, plus the vector.
    """
    bias = getattr(block_write, "bias", None)
    return vector.clone() if bias is None else bias.detach() + vector


# --- helpers ---


def _drawn_adapter(subject: Subject, width: int, salt: int) -> dict[str, Tensor]:
    rank = min(RANK, width)
    return {
        "U": subject.draw(width, rank, salt=salt) / rank**0.5,
        "D": subject.draw(rank, width, salt=salt + 1) / width**0.5,
        "b": subject.draw(width, salt=salt + 2),
    }


@contextmanager
def _bias(module: nn.Module, value: Tensor) -> Iterator[None]:
    """Give a linear map this bias inside the context, whether it has one or not."""
    before = module.bias
    module.bias = nn.Parameter(value, requires_grad=False)
    try:
        yield
    finally:
        module.bias = before


def _spread(values: Tensor) -> float:
    """Return how far the tokens' vectors are from their mean, root mean square over tokens."""
    flat = values.reshape(-1, values.shape[-1])
    return float((flat - flat.mean(0)).square().sum(-1).mean().sqrt())


# --- checks ---


def check_post_mlp_oracle(subject: Subject) -> Evidence:
    """P12: a free edit after the MLP reproduces any update of the MLP, and no change of what skips it."""
    block = subject.block
    parts = mlp_parts(subject)
    of_mlp = as_parameters(subject, moved(parts.weights, drawn_update(subject, parts, UPDATE, salt=310)))
    writer = output_first(block.attn_write)
    change = UPDATE * writer.square().mean().sqrt() * subject.draw(*writer.shape, salt=315)
    of_attention = {parameter_name(subject, block.attn_write): as_stored(block.attn_write, writer + change)}
    kinds = (SiteKind.MLP_OUT, SiteKind.RESID_POST)
    base = run(subject, kinds)

    def with_oracle(weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return MLP and block outputs, tuned and steered."""
        tuned = run(subject, kinds, weights=weights)
        delta = oracle_shift(tuned[SiteKind.MLP_OUT], base[SiteKind.MLP_OUT])
        steered = run(subject, kinds, edits={SiteKind.MLP_OUT: lambda y: delta})
        return tuned[kinds[0]], tuned[kinds[1]], steered[kinds[0]], steered[kinds[1]]

    tuned_mlp, tuned_block, steered_mlp, steered_block = with_oracle(of_mlp)
    both_mlp, both_block, both_steered, both_steered_block = with_oracle({**of_mlp, **of_attention})
    skip_change = (both_block - both_mlp) - (base[kinds[1]] - base[kinds[0]])
    left = both_block - both_steered_block
    return Evidence(
        claim=(
            Measurement("MLP output, MLP tuned, relative", relative_error(steered_mlp, tuned_mlp), high=ORACLE),
            Measurement("block output, MLP tuned, relative", relative_error(steered_block, tuned_block), high=ORACLE),
            Measurement(
                "MLP output, attention tuned too, relative", relative_error(both_steered, both_mlp), high=ORACLE
            ),
            Measurement(
                "what the block misses against the change of I', relative",
                relative_error(left, skip_change),
                high=SAME_EDIT,
            ),
        ),
        controls=(
            Measurement(
                "block output, attention tuned too, relative",
                relative_error(both_steered_block, both_block),
                high=ORACLE,
            ),
            Measurement("MLP output without an edit, relative", relative_error(base[kinds[0]], tuned_mlp), high=ORACLE),
        ),
    )


def check_fixed_vector(subject: Subject) -> Evidence:
    """P13: a fixed vector, or any free edit, is the same at ``mlp_out`` and ``resid_post``; the bias need not be."""
    block = subject.block
    _, mlp = skip_and_mlp(subject)
    size = UPDATE * mlp.square().mean().sqrt()
    vector = size * subject.draw(mlp.shape[-1], salt=320)
    free = size * subject.draw(*mlp.shape, salt=321)
    linear = {"A": UPDATE * subject.draw(mlp.shape[-1], mlp.shape[-1], salt=322) / mlp.shape[-1] ** 0.5}

    def logits(kind: SiteKind, edit: Edit) -> Tensor:
        return run(subject, edits={kind: edit}).logits

    def reads(x: Tensor) -> Tensor:
        return edit_form("linear").delta(linear, x)

    post_block = logits(SiteKind.RESID_POST, lambda x: vector.expand_as(x))
    with _bias(block.mlp_write, bias_of_down(block.mlp_write, vector)):
        biased = run(subject).logits

    def error(name: str, found: Tensor, expected: Tensor) -> Measurement:
        return Measurement(name, relative_error(found, expected), high=SAME_EDIT)

    of_bias = error("logits, bias of the down projection against resid_post", biased, post_block)
    claim = (
        error(
            "logits, fixed vector at mlp_out against resid_post",
            logits(SiteKind.MLP_OUT, lambda x: vector.expand_as(x)),
            post_block,
        ),
        error(
            "logits, free edit at mlp_out against resid_post",
            logits(SiteKind.MLP_OUT, lambda x: free),
            logits(SiteKind.RESID_POST, lambda x: free),
        ),
    )
    controls = (
        error(
            "logits, one linear map reading at mlp_out against resid_post",
            logits(SiteKind.MLP_OUT, reads),
            logits(SiteKind.RESID_POST, reads),
        ),
        error(
            "logits, the vector at mlp_in against resid_post",
            logits(SiteKind.MLP_IN, lambda x: vector.expand_as(x)),
            post_block,
        ),
    )
    if block.mlp_post_norm is None:
        return Evidence(claim=(*claim, of_bias), controls=controls)
    note = "a norm stands between the down projection and the stream: its bias is not a fixed vector at mlp_out"
    return Evidence(claim=claim, controls=controls, published=(of_bias,), notes=(note,))


def check_zero_down(subject: Subject) -> Evidence:
    """P16: with W_d = 0 every edit after the MLP is one fixed vector, an edit of the block's output is not."""
    block = subject.block
    down = output_first(block.mlp_write)
    zero = {parameter_name(subject, block.mlp_write): as_stored(block.mlp_write, torch.zeros_like(down))}
    found = run(subject, (SiteKind.MLP_OUT, SiteKind.RESID_POST), weights=zero)
    mlp = found[SiteKind.MLP_OUT]
    skip = found[SiteKind.RESID_POST] - mlp
    parameters = _drawn_adapter(subject, mlp.shape[-1], salt=330)
    scale = skip.square().mean().sqrt()  # the adapter reads numbers of order one, whatever the stream's size

    def spread(read: Callable[[Tensor, Tensor], Tensor], activation: Callable[[Tensor], Tensor] | None) -> float:
        delta = adapter(parameters, read(skip, mlp) / scale, activation)
        return _spread(delta) / float(delta.square().sum(-1).mean().sqrt())

    silu = nn.functional.silu
    return Evidence(
        claim=(
            Measurement(
                "spread over tokens, linear edit at mlp_out, relative", spread(read_at_mlp_out, None), high=CONSTANT
            ),
            Measurement(
                "spread over tokens, SiLU edit at mlp_out, relative", spread(read_at_mlp_out, silu), high=CONSTANT
            ),
        ),
        controls=(
            Measurement(
                "spread over tokens, linear edit at resid_post, relative",
                spread(read_at_resid_post, None),
                high=CONSTANT,
            ),
            Measurement(
                "spread over tokens, SiLU edit at resid_post, relative", spread(read_at_resid_post, silu), high=CONSTANT
            ),
        ),
    )


def check_deficient_down(subject: Subject) -> Evidence:
    """P17: with W_d of low rank an edit after the MLP does not see the kernel; it may write anywhere."""
    block = subject.block
    down = output_first(block.mlp_write)
    d, d_ff = down.shape
    rank = min(d, d_ff) // 2
    written = orthonormal_rows(subject, rank, d, salt=340).T  # (d, rank): col(W_d) from here on
    low = written @ (written.T @ down)
    weights = {parameter_name(subject, block.mlp_write): as_stored(block.mlp_write, low)}
    parameters = _drawn_adapter(subject, d, salt=342)
    (hidden,) = tensors_at(subject, (SiteKind.MLP_HIDDEN,))
    push = subject.draw(*hidden.shape, salt=345) * hidden.square().mean().sqrt()
    seen = torch.linalg.qr(low.T @ written).Q  # (d_ff, rank): the row space of W_d
    in_kernel = push - (push @ seen) @ seen.T
    in_rows = (push @ seen) @ seen.T
    in_rows = in_rows * (in_kernel.norm() / in_rows.norm())

    def delta(change: Tensor) -> Tensor:
        found: list[Tensor] = []

        def edit(read: Tensor) -> Tensor:
            found.append(adapter(parameters, read_at_mlp_out(torch.zeros_like(read), read), None))
            return found[-1]

        run(subject, weights=weights, edits={SiteKind.MLP_HIDDEN: lambda m: change, SiteKind.MLP_OUT: edit})
        return found[0]

    unmoved = delta(torch.zeros_like(hidden))
    outside = unmoved - (unmoved @ written) @ written.T
    return Evidence(
        claim=(
            Measurement(
                "change of the edit when m moves in ker W_d, relative",
                relative_error(delta(in_kernel), unmoved),
                high=INVISIBLE,
            ),
            Measurement("share of the edit outside col(W_d)", float(outside.norm() / unmoved.norm()), low=0.1),
        ),
        controls=(
            Measurement(
                "the same when m moves in the row space of W_d", relative_error(delta(in_rows), unmoved), high=INVISIBLE
            ),
        ),
        notes=(f"W_d cut to rank {rank} of {min(d, d_ff)}; the kernel has {d_ff - rank} of {d_ff} dimensions",),
    )


_GROUP = "skip connection"

PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        12,
        _GROUP,
        "post-MLP oracle",
        "y + (y_FT - y) = y_FT for any update of the MLP, W_d included; a change of I' is missed in full.",
        "a free edit per token, at all positions",
        Source.POST,
        check_post_mlp_oracle,
    ),
    Proposition(
        13,
        _GROUP,
        "a fixed vector knows no difference between post-MLP and post-block",
        "A fixed vector, or any free edit, is the same at mlp_out and resid_post; so is a bias of W_d (no post-norm).",
        "mlp_out is what the MLP adds to the stream, after a post-norm where there is one",
        Source.OURS,
        check_fixed_vector,
        published="Bias tuning of the down projection is a fixed post-MLP vector: only where no norm follows it.",
    ),
    Proposition(
        16,
        _GROUP,
        "W_d = 0",
        "With W_d = 0 every post-MLP edit, linear or not, is one fixed vector; a post-block edit still reads tokens.",
        "none; the MLP's own output is then constant",
        Source.POST,
        check_zero_down,
    ),
    Proposition(
        17,
        _GROUP,
        "W_d of low rank",
        "A post-MLP linear edit reads y in col(W_d) and nothing of m in ker W_d; its outputs are not restricted.",
        "the form that can be proved; the public wording is garbled",
        Source.OURS,
        check_deficient_down,
    ),
)
