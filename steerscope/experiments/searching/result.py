"""What a search found: a trained adapter, and all that it was chosen from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from steerscope.analysis.shown import Shown
from steerscope.model_identity import ModelIdentity
from steerscope.records import Count, Record

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Contender:
    """One edit that was trained, at one learning rate.

    Attributes:
        name: Its sites, joined by ``+``.
        learning_rate: The peak.
        steps: Steps it was trained for before it was dropped, or all.
        train_loss: Mean loss over the second half of these, on examples it had not learned from, nats; None where it
            diverged.
        selection_loss: Of a run trained to the end, on selection examples.
        selection_accuracy: The same.
        score: The ranking's score of its site, where it is one.
    """

    name: str
    learning_rate: float
    steps: int
    train_loss: float | None
    selection_loss: float | None = None
    selection_accuracy: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Tested:
    """A trained method on test examples.

    Attributes:
        name: The sites of an edit joined by ``+``, or a method.
        learning_rate: The chosen one.
        interior: Whether both neighbours on the grid of half decades were tried and are worse.
        loss: Test loss, nats; None where every rate diverged.
        accuracy: Test accuracy.
        n_params: Numbers that are trained.
        seconds: Training, all its rates.
        served_as: Of an edit, what programs that know LoRA alone serve, as in a ranking; None for other methods and in
            files of before.
    """

    name: str
    learning_rate: float
    interior: bool
    loss: float | None
    accuracy: float
    n_params: int
    seconds: float
    served_as: str | None = None


@dataclass(frozen=True)
class SearchSettings:
    """What a search was asked for: the fields of :class:`~.options.SearchOptions` that decide it.

    Attributes:
        family: Family of the edits.
        rank: Their rank, where it was given.
        bias: Whether they add a vector, where it was said.
        scale: ``none``, or ``rms``: what is read is divided by its root mean square.
        steps: Optimizer steps of a whole run.
        batch_size: Examples per step.
        candidates: Sites that are trained at, at most.
        start: Which sites these are.
        sets: Whether sets of sites competed too.
        references: Whether plain defaults were trained for comparison.
        num_ranking: Prompts that the ranking was asked to be made from.
        num_selection: Held-out examples that chose, at most.
        num_test: Test examples, at most.
        budget: Minutes, or ``None`` without a limit.
        seed: Of training data, order and start.
    """

    family: str
    rank: int | None
    bias: bool | None
    scale: str
    steps: int
    batch_size: int
    candidates: int
    start: str
    sets: bool
    references: bool
    num_ranking: int
    num_selection: int
    num_test: int
    budget: float | None
    seed: int


@dataclass(frozen=True)
class Untrained:
    """The model as it is, on the test examples.

    Attributes:
        loss: Negative log-likelihood of the completion, nats, mean.
        accuracy: Share answered right.
        majority: What always giving one answer, the best in hindsight, is right for.
        recalibrated_loss: The loss with the best temperature and output bias, fitted on training examples.
        recalibrated_accuracy: The accuracy with them.
        num_test: Test examples.
        temperature: The fitted temperature; ``None`` in files of before.
    """

    loss: float
    accuracy: float
    majority: float
    recalibrated_loss: float
    recalibrated_accuracy: float
    num_test: Count
    temperature: float | None = None


@dataclass(frozen=True, repr=False)
class SearchResult(Record, Shown, what="search result", sign="contenders"):
    """What ``steerscope search`` found.

    Attributes:
        model: Which model.
        task: Name of the task or file.
        options: What was asked for.
        best: The chosen edit, on test examples.
        before: The untrained model there: ``loss``, ``accuracy``, recalibrated and not, ``majority``, ``num_test``.
        contenders: Everything that was trained, those that came further first.
        references: Plain defaults.
        seconds: ``ranking``, ``search``, ``references``.
        adapter: Folder of the trained adapter, below the result's own.
        versions: Package versions.
        command: What the user typed.
        note: What cut the search short, if something did.
    """

    model: ModelIdentity
    task: str
    options: SearchSettings
    best: Tested
    before: Untrained
    contenders: tuple[Contender, ...]
    references: tuple[Tested, ...]
    seconds: dict[str, float]
    adapter: str
    versions: dict[str, str]
    command: str = ""
    note: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    def headline(self) -> str:
        """Return where to steer and what it gave, in one sentence."""
        best, before = self.best, self.before
        return (
            f"{self.model.name} on {self.task}: trained at {best.name.replace('+', ', ')}, accuracy "
            f"{100 * best.accuracy:.1f}% on {before.num_test} test examples (untrained "
            f"{100 * before.accuracy:.1f}%, recalibrated {100 * before.recalibrated_accuracy:.1f}%)."
        )

    def paragraphs(self) -> list[str]:
        """Return what was found, what it was chosen from, and what plain defaults gave."""
        lines = [f"{'trained':<34} {'steps':>5} {'rate':>9} {'loss':>7}  {'selection':>9}"]
        for one in self.contenders[:12]:
            loss = "-" if one.train_loss is None else f"{one.train_loss:.3f}"
            held = "" if one.selection_loss is None else f"{one.selection_loss:.3f}"
            lines.append(f"{_cut(one.name):<34} {one.steps:>5} {one.learning_rate:>9.3g} {loss:>7}  {held:>9}")
        tested = [f"{'on test examples':<34} {'numbers':>9} {'rate':>9} {'loss':>7} {'accuracy':>9} {'minutes':>8}"]
        for other in (self.best, *self.references):
            loss = "-" if other.loss is None else f"{other.loss:.3f}"
            tested.append(
                f"{_cut(other.name):<34} {other.n_params:>9,} {other.learning_rate:>9.3g} {loss:>7} "
                f"{100 * other.accuracy:>8.1f}% {other.seconds / 60:>8.1f}"
            )
        beaten = len({one.name for one in self.contenders}) - 1
        total = sum(self.seconds.values()) / 60
        said = f"It beat {beaten} others. The search took {total:.1f} minutes. The adapter is in {self.adapter}/."
        return [self.headline(), said, *([self.note] if self.note else []), "\n".join(lines), "\n".join(tested)]

    def records(self) -> list[dict[str, Any]]:
        """Return one row per contender, those that came further first: a :class:`Contender`'s fields."""
        return [asdict(one) for one in self.contenders]


def _cut(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:20]} ... ({name.count('+') + 1} sites)"
