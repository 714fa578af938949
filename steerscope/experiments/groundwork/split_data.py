"""Training, selection and test examples of a task, tokenised: what an engine's sweep reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import content_hash
from steerscope.experiments.engine.held_out import HeldOut, hold_out
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.groundwork.splits import DataSplits
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import training_rows
from steerscope.models.lengths import require_one_side, switch_length
from steerscope.models.load import LoadedModel


@dataclass
class SplitData:
    """The examples of a task's parts, tokenised, for :class:`~steerscope.experiments.engine.sweep.Sweep`.

    Attributes:
        loaded: Whose tokenizer.
        splits: Where examples come from.
        schedule: How long a run is.
        num_selection: Examples that choose learning rates.
        num_test: Test examples.
    """

    loaded: LoadedModel
    splits: DataSplits
    schedule: Schedule
    num_selection: int
    num_test: int
    _rows: dict[int, list[SupervisedSequence]] = field(default_factory=dict, repr=False)
    _held: dict[str, HeldOut] = field(default_factory=dict, repr=False)
    _hashes: dict[tuple[str, int], str] = field(default_factory=dict, repr=False)

    def examples(self, part: str, seed: int = 0) -> list[Example]:
        """Return the examples of ``train`` (of a seed), ``selection`` or ``test``.

        Args:
            part: ``train``, ``selection`` or ``test``.
            seed: Training seed; the other parts are the same for every seed.

        Returns:
            Examples of the part, as many as the schedule or the options ask for.
        """
        if part == "train":
            return self.splits.train(self.schedule.steps * self.schedule.batch_size, seed)
        return self.splits.selection(self.num_selection) if part == "selection" else self.splits.test(self.num_test)

    def check(self, seeds: Sequence[int]) -> None:
        """Refuse, before anything is computed, examples that the model cannot read or that cannot share batches.

        Raises:
            InputError: There are such.
        """
        for part in ("selection", "test"):
            self.held_out(part)
        for seed in seeds:
            self.rows(seed)

    def rows(self, seed: int) -> Sequence[SupervisedSequence]:
        """Return a seed's training sequences in the order of training."""
        if seed not in self._rows:
            sequences = self._tokenised(self.examples("train", seed)).sequences
            if self.schedule.batch_size > 1:
                require_one_side(
                    [len(sequence.ids) for sequence in sequences],
                    switch_length(self.loaded.model),
                    "training examples",
                    "Give examples on one side of it, or [[batch_size]] 1.",
                )
            self._rows[seed] = training_rows(sequences, self.schedule.steps, self.schedule.batch_size, seed)
        return self._rows[seed]

    def held_out(self, part: str) -> HeldOut:
        """Return the examples of ``selection`` or ``test``."""
        if part not in self._held:
            self._held[part] = self._tokenised(self.examples(part))
        return self._held[part]

    def content_hash(self, part: str, seed: int = 0) -> str:
        """Return a hash of the examples of a part; of training examples their order counts.

        Args:
            part: ``train``, ``selection`` or ``test``.
            seed: Training seed; the other parts are the same for every seed.

        Returns:
            A hexadecimal digest.
        """
        if (part, seed) not in self._hashes:  # asked for with every run
            self._hashes[part, seed] = content_hash(self.examples(part, seed), ordered=part == "train")
        return self._hashes[part, seed]

    def _tokenised(self, examples: Sequence[Example]) -> HeldOut:
        texts = [(one.prompt, one.completion, one.choices) for one in examples]
        return hold_out(texts, self.loaded.tokenizer, self.loaded.max_length, self.loaded.model)
