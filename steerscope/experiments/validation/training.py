"""What a validation trains: edits at sites, and lines to read the table by; and the examples it trains them on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import content_hash
from steerscope.experiments.engine.candidate import Candidate
from steerscope.experiments.engine.held_out import HeldOut, hold_out
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.rate_grid import EDIT_START
from steerscope.experiments.engine.spec import RunSpec, Schedule
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import training_rows
from steerscope.experiments.training.trainee import lora
from steerscope.experiments.validation.data import DataSplits
from steerscope.models.blocks import linear_shape
from steerscope.models.lengths import require_one_side, switch_length
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.sites import Site, parse_site
from steerscope.steering.build import build_edits
from steerscope.steering.config import SteeringConfig
from steerscope.steering.weights import WeightModel

# Where searches for a learning rate begin, as places on the grid of half decades: 3e-3 for edits, 1e-3 for LoRA, 1e-4
# for full fine-tuning.
START = {"edit": EDIT_START["none"], "lora": -6, "sft": -8}


def edit_at(sites: Sequence[Site], rank: int) -> Candidate:
    """Return the linear edit that ``steerscope train`` trains by default, at a site or at several together.

    Args:
        sites: One site, or several that are edited together.
        rank: Rank of each edit.

    Returns:
        What a sweep trains; its name is the sites', joined by ``+``.
    """
    names = tuple(str(site) for site in sites)
    config = SteeringConfig(sites=names, family="linear", rank=rank)
    group = str(sites[0].kind) if len(sites) == 1 else "set"
    return Candidate("+".join(names), config, START["edit"], group)


def weights_of(loaded: LoadedModel, method: str, rank: int) -> Candidate:
    """Return LoRA of the linear maps of all blocks (``lora``), or full fine-tuning (``sft``).

    Args:
        loaded: The model.
        method: ``lora`` or ``sft``.
        rank: Rank of the LoRA; full fine-tuning has none.

    Returns:
        What a sweep trains, one run at a time.
    """

    def build(learning_rate: float, seed: int) -> tuple[Pack, Callable[[], object]]:
        spec = RunSpec(None, learning_rate, seed)
        pad = pad_token(loaded.tokenizer, loaded.model)
        if method == "lora":
            wrapped = lora(loaded, rank, seed)
            return ModelPack(wrapped.eval(), spec, pad), wrapped.unload
        whole = WeightModel(loaded, method)
        return ModelPack(whole.eval(), spec, pad), whole.restore

    return Candidate(method, None, START[method], method, build)


def sites_of(method: str) -> tuple[Site, ...]:
    """Return the sites that the name of a candidate, ``3.mlp_out+9.resid_post``, stands for."""
    return tuple(parse_site(name) for name in method.split("+"))


def num_params(loaded: LoadedModel, one: Candidate, rank: int) -> int:
    """Return how many numbers a candidate trains.

    Args:
        loaded: The model.
        one: The candidate.
        rank: Of a LoRA.

    Returns:
        A number of parameters.
    """
    if one.config is not None:
        edits = build_edits(one.config, loaded.site_map).values()
        return sum(parameter.numel() for edit in edits for parameter in edit.parameters())
    if one.name == "sft":
        return loaded.identity.n_params
    return sum(rank * sum(linear_shape(module)) for module in loaded.site_map.linear_maps().values())


@dataclass
class SplitData:
    """The examples of a validation, tokenised, for :class:`~steerscope.experiments.engine.sweep.Sweep`.

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
