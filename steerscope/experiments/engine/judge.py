"""Test the runs of a pack on held-out examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.experiments.engine.pack import EditPack
from steerscope.experiments.tasks.supervised import SupervisedSequence


@dataclass(frozen=True)
class Judged:
    """What a run does on held-out examples.

    Attributes:
        losses: Negative log-likelihood of every example's completion, summed over its tokens, in nats ``(example)``.
        correct: Whether every token of its completion is the most likely one ``(example)``.
    """

    losses: Tensor
    correct: Tensor

    @property
    def loss(self) -> float:
        """Mean over the examples, in nats."""
        return float(self.losses.mean())

    @property
    def accuracy(self) -> float:
        """Share of examples that greedy decoding would complete as expected."""
        return float(self.correct.double().mean())


@torch.no_grad()
def judge_pack(pack: EditPack, sequences: Sequence[SupervisedSequence], batch_size: int = 32) -> list[Judged]:
    """Test all runs of a pack on the same examples.

    Args:
        pack: The runs, as they are trained by now.
        sequences: Held-out examples.
        batch_size: Examples per pass, each once per run.

    Returns:
        One result per run, in float64, in the order of ``sequences``.

    Cost: one pass of all runs over the examples, through the blocks from the lowest edit on.
    """
    runs = list(range(len(pack.specs)))
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i].ids))
    losses = torch.zeros(len(runs), len(sequences), dtype=torch.float64)
    correct = torch.zeros(len(runs), len(sequences), dtype=torch.bool)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = [sequences[i] for i in chosen]
        likelihoods, right, rows = pack.log_likelihoods(runs, [batch] * len(runs))
        wanted = (rows.targets >= 0).reshape(right.shape)
        losses[:, chosen] = -likelihoods.double().sum(-1).cpu()
        correct[:, chosen] = (right | ~wanted).all(-1).cpu()
    return [Judged(losses[run], correct[run]) for run in runs]
