"""A validation in a terminal: what was trained, which score foresaw it, and how well it could have been foreseen."""

from __future__ import annotations

from typing import TextIO

from steerscope.experiments.agreement.agreements import Agreement
from steerscope.experiments.agreement.attainable import Attainable
from steerscope.experiments.validation.result import TrainedSite, Validation
from steerscope.reports.tables import TextTable, print_tables
from steerscope.reports.vocabulary import clean, score_words


def print_validation(result: Validation, *, file: TextIO | None = None) -> None:
    """Print what a validation found: rich tables where ``file`` is a terminal, plain text in a pipe.

    Args:
        result: The validation.
        file: Where it is printed; standard output unless given.
    """
    print_tables(sentences(result), [trained_table(result), score_table(result)], file)


def sentences(result: Validation) -> list[str]:
    """Return what a validation found, in sentences."""
    before, best = result.before, min(result.sites, key=lambda s: s.mean_loss)
    found, limit = result.agreements[result.score], result.attainable
    lines = [
        f"{clean(result.study, 100)}: {len(result.sites)} sites trained, {result.options.seeds} "
        f"seeds, {result.options.steps} steps of {result.options.batch_size}, rank {result.options.rank}; "
        f"{before.n_test} test prompts.",
        f"Before training: loss {before.loss:.3f}, accuracy {before.accuracy:.1%} (always one answer, or one "
        f"place among the choices: {before.majority:.1%}). Best site: {best.method}, loss {best.mean_loss:.3f}, "
        f"accuracy {best.mean_accuracy:.1%}.",
        f"{_label(result.score)}: Spearman {_interval(found)} with minus the trained loss, given depth "
        f"{found.partial:.2f} [{found.partial_low:.2f}, {found.partial_high:.2f}].",
    ]
    if limit is not None and limit.spearman is not None:
        lines.append(
            f"Attainable with this training noise: Spearman {_interval(limit)}, from {limit.num_seeds} seeds, of "
            f"which two order the sites with {limit.two_seeds:.2f}."
        )
    else:
        lines.append("Attainable correlation: not known from one seed; train with two or more.")
    diverged = [s.method for s in (*result.sites, *result.references) if None in s.losses]
    if diverged:
        lines.append(f"Diverged with the chosen rate: {', '.join(diverged)}; ranked last.")
    edge = [s.method for s in (*result.sites, *result.references) if not s.interior]
    if edge:
        lines.append(f"Learning rate at the edge of the grid: {', '.join(edge)}.")
    cost = result.cost
    lines.append(
        f"Cost: the ranking took {cost.ranking:.0f} s, {cost.ratio:.2%} of the {cost.sweep / 3600:.1f} h that "
        "training at every site with the same search would take (scaled from the runs made)."
    )
    return lines


def trained_table(result: Validation) -> TextTable:
    """Return what was trained, best first, references below."""
    order = sorted(result.sites, key=lambda s: s.mean_loss)
    by_score = sorted(result.sites, key=lambda s: -s.scores[result.score])
    place = {site.method: str(i + 1) for i, site in enumerate(by_score)}
    columns = ("rank", "site", "loss", "over seeds", "accuracy", "params", "rate", "score", "by score")
    rows = [
        _trained_row(one, str(n), f"{one.scores[result.score]:.3f}", place[one.method])
        for n, one in enumerate(order, 1)
    ]
    rows += [_trained_row(one) for one in result.references]
    return TextTable(
        "Trained, best first; then the references",
        columns,
        frozenset(columns) - {"site"},
        tuple(rows),
        "'by score': the place that the ranking gives the site among these.",
    )


def score_table(result: Validation) -> TextTable:
    """Return how every score fared, best first."""
    order = sorted(result.agreements.values(), key=lambda a: -a.spearman)
    columns = ("rank", "score", "Spearman", "given depth", "Kendall", "regret", "top 3", "against best baseline")
    rows = [
        (
            str(rank),
            _label(a.score) + (" *" if a.score in result.baselines else ""),
            _interval(a),
            f"{a.partial:.2f}",
            f"{a.kendall:.2f}",
            f"{a.regret:.3f}",
            str(a.top3),
            _margin(a),
        )
        for rank, a in enumerate(order, 1)
    ]
    return TextTable(
        "Scores against trained loss",
        columns,
        frozenset(columns) - {"score"},
        tuple(rows),
        "Spearman and Kendall correlation with minus the mean loss, with 95% intervals over layers and seeds. * plain "
        "baseline. Regret: loss at the score's first site minus the lowest, in nats. Top 3: of its first three sites, "
        "how many are among the three best.",
    )


def _trained_row(one: TrainedSite, rank: str = "", score: str = "", place: str = "") -> tuple[str, ...]:
    return (
        rank,
        _short(one.method),
        f"{one.mean_loss:.4f}",
        _range(one),
        f"{one.mean_accuracy:.1%}",
        f"{one.n_params:,}",
        f"{one.learning_rate:g}",
        score,
        place,
    )


def _label(name: str) -> str:
    return score_words(name).label


def _interval(found: Agreement | Attainable) -> str:
    return f"{found.spearman:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _margin(found: Agreement) -> str:
    if found.margin == 0 == found.margin_low == found.margin_high:
        return "is the best"
    return f"{found.margin:+.2f} [{found.margin_low:+.2f}, {found.margin_high:+.2f}]"


def _range(one: TrainedSite) -> str:
    found = [v for v in one.losses if v is not None]
    return f"{min(found):.3f}..{max(found):.3f}" if found else "diverged"


def _short(name: str) -> str:
    sites = name.split("+")
    return name if len(sites) == 1 else f"set of {len(sites)} sites"
