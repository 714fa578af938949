"""The verdict: regions and ties in a sentence, never one winner among equals; what to type next is true."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace

import pytest

from steerscope import SteeringConfig, get_steering_model, wrap_model
from steerscope.analysis.result_parts import Evidence
from steerscope.analysis.results import SiteScore
from steerscope.analysis.scoring.standing import MARGIN
from steerscope.errors import InputError
from steerscope.reports import print_ranking
from steerscope.reports.ranking import text, verdict
from steerscope.reports.ranking.evidence import evidence_sentence
from steerscope.reports.ranking.next_step import next_step, why_not_merged
from steerscope.reports.ranking.page import render_page
from steerscope.reports.ranking.regions import edge_runs, find_region, kinds_words
from steerscope.reports.ranking.tables import site_table
from tests.reports.ranking_cases import CASES, Shape, build, format_table, plateau, stood
from tests.tiny import tiny_model, tiny_tokenizer

KINDS = ("attn_heads", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")


def made(scores: dict[tuple[int, str, str], float], half: float = 0.001, **changes):
    """Return a ranking with these scores by layer, kind and family."""
    sites = [
        SiteScore(
            layer, kind, family, share, share - 0.01, share + 0.01, 576 if family == "vector" else 9216, False, {}
        )
        for (layer, kind, family), share in scores.items()
    ]
    sites.sort(key=lambda site: -site.score)
    found = replace(build(Shape(layers=10)), sites=tuple(stood(sites, half)), greedy=(), curves=(), **changes)
    return replace(found, equal_margin=MARGIN * abs(sites[0].score))


def everywhere(good, layers: int = 10, low: float = 0.5):
    """Return scores of all linear edits: 0.9 where ``good(layer, kind)``."""
    return {
        (layer, kind, "linear"): (0.9 if good(layer, kind) else low) - 1e-5 * layer
        for layer in range(layers)
        for kind in KINDS
    }


@pytest.mark.parametrize(
    ("good", "sentence"),
    [
        (lambda layer, kind: True, "All 70 places are equally good for a linear edit."),
        (
            lambda layer, kind: layer < 6,
            "Many places are equally good for a linear edit: every kind of site, layers 0 to 5; "
            "the last four layers are worse.",
        ),
        (
            lambda layer, kind: 1 <= layer < 9 and kind.startswith(("resid", "attn")),
            "Many places are equally good for a linear edit: the residual stream and what attention writes, "
            "layers 1 to 8; the first layer and the last layer are worse.",
        ),
        (
            lambda layer, kind: kind != "mlp_in",
            "Many places are equally good for a linear edit: every kind of site but mlp_in, all layers; "
            "mlp_in is worse at every layer.",
        ),
        (
            lambda layer, kind: layer in (4, 5) and kind == "resid_post",
            "Two places are equally good for a linear edit: 4.resid_post and 5.resid_post; the rest is worse.",
        ),
        (
            lambda layer, kind: (layer, kind) == (4, "mlp_out"),
            "4.mlp_out is better than every other place for an edit (linear).",
        ),
    ],
)
def test_the_headline_says_regions_and_ties(good, sentence):
    assert verdict.headline(made(everywhere(good))) == sentence


def test_no_winner_is_named_among_candidates_that_the_prompts_cannot_tell_apart():
    ranking = made(everywhere(lambda layer, kind: layer < 6), half=0.1)
    assert [site.standing for site in ranking.sites].count("equal") == 1
    said = verdict.headline(ranking)
    assert "any of 42 may be it: every kind of site, layers 0 to 5" in said
    assert ranking.sites[0].name not in said


def test_halves_that_disagree_on_the_best_are_not_overruled():
    ranking = made(everywhere(lambda layer, kind: layer in (4, 5) and kind == "resid_post"))
    unsure = replace(ranking, stability=replace(ranking.stability, top_agreement=0.6))
    assert "4.resid_post" in verdict.headline(ranking)
    assert "4.resid_post" not in verdict.headline(unsure)
    assert "not which are best" in verdict.headline(unsure)
    assert "which sites are bad rather than on which are best" in text.top_sentence(unsure)


def test_what_is_worse_by_too_little_is_not_to_be_avoided():
    def share(layer: int) -> float:
        return 0.9 if 4 <= layer <= 12 else 0.87 if layer < 4 else 0.86 if layer < 23 else 0.5

    ranking = made({(layer, kind, "linear"): share(layer) for layer in range(30) for kind in KINDS}, half=0.02)
    assert {site.standing for site in ranking.sites if site.layer < 4 or site.layer > 12} == {"worse"}
    assert verdict.headline(ranking).endswith("every kind of site, layers 4 to 12; the last seven layers are worse.")


def test_vectors_that_do_as_well_at_few_places_are_said_to_be_few():
    shares = everywhere(lambda layer, kind: layer < 6)
    shares |= {(layer, kind, "vector"): 0.9 if (layer, kind) == (3, "mlp_in") else 0.6 for layer, kind, _ in [*shares]}
    said = verdict.cheapest_sentence(made(shares))
    assert "as well as a linear edit at few places alone, 1 of " in said
    assert "3.mlp_in" not in said  # a vector that is equal in the first step is not what to train
    assert "linear edit is " in said


def test_a_region_with_exceptions_is_counted():
    ranking = made(everywhere(lambda layer, kind: layer < 6 and (layer, kind) != (2, "mlp_in")))
    assert "every kind of site, layers 0 to 5 (41 of 42 sites)" in verdict.headline(ranking)


def test_the_cheapest_equal_choice():
    ranking = plateau()
    said = verdict.cheapest_sentence(ranking)
    chosen = verdict.Verdict(ranking).cheapest
    assert chosen.site.family == "linear"
    alike = [row for row in verdict.Verdict(ranking).equal if row.site.family == "linear"]
    assert chosen.site.n_params == min(row.site.n_params for row in alike)
    assert len(alike) < len(verdict.Verdict(ranking).equal)
    assert said.startswith(
        "In the first step, which is what is scored, a fixed vector does as well as a linear edit, at 24 of 89 places; "
        "trained, it need not. A cheapest equal linear edit is "
    )
    linear = verdict.cheapest_sentence(CASES["thirty_layers"]())
    assert linear.startswith("A fixed vector at a single site is worse, wherever it is.")
    assert "9,216 parameters at rank 8, which is not part of the score" in linear


def test_whether_the_model_does_the_task():
    ranking = plateau()
    assert "answers 22% of these prompts rightly (loss 2.17 nats)" in verdict.task_sentence(ranking)
    assert "most frequent answer makes 20%: it does not do the task yet" in verdict.task_sentence(ranking)
    able = replace(ranking, outputs=replace(ranking.outputs, model_accuracy=0.8))
    assert "does not do the task" not in verdict.task_sentence(able)
    assert verdict.task_sentence(CASES["bare"]()).endswith("rightly (loss 0.90 nats).")  # of before: no more is known


@pytest.mark.parametrize("score", ["depth", "random", "gradient_norm", "feature_norm"])
def test_a_baseline_recommends_nothing(score):
    ranking = replace(plateau(), score=score)
    assert verdict.headline(ranking).endswith("orders the sites; it recommends nothing.")
    said = " ".join([*verdict.answer_sentences(ranking), *text.certainty_sentences(ranking)])
    for words in ("greedy set", "equal to the best", "does best", "cheapest"):
        assert words not in said
    step = next_step(ranking)
    assert step is not None
    assert (step.config, step.train) == ("", "")
    assert " equal\n" not in format_table(ranking)


def test_a_set_by_another_score_is_told_in_its_own_unit():
    ranking = replace(plateau(), score="converged_share", set_score="learnable_share")
    said = text.set_sentence(ranking)
    gain = max(step.score for step in ranking.greedy) - ranking.greedy[0].score
    assert f"{100 * gain:.1f} percentage points more than the best single site (by the learnable share" in said
    bounded = replace(plateau(), score="predicted_loss_bounded", set_score="predicted_loss_bounded")
    assert f"reaches {max(step.score for step in bounded.greedy):.3g} " in text.set_sentence(bounded)
    assert "by the" not in text.set_sentence(bounded)


def test_shares_of_files_of_before_end_at_100_percent():
    ranking = plateau()
    sites = (replace(ranking.sites[0], ci_high=1.03), *ranking.sites[1:])
    assert "103.0%" not in format_table(replace(ranking, sites=sites))
    assert "to 100.0%" in format_table(replace(ranking, sites=sites))


def test_a_file_of_before_has_no_equal_ones():
    ranking = plateau()
    unknown = {"difference": None, "difference_low": None, "difference_high": None, "standing": None}
    old = replace(ranking, sites=tuple(replace(site, **unknown) for site in ranking.sites), equal_margin=None)
    found = verdict.Verdict(old)
    assert len(found.equal) == 1
    assert found.undetermined
    assert "may be it" in verdict.headline(old)
    assert "earlier version" in verdict.standings_sentence(old)
    step, sure = next_step(old), next_step(ranking)
    assert step is not None
    assert sure is not None
    assert step.merging.startswith(f"a search, which trains at the likely ones of the {len(found.undetermined) + 1:,} ")
    assert (step.lines[0], sure.lines[-1]) == (step.search, sure.search)


def test_the_answer_fits_a_screen_and_stands_last():
    for case in (plateau, CASES["thirty_layers"], CASES["cannot_tell"]):
        out = io.StringIO()
        print_ranking(case(), file=out)
        lines = out.getvalue().splitlines()
        assert verdict.headline(case())[:60] in "\n".join(lines[-24:]), len(lines)
        assert "steerscope search" in lines[-1]
        verbose = io.StringIO()
        print_ranking(case(), file=verbose, verbose=True)
        assert len(verbose.getvalue()) > len(out.getvalue()) + 500


def test_counts_agree():
    ranking = plateau()
    found = verdict.Verdict(ranking)
    assert len(found.equal) + len(found.undetermined) + len(found.worse) == len(found.rows)
    others = f"Of {len(found.rows) - 1:,} other candidates {len(found.equal) - 1} are equal"
    html = render_page(ranking, [])
    assert others in html
    assert others in verdict.standings_sentence(ranking)
    assert f"of {len(found.rows):,} candidates" in site_table(ranking).title
    marks = [row[-1] for row in site_table(ranking, None).rows]
    assert marks.count("equal") == len(found.equal)
    assert f"155 sites make {len(found.rows)} candidates" in text.counts_sentence(ranking)
    assert f"has {len(ranking.sites)} rows" in text.counts_sentence(ranking)


def test_evidence_is_one_line():
    # As rankings kept it before tables that may not judge were cited.
    study = {
        "model": "kept elsewhere", "sha256": plateau().model.sha256, "task": "capitals",
        "n_sites": 24, "spearman": 0.37, "low": -0.15, "high": 0.73,
        "baseline": "depth", "baseline_spearman": 0.74, "attainable": 0.93, "score": "learnable_share",
    }  # fmt: skip
    other = study | {"task": "arc_easy", "low": 0.2}
    ranking = plateau()
    settings = replace(ranking.settings, drawn_from="capitals")
    ranking = replace(ranking, settings=settings, evidence=Evidence(summary="long", studies=(other, study)))
    said = evidence_sentence(ranking)
    assert "Trained at 24 sites of this model on this task" in said
    assert "0.37 (-0.15 to 0.73), not surely better than chance; depth alone reached 0.74" in said
    other_weights = replace(ranking, model=replace(ranking.model, sha256="0" * 64))
    assert "Not trained on this model and task" in evidence_sentence(other_weights)
    elsewhere = evidence_sentence(replace(ranking, settings=replace(settings, drawn_from=None)))
    assert "in 1 of 2 tables" in elsewhere
    assert max(len(said), len(elsewhere)) < 260
    assert "arc_easy" in render_page(ranking, [])


# --- what to type next ---


def test_the_lines_to_copy_name_the_model_the_data_and_the_cheapest_equal_choice():
    ranking = plateau()
    step = next_step(ranking)
    assert step is not None
    config = eval(step.config, {"SteeringConfig": SteeringConfig})
    chosen = verdict.Verdict(ranking).cheapest
    assert config.sites == (f"{chosen.site.layer}.{chosen.kinds[0]}",)
    assert (config.family, config.rank) == ("linear", 8)
    train = shlex.split(step.train)
    assert train[:5] == ["steerscope", "train", "smollm2-135m", "--task", "capitals"]
    assert train[train.index("--site") + 1] == config.sites[0]
    typed = "steerscope rank 'my model' --data 'my file.jsonl' --trust-remote-code"
    own = replace(
        ranking,
        model=replace(ranking.model, name="my model"),
        task="my file",
        settings=replace(ranking.settings, command=typed),
    )
    own_step = next_step(own)
    assert own_step is not None
    words = ["steerscope", "search", "my model", "--data", "my file.jsonl", "--trust-remote-code"]
    assert shlex.split(own_step.search)[:6] == words
    broken = replace(ranking, settings=replace(ranking.settings, command="steerscope rank 'x"))
    assert next_step(broken) is not None


@pytest.mark.filterwarnings("ignore:linear maps at")
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("edit", ["linear", "vector"])
def test_what_is_said_of_merging_is_what_merging_does(family, edit):
    loaded = wrap_model(tiny_model(family), tiny_tokenizer(), name="tiny")
    for kind in loaded.site_map.description.kinds:
        why = why_not_merged(kind, edit, loaded.identity.layout)
        fresh = wrap_model(tiny_model(family), tiny_tokenizer(), name="tiny")
        model = get_steering_model(fresh, SteeringConfig(sites=(f"0.{kind}",), family=edit))
        if why:
            with pytest.raises(InputError):
                model.merge_and_unload(make_biases=True)
        else:
            model.merge_and_unload(make_biases=True)


# --- regions ---


def test_a_region_is_the_window_that_holds_most_and_little_else():
    cells = {(layer, kind): 2 <= layer <= 5 and kind == "mlp_out" for layer in range(9) for kind in KINDS}
    found = find_region(cells)
    assert (found.first, found.last, found.kinds, found.n_meant, found.n_sites) == (2, 5, ("mlp_out",), 4, 4)
    assert find_region(dict.fromkeys(cells, False)) is None
    whole = find_region(dict.fromkeys(cells, True))
    assert (whole.first, whole.last, len(whole.kinds)) == (0, 8, 7)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (KINDS, "every kind of site"),
        (("resid_mid", "resid_post"), "the residual stream"),
        (("resid_post",), "the stream after the block (resid_post)"),
        (
            ("attn_heads", "attn_out", "mlp_in", "mlp_hidden", "mlp_out"),
            "every kind of site but resid_mid and resid_post",
        ),
        (("mlp_hidden", "new_kind"), "inside the MLP (mlp_hidden) and new_kind"),
    ],
)
def test_kinds_in_words(chosen, words):
    assert kinds_words(chosen, {*KINDS, "resid_pre", *chosen}) == words


def test_runs_at_the_edges():
    assert edge_runs([True, False, True, True]) == (1, 2)
    assert edge_runs([True, True]) == (2, 2)
    assert edge_runs([]) == (0, 0)
