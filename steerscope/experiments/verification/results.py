"""What ``steerscope verify`` found: frozen results that save as JSON and load again.

``verify.json`` is a public contract: fields are only ever added, and ``schema_version`` changes when the meaning of
one does. Infinite and undefined numbers are ``null``: an open end of an interval, or a measurement without a value.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from steerscope.analysis.shown import Shown
from steerscope.equivalence.propositions.base import Measurement, Series, Verdict
from steerscope.equivalence.propositions.catalogue import Result
from steerscope.finite import finite_or_none
from steerscope.model_identity import ModelIdentity
from steerscope.records import Record

SCHEMA_VERSION = 1
# A verdict that older files have: for a statement that cannot be asked, and for one that holds within limits.
_OLD_VERDICT = "vacuous here"


@dataclass(frozen=True)
class Measured:
    """One number with the interval fixed in advance: ``expected`` in words, ``None`` for an open end or no value.

    ``of_subject`` is False for a number that would be the same on any subject.
    """

    name: str
    value: float | None
    low: float | None
    high: float | None
    inside: bool
    expected: str
    of_subject: bool = True

    @classmethod
    def of(cls, found: Measurement) -> Measured:
        """Return a measurement as it is saved."""
        value, low, high = map(finite_or_none, (found.value, found.low, found.high))
        return cls(found.name, value, low, high, found.inside, found.expected(), found.of_subject)


@dataclass(frozen=True)
class Curve:
    """A curve for a figure: ``y`` against ``x`` (``None``: no number), and the names of both axes, with units."""

    x_name: str
    y_name: str
    x: tuple[float | None, ...]
    y: tuple[float | None, ...]

    @classmethod
    def of(cls, found: Series) -> Curve:
        """Return a curve as it is saved."""
        return cls(found.x_name, found.y_name, tuple(map(finite_or_none, found.x)), tuple(map(finite_or_none, found.y)))


@dataclass(frozen=True)
class Finetune:
    """The short fine-tuning whose update was measured.

    Attributes:
        task: Name of its task.
        steps: Steps of AdamW.
        learning_rate: Its rate.
        batch_size: Prompts per step.
        losses: Loss of each step's batch, nats.
        relative_size: Norm of the update over that of the weights.
        num_held_out: Other prompts, on which the next two are.
        loss_before: Loss of the model as it is, nats.
        loss_after: Loss with the update.
    """

    task: str
    steps: int
    learning_rate: float
    batch_size: int
    losses: tuple[float | None, ...]
    relative_size: float | None
    num_held_out: int
    loss_before: float | None
    loss_after: float | None


@dataclass(frozen=True)
class VerifySettings:
    """Options of a verification of a model, as :class:`~.run.VerifyOptions` has them, and the command.

    All but the command are ``None`` for random blocks.
    """

    command: str | None = None
    seed: int | None = None
    quick: bool | None = None
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    pool: int | None = None
    rows: int | None = None
    few_rows: int | None = None
    layers: int | None = None
    few_layers: int | None = None
    positions: int | None = None
    random_updates: int | None = None
    block_updates: int | None = None
    text: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class PropositionResult:
    """One proposition on one subject.

    Attributes:
        name: ``P7``.
        number: Its number.
        group: Name of its group.
        title: A few words.
        claim: One sentence.
        assumptions: What the claim needs.
        source: Who says so.
        published: The public statement where it is wrong or incomplete.
        verdict: ``holds``, ``holds with correction``, ``not applicable`` or ``fails``. (``vacuous here``, which older
            files have, is read as ``holds`` where something was measured, and as ``not applicable`` elsewhere.)
        claims: Measurements of the claim; all inside unless it fails.
        controls: Negative controls; all outside unless it fails.
        published_form: Measurements of the public statement.
        vacuous: Why it cannot be asked of this subject, where the verdict is ``not applicable``.
        notes: What a reader should know.
        series: Curves by name.
        seconds: Time of the check.
        limit: Within which limits it says something here, though it holds.
    """

    name: str
    number: int
    group: str
    title: str
    claim: str
    assumptions: str
    source: str
    published: str
    verdict: str
    claims: tuple[Measured, ...]
    controls: tuple[Measured, ...]
    published_form: tuple[Measured, ...]
    vacuous: str
    notes: tuple[str, ...]
    series: dict[str, Curve]
    seconds: float
    limit: str = ""

    def __post_init__(self) -> None:
        if self.verdict == _OLD_VERDICT:
            object.__setattr__(self, "verdict", Verdict.HOLDS.value if self.claims else Verdict.NOT_APPLICABLE.value)
            if self.claims:
                object.__setattr__(self, "limit", self.vacuous)
                object.__setattr__(self, "vacuous", "")

    @classmethod
    def of(cls, result: Result) -> PropositionResult:
        """Return a result as it is saved."""
        one, evidence = result.proposition, result.evidence
        return cls(
            name=one.name,
            number=one.number,
            group=one.group,
            title=one.title,
            claim=one.claim,
            assumptions=one.assumptions,
            source=str(one.source),
            published=one.published,
            verdict=result.verdict.value,
            claims=tuple(map(Measured.of, evidence.claim)),
            controls=tuple(map(Measured.of, evidence.controls)),
            published_form=tuple(map(Measured.of, evidence.published)),
            vacuous=evidence.inapplicable,
            notes=tuple(evidence.notes),
            series={name: Curve.of(curve) for name, curve in evidence.series.items()},
            seconds=result.seconds,
            limit=evidence.limit,
        )

    def decisive(self) -> Measured | None:
        """Return the measurement to show: one that fails if any does, else the one nearest to its bound.

        Measurements of the subject come before those that would be the same on any.
        """
        failing = [one for one in self.claims if not one.inside]
        own = [one for one in self.claims if one.of_subject]
        return failing[0] if failing else max(own or self.claims, key=_tightness, default=None)

    @property
    def says_of_subject(self) -> bool:
        """Whether any measurement of the claim depends on the subject."""
        return any(one.of_subject for one in self.claims)


@dataclass(frozen=True, repr=False)
class Verification(Record, Shown, what="verification", sign="propositions", report="verification"):
    """Everything one run found.

    Attributes:
        subject: What the propositions were tried on, in words.
        model: Which model, or ``None`` for random blocks.
        seed: Seed of every random draw.
        tokens: Tokens the propositions were tried on.
        propositions: By number.
        measurements: By name; empty without a model. Lists of the dataclasses in ``steerscope.analysis.theory``.
        finetune: The fine-tuning behind the measurements, or ``None`` without one (in the file an empty object).
        settings: Options of the run and the command.
        versions: Package versions.
        timing: Seconds by stage.
        warnings: Sentences a reader must know.
    """

    subject: str
    model: ModelIdentity | None
    seed: int
    tokens: int
    propositions: tuple[PropositionResult, ...]
    measurements: dict[str, Any]
    finetune: Finetune | None
    settings: VerifySettings
    versions: dict[str, str]
    timing: dict[str, float]
    warnings: tuple[str, ...] = ()
    schema_version: int = field(default=SCHEMA_VERSION)

    def counts(self) -> dict[str, int]:
        """Return how many propositions have each verdict, in the verdicts' order."""
        found = Counter(one.verdict for one in self.propositions)
        return {verdict.value: found[verdict.value] for verdict in Verdict}

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the propositions that fail."""
        return tuple(one.name for one in self.propositions if one.verdict == Verdict.FAILS)

    def records(self) -> list[dict[str, Any]]:
        """Return one row per proposition, by number: its claim, verdict, and the measurement nearest to its bound."""
        rows = []
        for one in self.propositions:
            decisive = one.decisive()
            rows.append(
                {
                    "name": one.name,
                    "title": one.title,
                    "group": one.group,
                    "verdict": one.verdict,
                    "measured": None if decisive is None else decisive.value,
                    "expected": None if decisive is None else decisive.expected,
                    "claim": one.claim,
                    "published": one.published,
                    "limit": one.limit,
                    "seconds": one.seconds,
                }
            )
        return rows

    def as_dict(self) -> dict[str, Any]:
        """Return what ``verify.json`` holds: numbers of six significant digits, ``None`` for what is none."""
        return dict(plain(self)) | {"finetune": plain(self.finetune) or {}}

    @classmethod
    def _of(cls, data: Any, where: str) -> Verification:
        if isinstance(data, dict) and data.get("finetune") == {}:
            data = data | {"finetune": None}
        return super()._of(data, where)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: dataclasses as dictionaries, six significant digits, ``None`` for no number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def _tightness(one: Measured) -> float:
    """Return how near a value is to the end of its interval: 1 at the end, less inside."""
    if one.value is None:
        return math.inf
    if one.low is not None and one.high is not None:
        half = (one.high - one.low) / 2
        return abs(one.value - (one.high + one.low) / 2) / half if half > 0 else 1.0
    if one.high is not None:
        return one.value / one.high if one.high > 0 else 0.0
    if one.low is not None:
        return one.low / one.value if one.value > 0 else 0.0
    return 0.0
