"""Runs trained together: their edits on their own rows of one batch, on one frozen model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steerscope.analysis.outputs import selected_positions
from steerscope.errors import InputError
from steerscope.experiments.engine.edits import PackedEdits
from steerscope.experiments.engine.frozen import FrozenStreams, entering, padded, run
from steerscope.experiments.engine.spec import RunSpec
from steerscope.experiments.tasks.supervised import SupervisedSequence, pad_token
from steerscope.models.load import LoadedModel

IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """A padded batch of sequences.

    Padding is on the right: a token of padding then sees real tokens before it, where one on the left sees nothing, of
    which some implementations of attention make NaN.

    Attributes:
        ids: ``(row token)``.
        mask: ``(row token)``, 0 on padding.
        prompts: Tokens of every row's prompt ``(row)``.
        targets: ``(row target)``: the supervised tokens, -100 behind the last.
    """

    ids: Tensor
    mask: Tensor
    prompts: Tensor
    targets: Tensor

    @classmethod
    def of(cls, sequences: Sequence[SupervisedSequence], pad: int, device: torch.device) -> Rows:
        """Pad sequences to one length."""
        ids = padded([row.ids for row in sequences], pad, device)
        mask = padded([[1] * len(row.ids) for row in sequences], 0, device)
        prompts = torch.tensor([row.first_target for row in sequences], device=device)
        targets = padded([row.ids[row.first_target :] for row in sequences], IGNORED, device)
        return cls(ids, mask, prompts, targets)

    def take(self, places: Tensor) -> Rows:
        """Return the rows at some places, each as often as it is named."""
        return Rows(*(values[places] for values in (self.ids, self.mask, self.prompts, self.targets)))

    @property
    def is_target(self) -> Tensor:
        """Where ``targets`` holds a token, ``(row target)``."""
        return self.targets != IGNORED

    @property
    def wanted(self) -> Tensor:
        """The supervised tokens, row by row, ``(supervised)``."""
        return self.targets[self.is_target]

    def predicting(self) -> tuple[Tensor, Tensor]:
        """Return row and column of every token that predicts a supervised one, ``(supervised)`` each."""
        row, target = self.is_target.nonzero(as_tuple=True)
        return row, self.prompts[row] - 1 + target


class EditPack(nn.Module):
    """Runs of edits on one frozen model, each on its own rows.

    Attributes:
        specs: What is trained.
        edits: The edits; see :class:`~steerscope.experiments.engine.edits.PackedEdits`.
    """

    def __init__(
        self, loaded: LoadedModel, specs: Sequence[RunSpec], scales: Mapping[str, float] | None = None
    ) -> None:
        """Build the edits as they start.

        Args:
            loaded: The model; its weights are frozen and stay as they are.
            specs: The runs; any sites, rates, seeds and families together.
            scales: Root mean square of what each site reads, by the site's name, for configurations with
                ``scale="rms"``.

        Raises:
            InputError: No run, a site that the model lacks, or a scale that was not given.
        """
        super().__init__()
        if not specs:
            raise InputError("a pack needs at least one run, got none.")
        self.loaded, self.specs = loaded, tuple(specs)
        self.edits = PackedEdits([spec.config for spec in specs], loaded.site_map, loaded.device)
        for edits in self.edits.by_run:
            for site, edit in edits.items():
                if not edit.is_ready:
                    if str(site) not in (scales or {}):
                        raise InputError(
                            f"the edit at '{site}' reads with scale='rms'; pass scales={{'{site}': value}}."
                        )
                    edit.set_scale((scales or {})[str(site)])
        self.pad = pad_token(loaded.tokenizer)
        self.streams = FrozenStreams(loaded.model, loaded.site_map, self.pad)

    def share(self, streams: FrozenStreams) -> None:
        """Use the kept streams of an earlier pack on the same model."""
        self.streams = streams

    def logits(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> tuple[Tensor, Rows]:
        """Run some runs of the pack, each on its own batch; batches that are one object are computed once below.

        Args:
            runs: Which runs.
            batches: Per run its sequences, the same number for all.

        Returns:
            Logits of the tokens that predict supervised ones ``(supervised vocab)``, row by row, in float32 at least;
            and the rows of all runs, in the order of ``runs``.

        Cost: one pass through the blocks from the pack's lowest on, for all rows.
        """
        different = list({id(batch): batch for batch in batches}.values())
        size = len(different[0])
        unique = [sequence for batch in different for sequence in batch]
        place = {id(batch): size * index for index, batch in enumerate(different)}
        device, model = self.loaded.device, self.loaded.model
        take = torch.tensor([place[id(batch)] + row for batch in batches for row in range(size)], device=device)
        rows = Rows.of(unique, self.pad, device).take(take)
        self.streams.move_to(self.edits.lowest_block)
        stream = self.streams.entering(unique)
        with (
            entering(self.loaded.site_map, self.streams.layer, None if stream is None else stream[take]),
            self.edits.acting(runs, rows.mask, rows.prompts, rows.ids.shape[1]),
            selected_positions(model, *rows.predicting()),
        ):
            logits = run(model, rows.ids, rows.mask)[0]
        # In single precision at least: sums over a vocabulary in half precision are worthless.
        return (logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits), rows

    def losses(self, runs: Sequence[int], batches: Sequence[Sequence[SupervisedSequence]]) -> Tensor:
        """Return the mean negative log-likelihood of each run's supervised tokens ``(run)``, in nats."""
        logits, rows = self.logits(runs, batches)
        negative = per_target(rows, F.cross_entropy(logits, rows.wanted, reduction="none"))
        counts = rows.is_target.sum(-1).unflatten(0, (len(runs), -1)).sum(-1)
        return negative.unflatten(0, (len(runs), -1)).sum((1, 2)) / counts


def per_target(rows: Rows, values: Tensor) -> Tensor:
    """Return values of supervised tokens in the places of these, ``(row target)``, 0 elsewhere."""
    return values.new_zeros(rows.targets.shape).masked_scatter(rows.is_target, values)
