"""How a ranking says it was made: typed, read strictly, and read from files of before."""

import json

import pytest

from steerscope import InputError
from steerscope.analysis.results import Ranking
from tests.reports.ranking_cases import plateau

# What the first version wrote.
FIRST = {
    "model": {"name": "m", "revision": None, "sha256": "a", "layers": 2, "quantised": None, "layout": "parallel",
              "d_model": 16, "n_params": 1000, "dtype": "float32"},
    "outputs": {"description": "logits", "mode": "completion", "n_probes": 4, "n_backward": 5, "spans": False,
                "mean_energy": 0.5, "n_tokens": 100, "model_accuracy": 0.25, "model_loss": 2},
    "kernels": {"exact": True, "description": "exact"},
    "settings": {"ridge": 1.0, "rank": 8, "num_groups": 12, "n_fit": 24, "max_sites": 8, "budget": None,
                 "batch_size": 16, "kinds": ["mlp_out", "resid_post"]},
}  # fmt: skip


def test_a_ranking_of_the_first_version_is_read():
    found = Ranking.from_dict(json.loads(plateau().to_json()) | FIRST)
    assert (found.model.name, found.model.setup) == ("m", "")
    assert (found.outputs.model_loss, found.outputs.constant_accuracy) == (2, None)
    assert (found.kernels.exact, found.kernels.sketch_error, found.kernels.rounding_error) == (True, None, None)
    assert found.settings.kinds == ("mlp_out", "resid_post")
    assert (found.settings.extra, found.settings.command, found.settings.recipe) == ((), None, None)
    again = json.loads(found.to_json())
    assert {name: again[name] | told for name, told in FIRST.items()} == {name: again[name] for name in FIRST}


def test_evidence_of_before_is_read():
    line = {"model": "m", "spearman": 0.5, "low": 0.1, "high": 0.8}
    told = {"summary": "Trained.", "spearman": 0.5, "ceiling": 0.9, "agreements": [{"score": "depth"}],
            "studies": [line], "points": [{"site": "1.mlp_out", "score": 1, "loss": None, "low": 2.0, "high": 2.5}],
            "references": [{"name": "lora", "loss": 2}]}  # fmt: skip
    found = Ranking.from_dict(json.loads(plateau().to_json()) | {"evidence": told}).evidence
    assert (found.summary, found.spearman, found.attainable, found.task) == ("Trained.", 0.5, None, None)
    assert (found.points[0].site, found.points[0].loss, found.references[0].loss) == ("1.mlp_out", None, 2)
    assert (found.agreements[0]["score"], found.studies) == ("depth", (line,))


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("outputs", {"n_probes": "many"}, "outputs.n_probes is 'many'; expected a valid integer"),
        ("kernels", {"exact": "yes"}, "kernels.exact is 'yes'; expected a valid boolean"),
        ("settings", {"rank": None}, "settings.rank is None; expected a valid integer"),
        ("settings", {"riigde": 1.0}, "unknown 'settings.riigde'"),
        ("model", {"layers": 2.5}, "model.layers is 2.5; expected a valid integer"),
    ],
)
def test_what_is_no_such_value_is_refused(part, change, message):
    told = json.loads(plateau().to_json())
    with pytest.raises(InputError, match=message):
        Ranking.from_dict(told | {part: told[part] | change})


def test_what_is_missing_is_refused():
    told = json.loads(plateau().to_json())
    del told["outputs"]["mean_energy"]
    with pytest.raises(InputError, match=r"it lacks 'outputs\.mean_energy'"):
        Ranking.from_dict(told)
