"""A pack of one: a model with something to train in it, LoRA, all weights, biases, or edits and LoRA together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.rows import Rows, run, single_precision
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.shared_prefix import cache_of, counted_back
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.offloaded import device_of
from steerscope.models.wrappers import language_model
from steerscope.steering import SteeringModel
from steerscope.steering.joint import JointConstraint
from steerscope.steering.lofit import SparseScales


class ModelPack(Pack):
    """One run of whatever has gradients in a model.

    Args:
        model: A model ready to train: plain, wrapped by PEFT, or steered.
        spec: The run; only its learning rate and seed are used.
        pad: Any token to fill with.
        constraint: What keeps a LoRA and edits apart, if anything.
        penalty: What keeps LoFiT's scales sparse, if anything.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: RunSpec,
        pad: int,
        constraint: JointConstraint | None = None,
        penalty: SparseScales | None = None,
    ) -> None:
        self.model, self.specs, self.pad = model, (spec,), pad
        self.constraint, self.penalty = constraint, penalty

    @property
    def language_model(self) -> nn.Module:
        """The model below its wrappers."""
        return language_model(self.model)

    @property
    def _tried(self) -> nn.Module:
        return self.model

    @property
    def _counted_back(self) -> int | None:
        return counted_back(self.model)

    def parameters_of(self, run: int) -> list[nn.Parameter]:
        """Return what is trained."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def tensors_of(self, run: int) -> dict[str, Tensor]:
        """Return what is trained by its name in the model."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def logits(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> tuple[Tensor, Rows]:
        """Run the model on its batch; see :meth:`Pack.logits`.

        Args:
            runs: Indices of the runs; a pack of a whole model has run 0 only.
            batches: The sequences of each run.

        Returns:
            Logits of the tokens that predict supervised ones ``(supervised vocab)``, and the padded rows they belong
            to.
        """
        device, start, cache = device_of(self.model), self._start(batches[0]), None
        rows = Rows.of(batches[0], self.pad, device, start)
        told = {"prompt_lengths": rows.prompts} if isinstance(self.model, SteeringModel) else {}
        if start:
            ids, nowhere = torch.tensor([batches[0][0].ids[:start]], device=device), rows.prompts[:0]
            with selected_positions(self.language_model, nowhere, nowhere):
                # What is common ends before any prompt does.
                least = {name: ends.min()[None] for name, ends in told.items()}
                cache = cache_of(self.model, ids, len(rows.ids), least)
        with selected_positions(self.language_model, *rows.predicting()):
            return single_precision(run(self.model, rows.ids, rows.mask, cache, **told)[0]), rows

    def begin(self, optimizer: Optimizer) -> None:
        """Start within the constraint."""
        if self.constraint is not None:
            self.constraint.project(optimizer)

    def before_step(self) -> None:
        """Add the penalty, and keep gradients within the constraint."""
        if self.penalty is not None:
            self.penalty.add_to_gradients()
        if self.constraint is not None:
            self.constraint.project_gradients()

    def after_step(self, optimizer: Optimizer) -> None:
        """Keep parameters and moments within the constraint."""
        if self.constraint is not None:
            self.constraint.project(optimizer)
