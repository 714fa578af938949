"""What a ranking can be told to do differently."""

from __future__ import annotations

from dataclasses import dataclass, field

from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.scoring.scores import ALWAYS, DEFAULT_SCORE, EXTRA, Needs, get_score, ranking_scores
from steerscope.errors import InputError
from steerscope.models.site_map import unknown_name
from steerscope.option_types import plain_fields, require_least, require_seed

MIN_EXAMPLES = 24


@dataclass(frozen=True)
class RankOptions:
    """Options of a ranking.

    Attributes:
        score: Score that orders the sites.
        extra: Scores that cost more, by what they need (``spectrum``, ``step``); what ``score`` needs comes anyway.
        seed: Seed of splits, probes and sketches.
        max_examples: At most so many examples, chosen by content.
        num_probes: Output directions per example; one backward pass each, and one for the loss where they do not span
            the outputs. ``None``: as many as span them, one fewer than there are choices, at most 12; 4 without
            choices.
        rank: Rank of the low-rank edit that parameter counts are for.
        num_training: Examples that training will see (steps times batch size), for ``learned_at_n``.
        ridge: Ridge of the kernel regression, in units of the kernel's mean diagonal.
        num_groups: Groups the jackknife leaves out one at a time.
        max_sites: Most sites in the greedy set.
        budget: Most parameters in the greedy set, or ``None``.
        kinds: Kinds of site to rank, or ``None`` for all the layout has.
        batch_size: Sequences of median length per batch; more in the first batches, fewer in the last.
        padding_side: ``left`` or ``right``; changes no number beyond rounding.
        exact: Exact features (``True``), sketches (``False``), or exact where they fit (``None``).
        exact_bytes: Largest exact features, in bytes, with ``exact=None``.
        sketch: Size of the sketches.
    """

    score: str = DEFAULT_SCORE
    extra: tuple[str, ...] = ()
    seed: int = 0
    max_examples: int = 192
    num_probes: int | None = None
    rank: int = 8
    num_training: int = 1920
    ridge: float = 1.0
    num_groups: int = 12
    max_sites: int = 8
    budget: int | None = None
    kinds: tuple[str, ...] | None = None
    batch_size: int = 16
    padding_side: str = "right"
    exact: bool | None = None
    exact_bytes: int = 512 * 2**20
    sketch: SketchPlan = field(default_factory=lambda: SketchPlan(exact=False))

    def __post_init__(self) -> None:
        plain_fields(self, score=ranking_scores(*ALWAYS, *EXTRA), extra=EXTRA)

    @property
    def needs(self) -> tuple[Needs, ...]:
        """What the scores of the ranking are computed from."""
        wanted = {*map(Needs, self.extra), get_score(self.score).needs}
        return (*ALWAYS, *(need for need in EXTRA if need in wanted))

    def check(self) -> None:
        """Refuse options that cannot work.

        Raises:
            InputError: Unknown score or kind of extra, or a number out of range.
        """  # noqa: DOC501  (a function makes the InputError)
        scores = ranking_scores(*ALWAYS, *EXTRA)
        if self.score not in scores:
            raise unknown_name(self.score, list(scores), "score")
        for name in self.extra:
            if name not in EXTRA:
                raise InputError(f"[[extra]] has {name!r}; expected {' or '.join(EXTRA)}, or nothing.")
        if self.num_probes is not None:
            require_least(self, num_probes=1)
        least = {"rank": 1, "num_training": 1, "num_groups": 2, "max_sites": 1, "batch_size": 1}
        require_least(self, **least, max_examples=MIN_EXAMPLES)
        require_seed(self.seed, bits=63)
        if not self.ridge > 0:
            raise InputError(f"[[ridge]] is {self.ridge}; expected a positive number (1 is the default).")
        if self.budget is not None and self.budget < 1:
            raise InputError(f"[[budget]] is {self.budget} parameters; expected at least 1.")
        if self.kinds == ():
            raise InputError("[[kinds]] is empty; expected a kind of site at least, or None for all.")
        if self.padding_side not in ("left", "right"):
            raise InputError(f"[[padding_side]] is {self.padding_side!r}; expected 'left' or 'right'.")
