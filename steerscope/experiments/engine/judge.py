"""Test the runs of a pack on held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.rows import Rows, per_target
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.lengths import batches_within, switch_length


@dataclass(frozen=True)
class Judged:
    """What a run does on held-out examples.

    Attributes:
        losses: Negative log-likelihood of every example's completion, summed over its tokens, in nats ``(example)``.
        correct: Whether every token of its completion is the most likely one, of all tokens or of those that were
            compared ``(example)``.
    """

    losses: Tensor
    correct: Tensor

    @property
    def loss(self) -> float:
        """Mean over the examples, in nats."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of examples that are right."""
        return float(self.correct.double().mean())


@torch.no_grad()
def judge_pack(
    pack: Pack,
    sequences: Sequence[SupervisedSequence],
    choices: Sequence[Sequence[int]] | None = None,
    batch_size: int = 32,
) -> list[Judged]:
    """Test all runs of a pack on the same examples.

    Args:
        pack: The runs, as they are trained by now.
        sequences: Held-out examples.
        choices: Per example the tokens that the last one of its completion is compared with; it then is right if that
            one wins. Without them every token of the completion has to be the most likely of all.
        batch_size: Examples per pass, each once per run.

    Returns:
        One result per run, losses in float64, in the order of ``sequences``.

    Cost: one pass of all runs over the examples, through the blocks from the lowest edit on.
    """
    runs = list(range(len(pack.specs)))
    losses = torch.zeros(len(runs), len(sequences), dtype=torch.float64)
    correct = torch.zeros(len(runs), len(sequences), dtype=torch.bool)
    pack.prepare(sequences)
    for chosen in length_batches(sequences, batch_size, pack):
        batch = [sequences[i] for i in chosen]
        logits, rows = pack.logits(runs, [batch] * len(runs))
        compared = None if choices is None else [choices[i] for i in chosen] * len(runs)
        judged = judge_logits(logits, rows, compared)
        losses[:, chosen] = judged.losses.unflatten(0, (len(runs), -1)).cpu()
        correct[:, chosen] = judged.correct.unflatten(0, (len(runs), -1)).cpu()
    return [Judged(losses[run], correct[run]) for run in runs]


def length_batches(sequences: Sequence[SupervisedSequence], size: int, pack: Pack) -> list[list[int]]:
    """Return the places of sequences of similar length, in batches that a pack's model may compute together.

    Args:
        sequences: The sequences.
        size: Most in one batch.
        pack: Whose model.

    Returns:
        Every place once, shortest first.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    switch = switch_length(pack.language_model)
    return [list(own) for own in batches_within(order, lambda i: len(sequences[i].ids), size, switch)]


def judge_logits(logits: Tensor, rows: Rows, choices: Sequence[Sequence[int]] | None) -> Judged:
    """Judge the logits of one batch; see :func:`judge_pack`.

    Args:
        logits: Of the tokens that predict supervised ones ``(supervised vocab)``, row by row.
        rows: The batch.
        choices: Per row the tokens that the last one of its completion is compared with.

    Returns:
        Per row the summed negative log-likelihood of its completion in nats, and whether its answer is right.
    """
    negative = per_target(rows, F.cross_entropy(logits, rows.wanted, reduction="none"))
    if choices is None:
        wrong = per_target(rows, (logits.argmax(-1) != rows.wanted).to(logits.dtype))
        correct = wrong.sum(-1) == 0
    else:
        last = rows.is_target.sum(-1).cumsum(0) - 1
        correct = _only(logits[last], choices).argmax(-1) == rows.wanted[last]
    return Judged(negative.double().sum(-1), correct)


def _only(logits: Tensor, tokens: Sequence[Sequence[int]]) -> Tensor:
    """Return logits ``(row vocab)`` with all but each row's tokens at minus infinity."""
    row = torch.tensor([i for i, own in enumerate(tokens) for _ in own], device=logits.device)
    column = torch.tensor([token for own in tokens for token in own], device=logits.device)
    found = torch.full_like(logits, -torch.inf)
    found[row, column] = logits[row, column]
    return found
