"""What is differentiated: the outputs z of every example, as probes whose gradients are taken.

Outputs with choices are centred over the choices (adding one number to all changes no probability), so an
example with C choices has C - 1 of them. Each *probe* is one direction in that space and costs one backward
pass; ``num_probes`` below C - 1 takes seeded random directions, the same for every example with as many
choices. Without choices a probe is a random projection of the supervised logits. How many there are unless a number is
asked for is :func:`probes_to_take`'s rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.data.encoding import Batch, Encoded, OutputMode

MOST_PROBES = 12
"""At most so many probes are taken unless a number is asked for: time grows with them, of scores with their square."""
PROBES_OF_TEXT = 4
"""So many are taken where examples have no choices: no number spans the logits of a vocabulary."""


@dataclass(frozen=True)
class BatchOutputs:
    """Outputs of one batch, ready to be differentiated. ``example`` is the axis of the batch's examples.

    Attributes:
        examples: The batch's examples, by index in the encoded set.
        probes: ``example probe``, with its graph: the outputs z along every probe.
        log_likelihood: ``example``, with its graph: its gradient is the loss direction.
        residual: ``example probe``: (one-hot minus softmax) along each probe.
        curvature: ``example probe probe``: the softmax's Fisher matrix along the probes.
        correct: ``example``: 1 where the model's first choice (token) is right everywhere.
    """

    examples: Tensor
    probes: Tensor
    log_likelihood: Tensor
    residual: Tensor
    curvature: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Probes:
    """Which directions of the outputs are differentiated.

    Attributes:
        mode: What the outputs are.
        num_probes: Directions per example.
        spans: Whether they span all (centred) outputs of every example; the loss direction then is one of
            their combinations and costs no backward pass of its own.
        contrasts: Per number of choices, the ``probe choice`` matrix with orthonormal rows that sum to zero.
        projection: ``probe vocab`` for mode ``completion``, else ``None``.
        signs: ``probe target`` for mode ``completion``: independent signs of the completion's positions, so
            that positions do not cancel in the sum over them; else ``None``.
    """

    mode: OutputMode
    num_probes: int
    spans: bool
    contrasts: dict[int, Tensor]
    projection: Tensor | None
    signs: Tensor | None

    @property
    def num_backward(self) -> int:
        """Backward passes per batch."""
        return self.num_probes + (0 if self.spans else 1)

    def valid(self, encoded: Encoded) -> Tensor:
        """Return ``example probe``: which probes an example has (few choices have few)."""
        if self.mode is OutputMode.COMPLETION:
            return torch.ones(encoded.num_examples, self.num_probes, dtype=torch.bool)
        have = torch.tensor([min(c - 1, self.num_probes) for c in encoded.num_choices])
        return torch.arange(self.num_probes)[None] < have[:, None]


def probes_to_take(encoded: Encoded, num_probes: int | None) -> int:
    """Return how many probes there are at most: what was asked for, or as many as span the outputs.

    Args:
        encoded: The examples.
        num_probes: What was asked for; ``None``: one fewer than the most choices that an example has, at most
            :data:`MOST_PROBES`; :data:`PROBES_OF_TEXT` without choices.

    Returns:
        A number of output directions per example.
    """
    if num_probes is not None:
        return num_probes
    if encoded.mode is OutputMode.COMPLETION:
        return PROBES_OF_TEXT
    return min(max(encoded.num_choices) - 1, MOST_PROBES)


def make_probes(encoded: Encoded, num_probes: int | None, vocab: int, seed: int, dtype: torch.dtype) -> Probes:
    """Choose the probes for encoded examples.

    Args:
        encoded: The examples.
        num_probes: At most so many per example; ``None``: as :func:`probes_to_take` says.
        vocab: Number of logits.
        seed: Seed of the random directions.
        dtype: Data type of the directions.

    Returns:
        Contrasts of the choices, or random projections of the logits with a sign per supervised token.
    """
    num_probes = probes_to_take(encoded, num_probes)
    generator = torch.Generator().manual_seed(seed)
    if encoded.mode is OutputMode.COMPLETION:
        projection = torch.randn(num_probes, vocab, generator=generator, dtype=torch.float64)
        longest = max(len(s.ids) - s.first_target for s in encoded.sequences)
        signs = 2 * torch.randint(0, 2, (num_probes, longest), generator=generator) - 1
        scaled = (projection / math.sqrt(vocab)).to(dtype)
        return Probes(encoded.mode, num_probes, False, {}, scaled, signs.to(dtype))
    most = max(encoded.num_choices) - 1
    kept = min(num_probes, most)
    contrasts = {}
    for count in sorted(set(encoded.num_choices)):
        rows = min(kept, count - 1)
        noise = torch.randn(count, count - 1, generator=generator, dtype=torch.float64)
        # The QR of random centred columns: an orthonormal basis of the centred space in random orientation.
        basis, _ = torch.linalg.qr(noise - noise.mean(0, keepdim=True))
        contrasts[count] = basis.T[:rows].to(dtype)
    return Probes(encoded.mode, kept, kept == most, contrasts, None, None)


@contextmanager
def selected_positions(model: nn.Module, row: Tensor, column: Tensor) -> Iterator[None]:
    """Compute logits only at ``(row, column)``: inside the context the model's logits are ``1 selected vocab``.

    Logits at every position would cost more memory than everything else together.

    Args:
        model: A causal language model with an output embedding.
        row: Row of each wanted position ``(selected)``.
        column: Column of each wanted position ``(selected)``.

    Yields:
        Nothing; the hook on the output embedding is removed at the end.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][row, column][None], *args[1:])

    handle = head.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def batch_outputs(model: nn.Module, batch: Batch, encoded: Encoded, probes: Probes) -> BatchOutputs:
    """Run the model on a batch and return its outputs with their graph.

    Args:
        model: The model; its output embedding is computed at the needed positions only.
        batch: Padded sequences; all sequences of one example are in it.
        encoded: All examples: how outputs are read, choices and answers.
        probes: The output directions that were chosen for the examples.

    Returns:
        Per example its outputs along the probes, log-likelihood in nats, residual, Fisher matrix and correctness.

    Cost: one forward pass, logits at the needed positions only.
    """
    if encoded.mode is OutputMode.CHOICE_LOGITS:
        row, column = torch.arange(len(batch.ids), device=batch.ids.device), batch.last()
        target = None
    else:
        row, column, target = batch.targets()
    with selected_positions(model, row, column):
        logits = model(
            input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
        ).logits[0]
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if target is None:
        tokens = [encoded.choice_tokens[example] for example in batch.example.tolist()]
        # One index for the whole batch: one index per example would make a gradient of all logits each.
        place = torch.tensor([i for i, many in enumerate(tokens) for _ in many], device=logits.device)
        scores = logits[place, torch.tensor([t for many in tokens for t in many], device=logits.device)]
        return _of_choices(batch.example, scores.split([len(many) for many in tokens]), encoded, probes)
    log_probs = logits.log_softmax(-1)
    chosen = log_probs[torch.arange(len(row), device=row.device), target]
    if encoded.mode is OutputMode.COMPLETION:
        return _of_completions(logits, log_probs, chosen, row, target, batch, probes)
    likelihoods = chosen.new_zeros(len(batch.ids)).index_add(0, row, chosen)
    examples = torch.unique(batch.example)  # the rows of one example stand together, by choice
    return _of_choices(examples, [likelihoods[batch.example == e] for e in examples], encoded, probes)


