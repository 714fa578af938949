"""The answer in sentences that a person would say: which places are equally good, which is cheapest, what to avoid.

It never names one winner among candidates that the prompts cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.scores import Needs, Unit, all_scores
from steerscope.analysis.scoring.standing import Standing
from steerscope.reports.ranking.candidates import (
    Candidate,
    candidates,
    main_family,
    num_layers,
    prompts_learned_from,
    standing,
    tells_the_best,
)
from steerscope.reports.ranking.regions import Cell, edge_runs, find_region, kinds_words, layers_words, number_words
from steerscope.reports.vocabulary import (
    clean,
    count,
    format_difference,
    format_interval,
    format_score,
    listing,
    score_words,
)

CANNOT_TELL = "The data cannot tell the sites apart."
# More than so many are said as a region, not one by one.
_MOST_NAMED = 4
# Units in which zero is what doing nothing scores.
_FROM_ZERO = frozenset({Unit.SHARE, Unit.COSINE, Unit.NATS})
_AN_EDIT = {"linear": "a linear edit", "vector": "a fixed vector"}


def edit_words(ranking: Ranking, family: str, n_params: int) -> str:
    """Say what kind of edit it is and what it costs.

    The rank of a linear edit changes what it costs, and no score but that of a step really taken.

    Args:
        ranking: The ranking, which holds the rank of its linear edits.
        family: ``vector`` or ``linear``.
        n_params: Parameters of the edit.

    Returns:
        A few words.
    """
    if family == "vector":
        return f"fixed vector: {n_params:,} numbers"
    rank, known = ranking.settings.rank, {score.name: score for score in all_scores()}
    is_scored = ranking.score in known and known[ranking.score].needs is Needs.STEP
    cost = count(n_params, "parameter")
    if family == "linear":
        cost += f" at rank {rank}" + ("" if is_scored else ", which is not part of the score")
    return f"{clean(family, 24)} edit: {cost}"


def is_baseline(ranking: Ranking) -> bool:
    """Whether the score that orders the sites is there to be beaten."""
    return any(score.name == ranking.score and score.is_baseline for score in all_scores())


def gains(ranking: Ranking) -> bool:
    """Whether the best candidate scores better than doing nothing, where the score says what that is."""
    unit = next((score.unit for score in all_scores() if score.name == ranking.score), None)
    return bool(ranking.sites) and (ranking.sites[0].score > 0 or unit not in _FROM_ZERO)


def recommends(ranking: Ranking) -> bool:
    """Whether the report recommends anything: no baseline orders the sites, the data can tell, something is gained."""
    return bool(ranking.sites) and ranking.stability.can_tell and gains(ranking) and not is_baseline(ranking)


@dataclass(frozen=True)
class Verdict:
    """A ranking's candidates by their standing, and what follows."""

    ranking: Ranking

    @cached_property
    def rows(self) -> list[Candidate]:
        """All candidates, best first."""
        return candidates(self.ranking)

    def _of(self, *wanted: Standing) -> list[Candidate]:
        return [row for row in self.rows if standing(self.ranking, row.site) in wanted]

    @cached_property
    def equal(self) -> list[Candidate]:
        """The candidates equal to the best within the margin, the best included."""
        return self._of(Standing.EQUAL)

    @cached_property
    def undetermined(self) -> list[Candidate]:
        """The candidates that may be as good, and may be worse."""
        return self._of(Standing.UNDETERMINED)

    @cached_property
    def worse(self) -> list[Candidate]:
        """The candidates that are worse."""
        return self._of(Standing.WORSE)

    @cached_property
    def family(self) -> str:
        """The family that the sentences are about: the map's, where one of it is as good as the best."""
        usual = main_family(self.ranking)
        return usual if any(row.site.family == usual for row in self.equal) else self.rows[0].site.family

    def cells(self, *wanted: Standing) -> dict[Cell, bool]:
        """Return every site of :attr:`family`, and whether it has one of some standings.

        Args:
            *wanted: The standings to look for.

        Returns:
            ``True`` by layer and kind where the site has one of the standings.
        """
        return {
            (site.layer, site.kind): standing(self.ranking, site) in wanted
            for site in self.ranking.sites
            if site.family == self.family
        }

    @cached_property
    def cheapest(self) -> Candidate:
        """The ranking's recommended choice, as a row; see :meth:`~steerscope.analysis.results.Ranking.recommended`."""
        chosen = self.ranking.recommended()
        return next(
            row
            for row in self.rows
            if (row.site.layer, row.site.family) == (chosen.layer, chosen.family) and chosen.kind in row.kinds
        )


