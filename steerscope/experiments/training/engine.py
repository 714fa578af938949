"""One training with transformers' Trainer: its settings, checkpoints, and what it is measured by."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from steerscope.experiments.runs.folder import replace_json
from steerscope.experiments.shared_prefix import shared_length
from steerscope.experiments.tasks.supervised import SupervisedSequence
from steerscope.experiments.training.data import Collator, supervised_loss
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.training.prefix_trainer import SharedPrefixTrainer
from steerscope.experiments.training.trainee import Trainee
from steerscope.files import told
from steerscope.models.bundled import quiet_transformers
from steerscope.models.wrappers import language_model

# A checkpoint without one of these was cut off while it was written; the last is written last.
_PARTS = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
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


class _Watch(TrainerCallback):
    """Tells how far it is, and keeps time with the checkpoints."""

    def __init__(self, show: Callable[[int, int], None], folder: Path) -> None:
        self.show, self.path = show, folder / "seconds.json"
        self.first, self.since, self.before, self.seconds = 0, 0.0, 0.0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock where the last process stopped it."""
        self.first, self.since = state.global_step, time.perf_counter()
        if state.global_step and self.path.exists():
            self.before = float(json.loads(self.path.read_text(encoding="utf-8")))
        self.show(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the step."""
        self.seconds = time.perf_counter() - self.since
        self.show(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the time."""
        replace_json(self.path, self.before + time.perf_counter() - self.since)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint in a folder."""
    found = [path for path in folder.glob("checkpoint-*") if _is_whole(path)]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _is_whole(checkpoint: Path) -> bool:
    if not all((checkpoint / name).exists() for name in _PARTS):
        return False
    try:
        json.loads((checkpoint / _PARTS[-1]).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the last one was being written
        return False
    return True


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
    """Train for some steps; AdamW without weight decay, gradients clipped to norm 1, linear warm-up and decay.

    Args:
        trainee: What to train.
        rows: ``steps * batch_size`` sequences in their order.
        options: Batch size, warm-up, seed, device, checkpoints.
        folder: For checkpoints; one that is there is gone on with.
        pad: Any token to fill with.
        steps: Optimizer steps.
        learning_rate: Its peak.
        keeps: Whether checkpoints are written (and looked for).
        show: Called with steps done and in all.

    Raises:
        InputError: A loss is NaN or infinite.

    Cost: ``rows``, forward and backward. A checkpoint is three times what is trained.
    """
    trainer = trainer_of(trainee, rows, options, folder, pad=pad, steps=steps, learning_rate=learning_rate, keeps=keeps)
    watch = _Watch(show, folder)
    trainer.add_callback(watch)
    checkpoint = last_checkpoint(folder) if keeps else None
    with quiet_transformers(), told(f"write a checkpoint to {str(folder)!r}"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    losses = tuple((int(e["step"]), float(e["loss"])) for e in trainer.state.log_history if "loss" in e)
    done = rows[watch.first * options.batch_size :]
    speed = sum(len(row.ids) for row in done) / watch.seconds if watch.seconds and done else None
    return Trained(losses, speed, watch.before + watch.seconds)


def trainer_of(
    trainee: Trainee,
    rows: Sequence[SupervisedSequence],
    options: TrainOptions,
    folder: Path,
    *,
    pad: int,
    steps: int,
    learning_rate: float,
    keeps: bool,
) -> Trainer:
    """Return the Trainer of :func:`fit`, for those who want to train step by step."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=round(options.warmup * steps),
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=options.seed,
        # The order is that of the rows: the same for every method, and a run that goes on counts them off.
        train_sampling_strategy="sequential",
        save_strategy="steps" if keeps else "no",
        save_steps=_saved_every(options, steps),
        # The newest one may be cut off while it is written.
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=_logged_every(steps),
        # A loss that is no number ends the run; the Trainer would log the mean of the others in its place.
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        use_cpu=options.device.startswith("cpu"),
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # copies on several cards would tear batches apart, and hooks with them
    collate = Collator(pad, takes_logits_to_keep(trainee.model), trainee.is_steered)
    trainee.model.train()  # as it will be: dropout counts
    ids, prompts = [row.ids for row in rows], [row.first_target for row in rows]
    shared = shared_length(trainee.model, ids, prompts, pad) if options.batch_size > 1 else 0
    trainer = SharedPrefixTrainer(
        model=trainee.model,
        args=arguments,
        train_dataset=list(rows),
        data_collator=replace(collate, shared=shared),
        compute_loss_func=supervised_loss,
        callbacks=list(trainee.callbacks),
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout, which belongs to results
    return trainer


def _logged_every(steps: int) -> int:
    return max(1, steps // LOGS)


def _saved_every(options: TrainOptions, steps: int) -> int:
    """Return the steps between checkpoints, a multiple of those between logs.

    A run that goes on starts its running mean anew: only at a log is nothing of it lost.
    """
    wanted, logged = options.save_every or max(1, -(-steps // 4)), _logged_every(steps)
    return -(-wanted // logged) * logged


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the language model, below wrappers, can leave out logits."""
    return "logits_to_keep" in inspect.signature(language_model(model).forward).parameters
