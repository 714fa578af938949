"""What a run is and what came of it, as its folder keeps it.

Fields are only added; ``schema_version`` changes when the meaning of one does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from steerscope.analysis.shown import Shown
from steerscope.errors import InputError, shortened
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.model_identity import ModelIdentity
from steerscope.records import Record, fields_of, record_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class RunConfig:
    """What decides a run's outcome, written before it begins.

    Attributes:
        task: Name of the task.
        method: ``none`` (the model as it is), ``post-block``, ``lora``, ``sft``, ...
        sites: Names of the edited sites; empty for methods on weights.
        rank: Rank of the edit, or ``None``.
        seed: Training seed: data order and start.
        model: Which model.
        settings: All else that decided the outcome, JSON-able: learning rate, steps, positions, data. Runs that differ
            in ``seed`` alone are repetitions of one configuration.
    """

    task: str
    method: str
    sites: tuple[str, ...]
    rank: int | None
    seed: int
    model: ModelIdentity
    settings: Mapping[str, Any]


# Fields of a run that are no column of its row, whether they have a value or not.
_NO_COLUMNS = ("settings", "training", "versions", "evaluation", "before")


@dataclass(frozen=True, repr=False)
class RunResults(Record, Shown, RunConfig, what="file of a run's results", sign="test_accuracy"):
    """What a run was, and what came out of it on test questions that chose nothing.

    Attributes:
        test_accuracy: Share of right generations.
        test_low: Lower end of Wilson's 95% interval.
        test_high: Upper end.
        n: Test questions.
        correct: How many were right.
        majority: What the most frequent answer alone reaches on them.
        test_set: Hash of the questions and answers.
        loss: Nats per token of the right completions, or ``None`` where it is not finite or was not computed.
        trainable_parameters: Numbers that the method trains.
        total_parameters: Numbers in the model, those included.
        tokens_per_second: Of training; of generation for method ``none``.
        peak_memory: Bytes.
        seconds: Wall time of the run, without the evaluation of the untrained model.
        versions: Package versions.
        evaluation: All that the evaluation says; ``None`` in files of before.
        command: How it was made.
        training: What training found on its way: learning rates tried with their validation losses, losses, heads.
        before: The evaluation of the untrained model on the same questions; ``None`` where it was not made.
        model_from_files: Whether the run itself read the model from the files that ``model`` names; one that was handed
            over in memory may have other weights. Runs of versions that did not say count as such.
        schema_version: Version of this format.
    """

    test_accuracy: float
    test_low: float
    test_high: float
    n: int
    correct: int
    majority: float
    test_set: str
    loss: float | None
    trainable_parameters: int
    total_parameters: int
    tokens_per_second: float | None
    peak_memory: int | None
    seconds: float
    versions: Mapping[str, str]
    evaluation: Evaluation | None = None
    command: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    before: Evaluation | None = None
    model_from_files: bool = False
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def of(
        cls,
        config: RunConfig,
        evaluation: Evaluation,
        *,
        trainable_parameters: int,
        total_parameters: int,
        tokens_per_second: float | None,
        peak_memory: int | None,
        seconds: float,
        versions: Mapping[str, str],
        command: str = "",
        training: Mapping[str, Any] | None = None,
        before: Evaluation | None = None,
        model_from_files: bool = False,
    ) -> RunResults:
        """Put together what a run was and what its evaluation on the test part found.

        Args:
            config: What the run is, as written in the folder.
            evaluation: The evaluation on the test part.
            trainable_parameters: Numbers that were trained.
            total_parameters: Numbers of the model, the trained ones included.
            tokens_per_second: Speed of training, or of generation where nothing was trained; ``None`` where it was not
                measured.
            peak_memory: Most GPU memory that was allocated, in bytes; ``None`` on a CPU.
            seconds: Of the whole run.
            versions: Version by package.
            command: The command line, empty for a run from Python.
            training: Losses, checkpoints and other facts of the training.
            before: The evaluation of the untrained model.
            model_from_files: Whether the run itself read the model from its files.

        Returns:
            The results, ready to be written.

        Raises:
            InputError: An evaluation is of another part than test, of another task or of other questions.
        """
        if evaluation.split != "test" or evaluation.task != config.task:
            raise InputError(
                f"a run of task {config.task!r} is reported on its test part; got an evaluation of {evaluation.task!r} "
                f"on {evaluation.split!r}. Evaluate on test."
            )
        if before is not None and before.test_set != evaluation.test_set:
            raise InputError("the model was asked other questions before the training. Evaluate on the same ones.")
        low, high = evaluation.accuracy.interval
        return cls(
            **{f.name: getattr(config, f.name) for f in fields(config)},
            test_accuracy=evaluation.accuracy.share,
            test_low=low,
            test_high=high,
            n=evaluation.n,
            correct=evaluation.correct,
            majority=evaluation.majority,
            test_set=evaluation.test_set,
            loss=evaluation.loss,
            trainable_parameters=trainable_parameters,
            total_parameters=total_parameters,
            tokens_per_second=tokens_per_second,
            peak_memory=peak_memory,
            seconds=seconds,
            versions=versions,
            evaluation=evaluation,
            command=command,
            training=training or {},
            before=before,
            model_from_files=model_from_files,
        )

    @classmethod
    def _of(cls, data: Any, where: str) -> RunResults:
        # Fields are only added: those of a later version are none of ours.
        own = _known(cls, data)
        for name in ("evaluation", "before"):
            if isinstance(own, dict) and (told := own.get(name)) is not None:
                own[name] = asdict(Evaluation.from_dict(told, f"{where}, {name}")) if told != {} else None
        found = super()._of(own, where)
        require_hashes(found.settings, where)
        if found.before is not None and found.before.test_set != found.test_set:
            raise InputError(f"{where}: the model was asked other questions before the training. Run again.")
        if not (
            0 <= found.test_low <= found.test_accuracy <= found.test_high <= 1
            and found.n >= 1
            and 0 <= found.majority <= 1
            and math.isclose(found.correct / found.n, found.test_accuracy, abs_tol=1e-9)
            and 0 <= found.trainable_parameters <= found.total_parameters
            and all(number is None or number >= 0 for number in (found.seconds, found.tokens_per_second, found.loss))
            and (found.peak_memory is None or found.peak_memory >= 0)
        ):
            raise InputError(
                f"{where} contradicts itself: {found.line}, {found.correct} right, {found.trainable_parameters} of "
                f"{found.total_parameters} parameters, {found.seconds} seconds. Was it changed by hand? Run again."
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return what ``results.json`` holds: evaluations with their accuracies and intervals."""
        told = {name: one.as_dict() for name in ("evaluation", "before") if (one := getattr(self, name)) is not None}
        return super().as_dict() | {"evaluation": {}} | told

    def headline(self) -> str:
        """Return what was trained and how often it is right, in one sentence."""
        return f"{self.method} on {self.task}, seed {self.seed}: {self.line}"

    def paragraphs(self) -> list[str]:
        """Return the line and what is behind it."""
        sites = f" at {', '.join(self.sites[:3])}{' ...' if len(self.sites) > 3 else ''}" if self.sites else ""
        rank = f", rank {self.rank}" if self.rank is not None else ""
        rate = self.training.get("learning_rate")
        facts = [
            f"{self.method}{sites}{rank}, on {self.task}, seed {self.seed}, model {self.model.name}",
            f"trained parameters: {self.trainable_parameters:,} of {self.total_parameters:,}",
            f"loss on the test part: {'none' if self.loss is None else f'{self.loss:.4f} nats per token'}",
        ]
        facts += [f"learning rate: {rate:g}"] if isinstance(rate, float) else []
        return ["\n".join([self.outcome, *(f"  {fact}" for fact in facts)])]

    def records(self) -> list[dict[str, Any]]:
        """Return one row: what the run was, and its numbers; the model by its name."""
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name not in _NO_COLUMNS}
        return [own | {"model": self.model.name}]

    @property
    def outcome(self) -> str:
        """The line a run ends with: :attr:`line`, and the accuracy before training where it was measured."""
        if self.before is None:
            return self.line
        accuracy = self.before.accuracy
        low, high = accuracy.interval
        return f"{self.line}; before training {accuracy.share:.1%} [{low:.1%}, {high:.1%}]"

    @property
    def line(self) -> str:
        """The accuracy in one line: ``test accuracy 61.2% [59.0%, 63.3%] n=2000 (majority 12.4%)``."""
        return (
            f"test accuracy {self.test_accuracy:.1%} [{self.test_low:.1%}, {self.test_high:.1%}] n={self.n} "
            f"(majority {self.majority:.1%})"
        )


def _known(kind: type[RunConfig], data: Any) -> Any:
    own = fields_of(kind, data)
    return own | {"model": fields_of(ModelIdentity, own["model"])} if isinstance(own, dict) and "model" in own else own


def require_config(values: Mapping[str, Any], where: str) -> None:
    """Refuse a run's configuration that cannot be read; what stands beside its fields, such as versions, is ignored.

    Args:
        values: What was read.
        where: Names the file in messages.

    Raises:
        InputError: A field is missing or of another type.
    """
    found = record_of(_known(RunConfig, values), RunConfig, f"{where} is no run's configuration")
    require_hashes(found.settings, where)


def require_hashes(settings: Mapping[str, Any], where: str) -> None:
    """Refuse hashes of data that are no texts: one of a wrong type is not one that is missing.

    Args:
        settings: What else decided the outcome.
        where: Names the file in messages.

    Raises:
        InputError: There is one.
    """
    data = settings.get("data", {})
    if not isinstance(data, Mapping) or not all(isinstance(value, str) for value in data.values()):
        raise InputError(f"{where}: settings.data is {shortened(repr(data))}; expected a hash per part. Run again.")
