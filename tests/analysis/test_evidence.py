"""What reports cite of training."""

import json

from steerscope import RankOptions, rank_sites
from steerscope.analysis.evidence import known_evidence
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.models import wrap_model
from tests.experiments.validation.tiny import examples
from tests.tiny import tiny_model, tiny_tokenizer

LINE = {
    "model": "small",
    "layout": "sequential",
    "task": "sums",
    "score": DEFAULT_SCORE,
    "n_sites": 12,
    "n_seeds": 2,
    "spearman": 0.5,
    "low": 0.1,
    "high": 0.8,
    "partial": 0.4,
    "attainable": 0.9,
    "baseline": "depth",
    "baseline_spearman": 0.3,
}


def test_no_file_no_evidence(tmp_path):
    assert known_evidence(DEFAULT_SCORE, tmp_path / "none.json") is None


def test_only_studies_of_the_score_count(tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps([LINE, {**LINE, "score": "depth", "model": "other"}]))
    found = known_evidence(DEFAULT_SCORE, path)
    assert "small on sums, 12 sites" in found["summary"]
    assert "0.50 (0.10 to 0.80)" in found["summary"]
    assert "(depth) 0.30" in found["summary"]
    assert "0.90 is attainable with this training noise" in found["summary"]
    assert "other" not in found["summary"]
    assert "hypothesis" not in found["summary"]
    assert known_evidence("alignment", path) is None


def test_studies_that_prove_nothing_are_said_to(tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text(json.dumps([{**LINE, "low": -0.2}]))
    assert "In none of them is it surely better than chance" in known_evidence(DEFAULT_SCORE, path)["summary"]
    path.write_text(json.dumps([LINE, {**LINE, "low": -0.2}]))
    assert "Not in all of them" in known_evidence(DEFAULT_SCORE, path)["summary"]


def test_a_ranking_cites_what_is_known():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    options = RankOptions(max_examples=24, num_probes=1, kinds=("mlp_out",))
    ranking = rank_sites(loaded, examples(60), options)
    assert ranking.evidence == known_evidence(DEFAULT_SCORE)
    by_depth = rank_sites(loaded, examples(60), RankOptions(**{**vars(options), "score": "depth"}))
    assert by_depth.evidence is None
