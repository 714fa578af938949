"""The steps of one run: choose a learning rate, train, save, test."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError, words
from steerscope.experiments.engine.rate_grid import Choice, choose
from steerscope.experiments.engine.rows import Rows
from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.evaluation.generation import fitting_prompts
from steerscope.experiments.evaluation.likelihood import completion_loss
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.runs.folder import RunFolder, read_json, replace_json
from steerscope.experiments.runs.memory import peak_memory
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.experiments.tasks.supervised import AnswerTokens, SupervisedSequence, answer_tokens, supervise
from steerscope.experiments.tasks.task import TaskForm
from steerscope.experiments.training.before import known_before
from steerscope.experiments.training.data import Parts, supervised, training_rows
from steerscope.experiments.training.fit import Trained, fit
from steerscope.experiments.training.learning_rates import choice_of
from steerscope.experiments.training.methods import Trains
from steerscope.experiments.training.options import SCALES_RATE, TrainOptions
from steerscope.experiments.training.trainee import Trainee, build
from steerscope.files import told
from steerscope.finite import NotFiniteError, finite_or_none, or_infinite
from steerscope.folders import ADAPTER_FOLDER
from steerscope.installed import package_versions
from steerscope.models.load import LoadedModel
from steerscope.models.memory import Memory, memory_needed
from steerscope.models.tokens import pad_token, require_known_tokens, text_tokens
from steerscope.steering.lofit import top_heads

CHECKPOINTS, BEFORE = "checkpoints", "before.json"
# Training batches that the scale of edits is measured on.
SCALE_BATCHES = 4


@dataclass(frozen=True)
class Run:
    """One run in progress: its inputs, and the steps it takes."""

    loaded: LoadedModel
    options: TrainOptions
    parts: Parts
    path: Path
    show: StageProgress
    say: Callable[[str], None]
    searched: RunResults | None = None  # whose learning rate is taken over
    from_files: bool = False  # whether the model was read for this run

    @property
    def has_begun(self) -> bool:
        """Whether anything of a training is kept."""
        return self.checkpoints.is_dir() and any(one.name != BEFORE for one in self.checkpoints.iterdir())

    @property
    def checkpoints(self) -> Path:
        """Where all is that only an interrupted run needs."""
        return self.path / CHECKPOINTS

    def whole(self, form: TaskForm, config: RunConfig, command: str, folder: RunFolder) -> RunResults:
        """Choose, train, save, test, and finish the folder.

        Args:
            form: How the task's answers are read and compared.
            config: What the run is, as written in the folder.
            command: The command line, for the results.
            folder: The run's folder, begun and not finished.

        Returns:
            The results, as they are written to the folder.
        """
        since = time.perf_counter()
        if self.loaded.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.loaded.device)
        if self.options.of.trains is Trains.NOTHING:
            total = self.loaded.identity.n_params
            found, generations = self._test(form, self.loaded.model)
            numbers, done, training, before = (0, total), None, dict[str, Any](), None
            speed = found.generated_tokens / found.seconds if found.seconds else None
        else:
            answers = answer_tokens(form, self.parts.test, self.loaded.tokenizer)
            self._check_room(answers)
            sequences, too_long = supervised(self.parts, self.loaded, self.options, ends=answers.ends)
            if too_long:
                self.say(f"{too_long} of {len(self.parts.train)} training examples are too long and were left out")
            self.say(str(self._memory(sequences)))
            asking = time.perf_counter()
            before = self._before(form, config, answers)
            # Later runs in the folder take it over: wall times are compared without it.
            since += time.perf_counter() - asking
            if self.options.of.trains is Trains.LOFIT:
                self._choose_heads(sequences)
            choice = self._choose(sequences, answers.ends)
            self._require_same_rate(choice.learning_rate)
            trainee, done, more = self._fit(sequences, choice.learning_rate, self.options.steps, "train", keeps=True)
            try:
                trainee.require_finite(choice.learning_rate)
                numbers, speed = trainee.parameters, done.tokens_per_second
                self._save(trainee, config.task)
                found, generations = self._test(form, trainee.model)
            finally:  # also of an interruption: a model in memory belongs to its user
                trainee.restore()
            training = self._facts(choice, done, too_long, len(sequences)) | more
        results = RunResults.of(
            config,
            found,
            trainable_parameters=numbers[0],
            total_parameters=numbers[1],
            tokens_per_second=speed,
            peak_memory=peak_memory(self.loaded.device),
            seconds=time.perf_counter() - since,
            versions=package_versions(),
            training=training,
            before=before,
            command=command,
            model_from_files=self.from_files,
        )
        folder.finish(results, generations)
        return results

    def _memory(self, sequences: Sequence[SupervisedSequence]) -> Memory:
        """Estimate what training will take; blocks below the lowest edit, which keep nothing, are counted, too."""
        rows = min(self.options.batch_size, len(sequences))
        longest = max(len(sequence.ids) for sequence in sequences)
        predicted = max(len(sequence.ids) - sequence.first_target for sequence in sequences)
        trained = self.loaded.identity.n_params if self.options.of.trains is Trains.WEIGHTS else 0
        return memory_needed(self.loaded, rows * longest, rows * predicted, trained=trained)

    def _check_room(self, answers: AnswerTokens) -> None:
        """Refuse, before anything is trained, what validation and test would refuse after it.

        Raises:
            InputError: No test prompt leaves room for its answer, no validation example fits, or one has a token that
                is none of the model's.
        """
        tokenizer, limit = self.loaded.tokenizer, self.loaded.max_length
        prompts = [text_tokens(one.prompt, tokenizer) for one in self.parts.test]
        require_known_tokens(prompts, tokenizer, self.loaded.model)
        fitting_prompts(prompts, self.options.max_new_tokens or answers.limit, limit)
        if self.parts.validation:
            supervise(self.parts.validation, tokenizer, limit, self.loaded.model, ends=answers.ends)

    def _choose(self, sequences: tuple[SupervisedSequence, ...], ends: bool) -> Choice:
        options = self.options
        if self.searched:
            choice = choice_of(self.searched)
            self.say(f"learning rate {choice.learning_rate:g}, found by the search in {options.learning_rate_of}")
            return choice
        if not options.searches:
            if options.learning_rate is None:
                self.say(
                    words(
                        f"learning rate {options.fixed_rate:g}, the method's own, not tuned for this model and task "
                        "([[learning_rate='auto']] searches)"
                    )
                )
            return Choice(options.fixed_rate, False, {})
        steps, kept = options.lr_steps or options.steps, self.checkpoints / "tried.json"
        known: dict[float, float | None] = {}
        if kept.exists():
            known = {float(k): v for k, v in read_json(kept, "a search").items()}

        def loss_at(rate: float) -> float:
            if rate not in known:
                known[rate] = self._validation_loss(sequences, rate, steps, ends)
                replace_json(kept, {f"{k:g}": v for k, v in known.items()})
            return or_infinite(known[rate])

        choice = choose(loss_at, options.of.start, options.tries)
        if not choice.interior:
            self.say(
                words(
                    f"the best learning rate, {choice.learning_rate:g}, is at the edge of the {len(choice.tried)} "
                    "tried: a better one may lie beyond (more [[tries]] reach it, the same number for every method)"
                )
            )
        note = "" if steps == options.steps else f", in runs of {steps} steps instead of {options.steps}"
        self.say(f"learning rate {choice.learning_rate:g} chosen on validation among {len(choice.tried)}{note}")
        return choice

    def _require_same_rate(self, learning_rate: float) -> None:
        """Refuse to go on with checkpoints of another rate: where it comes from is not among a run's settings.

        Raises:
            InputError: The run was begun with another one.
        """
        kept = self.checkpoints / "rate.json"
        begun = read_json(kept, "a run")["learning_rate"] if kept.exists() else learning_rate
        if begun != learning_rate:
            raise InputError(
                f"the run in {str(self.path)!r} began to train at learning rate {begun:g}, and {learning_rate:g} was "
                "found now. Go on with the options it was begun with ([[learning_rate_of]]), or name another folder."
            )
        replace_json(kept, {"learning_rate": learning_rate})

    def _validation_loss(
        self, sequences: tuple[SupervisedSequence, ...], learning_rate: float, steps: int, ends: bool = True
    ) -> float | None:
        """Return the loss, or ``None`` where there is no finite one."""
        stage = f"trying learning rate {learning_rate:g}"
        try:
            trainee, _, _ = self._fit(sequences, learning_rate, steps, stage, keeps=False)
        except NotFiniteError:
            return None
        try:
            return completion_loss(
                trainee.model,
                self.loaded.tokenizer,
                self.parts.validation,
                batch_size=self.options.eval_batch_size,
                max_length=self.loaded.max_length,
                ends=ends,
            )
        except NotFiniteError:
            return None
        finally:
            trainee.restore()

    def _fit(
        self, sequences: tuple[SupervisedSequence, ...], learning_rate: float, steps: int, stage: str, *, keeps: bool
    ) -> tuple[Trainee, Trained, dict[str, Any]]:
        """Train by the method, LoFiT in its two stages; return what is still on the model.

        Returns:
            What was trained, how training went, and what the method measured.
        """
        rows = training_rows(sequences, steps, self.options.batch_size, self.options.seed)
        if self.options.of.trains is not Trains.LOFIT:
            trainee = self._build(rows)
            if keeps:
                for note in trainee.notes:
                    self.say(note)
            done = self._train(trainee, rows, learning_rate, steps, stage, self.checkpoints, keeps)
            return trainee, done, trainee.measured()
        heads, seconds = self._heads()
        trainee = self._build(rows, sites=heads)
        done = self._train(trainee, rows, learning_rate, steps, stage, self.checkpoints, keeps)
        return trainee, replace(done, seconds=done.seconds + seconds), {"heads": list(heads)}

    @property
    def _searched_by(self) -> int:
        """The seed whose search gave the learning rate, also where it was taken over from one that took it over."""
        found = self.searched
        return self.options.seed if found is None else int(found.training.get("learning_rate_of_seed", found.seed))

    def _choose_heads(self, sequences: tuple[SupervisedSequence, ...]) -> None:
        """Train LoFiT's scales, once, and keep which heads they choose; the search is of the second stage alone."""
        if self._heads_file.exists():
            return
        steps = self.options.steps
        rows = training_rows(sequences, steps, self.options.batch_size, self.options.seed)
        trainee = self._build(rows, family="lofit_scale")
        try:
            available = _num_heads(trainee.model)
            count = self.options.heads or max(1, round(available / 10))
            if count > available:
                raise InputError(f"[[heads]] is {count}; there are {available} to choose among. Ask for fewer.")
            try:
                done = self._train(trainee, rows, SCALES_RATE, steps, "scales", self.checkpoints / "scales", True)
                trainee.require_finite(SCALES_RATE)
            except NotFiniteError as error:
                raise InputError(
                    f"the scales that choose LoFiT's heads have no learning rate to choose, and {error} Give fewer "
                    "[[steps]] or another [[sparsity]]."
                ) from error
            heads = top_heads(trainee.model, count)
        finally:
            trainee.restore()
        replace_json(self._heads_file, {"heads": list(heads), "seconds": done.seconds})

    @property
    def _heads_file(self) -> Path:
        return self.checkpoints / "heads.json"

    def _heads(self) -> tuple[tuple[str, ...], float]:
        """Return the heads that LoFiT keeps, and the seconds it took to choose them."""
        known = read_json(self._heads_file, "a run")
        return tuple(known["heads"]), float(known["seconds"])

    def _build(self, rows: list[SupervisedSequence], **changes: Any) -> Trainee:
        size, device = self.options.batch_size, self.loaded.device
        pad, starts = pad_token(self.loaded.tokenizer, self.loaded.model), range(0, SCALE_BATCHES * size, size)
        batches = (Rows.of(rows[i : i + size], pad, device).inputs for i in starts if i < len(rows))
        return build(self.loaded, self.options, batches, **changes)

    def _train(
        self,
        trainee: Trainee,
        rows: list[SupervisedSequence],
        learning_rate: float,
        steps: int,
        stage: str,
        place: Path,
        keeps: bool,
    ) -> Trained:
        try:
            return fit(
                trainee,
                rows,
                self.options,
                place,
                pad=pad_token(self.loaded.tokenizer, self.loaded.model),
                steps=steps,
                learning_rate=learning_rate,
                keeps=keeps,
                show=lambda done, total: self.show(stage, done, total),
            )
        except BaseException:
            trainee.restore()
            raise

    def _save(self, trainee: Trainee, task: str) -> None:
        """Write the adapter; one that was begun before an interruption is written anew."""
        place = self.path / ADAPTER_FOLDER
        shutil.rmtree(place, ignore_errors=True)
        with told(f"write the adapter to {str(place)!r}"):
            trainee.save(place, {"Task": task, "Training examples": len(self.parts.train), "Seed": self.options.seed})

    def _before(self, form: TaskForm, config: RunConfig, answers: AnswerTokens) -> Evaluation | None:
        """Ask the untrained model the test questions, once; ``None`` where that is not wanted.

        What is said of it comes before the training, so that a user who stops there has it.

        Returns:
            The evaluation, kept for a run that is interrupted and goes on.
        """
        if not self.options.before:
            return None
        kept = self.checkpoints / BEFORE
        if kept.exists():
            return Evaluation.from_dict(read_json(kept, "a run"))
        limit = self.options.max_new_tokens or answers.limit
        known = None
        if self.from_files:
            known = known_before(self.path, config, max_new_tokens=limit, likelihoods=self.options.likelihoods)
        if known is None:
            found, _ = self._test(form, self.loaded.model, "_before")
            whence = ""
        else:
            found, place = known
            whence = f" (as {str(place)!r} has it of the same model and questions)"
        replace_json(kept, found.as_dict())
        self.say(words(f"before training: {found.line}{whence}"))
        return found

    def _test(self, form: TaskForm, model: torch.nn.Module, stage: str = "") -> tuple[Evaluation, list[Any]]:
        return evaluate(
            model,
            self.loaded.tokenizer,
            form,
            self.parts.test,
            batch_size=self.options.eval_batch_size,
            max_new_tokens=self.options.max_new_tokens,
            max_length=self.loaded.max_length,
            likelihoods=self.options.likelihoods,
            progress=lambda name, done, total: self.show(name + stage, done, total),
        )

    def _facts(self, choice: Choice, done: Trained, too_long: int, examples: int) -> dict[str, Any]:
        tried = {f"{rate:g}": finite_or_none(loss) for rate, loss in choice.tried.items()}
        return {
            "learning_rate": choice.learning_rate,
            "learning_rates_tried": tried,
            "learning_rate_is_interior": choice.interior if tried else None,
            "learning_rate_of_seed": self._searched_by,
            "train_examples": examples,
            "train_examples_too_long": too_long,
            "train_set": self.parts.train_set,
            "losses": [list(pair) for pair in done.losses],
            "training_seconds": done.seconds,
        }


def _num_heads(model: Any) -> int:
    """Return how many heads LoFiT chooses among."""
    return sum(1 if site.head is not None else int(model.site_map.n_heads) for site in model.sites)
