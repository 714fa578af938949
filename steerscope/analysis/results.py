"""What a ranking is: frozen results that print, save as JSON and load again.

``ranking.json`` is a public contract (others script against it): fields are only ever added, and
``schema_version`` changes when the meaning of one does.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from steerscope.analysis.result_parts import DifferentiatedOutputs, Evidence, KernelSummary, RankSettings
from steerscope.analysis.shown import Shown
from steerscope.errors import InputError
from steerscope.finite import require_finite_record
from steerscope.model_identity import ModelIdentity
from steerscope.records import Record
from steerscope.sites import parse_kind

if TYPE_CHECKING:
    from steerscope.steering.config import SteeringConfig

SCHEMA_VERSION = 1
# The standing of a candidate that is as good as the best; scoring, which has the others, imports this file.
_EQUAL = "equal"


@dataclass(frozen=True)
class SiteScore:
    """One candidate edit: a family of edits at one site.

    ``score`` is the ranking's default score with its interval ``[ci_low, ci_high]`` (95%, delete-group
    jackknife over prompts); ``scores`` holds every score and baseline by name. ``ties_with_best`` is true
    when the paired interval of the difference to the best candidate contains zero.

    ``difference`` is the best candidate's score minus this one's, ``[difference_low, difference_high]`` its paired 95%
    interval, and ``standing`` what follows (:class:`~steerscope.analysis.scoring.standing.Standing`): ``equal`` within
    the ranking's ``equal_margin``, ``worse`` or ``undetermined``. Files of before know none of the four (``None``).

    ``served_as`` says whether programs that know LoRA alone can run the edit, a linear one without its bias: ``lora``
    (vLLM, SGLang, PEFT), ``lora_with_bias`` (PEFT) or ``adapter`` (none); ``None`` in files of before.
    """

    layer: int
    kind: str
    family: str
    score: float
    ci_low: float
    ci_high: float
    n_params: int
    ties_with_best: bool
    scores: dict[str, float]
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    standing: str | None = None
    served_as: str | None = None

    @property
    def name(self) -> str:
        """Layer and kind as users type them, ``12.resid_post``."""
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class KindScore:
    """One kind of site steered at every layer at once (the layers' kernels add)."""

    kind: str
    family: str
    score: float
    ci_low: float
    ci_high: float
    n_params: int
    n_layers: int


@dataclass(frozen=True)
class GreedyStep:
    """The set after adding one site: ``score`` and ``n_params`` are those of the whole set so far."""

    step: int
    layer: int
    kind: str
    family: str
    score: float
    ci_low: float
    ci_high: float
    n_params: int


@dataclass(frozen=True)
class LearningCurve:
    """The share a site learns from growing numbers of prompts (``n_prompts[i]`` -> ``share[i]``)."""

    layer: int
    kind: str
    family: str
    n_prompts: tuple[int, ...]
    share: tuple[float, ...]


@dataclass(frozen=True)
class Stability:
    """Agreement of the rankings from two disjoint halves of the prompts, by the score named ``score``.

    ``spearman`` is over all candidates of the family ``linear``; below ``threshold`` the report says that
    the data cannot tell sites apart (``can_tell`` false). ``top_overlap`` is the share of the ten best
    sites the two halves have in common. ``top_agreement``: how often one of the best sites of the one half (ten, or a
    quarter of few) beats, in the other half, a site that is not among them; 0.5 is chance. ``None`` where there are
    too few sites, and in files of before.
    """

    spearman: float
    threshold: float
    can_tell: bool
    n_per_half: int
    top_overlap: float
    score: str = "learnable_share"
    top_agreement: float | None = None


@dataclass(frozen=True, repr=False)
class Ranking(Record, Shown, what="ranking", sign="kernels", report="ranking"):
    """Everything ``steerscope rank`` found, for one model and one set of prompts.

    Attributes:
        model: Which model: ``name``, ``sha256``, ``layers``, ...
        task: Name of the task or of the JSONL file.
        n_examples: Prompts used, both halves together.
        seed: Seed of probes, sketches and of the split.
        versions: Package versions by name.
        score: Name of the score ``sites`` is sorted by.
        sites: Best first.
        kinds: Best first; each kind steered at all layers.
        greedy: How the best set of sites grows.
        curves: Share against number of prompts, for the best sites and the best site of each kind.
        stability: Agreement of two disjoint halves.
        outputs: What was differentiated: ``n_probes``, ``spans``, ``mean_energy``, ``model_accuracy``, ...
        kernels: How kernels were computed: ``exact``, ``sketch_error``, ``score_error``, ``rounding_error``, ...
        settings: What it was told, and its data: ``ridge``, ``rank``, ``budget``, ``command``, ...
        timing: Seconds by stage.
        warnings: Plain sentences a reader must know before believing the ranking.
        evidence: What validation by training says about the default score, or ``None``.
        equal_margin: Largest difference to the best candidate that does not matter, in the score's unit; ``None`` in
            files of before.
        set_score: Name of the score of ``greedy``: that of ``sites`` where sets have it and it costs little.
        kind_score: Name of the score of ``kinds``; ``None`` in files of before.
    """

    model: ModelIdentity
    task: str
    n_examples: int
    seed: int
    versions: dict[str, str]
    score: str
    sites: tuple[SiteScore, ...]
    kinds: tuple[KindScore, ...]
    greedy: tuple[GreedyStep, ...]
    curves: tuple[LearningCurve, ...]
    stability: Stability
    outputs: DifferentiatedOutputs
    kernels: KernelSummary
    settings: RankSettings
    timing: dict[str, float]
    warnings: tuple[str, ...] = ()
    evidence: Evidence | None = None
    equal_margin: float | None = None
    set_score: str = "learnable_share"
    kind_score: str | None = None
    schema_version: int = field(default=SCHEMA_VERSION)

    def __post_init__(self) -> None:
        """Refuse numbers that are none: where a value is not known, it is ``None``.

        Raises:
            InputError: A number, anywhere in it, is NaN or infinite.
        """
        advice = "Rank again, in float32 or bfloat16 ([[dtype]]) if activations are beyond what float16 holds."
        require_finite_record("the ranking", self, advice)

    @classmethod
    def _of(cls, data: Any, where: str) -> Ranking:
        """Return a ranking; what its evidence of before calls a ceiling, which is no upper bound, is left out."""
        if isinstance(data, dict) and isinstance(evidence := data.get("evidence"), dict):
            data = data | {"evidence": {name: value for name, value in evidence.items() if name != "ceiling"}}
        return super()._of(data, where)

    def best(self, family: str = "linear") -> SiteScore:
        """Return the best candidate of one family."""
        for site in self.sites:
            if site.family == family:
                return site
        raise InputError(f"this ranking has no family {family!r}; it has {sorted({s.family for s in self.sites})}.")

    def recommended(self, family: str | None = None) -> SiteScore:
        """Return the choice that the report names: the cheapest linear edit that is equal to the best.

        Of several that cost as much, the one most surely equal. Where the prompts cannot tell sites apart the report
        recommends nothing (``stability.can_tell``), and this is a choice like any other. A fixed vector is named only
        where no linear edit is equal: scores see the first step, in which a vector often does as well, and not how far
        training takes an edit from there (docs/evidence.md).

        Args:
            family: ``linear`` or ``vector``; unless given, ``linear`` where one is equal to the best. Where none of the
                family is equal to the best, its highest is returned.

        Returns:
            A candidate.

        Raises:
            InputError: The ranking has no sites, or none of that family.
        """
        if not self.sites:
            raise InputError("this ranking holds no sites; expected some. Rank again, with other kinds.")
        equal = [
            (site.n_params, site.difference_high or 0.0, rank, site)
            for rank, site in enumerate(self.sites)
            if (rank == 0 or site.standing == _EQUAL) and family in (None, site.family)
        ]
        linear = [one for one in equal if one[-1].family == "linear"]
        return min(linear or equal)[-1] if equal else self.best(str(family))

    def steering_config(self, which: str = "recommended", **options: Any) -> SteeringConfig:
        """Return the configuration of an adapter at sites that this ranking chooses.

        Args:
            which: ``recommended`` for the choice that the report names (:meth:`recommended`), ``best`` for the site
                with the highest score, ``set`` for the greedy set, or a kind (``mlp_out``) at all its layers.
            **options: Other fields of :class:`~steerscope.steering.config.SteeringConfig`. ``rank`` is that of the
                ranking, where the family has one, and ``family`` is that of the recommended choice, else ``linear``,
                unless given; ``vector`` takes the site for vectors, and other families that for linear edits, which is
                what was ranked.

        Returns:
            A configuration to build a steering model with.

        Raises:
            InputError: The ranking has no such kind, or no set; or an option that the configuration does not take.

        Warns:
            UserWarning: The recommended choice is asked for, and the prompts cannot tell the sites apart.
        """
        from steerscope.steering.config import SteeringConfig
        from steerscope.steering.families import FAMILIES

        if which == "recommended":
            options.setdefault("family", self.recommended().family)
            if not self.stability.can_tell:
                warnings.warn(
                    "the prompts of this ranking cannot tell the sites apart, so it recommends none; this is one of "
                    "them like any other. Rank with more prompts, or let training choose: steerscope search.",
                    stacklevel=2,
                )
        family = options.setdefault("family", "linear")
        if family in FAMILIES and FAMILIES[family].has_rank:
            options.setdefault("rank", self.settings.rank)
        known = {field.name for field in dataclasses.fields(SteeringConfig)} - {"sites"}
        if unknown := sorted(set(options) - known):
            raise InputError(
                f"steering_config got {', '.join(unknown)}; expected fields among {', '.join(sorted(known))}."
            )
        return SteeringConfig(sites=self._sites_of(which, "vector" if family == "vector" else "linear"), **options)

    def _sites_of(self, which: str, family: str) -> tuple[str, ...]:
        if which == "recommended":
            return (self.recommended(family).name,)
        if which == "best":
            return (self.best(family).name,)
        if which == "set":
            if not self.greedy:
                raise InputError(
                    "this ranking has no set of sites: its budget was too small for one. Rank again with more."
                )
            return tuple(f"{step.layer}.{step.kind}" for step in self.greedy)
        try:
            kind = parse_kind(which).value
        except InputError as error:
            raise InputError(
                f"[[which]] is {which!r}; expected recommended, best, set or a kind of site ({error})"
            ) from error
        ranked = {site.kind for site in self.sites}
        if kind not in ranked:
            raise InputError(f"this ranking has no sites of kind {kind!r}; it has {', '.join(sorted(ranked))}.")
        return (kind,)

    def records(self) -> list[dict[str, Any]]:
        """Return one row per candidate edit, best first, with its interval, and ``scores.NAME`` for every score."""
        names = sorted({name for site in self.sites for name in site.scores})
        return [
            {
                "rank": rank,
                "site": site.name,
                **{f.name: getattr(site, f.name) for f in dataclasses.fields(site) if f.name != "scores"},
                **{f"scores.{name}": site.scores.get(name) for name in names},
            }
            for rank, site in enumerate(self.sites, 1)
        ]
