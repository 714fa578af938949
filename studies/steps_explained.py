r"""How many steps of real training first order lasts: predicted against real shifts of the logits along a fine-tuning.

After every step of AdamW the update so far, :math:`\Delta W_k = W_k - W_0`, is put into the first-order map of the
model it started from; explained is :math:`1 - e^2` with e the relative error of the predicted shift of the logits, the
median over tokens, as for the radius of an update (P1 in docs/theory.md has the map).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from torch import Tensor

from steerscope.analysis.data.examples import Example
from steerscope.analysis.theory.common import Update, explained_per_token, weight_names
from steerscope.analysis.theory.radius import THRESHOLD
from steerscope.equivalence.shifts import LOGITS, first_order_shift, measured_shift
from steerscope.experiments.finetune import short_finetune
from steerscope.models.changed_weights import with_weights
from steerscope.models.load import LoadedModel


@dataclass(frozen=True)
class FirstOrderSteps:
    """A fine-tuning seen from where it started.

    Attributes:
        learning_rate: Of AdamW.
        batch_size: Examples per step.
        seed: Of the order of examples.
        explained: Per step, the part of the logits' real shift that is first-order.
        relative_size: Per step, ``|dW| / |W|``.
        losses: Of each step's batch, before the step.
        threshold: Part that counts as explained.
    """

    learning_rate: float
    batch_size: int
    seed: int
    explained: tuple[float, ...]
    relative_size: tuple[float, ...]
    losses: tuple[float, ...]
    threshold: float = THRESHOLD

    @property
    def steps_within(self) -> int:
        """How many steps from the start the first-order map explains the threshold; all of them if it never fails."""
        outside = [step for step, part in enumerate(self.explained) if not part >= self.threshold]
        return outside[0] if outside else len(self.explained)


class _EnoughError(Exception):
    """Ends a fine-tuning from its progress report; the model is put back as after the last step."""


def first_order_steps(
    loaded: LoadedModel,
    examples: Sequence[Example],
    ids: Tensor,
    *,
    most: int = 40,
    learning_rate: float = 5e-5,
    batch_size: int = 8,
    seed: int = 0,
    until: float = 0.5,
    skip: int = 1,
) -> FirstOrderSteps:
    """Fine-tune as :func:`short_finetune` does and compare predicted and real shifts after every step.

    Args:
        loaded: The model in float32 or float64; left bit for bit as it was.
        examples: What to train on.
        ids: ``batch token`` without padding: other prompts, where the logits are compared.
        most: Steps at most.
        learning_rate: AdamW's, constant.
        batch_size: Examples per step.
        seed: Of the order of examples.
        until: The explained part at which to stop.
        skip: Positions left out at the start of each prompt.

    Returns:
        The curve, to the first step that explains less than ``until``, that one included.

    Raises:
        InputError: As :func:`short_finetune`.

    Cost: per step one of training, and about five passes over ``ids``; two more copies of the weights.
    """
    named = dict(loaded.model.named_parameters())
    base = {name: named[name].detach().clone() for name in weight_names(loaded).values()}
    parts: list[float] = []
    sizes: list[float] = []
    losses: list[float] = []

    def compare(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        update = {name: named[name].detach() - weight for name, weight in base.items()}
        with with_weights(loaded, base):
            parts.append(_explained(loaded, update, ids, skip))
        sizes.append(_norm(update) / _norm(base))
        if parts[-1] < until:
            raise _EnoughError

    with suppress(_EnoughError):
        short_finetune(
            loaded,
            examples,
            steps=most,
            learning_rate=learning_rate,
            seed=seed,
            batch_size=batch_size,
            progress=compare,
        )
    return FirstOrderSteps(learning_rate, batch_size, seed, tuple(parts), tuple(sizes), tuple(losses))


def _explained(loaded: LoadedModel, update: Update, ids: Tensor, skip: int) -> float:
    inputs = {"input_ids": ids}
    predicted = first_order_shift(loaded, update, inputs)[LOGITS]
    measured = measured_shift(loaded, update, inputs)[LOGITS]
    return explained_per_token(measured[:, skip:], predicted[:, skip:])


def _norm(tensors: Update) -> float:
    return sum(float(tensor.double().square().sum()) for tensor in tensors.values()) ** 0.5
