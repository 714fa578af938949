"""The rule of the third plan, on made-up judgements: each of its conditions decides once."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from studies.plan_3 import Decision, decide, judged_by_plan, size_of
from tests.experiments.site_tables.tiny import made_up


def judgement(admitted: bool = True, **scores: tuple[float, float]) -> SimpleNamespace:
    """A table that gives every named score (rho, share of pairs right), and (0.5, 0.5) to the others it needs."""
    given = {"learnable_share": (0.5, 0.5), "depth": (0.4, 0.5), "depth_then_kind": (0.4, 0.6)} | scores
    found = {
        name: SimpleNamespace(
            agreement=SimpleNamespace(spearman=rho),
            pairs=SimpleNamespace(share=SimpleNamespace(value=share)),
            both=SimpleNamespace(value=SimpleNamespace(value=(rho + 2 * share - 1) / 2)),
        )
        for name, (rho, share) in given.items()
    }
    return SimpleNamespace(table="t", admission=SimpleNamespace(holds=admitted), scores=found)


def decided(chosen: dict[str, tuple[float, float]], reported: dict[str, tuple[float, float]] | None = None) -> Decision:
    tables = [("small", judgement(**chosen))]
    if reported is not None:
        tables.append(("smollm2-135m", judgement(**reported)))
    return decide(tables)


def test_a_candidate_that_earns_more_everywhere_becomes_the_default():
    found = decided({"converged_share": (0.6, 0.6)}, {"converged_share": (0.6, 0.6)})
    assert (found.nominee, found.default) == ("converged_share", "converged_share")
    assert found.choosing["converged_share"].both == pytest.approx(0.4)
    assert found.baseline == "depth_then_kind"


@pytest.mark.parametrize(
    "own",
    [
        (0.52, 0.53),  # J is higher by 0.05 less a little
        (0.47, 0.9),  # rho falls
        (0.9, 0.49),  # W falls
    ],
)
def test_each_condition_keeps_todays_score(own):
    assert decided({"converged_share": own}, {"converged_share": (0.9, 0.9)}).nominee is None


def test_of_candidates_that_are_alike_the_cheaper_wins():
    alike = {"converged_share": (0.7, 0.7), "in_sample_share": (0.7, 0.695)}
    assert decided(alike).nominee == "in_sample_share"
    assert decided({**alike, "in_sample_share": (0.7, 0.68)}).nominee == "converged_share"


def test_the_tables_to_report_on_can_keep_todays_score():
    better = {"converged_share": (0.7, 0.7)}
    assert decided(better).default == "learnable_share"
    found = decided(better, {"converged_share": (0.5, 0.5)})
    assert (found.nominee, found.default) == ("converged_share", "learnable_share")


def test_tables_that_are_not_admitted_change_nothing():
    found = decide([("small", judgement(admitted=False, converged_share=(0.9, 0.9)))])
    assert found.default == "learnable_share"
    assert found.chosen_on == ()
    assert dataclasses.asdict(found)["choosing"] == {}


def test_a_table_of_a_real_model_needs_more_sites():
    small = made_up(6)
    assert size_of(small).holds
    real = dataclasses.replace(small, model=dataclasses.replace(small.model, name="smollm2-135m"))
    assert not size_of(real).holds
    assert "24 sites with 3 seeds, at least 4 kinds at 6 layers; needed: 48 sites" in size_of(real).sentence
    assert size_of(dataclasses.replace(made_up(12), model=dataclasses.replace(real.model, layers=12))).holds


@pytest.mark.parametrize(
    ("layers", "kept"),
    [
        (7, lambda run: run.site not in ("0.mlp_in", "1.mlp_in")),  # four kinds at five layers of seven
        (6, lambda run: run.site != "0.mlp_in"),  # 23 sites
        (8, lambda run: run.seed < 2),
        (6, lambda run: int(run.site.partition(".")[0]) < 5),
    ],
)
def test_kinds_layers_and_seeds_count_for_the_size(layers, kept):
    whole = made_up(layers)
    assert size_of(whole).holds
    assert not size_of(dataclasses.replace(whole, runs=tuple(run for run in whole.runs if kept(run)))).holds


def test_size_decides_admission_too():
    table = made_up(6)
    assert judged_by_plan(table).admission.holds
    real = judged_by_plan(dataclasses.replace(table, model=dataclasses.replace(table.model, name="smollm2-135m")))
    assert not real.admission.holds
    assert [one.name for one in real.admission.criteria if not one.holds] == ["size"]
