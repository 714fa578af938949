"""What reports cite of training."""

import json
from dataclasses import replace

import pytest

from steerscope import Example, RankOptions, get_task, rank_sites
from steerscope.analysis.evidence import drawn_from, evidence_for, is_of, known_evidence, ranked_alike
from steerscope.analysis.result_parts import ReferenceLoss, TrainedPoint
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.experiments.tasks import FileTask, ListOps
from steerscope.models import wrap_model
from steerscope.reports.ranking.evidence import evidence_sentence, studies_table
from tests.experiments.validation.tiny import examples
from tests.identities import identity
from tests.reports.ranking_cases import plateau
from tests.tiny import tiny_model, tiny_tokenizer

NUMBERS = {"spearman": 0.5, "low": 0.1, "high": 0.8, "partial": 0.4, "pairs": 0.7, "pairs_low": 0.4, "pairs_high": 0.8}
TABLE = {
    "model": "small",
    "sha256": "a" * 64,
    "layout": "sequential",
    "task": "sums",
    "n_sites": 12,
    "n_seeds": 3,
    "admitted": True,
    "why_not": "",
    "attainable": 0.9,
    "baseline": "depth",
    "baseline_spearman": 0.3,
    "before": {"loss": 2.0, "accuracy": 0.1},
    "best": [{"site": "1.mlp_out", "accuracy": 0.4}],
    "trained": {"0.mlp_out": [1.5, 1.4, 1.6], "1.mlp_out": [1.0, 0.9, 1.1]},
    "rankings": [
        {"n_probes": 4, "scores": {DEFAULT_SCORE: NUMBERS}},
        {"n_probes": 9, "scores": {DEFAULT_SCORE: NUMBERS | {"spearman": 0.6, "low": -0.1}}},
    ],
}
NOT_ADMITTED = TABLE | {"task": "products", "admitted": False, "why_not": "No sites were trained for longer."}


def kept(place, *tables):
    """Write a file of tables."""
    path = place / "evidence.json"
    path.write_text(json.dumps({"tables": tables}))
    return path


def told(place, *tables, task="sums", n_probes=9, sha256="a" * 64):
    """Return a ranking that knows these tables."""
    base = plateau()
    return replace(
        base,
        model=replace(base.model, sha256=sha256),
        task=task,
        settings=replace(base.settings, drawn_from=task),
        outputs=replace(base.outputs, n_probes=n_probes),
        evidence=known_evidence(DEFAULT_SCORE, kept(place, *tables)),
    )


def test_no_file_no_evidence(tmp_path):
    assert known_evidence(DEFAULT_SCORE, tmp_path / "none.json") is None


def test_only_rankings_by_the_score_count(tmp_path):
    path = kept(tmp_path, TABLE)
    found = known_evidence(DEFAULT_SCORE, path)
    assert "small on sums, 12 sites ranked with 4 output directions" in found.summary
    assert "0.50 (0.10 to 0.80), depth 0.30" in found.summary
    assert "0.90 is attainable with this training noise" in found.summary
    assert "not surely better than chance in all of those that may judge" in found.summary
    assert known_evidence("alignment", path) is None


def test_studies_that_prove_nothing_are_said_to(tmp_path):
    unsure = {"n_probes": 9, "scores": {DEFAULT_SCORE: NUMBERS | {"low": -0.2}}}
    path = kept(tmp_path, TABLE | {"rankings": [unsure]})
    assert "not surely better than chance in any of those that may judge" in known_evidence(DEFAULT_SCORE, path).summary
    said = known_evidence(DEFAULT_SCORE, kept(tmp_path, NOT_ADMITTED)).summary
    assert "in a table that may not judge scores." in said
    assert "No table of trained outcomes that may judge scores" in said


def test_the_ranking_most_like_this_one_speaks(tmp_path):
    studies = known_evidence(DEFAULT_SCORE, kept(tmp_path, TABLE, NOT_ADMITTED)).studies
    assert [one["n_probes"] for one in ranked_alike(studies, 9)] == [9, 9]
    assert [one["n_probes"] for one in ranked_alike(studies, 3)] == [4, 4]


