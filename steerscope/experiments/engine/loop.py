"""Train the runs of a pack: a stock optimizer with a group per run, gradients clipped per run, exact resuming."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.experiments.engine.pack import Pack
from steerscope.experiments.engine.spec import Schedule
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.finite import require_finite

# A run whose last quarter of steps has more than this multiple of the first quarter's loss has diverged, as has one
# whose loss is infinite or NaN. Single steps say nothing: batches of short and of long prompts differ by as much.
DIVERGED = 2.0


@dataclass(frozen=True)
class TrainedRun:
    """What a run came to.

    Attributes:
        tensors: What was trained, by ``site.name``.
        losses: Of every step, in nats; they end where the run diverged.
        diverged: Whether its losses ended far above where they began, or stopped being numbers.
    """

    tensors: dict[str, Tensor]
    losses: tuple[float, ...]
    diverged: bool


@dataclass
class Progress:
    """Where a pack's training is: what a checkpoint holds, and what training resumes from.

    Attributes:
        step: Steps done.
        losses: Of every run, step by step.
        optimizer: State of the optimizer.
        tensors: What is trained, run by run.
    """

    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)


def train_pack(
    pack: Pack,
    data: Mapping[int, Sequence[SupervisedSequence]],
    schedule: Schedule,
    *,
    start: Progress | None = None,
    keep: Callable[[Progress], object] | None = None,
    keep_every: int = 0,
    show: Callable[[int, int], None] | None = None,
    until: int | None = None,
) -> list[TrainedRun]:
    """Train all runs of a pack for the steps of a schedule.

    What a run comes to does not depend on the others in the pack, up to rounding. A run whose loss stops being a number
    is left where it was, and its rows are not computed further.

    Args:
        pack: The runs. Dropout of the frozen model is off.
        data: Per seed ``steps * batch_size`` sequences in the order of training
            (:func:`~steerscope.experiments.training.data.training_rows`).
        schedule: Steps, batch size, warm-up, clipping.
        start: Where an interrupted training was; it goes on to the same bits, and ``start`` itself stays as it is.
        keep: Called with the progress every ``keep_every`` steps and after the last, to be written down before the
            training goes on: the tensors are those that are trained.
        keep_every: 0 for never.
        show: Called with steps done and in all.
        until: Stop after this step of the schedule, and call ``keep`` with a copy of the progress, from which a later
            training goes on; the results are those of the steps done.

    Returns:
        One result per run, in the order of the pack.

    Raises:
        InputError: A seed without data, or with too few sequences; or a loss of the first step that is NaN or infinite;
            or ``until`` is not a step of the schedule, or lies before ``start``.

    Cost: ``steps`` times forward and backward through the blocks from the lowest edit on, with ``runs * batch_size``
    rows, in one pass or several (:mod:`~steerscope.experiments.engine.pieces`).
    """
    size, steps = schedule.batch_size, schedule.steps
    for seed in {spec.seed for spec in pack.specs}:
        if len(data.get(seed, ())) < steps * size:
            raise InputError(
                f"seed {seed} has {len(data.get(seed, ()))} training sequences; {steps} steps of {size} need "
                f"{steps * size}. Repeat examples, or train fewer steps."
            )
    numbers = range(len(pack.specs))
    pack.prepare([row for seed in {spec.seed: None for spec in pack.specs} for row in data[seed][: steps * size]])
    optimizer = torch.optim.AdamW(
        [{"params": pack.parameters_of(run), "lr": pack.specs[run].learning_rate} for run in numbers],
        weight_decay=0.0,
    )
    now = Progress() if start is None else Progress(start.step, [list(losses) for losses in start.losses])
    last = steps if until is None else until
    if not max(now.step, 1) <= last <= steps:
        raise InputError(f"until is {until}; expected a step of the schedule, from {max(now.step, 1)} to {steps}.")
    if start is None:
        now.losses = [[] for _ in numbers]
        pack.begin(optimizer)
    else:
        # An optimizer trains on in the tensors that it is given.
        optimizer.load_state_dict(copy.deepcopy(start.optimizer))
        for run, tensors in enumerate(start.tensors):
            pack.load(run, tensors)
    if show is not None:
        show(now.step, steps)
    while now.step < last:
        alive = [run for run in numbers if _is_alive(now.losses[run])]
        if not alive:
            break
        cut = slice(now.step * size, (now.step + 1) * size)
        batches = {seed: data[seed][cut] for seed in {pack.specs[run].seed for run in alive}}
        optimizer.zero_grad(set_to_none=True)
        losses = pack.add_gradients(alive, [batches[pack.specs[run].seed] for run in alive])
        values = losses.tolist()
        if now.step == 0:  # before any step it is the model or its data that cannot be computed with, not a rate
            require_finite("the loss of the first step", losses)
        for run, value in zip(alive, values, strict=True):
            now.losses[run].append(value)
        for run, value in zip(alive, values, strict=True):
            parameters = pack.parameters_of(run)
            if math.isfinite(value):
                torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
            else:  # zero times infinity: what backward left here are no gradients
                for parameter in parameters:
                    parameter.grad = None
        for run in numbers:
            optimizer.param_groups[run]["lr"] = pack.specs[run].learning_rate * schedule.factor(now.step)
        pack.before_step()
        optimizer.step()  # parameters without a gradient, those of runs that ended, are passed over
        pack.after_step(optimizer)
        now.step += 1
        if show is not None:
            show(now.step, steps)
        is_kept = keep_every and (now.step % keep_every == 0 or now.step == steps)
        if keep is not None and is_kept and (until is None or now.step < last):
            keep(_at(now, pack, optimizer))
    if keep is not None and until is not None:
        keep(copy.deepcopy(_at(now, pack, optimizer)))
    return [_result(_copied(pack, run), now.losses[run]) for run in numbers]


def _at(now: Progress, pack: Pack, optimizer: torch.optim.Optimizer) -> Progress:
    """Return the progress with what is trained by now, not copied."""
    tensors = [{k: v.detach() for k, v in pack.tensors_of(run).items()} for run in range(len(pack.specs))]
    return Progress(now.step, now.losses, optimizer.state_dict(), tensors)


def _result(tensors: dict[str, Tensor], losses: list[float]) -> TrainedRun:
    # The last step may have been the one that failed: no loss was computed after it.
    is_finite = all(bool(torch.isfinite(value).all()) for value in tensors.values())
    return TrainedRun(tensors, tuple(losses), has_diverged(losses) or not is_finite)


def has_diverged(losses: Sequence[float]) -> bool:
    """Say whether a run's losses, step by step, ended far above where they began.

    Returns:
        Whether the last loss is NaN or infinite, or the last quarter's mean exceeds a fixed multiple of the first
        quarter's.
    """
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    return not math.isfinite(losses[-1]) or last > DIVERGED * max(first, 1.0)


def _is_alive(losses: Sequence[float]) -> bool:
    return not losses or math.isfinite(losses[-1])


def _copied(pack: Pack, run: int) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in pack.tensors_of(run).items()}
