r"""P33, joint adaptation: a LoRA on the down projection and an adapter on the block's output, kept apart.

The LoRA adds :math:`B A m` to the stream :math:`h`, the adapter :math:`U \varphi(D h)`. Two different constraints
are in use:

* on what the adapter reads, :math:`D B = 0`: then :math:`D (h + B A m) = D h` and the adapter does not see the LoRA,
  whatever :math:`\varphi` is;
* on what it writes, :math:`U^\top B = 0`: then :math:`\langle U\varphi, B A m \rangle = 0` for every token.

Neither implies the other. Without either, a linear adapter adds the interaction :math:`U D B A m`, of rank at most
the smaller of the two ranks. A projector onto the complement of B must leave everything when B is zero, as it is at
the first step; the singular vectors of a zero matrix are the first axes, and projecting these out deletes them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import relative_error
from steerscope.equivalence.propositions.runs import as_update, low_rank_change, post, run_at
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.subspaces import columns_of, rank_excess
from steerscope.sites import Site, SiteKind

GROUP = "joint adaptation"

# One projection and a few products in float64, which leave errors near 1e-14.
EXACT = 1e-12
ADAPTER_RANK = 4
LORA_RANK = 3
# --- formulas ---


def input_projected(read: Tensor, lora_write: Tensor) -> Tensor:
    """Return ``D (I - Q Q^T)`` with Q a basis of B's columns: the nearest D with ``D B = 0``.

    Args:
        read: D, ``(r, d)``.
        lora_write: B, ``(d, r')``, the LoRA's factor that writes.

    Returns:
        ``(r, d)``.

    Source: the authors' released code of arXiv 2603.00425 (P33).
    """
    columns = columns_of(lora_write)
    return read - read @ columns @ columns.T


def output_projected(write: Tensor, lora_write: Tensor) -> Tensor:
    """Return ``(I - Q Q^T) U`` with Q a basis of B's columns: the nearest U with ``U^T B = 0``.

    Args:
        write: U, ``(d, r)``.
        lora_write: B, ``(d, r')``, the LoRA's factor that writes.

    Returns:
        ``(d, r)``.

    Source: P33, the second of its two versions.
    """
    columns = columns_of(lora_write)
    return write - columns @ (columns.T @ write)


def singular_vectors_projected(read: Tensor, lora_write: Tensor) -> Tensor:
    """Return ``D (I - V V^T)``, V the right singular vectors of ``B^T``, however small their singular values.

    As published: for a zero B the vectors are the first r axes.

    Args:
        read: D, ``(r, d)``.
        lora_write: B, ``(d, r')``, the LoRA's factor that writes.

    Returns:
        ``(r, d)``.
    """
    vectors = torch.linalg.svd(lora_write.T, full_matrices=False).Vh
    return read - read @ vectors.T @ vectors


def adapted(h: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """Return ``U SiLU(D h)`` for states ``(token d)``.

    Args:
        h: The residual stream, ``(token, d)``.
        write: U, ``(d, r)``.
        read: D, ``(r, d)``.

    Returns:
        What is added, ``(token, d)``.
    """
    return F.silu(h @ read.T) @ write.T


def interaction(write: Tensor, read: Tensor, lora_write: Tensor, lora_read: Tensor, hidden: Tensor) -> Tensor:
    """Return ``U D B A m`` for what the down projection reads ``(token d_ff)``.

    Args:
        write: U, ``(d, r)``.
        read: D, ``(r, d)``.
        lora_write: B, ``(d, r')``, the LoRA's factor that writes.
        lora_read: A, ``(r', d_ff)``, the LoRA's factor that reads.
        hidden: m, ``(token, d_ff)``.

    Returns:
        ``(token, d)``.
    """
    return hidden @ lora_read.T @ lora_write.T @ read.T @ write.T


def _overlap(first: Tensor, second: Tensor) -> float:
    """Return the largest |cosine| of two rows of the same token."""
    cosines = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1)).clamp_min(1e-300)
    return float(cosines.abs().max())


# --- check ---


def _check(subject: Subject) -> Evidence:
    block = subject.block
    if block.mlp_post_norm is not None:
        return Evidence(
            inapplicable="a norm stands between the down projection and the stream, so that what its LoRA adds to the "
            "stream is not in the columns of B, and no constraint on B separates the two"
        )
    lora_write, lora_read = low_rank_change(subject, block.mlp_write, rank=LORA_RANK, salt=41)
    at, hidden_at = post(subject.layer), Site(subject.layer, SiteKind.MLP_HIDDEN)
    out = Site(subject.layer, SiteKind.MLP_OUT)
    base = run_at(subject, (at, hidden_at, out))
    tuned = run_at(subject, (at, out), update=as_update(subject, block.mlp_write, lora_write @ lora_read))
    # The tensors of the model itself: no B A m is added by hand.
    h, with_lora = base[at].flatten(0, 1), tuned[at].flatten(0, 1)
    added, hidden = (tuned[out] - base[out]).flatten(0, 1), base[hidden_at].flatten(0, 1)
    width = h.shape[1]
    write = subject.draw(width, ADAPTER_RANK, salt=42) / width**0.5
    read = subject.draw(ADAPTER_RANK, width, salt=43) / width**0.5
    blind, aside = input_projected(read, lora_write), output_projected(write, lora_write)

    def seen(reads: Tensor) -> float:
        return relative_error(adapted(with_lora, write, reads), adapted(h, write, reads))

    both = added @ read.T @ write.T  # what a linear adapter makes of the LoRA's part of the stream
    zero = torch.zeros_like(lora_write)
    rank = min(LORA_RANK, ADAPTER_RANK)
    stepped = _after_one_step(subject, blind, write, h)
    return Evidence(
        claim=(
            Measurement("input form: change of the adapter's output by the LoRA", seen(blind), high=EXACT),
            Measurement(
                "output form: largest |cosine| between the two outputs",
                _overlap(adapted(h, aside, read), added),
                high=EXACT,
            ),
            Measurement(
                "no constraint: interaction minus U D B A m",
                relative_error(both, interaction(write, read, lora_write, lora_read, hidden)),
                high=1e-10,  # the LoRA's part is the difference of two outputs ten times its size
            ),
            Measurement(
                f"no constraint: singular value {rank + 1} of the interaction", rank_excess(both, rank), high=1e-10
            ),
            Measurement(
                "B of full rank: the code's projection of D against the input form",
                relative_error(singular_vectors_projected(read, lora_write), blind),
                high=EXACT,
            ),
            Measurement(
                "B = 0: change of D", relative_error(input_projected(read, zero), read), high=EXACT, of_subject=False
            ),
        ),
        controls=(
            Measurement("no constraint: change of the adapter's output by the LoRA", seen(read), high=EXACT),
            Measurement(
                "no constraint: largest |cosine| between the two outputs",
                _overlap(adapted(h, write, read), added),
                high=EXACT,
            ),
        ),
        published=(
            Measurement(
                "input form, as in the code: largest |cosine| between the two outputs",
                _overlap(adapted(h, write, blind), added),
                high=EXACT,
            ),
            Measurement(
                "output form, as in a third party's summary: change of the adapter's output by the LoRA",
                relative_error(adapted(with_lora, aside, read), adapted(h, aside, read)),
                high=EXACT,
            ),
            Measurement(
                "code at step 0, B = 0: change of D",
                relative_error(singular_vectors_projected(read, zero), read),
                high=EXACT,
            ),
            Measurement(
                "code, projected when a step begins: change of the adapter's output by the LoRA after the step",
                seen(stepped),
                high=EXACT,
            ),
        ),
        notes=(f"LoRA of rank {LORA_RANK} on the down projection, adapter of rank {ADAPTER_RANK} with SiLU",),
    )


def _after_one_step(subject: Subject, read: Tensor, write: Tensor, h: Tensor) -> Tensor:
    """Return D after one step of Adam (whose first step is the sign of the gradient) towards a random target."""
    target = subject.draw(*h.shape, salt=44)
    with torch.enable_grad():
        moving = read.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((adapted(h, write, moving) - target).square().sum(), moving)
    return read - 1e-3 * gradient.sign()


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        33,
        GROUP,
        "two constraints of joint adaptation",
        "D B = 0 makes the adapter blind to the LoRA, adapter(h + B A m) = adapter(h); U^T B = 0 makes their outputs "
        "orthogonal for every token; neither implies the other. Unconstrained, they interact by U D B A m, of rank at "
        "most min(r, r').",
        "No norm between the down projection and the stream. A zero B constrains nothing; the constraint is restored "
        "after every step.",
        Source.OURS,
        _check,
        published="One constraint in two versions: D is projected in the authors' code (by singular vectors that exist "
        "even for B = 0, when a step begins), U in a third party's summary of the paper.",
    ),
)