@pytest.mark.parametrize(
    ("n_probes", "spearman"), [(9, "0.60 (-0.10 to 0.80), not surely"), (4, "0.50 (0.10 to 0.80);")]
)
def test_trained_on_this_model_and_task(tmp_path, n_probes, spearman):
    said = evidence_sentence(told(tmp_path, TABLE, n_probes=n_probes))
    assert said.startswith(
        "Trained at 12 sites of this model on this task, the order agreed with the losses at Spearman "
    )
    assert spearman in said
    assert (
        "depth alone reached 0.30; of two sites of one layer it names the better in 70% (40% to 80%, not surely" in said
    )
    assert "output directions" not in said
    assert "ranked there with 4 output directions, here with 3" in evidence_sentence(told(tmp_path, TABLE, n_probes=3))


def test_trained_on_this_model_and_task_but_not_admitted(tmp_path):
    said = evidence_sentence(told(tmp_path, TABLE, NOT_ADMITTED, task="products", n_probes=4))
    assert "Not trained" not in said
    assert said.startswith(
        "Trained at 12 sites of this model on this task: the best were 1.mlp_out (40% right), untrained"
    )
    assert "may not judge scores: No sites were trained for longer. Elsewhere" in said
    assert "in 1 of 1 table of trained outcomes" in said


def test_not_trained_on_this_model_and_task(tmp_path):
    ranking = told(tmp_path, TABLE, NOT_ADMITTED, sha256="b" * 64, n_probes=9)
    said = evidence_sentence(ranking)
    assert said.startswith(
        "Not trained on this model and task. Elsewhere the order was surely better than chance in 0 of 1"
    )
    assert [row[-1] for row in studies_table(ranking).rows] == ["yes", "no"]
    assert "No table of trained outcomes may judge this score yet" in evidence_sentence(told(tmp_path, NOT_ADMITTED))


def test_outcomes_of_this_model_and_task_come_with_the_ranking(tmp_path):
    path = kept(tmp_path, TABLE, NOT_ADMITTED)
    scored = [("1.mlp_out", 0.7), ("0.mlp_out", 0.2), ("2.mlp_out", 0.1)]
    found = evidence_for(DEFAULT_SCORE, identity(sha256="a" * 64), "products", scored, path)
    assert found.points[0] == TrainedPoint("1.mlp_out", 0.7, loss=1.0, low=0.9, high=1.1)
    assert len(found.points) == 2
    assert found.references == (ReferenceLoss("no training", 2.0),)
    assert evidence_for(DEFAULT_SCORE, identity(sha256="b" * 64), "products", scored, path).points == ()
    assert evidence_for(DEFAULT_SCORE, identity(sha256="a" * 64), "mine", scored, path).points == ()


def test_a_name_alone_makes_no_examples_those_of_a_task():
    twice = get_task("twice").split("train", 4)
    assert drawn_from("twice", twice) == "twice"
    own = FileTask.of("twice", [Example(one.prompt, one.completion) for one in twice])
    assert drawn_from("twice", own.examples) is None
    assert drawn_from("twice", [*twice[1:], replace(twice[0], prompt="Q: " + twice[0].prompt)]) is None
    assert drawn_from("recall", twice) is None
    listops = get_task("listops")
    assert drawn_from("listops", replace(listops, generator=ListOps(max_depth=3)).split("train", 4)) is None
    ranking = plateau()
    assert not is_of({"sha256": "a", "task": "t", "setup": "b"}, identity(sha256="a", setup="c"), "t")
    assert not is_of(TABLE, replace(ranking.model, sha256=TABLE["sha256"]), None)


def test_a_ranking_cites_what_is_known():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    options = RankOptions(max_examples=24, num_probes=1, kinds=("mlp_out",))
    ranking = rank_sites(loaded, examples(60), options)
    assert ranking.evidence == known_evidence(DEFAULT_SCORE)
    by_depth = rank_sites(loaded, examples(60), RankOptions(**{**vars(options), "score": "depth"}))
    assert by_depth.evidence is None