def _of_choices(examples: Tensor, scores: Sequence[Tensor], encoded: Encoded, probes: Probes) -> BatchOutputs:
    """Outputs of examples whose choices have the given scores (logits or log-likelihoods).

    Returns:
        One row per example; probes that an example with few choices lacks are zero.
    """
    k = probes.num_probes
    z, log_likelihood, residual, curvature, correct = [], [], [], [], []
    for example, score in zip(examples.tolist(), scores, strict=True):
        basis = probes.contrasts[len(score)].to(score)
        missing = k - len(basis)
        answer = encoded.answers[example]
        log_probs = score.log_softmax(-1)
        p = log_probs.detach().exp()
        one_hot = torch.nn.functional.one_hot(torch.tensor(answer, device=p.device), len(p)).to(p)
        fisher = basis @ (torch.diag(p) - torch.outer(p, p)) @ basis.T
        z.append(torch.nn.functional.pad(basis @ score, (0, missing)))
        log_likelihood.append(log_probs[answer])
        residual.append(torch.nn.functional.pad(basis @ (one_hot - p), (0, missing)))
        curvature.append(torch.nn.functional.pad(fisher, (0, missing, 0, missing)))
        correct.append((p.argmax() == answer).to(p))
    return BatchOutputs(
        examples,
        torch.stack(z),
        torch.stack(log_likelihood),
        torch.stack(residual),
        torch.stack(curvature),
        torch.stack(correct),
    )


def _of_completions(
    logits: Tensor, log_probs: Tensor, chosen: Tensor, row: Tensor, target: Tensor, batch: Batch, probes: Probes
) -> BatchOutputs:
    """Outputs of completions: signed random projections of the logits, summed over the supervised tokens."""
    assert probes.projection is not None
    assert probes.signs is not None
    size, k = len(batch.ids), probes.num_probes
    projection = probes.projection.to(logits)
    place = torch.arange(len(row), device=row.device)
    place = place - torch.searchsorted(row.contiguous(), row.contiguous())  # index of the token in its completion
    sign = probes.signs.to(logits)[:, place].T  # selected probe
    p = log_probs.detach().exp()
    along = sign * (logits @ projection.T)
    mean = p @ projection.T  # selected probe
    second = torch.einsum("nv,pv,qv->npq", p, projection, projection)
    fisher = (second - mean[:, :, None] * mean[:, None]) * sign[:, :, None] * sign[:, None]
    right = (logits.detach().argmax(-1) == target).to(p)

    def per_row(values: Tensor) -> Tensor:
        return values.new_zeros(size, *values.shape[1:]).index_add(0, row, values)

    wrong = per_row(1 - right)
    return BatchOutputs(
        examples=batch.example,
        probes=per_row(along),
        log_likelihood=per_row(chosen),
        residual=per_row(sign * (projection.T[target] - mean)),
        curvature=per_row(fisher).reshape(size, k, k),
        correct=(wrong == 0).to(p),
    )
