"""Every public figure is a function of a result, and says in a sentence where the result has nothing to draw."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from steerscope import InputError, Validation, Verification, reports
from steerscope.experiments.site_tables import judge
from steerscope.reports.figure_style import figure_bytes
from studies.claims.groups import studies
from studies.claims.kept import with_kept
from tests.experiments.site_tables.tiny import made_up
from tests.experiments.training import cases
from tests.reports import ranking_cases
from tests.reports.search_cases import searched

RESULTS = Path(__file__).parents[2] / "docs" / "results"


def comparison():
    with with_kept([RESULTS / "claims.json"]) as places:
        return studies(places)[0]


def validation() -> Validation:
    return Validation.load(RESULTS / "validation-smollm2-135m-arc_easy_short.json")


def on_blocks() -> Verification:
    return Verification.load(RESULTS / "verify-random.json")


def on_model() -> Verification:
    return Verification.load(RESULTS / "verify-smollm2-135m.json")


ON_A_MODEL = (
    "plot_slopes", "plot_block_slopes", "plot_radius", "plot_conditioning", "plot_stream_shares",
    "plot_oracle_spectra", "plot_residual_map", "plot_modulation", "plot_strength",
)  # fmt: skip
MADE_OF = {
    **dict.fromkeys(
        ("plot_ranking", "plot_heat_map", "plot_kinds_over_depth", "plot_greedy_growth", "plot_learning_curves",
         "plot_other_scores", "plot_gain_and_cost"), ranking_cases.thirty_layers),
    **dict.fromkeys(("plot_predicted_against_trained", "plot_agreements"), validation),
    **dict.fromkeys(("plot_verdicts", "plot_curves", "plot_margins", *ON_A_MODEL), on_model),
    "plot_comparison": comparison,
}  # fmt: skip


def test_every_figure_of_a_result_is_tried():
    # Of numbers, of a site table, of a search (test_pages.py)
    others = {
        "plot_lines",
        "plot_rows",
        "plot_losses",
        "plot_foreseen",
        "plot_search",
        "plot_tested",
        "plot_contenders",
    }
    assert {*MADE_OF, *others} == {name for name in reports.__all__ if name.startswith("plot_")}


@pytest.mark.parametrize("name", MADE_OF)
def test_a_figure_of_a_result(name):
    figure = getattr(reports, name)(MADE_OF[name]())
    assert isinstance(figure, Figure)
    assert len(figure_bytes(figure, "svg")) > 5000


@pytest.mark.parametrize("name", ON_A_MODEL)
def test_what_was_not_measured_is_not_drawn(name):
    with pytest.raises(InputError, match=r"no measurement '\w+'; it has none\. Verify a model"):
        getattr(reports, name)(on_blocks())


def test_nothing_to_draw():
    bare = replace(on_blocks(), propositions=())
    with pytest.raises(InputError, match="recorded a curve"):
        reports.plot_curves(bare)
    with pytest.raises(InputError, match="no trained sites to draw"):
        reports.plot_predicted_against_trained(ranking_cases.bare())
    every = validation()
    lost = replace(every, sites=tuple(replace(site, losses=(None,) * len(site.losses)) for site in every.sites))
    with pytest.raises(InputError, match="no trained sites to draw"):
        reports.plot_predicted_against_trained(lost)


# --- rows --------------------------------------------------------------------------------------------------

ROWS = {
    "ranking": ranking_cases.thirty_layers, "validation": validation, "verification": on_model,
    "comparison": comparison, "search": searched, "table": made_up, "judgement": lambda: judge(made_up()),
    "run": lambda: cases.results(cases.config()), "evaluation": cases.evaluation,
}  # fmt: skip


@pytest.mark.parametrize("kind", ROWS)
def test_rows_as_a_frame(kind):
    result = ROWS[kind]()
    frame = result.to_dataframe()
    rows = result.records()
    assert len(frame) == len(rows) > (0 if kind in ("run", "evaluation") else 1)
    assert list(frame.columns) == list(rows[0])
    assert all(list(row) == list(rows[0]) for row in rows)


def test_what_the_rows_are():
    ranking = ranking_cases.thirty_layers()
    first = ranking.records()[0]
    best = ranking.sites[0]
    assert (first["rank"], first["site"], first["score"], first["ci_low"]) == (1, best.name, best.score, best.ci_low)
    assert {f"scores.{name}": value for name, value in best.scores.items()}.items() <= first.items()
    every = validation()
    assert [row["site"] for row in every.records()] == [one.method for one in (*every.sites, *every.references)]
    assert [row["is_reference"] for row in every.records()] == [False] * len(every.sites) + [True] * len(
        every.references
    )
    assert every.records()[0]["mean_loss"] == every.sites[0].mean_loss
    found = on_model().records()
    assert [row["name"] for row in found] == [f"P{number}" for number in range(1, 47)]
    assert all(row["measured"] is not None for row in found if row["verdict"] == "holds")
    entries = comparison()
    assert [row["accuracy"] for row in entries.records()] == [entry.accuracy for entry in entries.entries]
    assert [row["name"] for row in searched().records()] == [one.name for one in searched().contenders]
    table = made_up()
    sites = [(row["site"], row["loss"], row["num_seeds"]) for row in table.records()]
    assert sites == [(str(one.site), one.loss, len(one.seeds)) for one in table.outcomes()]
    judged = judge(table)
    assert {row["score"]: row["spearman"] for row in judged.records()} == {
        name: one.agreement.spearman for name, one in judged.scores.items()
    }
    assert [row["score"] for row in judged.records() if row["is_trained"]] == list(judged.trained)
    (run,), (asked,) = cases.results(cases.config()).records(), cases.evaluation().records()
    assert (run["model"], run["test_accuracy"], run["n"]) == ("tiny", 0.61, 100)
    assert (asked["accuracy"], asked["correct"], asked["choice_sum"]) == (0.61, 61, 0.61)
    assert asked["low"] < 0.61 < asked["high"]


def test_a_frame_asks_for_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"to_dataframe\(\) needs pandas, which is not.*steerscope\[frames\]"):
        on_blocks().to_dataframe()
    assert on_blocks().records()


def test_a_figure_asks_for_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"plot_ranking\(\) needs matplotlib, which is not installed"):
        reports.plot_ranking  # noqa: B018
    assert callable(reports.print_ranking)
