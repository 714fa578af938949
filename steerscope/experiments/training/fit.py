"""One training by the engine, as a pack of one: its checkpoint, and what it is measured by."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.experiments.engine.loop import Progress, train_pack
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.training.trainee import Trainee
from steerscope.files import replace_file, told
from steerscope.finite import require_finite

CHECKPOINT = "progress.pt"
LOGS = 20


@dataclass(frozen=True)
class Trained:
    """What one training leaves beside the parameters.

    Attributes:
        losses: ``(step, mean loss since the one before)``, some twenty of them.
        tokens_per_second: Prompt and completion tokens, padding not counted, of the steps made by this process.
        seconds: Of all processes that took part, up to their last checkpoints.
    """

    losses: tuple[tuple[int, float], ...]
    tokens_per_second: float | None
    seconds: float


def fit(
    trainee: Trainee,
    rows: Sequence[SupervisedSequence],
    options: TrainOptions,
    folder: Path,
    *,
    pad: int,
    steps: int,
    learning_rate: float,
    keeps: bool,
    show: Callable[[int, int], None],
) -> Trained:
    """Train for some steps; see :func:`~steerscope.experiments.engine.loop.train_pack`. Dropout counts.

    Args:
        trainee: What to train.
        rows: ``steps * batch_size`` sequences in their order.
        options: Batch size, warm-up, seed, checkpoints.
        folder: Checkpoint directory; training resumes from the checkpoint in it, if there is one.
        pad: Any token to fill with.
        steps: Optimizer steps.
        learning_rate: Its peak.
        keeps: Whether a checkpoint is written (and looked for).
        show: Called with steps done and in all.

    Returns:
        Mean loss per reported step in nats, tokens per second, and seconds, those of an interrupted start included.

    Raises:
        InputError: A loss is NaN or infinite.

    Cost: ``rows``, forward and backward. A checkpoint is three times what is trained.
    """
    logged, size, device = max(1, steps // LOGS), options.batch_size, trainee.device
    constraint = None if trainee.joint is None else trainee.joint.constraint
    pack = ModelPack(trainee.model.train(), options.spec(learning_rate), pad, constraint, trainee.penalty)
    found = _read(folder / CHECKPOINT) if keeps else None
    begun = None if found is None else Progress(**found["progress"])
    before, first = (0.0, 0) if found is None else (found["seconds"], found["progress"]["step"])
    since = time.perf_counter()

    def told_step(done: int, total: int) -> None:
        if trainee.joint is not None and done > first and done % logged == 0:
            trainee.joint.measure(done, learning_rate)
        show(done, total)

    def keep(now: Progress) -> None:
        state = {
            "progress": vars(now),
            "random": _random_state(device),
            "history": [] if trainee.joint is None else trainee.joint.history,
            "seconds": before + time.perf_counter() - since,
        }
        with told(f"write a checkpoint to {str(folder)!r}"):
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / CHECKPOINT, lambda aside: torch.save(state, aside))

    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(options.seed)
            if found is not None:
                _set_random_state(found["random"], device)
                if trainee.joint is not None:
                    trainee.joint.history = found["history"]
            every = (options.save_every or max(1, -(-steps // 4))) if keeps else 0
            schedule, data = options.schedule(steps), {options.seed: rows}
            (run,) = train_pack(pack, data, schedule, start=begun, keep=keep, keep_every=every, show=told_step)
    finally:
        trainee.model.eval()
    seconds = time.perf_counter() - since
    require_finite(f"the loss of step {len(run.losses)}", run.losses[-1], advice=diverged(learning_rate))
    means = ((end, sum(run.losses[end - logged : end]) / logged) for end in range(logged, steps + 1, logged))
    done = rows[first * size :]
    speed = sum(len(row.ids) for row in done) / seconds if done else None
    return Trained(tuple(means), speed, before + seconds)


def diverged(learning_rate: float) -> str:
    """Return what to say of a training whose numbers are none any more."""
    return f"Training diverged with learning rate {learning_rate:g}: give a smaller [[learning_rate]], or 'auto'."


def _random_state(device: torch.device) -> list[Tensor]:
    """Return where the generators are that dropout draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(states: list[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a checkpoint holds, or None if there is none.

    Raises:
        InputError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            f"the checkpoint {str(path)!r} cannot be read ({type(error).__name__}). Delete that file; the training "
            "then begins anew."
        ) from error
    return found


def require_no_older(folder: Path) -> None:
    """Refuse to go on from what an earlier steerscope kept, before anything is loaded.

    Raises:
        InputError: There are checkpoints of its Trainer.
    """
    if any(folder.rglob("checkpoint-*")):
        raise InputError(
            f"the checkpoints in {str(folder)!r} are of an earlier steerscope, which trained by another loop; this one "
            "cannot go on from them. Go on with the version that wrote them, or name another folder."
        )
