"""Where one run of a pack is: what is needed to go on with it in another pack, beside other runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.experiments.engine.loop import Progress
from steerscope.experiments.engine.pack import Pack

_TENSOR, _MOMENT = "tensor.", "moment."


@dataclass(frozen=True)
class RunState:
    """One run after some steps of its schedule.

    Attributes:
        step: Steps done.
        losses: Of every step, in nats.
        tensors: What is trained, by name.
        moments: What the optimizer keeps, per parameter, by name; empty for a parameter without a step.
    """

    step: int
    losses: tuple[float, ...]
    tensors: dict[str, Tensor]
    moments: tuple[dict[str, Tensor], ...]

    def stored(self) -> dict[str, Tensor]:
        """Return all tensors under names of one file."""
        found = {_TENSOR + name: value for name, value in self.tensors.items()}
        for place, own in enumerate(self.moments):
            found |= {f"{_MOMENT}{place}.{name}": value for name, value in own.items()}
        return found

    @classmethod
    def of_stored(cls, step: int, losses: Sequence[float], stored: Mapping[str, Tensor]) -> RunState:
        """Return the state that :meth:`stored` wrote.

        Args:
            step: Steps done.
            losses: Of every step.
            stored: The tensors.

        Returns:
            The state, on the device of the tensors.
        """
        tensors = {name.removeprefix(_TENSOR): value for name, value in stored.items() if name.startswith(_TENSOR)}
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in stored.items():
            if name.startswith(_MOMENT):
                place, _, own = name.removeprefix(_MOMENT).partition(".")
                moments.setdefault(int(place), {})[own] = value
        last = max(moments, default=-1)
        return cls(step, tuple(losses), tensors, tuple(moments.get(place, {}) for place in range(last + 1)))


def states_of(pack: Pack, progress: Progress) -> list[RunState]:
    """Return where each run of a pack is.

    Args:
        pack: The runs.
        progress: Of their training.

    Returns:
        One state per run, in the order of the pack.
    """
    kept, found, first = progress.optimizer["state"], [], 0
    for run in range(len(pack.specs)):
        count = len(pack.parameters_of(run))
        moments = tuple({**kept.get(first + place, {})} for place in range(count))
        found.append(RunState(progress.step, tuple(progress.losses[run]), progress.tensors[run], moments))
        first += count
    return found


def progress_of(pack: Pack, states: Sequence[RunState]) -> Progress:
    """Return the progress of a pack whose runs come from other packs.

    Args:
        pack: The runs, in the order of ``states``.
        states: Where each is; all after as many steps.

    Returns:
        What training of the new pack resumes from.
    """
    runs = range(len(pack.specs))
    fresh = torch.optim.AdamW([{"params": pack.parameters_of(run)} for run in runs], weight_decay=0.0).state_dict()
    moments = [own for state in states for own in state.moments]
    kept = {place: dict(own) for place, own in enumerate(moments) if own}
    return Progress(
        step=states[0].step,
        losses=[list(state.losses) for state in states],
        optimizer={"state": kept, "param_groups": fresh["param_groups"]},
        tensors=[dict(state.tensors) for state in states],
    )
