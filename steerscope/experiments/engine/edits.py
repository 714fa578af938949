"""Edits of many runs on the rows of one batch: run ``r`` edits rows ``r * batch`` to ``(r + 1) * batch`` and no others.

Runs that edit one site with the same kind of edit are computed together, their parameters stacked. Every run keeps
parameters of its own, so that learning rates, clipping and files are per run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steerscope.models.hooks import Tap, tapping
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site
from steerscope.steering.build import build_edits
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import SteeringEdit
from steerscope.steering.positions import Positions, token_mask
from steerscope.steering.prompt_end import Columns


def zero_edit(site_map: SiteMap) -> SteeringConfig:
    """Return an edit that adds zero as it starts, at the end of the model: for passes without any."""
    return SteeringConfig(sites=f"{len(site_map.blocks) - 1}.resid_post", family="vector")


class PackedEdits(nn.Module):
    """The trained edits of several runs.

    Attributes:
        configs: One per run.
        by_run: Per run, its edits by site.
    """

    def __init__(self, configs: Sequence[SteeringConfig], site_map: SiteMap, device: torch.device) -> None:
        super().__init__()
        self.configs, self.site_map = tuple(configs), site_map
        self.by_run = [build_edits(config, site_map) for config in configs]
        self._edits = nn.ModuleList(edit.to(device) for edits in self.by_run for edit in edits.values())
        self._positions = [Positions.parse(config.positions) for config in configs]

    @property
    def first_block(self) -> int:
        """Index of the first block for which any run's edits matter; the number of blocks, where they follow all."""
        return min(site.first_block for edits in self.by_run for site in edits)

    def parameters_of(self, run: int) -> list[nn.Parameter]:
        """Return what one run trains."""
        return [parameter for edit in self.by_run[run].values() for parameter in edit.parameters()]

    def tensors_of(self, run: int) -> dict[str, Tensor]:
        """Return one run's tensors by ``site.name``, as adapters are saved."""
        edits = self.by_run[run].items()
        return {f"{site}.{name}": value for site, edit in edits for name, value in edit.state_dict().items()}

    @contextmanager
    def acting(
        self, runs: Sequence[int], attention_mask: Tensor, prompt_lengths: Tensor, num_queries: int
    ) -> Iterator[None]:
        """Edit the forward passes inside the context.

        Args:
            runs: Which runs the batch holds, in the order of its rows; each has as many rows.
            attention_mask: ``(row column)``, cached columns included.
            prompt_lengths: Tokens of every row's prompt ``(row)``.
            num_queries: How many columns, at the end, the passes compute.
        """
        masks = self._masks(runs, attention_mask, prompt_lengths, num_queries)
        places: dict[Site, list[int]] = {}
        for place, run in enumerate(runs):
            for site in self.by_run[run]:
                places.setdefault(site, []).append(place)
        taps = {
            site: self._tap(site, runs, places[site], masks) for site in sorted(places, key=lambda site: site.order)
        }
        with tapping(self.site_map, taps):
            yield

    def _masks(
        self, runs: Sequence[int], attention_mask: Tensor, prompt_lengths: Tensor, num_queries: int
    ) -> list[Tensor | None]:
        rows = attention_mask.unflatten(0, (len(runs), -1)) != 0
        ends = prompt_lengths.unflatten(0, (len(runs), -1)).unsqueeze(-1)
        found: list[Tensor | None] = []
        for place, run in enumerate(runs):
            columns = Columns.of_rows(rows[place], num_queries)
            found.append(token_mask(self._positions[run], columns, ends=ends[place]))
        return found

    def _tap(self, site: Site, runs: Sequence[int], places: list[int], masks: list[Tensor | None]) -> Tap:
        groups: dict[object, list[int]] = {}
        for place in places:
            edit = self.by_run[runs[place]][site]
            groups.setdefault((type(edit), edit.options), []).append(place)
        stacks = [
            _Stack([self.by_run[runs[place]][site] for place in group], group, masks) for group in groups.values()
        ]

        def tap(value: Tensor, read: Tensor) -> Tensor:
            split, seen = value.unflatten(0, (len(runs), -1)), read.unflatten(0, (len(runs), -1))
            for stack in stacks:
                split = stack.added_to(split, seen)
            return split.flatten(0, 1)

        return tap


class _Stack:
    """Edits of one kind at one site, computed together, and the places of their runs in the batch."""

    def __init__(self, edits: list[SteeringEdit], places: list[int], masks: list[Tensor | None]) -> None:
        self.edits, self.places = edits, places
        own = [masks[place] for place in places]
        # One rule of positions edits all tokens (None) or has a mask; a stack may hold both.
        self.masks = None if all(mask is None for mask in own) else own

    def added_to(self, split: Tensor, read: Tensor) -> Tensor:
        """Return ``split (run batch token channel)`` with what these edits add for what they read."""
        if self.places == list(range(len(split))):
            return split + self._delta(read).to(split)
        index = torch.tensor(self.places, device=split.device)
        return split.index_add(0, index, self._delta(read[index.to(read.device)]).to(split))

    def _delta(self, read: Tensor) -> Tensor:
        first = self.edits[0]
        if len(self.edits) == 1 or first.is_orthonormal:  # products of reflections have no rule for stacks
            added = torch.stack([edit(x) for edit, x in zip(self.edits, read, strict=True)])
        else:
            named = [dict(edit.named_parameters()) | dict(edit.named_buffers()) for edit in self.edits]
            # Stacked anew in every pass, so that gradients reach each run's own parameters.
            stacked = {name: torch.stack([own[name] for own in named]) for name in named[0]}
            added = torch.vmap(lambda state, x: functional_call(first, state, (x,)))(stacked, read)
        if self.masks is None:
            return added
        full = torch.ones(read.shape[1:-1], dtype=torch.bool, device=added.device)
        mask = torch.stack([full if mask is None else mask.to(added.device) for mask in self.masks])
        return torch.where(mask.unsqueeze(-1), added, 0)
