"""What a model would reach if it only learned how often which answer is right: temperature and output bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from steerscope.experiments.engine.edits import zero_edit
from steerscope.experiments.engine.held_out import HeldOut
from steerscope.experiments.engine.judge import Judged, judge_logits, length_batches
from steerscope.experiments.engine.pack import EditPack
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.site_tables.table import Base
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.load import LoadedModel

BATCH = 32
# Most training examples that are fitted on: a bias of some tens of numbers needs no more.
MOST = 2048
ROUNDS = 100


@dataclass(frozen=True)
class Recalibrated:
    """The model without edits, as it is and recalibrated, on test examples.

    Attributes:
        before: As it is.
        after: With the fitted temperature and bias.
        temperature: What logits are divided by.
        bias: What is then added, by token.
    """

    before: Judged
    after: Judged
    temperature: float
    bias: dict[int, float]

    def base(self, majority: float) -> Base:
        """Return what a table and a search keep of it; ``majority`` is the rate that always one answer is right for.

        Args:
            majority: The rate.
        """
        before, after = self.before, self.after
        return Base(before.loss, before.accuracy, majority, after.loss, after.accuracy, self.temperature)


def recalibrate(loaded: LoadedModel, train: Sequence[SupervisedSequence], test: HeldOut) -> Recalibrated:
    """Fit the best temperature and output bias on training examples, and judge the model with them on others.

    The bias is one number per token that occurs in an answer or among the choices of a test example. The fit is convex
    in ``1 / temperature`` and the bias, and is done by L-BFGS.

    Args:
        loaded: The model.
        train: Training sequences; the first 2,048 are used.
        test: Test examples.

    Returns:
        Losses in nats and correctness on the test examples before and after, the temperature, and the bias by token.

    Cost: one forward pass over both, and about 100 sums over the logits of the training examples.
    """
    pack = EditPack(loaded, [RunSpec(zero_edit(loaded.site_map), 1.0)])
    fitted_on = list(dict.fromkeys(train))[:MOST]
    with torch.no_grad():
        kept = [pack.logits([0], [[fitted_on[i] for i in chosen]]) for chosen in length_batches(fitted_on, BATCH, pack)]
    logits, wanted = torch.cat([part for part, _ in kept]), torch.cat([rows.wanted for _, rows in kept])
    answers = {int(token) for token in wanted} | {token for own in test.choices or () for token in own}
    tokens = torch.tensor(sorted(answers), device=logits.device)
    # exp(log_scale) is 1 / temperature, which has to stay positive.
    log_scale = torch.zeros((), dtype=logits.dtype, device=logits.device, requires_grad=True)
    bias = torch.zeros(len(tokens), dtype=logits.dtype, device=logits.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_scale, bias], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(_recalibrated(logits, log_scale, tokens, bias), wanted)
        value.backward()
        return value

    optimizer.step(loss)
    scale, offset = log_scale.detach(), bias.detach()
    before, after = list[Judged](), list[Judged]()
    batches = length_batches(test.sequences, BATCH, pack)
    for chosen in batches:
        with torch.no_grad():
            batch_logits, rows = pack.logits([0], [[test.sequences[i] for i in chosen]])
        choices = None if test.choices is None else [test.choices[i] for i in chosen]
        before.append(judge_logits(batch_logits, rows, choices))
        after.append(judge_logits(_recalibrated(batch_logits, scale, tokens, offset), rows, choices))
    place = torch.tensor([i for chosen in batches for i in chosen]).argsort()

    def joined(parts: list[Judged]) -> Judged:
        losses, correct = (torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("losses", "correct"))
        return Judged(losses[place], correct[place])

    named = dict(zip(tokens.tolist(), offset.tolist(), strict=True))
    return Recalibrated(joined(before), joined(after), float((-scale).exp()), named)


def _recalibrated(logits: Tensor, log_scale: Tensor, tokens: Tensor, bias: Tensor) -> Tensor:
    return (logits * log_scale.exp()).index_add(-1, tokens, bias.expand(len(logits), -1))
