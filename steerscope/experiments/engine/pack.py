"""Runs trained together: each on its own rows of one batch, on one frozen model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.errors import InputError
from steerscope.experiments.engine.edits import PackedEdits
from steerscope.experiments.engine.frozen import FrozenStreams, entering
from steerscope.experiments.engine.pieces import GPU_PASS, NUMBERS, PASS, Batch, may_cut, pieces_of
from steerscope.experiments.engine.rows import Rows, per_target, run, single_precision
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.shared_prefix import cache_of, can_stand_apart, common_length, counted_by
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.models.lengths import require_one_side, switch_length
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import device_of
from steerscope.models.tokens import pad_token
from steerscope.models.upper_blocks import mlp_at
from steerscope.sites import SiteKind


class Pack(ABC):
    """What the loop trains: one run, or many.

    Attributes:
        specs: The runs.
        pad: Any token to fill with.
    """

    pad: int
    specs: tuple[RunSpec, ...]
    _shares = False
    _cuts = False

    def prepare(self, sequences: Sequence[SupervisedSequence]) -> None:
        """Try out whether what these sequences begin with can be computed once; unless told, every row is whole.

        Unless told, rows of a step are also computed in one pass, padded to the longest of them.

        Args:
            sequences: All that will be run.

        Cost: passes over two rows.
        """
        ids, prompts = [row.ids for row in sequences], [row.first_target for row in sequences]
        self._cuts = may_cut(self._tried)
        self._shares = can_stand_apart(
            self._tried, ids, prompts, self.pad, common_length(ids, prompts, self._counted_back)
        )

    def _start(self, sequences: Sequence[SupervisedSequence]) -> int:
        """Return how many tokens the rows of one pass begin with that are computed apart."""
        if not self._shares:
            return 0
        ids, prompts = [row.ids for row in sequences], [row.first_target for row in sequences]
        return common_length(ids, prompts, self._counted_back)

    @property
    @abstractmethod
    def language_model(self) -> nn.Module:
        """The transformers model that runs."""

    @property
    def _tried(self) -> nn.Module:
        """The model on which :meth:`prepare` tries out a common start."""
        return self.language_model

    @property
    @abstractmethod
    def _counted_back(self) -> int | None:
        """How many tokens before a prompt's end belong in the rows; None if all do."""

    @abstractmethod
    def parameters_of(self, run: int) -> list[nn.Parameter]:
        """Return what one run trains."""

    @abstractmethod
    def tensors_of(self, run: int) -> dict[str, Tensor]:
        """Return what one run trains, and what belongs to it, by name; the tensors themselves, to be written to."""

    @abstractmethod
    def logits(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> tuple[Tensor, Rows]:
        """Run some runs, each on its own batch.

        Args:
            runs: Which runs.
            batches: Per run its sequences, the same number for all. Batches that are one object hold the same rows.

        Returns:
            Logits of the tokens that predict supervised ones ``(supervised vocab)``, row by row, in float32 at least;
            and the rows of all runs, in the order of ``runs``.
        """

    def losses(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> Tensor:
        """Return the mean negative log-likelihood of each run's supervised tokens ``(run)``, in nats.

        Args:
            runs: Indices of the runs in the pack.
            batches: The sequences of each of these runs, the same number for all.

        Returns:
            One loss per run, with its graph.

        Cost: one pass of all rows; or several, of rows of similar length, where padding would cost more.
        """
        parts = [own.new_zeros(len(runs)).index_add(0, places, own) for places, own in self._parts(runs, batches)]
        return torch.stack(parts).sum(0)

    def add_gradients(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> Tensor:
        """Add the gradients of :meth:`losses` to those of the parameters, and return the losses ``(run)``.

        What a pass keeps for its gradients is let go of before the next. A run whose loss is NaN or infinite adds
        nothing to the gradients of others; its own mean nothing.

        Args:
            runs: Indices of the runs in the pack.
            batches: The sequences of each of these runs, the same number for all.

        Returns:
            One loss per run, without a graph.
        """
        losses: Tensor | None = None
        for places, own in self._parts(runs, batches):
            losses = own.new_zeros(len(runs)).detach() if losses is None else losses
            losses.index_add_(0, places, own.detach())
            is_finite = own.isfinite()
            if bool(is_finite.any()):
                own[is_finite].sum().backward()
        assert losses is not None
        return losses

    def _parts(
        self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield per pass the places of its runs, and what it adds to their losses, with its graph."""
        counts = [sum(len(row.ids) - row.first_target for row in batch) for batch in batches]
        for places, parts in self._pieces(batches):
            logits, rows = self.logits([runs[place] for place in places], parts)
            negative = per_target(rows, F.cross_entropy(logits, rows.wanted, reduction="none"))
            sums = negative.unflatten(0, (len(places), -1)).sum((1, 2))
            yield torch.tensor(places, device=sums.device), sums / sums.new_tensor([counts[one] for one in places])

    def _pieces(self, batches: Sequence[Sequence[SupervisedSequence]]) -> list[tuple[list[int], list[Batch]]]:
        if not self._cuts:
            return [(list(range(len(batches))), list(batches))]
        start = self._start([row for batch in {id(batch): batch for batch in batches}.values() for row in batch])
        is_cpu = device_of(self.language_model).type == "cpu"
        return pieces_of(batches, start, PASS if is_cpu else GPU_PASS, self._most if is_cpu else None)

    @property
    def _most(self) -> int | None:
        """How many tokens a pass on a CPU has at most."""
        return None

    @torch.no_grad()
    def load(self, run: int, tensors: Mapping[str, Tensor]) -> None:
        """Put trained tensors, by the names of :meth:`tensors_of`, in the place of a run's own.

        Args:
            run: Index of the run in the pack.
            tensors: Values by name, each of the shape of the tensor that it replaces.
        """
        for name, value in self.tensors_of(run).items():
            value.copy_(tensors[name])

    def begin(self, optimizer: Optimizer) -> None:  # noqa: B027  most packs have nothing to do here
        """Called before the first step of a training that does not go on from an earlier one."""

    def before_step(self) -> None:  # noqa: B027
        """Called when gradients are there and clipped."""

    def after_step(self, optimizer: Optimizer) -> None:  # noqa: B027
        """Called when parameters have moved."""


class EditPack(Pack):
    """Runs of edits on one frozen model, each on its own rows.

    Attributes:
        specs: What is trained.
        edits: The edits; see :class:`~steerscope.experiments.engine.edits.PackedEdits`.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        specs: Sequence[RunSpec],
        scales: Mapping[str, float] | None = None,
        streams: FrozenStreams | None = None,
    ) -> None:
        """Build the edits as they start.

        Args:
            loaded: The model; its weights are frozen and stay as they are.
            specs: The runs; any sites, rates, seeds and families together.
            scales: Root mean square of what each site reads, by the site's name, for configurations with
                ``scale="rms"``.
            streams: Kept streams of an earlier pack on the same model, to go on from.

        Raises:
            InputError: No run, a site that the model lacks, or a scale that was not given.
        """
        if not specs:
            raise InputError("a pack needs at least one run, got none.")
        configs = [spec.config for spec in specs if spec.config is not None]
        if len(configs) < len(specs):
            raise InputError("a run without config edits nothing. Train it as a ModelPack.")
        self.loaded, self.specs = loaded, tuple(specs)
        self.edits = PackedEdits(configs, loaded.site_map, loaded.device)
        unscaled = [item for edits in self.edits.by_run for item in edits.items() if not item[1].is_ready]
        for site, edit in unscaled:
            if str(site) not in (scales or {}):
                raise InputError(f"the edit at '{site}' reads with scale='rms'; pass scales={{'{site}': value}}.")
            edit.set_scale((scales or {})[str(site)])
        self.pad = pad_token(loaded.tokenizer, loaded.model)
        self.streams = streams or FrozenStreams(loaded.model, loaded.site_map, self.pad)

    def prepare(self, sequences: Sequence[SupervisedSequence]) -> None:
        """Try out a common start, as every pack; what lies below the edits will be computed for these rows together."""
        super().prepare(sequences)
        self.streams.begin(sequences)

    @property
    def language_model(self) -> nn.Module:
        """The frozen model."""
        return self.loaded.model

    @property
    def _counted_back(self) -> int | None:
        counts = [counted_by(config.positions) for config in self.edits.configs]
        return None if None in counts else max(count for count in counts if count is not None)

    @property
    def _most(self) -> int | None:
        return NUMBERS // self.loaded.site_map.d_model

    def parameters_of(self, run: int) -> list[nn.Parameter]:
        """Return what one run trains."""
        return self.edits.parameters_of(run)

    def tensors_of(self, run: int) -> dict[str, Tensor]:
        """Return one run's tensors by ``site.name``, as adapters are saved."""
        return self.edits.tensors_of(run)

    def logits(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> tuple[Tensor, Rows]:
        """Run some runs of the pack, each on its own batch; batches that are one object are computed once below.

        Args:
            runs: Which runs.
            batches: Per run its sequences, the same number for all.

        Returns:
            Logits of the tokens that predict supervised ones ``(supervised vocab)``, row by row, in float32 at least;
            and the rows of all runs, in the order of ``runs``.

        Cost: one pass through the blocks from the first one that an edit matters to, for all rows.
        """
        different = list({id(batch): batch for batch in batches}.values())
        size = len(different[0])
        unique = [sequence for batch in different for sequence in batch]
        require_one_side(
            [len(sequence.ids) for sequence in unique],
            switch_length(self.loaded.model),
            "examples of one step",
            "Give examples on one side of it.",
        )
        place = {id(batch): size * index for index, batch in enumerate(different)}
        device, model, start = self.loaded.device, self.loaded.model, self._start(unique)
        take = torch.tensor([place[id(batch)] + row for batch in batches for row in range(size)], device=device)
        rows = Rows.of(unique, self.pad, device, start).take(take)
        self.streams.move_to(self.edits.first_block)
        stream = self.streams.entering(unique)
        cache = self._cache_of(runs, unique, start, stream, size) if start else None
        with (
            entering(self.loaded.site_map, self.streams.layer, None if stream is None else stream[take, start:]),
            self._reading_at(*rows.predicting()),
            self.edits.acting(runs, rows.mask, rows.prompts, rows.ids.shape[1]),
        ):
            return single_precision(run(model, rows.ids, rows.mask, cache)[0]), rows

    @contextmanager
    def _reading_at(self, row: Tensor, token: Tensor) -> Iterator[None]:
        """Compute logits, and what the last block adds to the stream by its MLP, at these tokens alone."""
        last = self.loaded.site_map.blocks[-1]
        inside = {SiteKind.MLP_IN, SiteKind.MLP_HIDDEN, SiteKind.MLP_OUT}
        edited = {site.kind for edits in self.edits.by_run for site in edits if site.layer == last.index}
        with (
            selected_positions(self.loaded.model, row, token),
            nullcontext() if edited & inside else mlp_at(last, row, token),
        ):
            yield

    def _cache_of(
        self,
        runs: Sequence[int],
        sequences: Sequence[SupervisedSequence],
        length: int,
        stream: Tensor | None,
        size: int,
    ) -> Any:
        """Return keys and values of what all rows begin with, edited by each run, for ``size`` rows of each.

        Gradients of all rows meet in them.
        """
        model, device, layer = self.loaded.model, self.loaded.device, self.streams.layer
        ids = torch.tensor([sequences[0].ids[:length]] * len(runs), device=device)
        ends = torch.tensor([min(row.first_target for row in sequences)] * len(runs), device=device)
        nowhere = torch.zeros(0, dtype=torch.long, device=device)
        begun = None if stream is None else stream[:1, :length].expand(len(runs), -1, -1)
        with (
            entering(self.loaded.site_map, layer, begun),
            self._reading_at(nowhere, nowhere),
            self.edits.acting(runs, torch.ones_like(ids), ends, length),
        ):
            return cache_of(model, ids, size, without=layer)