def headline(ranking: Ranking) -> str:
    """Say in one sentence where an edit does well and what to avoid, or that the data does not say."""
    if not ranking.sites:
        return "This ranking holds no sites."
    if is_baseline(ranking):
        return f"A baseline, {score_words(ranking.score).label}, orders the sites; it recommends nothing."
    if not ranking.stability.can_tell:
        return CANNOT_TELL
    if not gains(ranking):
        if score_words(ranking.score).is_share:
            return "No single site can be recommended: none predicts fine-tuning's update better than no update."
        return "No single site can be recommended: by this score none does better than no edit."
    verdict = Verdict(ranking)
    is_alone = len(verdict.equal) == 1 and not verdict.undetermined
    good, bad = _good(verdict), "" if is_alone else _avoid(verdict)
    return f"{good}; {bad}." if bad else f"{good}."


def _good(verdict: Verdict) -> str:
    """Say which places are good, without a full stop."""
    ranking, family = verdict.ranking, verdict.family
    edit = _AN_EDIT.get(family, f"a {clean(family, 24)} edit")
    if len(verdict.rows) == 1:
        return f"Only one edit was ranked, {verdict.rows[0].label} ({clean(family, 24)})"
    cells = verdict.cells(Standing.EQUAL)
    equal = [row for row in verdict.equal if row.site.family == family]
    if len(equal) <= _MOST_NAMED and not tells_the_best(ranking) and not all(cells.values()):
        return "The prompts tell bad places from good ones, but not which are best: two halves of them disagree"
    if len(verdict.equal) == 1 and not verdict.undetermined:
        return f"{verdict.rows[0].label} is better than every other place for an edit ({clean(family, 24)})"
    if len(verdict.equal) == 1:
        open_cells = verdict.cells(Standing.EQUAL, Standing.UNDETERMINED)
        number, where = sum(open_cells.values()), _where(verdict, open_cells)
        if number == 1:
            return f"The best place for an edit is open: {_names([*verdict.equal, *verdict.undetermined])}"
        return f"The best place for {edit} is open, any of {number:,} may be it: {where}"
    if all(cells.values()):
        return f"All {len(cells):,} places are equally good for {edit}"
    if len(equal) == 1:
        return f"{_names(verdict.equal)} are equally good"
    if len(equal) <= _MOST_NAMED:
        return f"{number_words(len(equal)).capitalize()} places are equally good for {edit}: {_names(equal, False)}"
    many = "Many" if sum(cells.values()) >= max(10, len(cells) // 10) else "Several"
    return f"{many} places are equally good for {edit}: {_where(verdict, cells)}"


def _where(verdict: Verdict, cells: Mapping[Cell, bool]) -> str:
    meant = [cell for cell, is_meant in cells.items() if is_meant]
    region = find_region(cells)
    if len(meant) <= _MOST_NAMED or region is None or 2 * region.n_meant < len(meant):
        return listing([f"{layer}.{clean(kind, 24)}" for layer, kind in sorted(meant)])
    kinds = kinds_words(region.kinds, {kind for _, kind in cells})
    words = f"{kinds}, {layers_words(region.first, region.last, num_layers(verdict.ranking))}"
    return words if region.n_meant == region.n_sites else f"{words} ({region.n_meant:,} of {region.n_sites:,} sites)"


def _names(rows: Sequence[Candidate], with_family: bool = True) -> str:
    return listing([f"{row.label} ({clean(row.site.family, 24)})" if with_family else row.label for row in rows])


def _avoid(verdict: Verdict) -> str:
    """Say which layers or kinds are worse, without a full stop; nothing where the worse ones have no pattern."""
    equal, margin = verdict.cells(Standing.EQUAL), verdict.ranking.equal_margin or 0.0
    # Many a place is surely worse by too little to be avoided: what counts is worse by more than the margin.
    worse = {
        (site.layer, site.kind): standing(verdict.ranking, site) is Standing.WORSE
        and (site.difference_low is None or site.difference_low > margin)
        for site in verdict.ranking.sites
        if site.family == verdict.family
    }
    if not any(worse.values()) or not any(equal.values()):
        return ""
    layers = sorted({layer for layer, _ in worse})

    def share_worse(cells: list[Cell]) -> float:
        return 0.0 if any(equal[cell] for cell in cells) else sum(worse[cell] for cell in cells) / len(cells)

    by_layer = [share_worse([cell for cell in worse if cell[0] == layer]) for layer in layers]
    first, last = edge_runs([share > 2 / 3 for share in by_layer])
    if 2 * (first + last) > len(layers):
        return "the rest is worse" if sum(worse.values()) > 0.9 * sum(not one for one in equal.values()) else ""
    parts = []
    for name, number in (("first", first), ("last", last)):
        if number:
            parts.append(f"the {name} layer" if number == 1 else f"the {name} {number_words(number)} layers")
    if parts:
        chosen = layers[:first] + (layers[-last:] if last else [])
        if all(worse[cell] for cell in worse if cell[0] in chosen):
            return f"{listing(parts)} {'is' if first + last == 1 else 'are'} worse"
        return f"avoid {listing(parts)}, where nearly every site is worse"
    kinds = [kind for kind in dict.fromkeys(kind for _, kind in worse) if kind != "resid_pre"]
    bad = [kind for kind in kinds if share_worse([cell for cell in worse if cell[1] == kind]) == 1]
    return f"{listing([clean(kind, 24) for kind in bad])} is worse at every layer" if len(bad) == 1 else ""


def cheapest_sentence(ranking: Ranking) -> str:
    """Say what the cheapest equal choice is, and whether a fixed vector does as well as a linear edit."""
    verdict = Verdict(ranking)
    vectors = [row for row in verdict.equal if row.site.family == "vector"]
    others = [row for row in verdict.equal if row.site.family != "vector"]
    ranked = sum(row.site.family == "vector" for row in verdict.rows)
    row = verdict.cheapest
    alike = [other for other in verdict.equal if other.site.family == row.site.family]
    least = [other for other in alike if other.site.n_params == row.site.n_params]
    label = f"{row.label} ({edit_words(ranking, row.site.family, row.site.n_params)})"
    choice = "choice" if len(alike) == len(verdict.equal) else "linear edit"
    cheap = f"The cheapest equal {choice} is {label}" if len(least) == 1 else f"A cheapest equal {choice} is {label}"
    cheap += "." if len(least) == 1 else f", one of {len(least):,} that cost as much."
    if len(verdict.equal) == 1:
        cheap = ""
    if vectors and others:
        places = f"{len(vectors):,} of {ranked:,} places"
        where = f", at {places}" if 10 * len(vectors) >= ranked else f" at few places alone, {places}"
        vector = f"In the first step, which is what is scored, a fixed vector does as well as a linear edit{where}"
        return f"{vector}; trained, it need not. {cheap}".strip()
    if ranked and ranked == sum(row.site.family == "vector" for row in verdict.worse):
        cheap = f"A fixed vector at a single site is worse, wherever it is. {cheap}"
    return cheap.strip()


def standings_sentence(ranking: Ranking) -> str:
    """Count the candidates of each class, and say what equal means."""
    verdict = Verdict(ranking)
    others = len(verdict.rows) - 1
    if others < 1:
        return ""
    best = "the best" if recommends(ranking) else "the highest"
    parts = [
        f"{len(verdict.equal) - 1 or 'none'} {'is' if len(verdict.equal) < 3 else 'are'} equal to {best}",
        f"{len(verdict.undetermined):,} undetermined",
        f"{len(verdict.worse):,} worse",
    ]
    if ranking.equal_margin is None:
        meaning = "An earlier version made this file, which does not tell equal from undetermined"
    else:
        meaning = (
            f"Equal: at most {format_difference(ranking.equal_margin, ranking.score)} below it, with 95% confidence; "
            "undetermined: more prompts could tell"
        )
    return f"Of {count(others, 'other candidate')} {', '.join(parts[:-1])} and {parts[-1]}. {meaning}."


def amount_sentence(ranking: Ranking) -> str:
    """Say how much the good ones learn, and how sure that is."""
    if not ranking.sites:
        return ""
    verdict = Verdict(ranking)
    best, name = verdict.rows[0].site, ranking.score
    value, interval = format_score(best.score, name), format_interval(best.ci_low, best.ci_high, name)
    label = verdict.rows[0].label
    if not score_words(name).is_share:
        words = score_words(name)
        return f"The highest {words.label} is {value} (95% interval {interval}), at {label}: {words.description}."
    n_fit = prompts_learned_from(ranking)
    learned = f"from {count(n_fit, 'prompt')}, measured on {count(ranking.n_examples - n_fit, 'other prompt')}"
    if best.score <= 0:
        return (
            f"The highest score, at {label}, is {value} (95% interval {interval}; {learned}): "
            "worse than predicting no update."
        )
    unsure = " The interval includes zero: the edit may learn nothing." if best.ci_low <= 0 else ""
    if not recommends(ranking):
        return (
            f"The highest {score_words(name).label} in these data is {value} (95% interval {interval}; {learned}), at "
            f"{label}; other prompts could put another site first.{unsure}"
        )
    lowest = format_score(min(row.site.score for row in verdict.equal), name)
    amount = value if lowest == value else f"{lowest} to {value}"
    what = "of fine-tuning's first-order update" if name == "learnable_share" else f"({score_words(name).label})"
    return f"Edits there learn {amount} {what} {learned} (95% interval of the highest {interval}).{unsure}"


def task_sentence(ranking: Ranking) -> str:
    """Say whether the model can do the task at all, as far as the ranked prompts tell."""
    accuracy, loss = ranking.outputs.model_accuracy, ranking.outputs.model_loss
    said = f"The model as it is answers {100 * accuracy:.0f}% of these prompts rightly (loss {loss:.2f} nats)"
    constant = ranking.outputs.constant_accuracy
    if constant is None:
        return f"{said}."
    # Two standard errors of the difference of two proportions on the same prompts, at most.
    noise = 2 * ((accuracy * (1 - accuracy) + constant * (1 - constant)) / max(ranking.n_examples, 1)) ** 0.5
    said += f"; always giving the most frequent answer makes {100 * constant:.0f}%"
    if accuracy - constant > noise:
        return f"{said}."
    return (
        f"{said}: it does not do the task yet, so the first steps of training, which are ranked, may be about the form "
        "of the answers alone."
    )


def answer_sentences(ranking: Ranking) -> list[str]:
    """Return the first screen after the headline."""
    if not ranking.sites:
        return []
    found = [cheapest_sentence(ranking)] if recommends(ranking) else []
    found += [amount_sentence(ranking)]
    if ranking.stability.can_tell and not is_baseline(ranking):
        found += [standings_sentence(ranking)]
    return [sentence for sentence in [*found, task_sentence(ranking)] if sentence]
