"""What is counted of a shape is what is counted of a loaded model of it, and what the document says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scale_on_paper import SHAPES, rows
from benchmarks.shapes import Shape, ranking_features, ranking_operations, sweep_operations
from steerscope import wrap_model
from steerscope.analysis.capture.features import SketchPlan, feature_bytes
from steerscope.experiments.sweeping.cost import operations_per_token
from steerscope.experiments.sweeping.options import spread_sites
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer

TINY = Shape("tiny", 2, 16, 20, 4, 2, 4, VOCAB)


@pytest.fixture(scope="module")
def loaded():
    return wrap_model(tiny_model("llama"), tiny_tokenizer())


def test_a_shape_counts_as_the_model_does(loaded):
    matrices = sum(p.numel() for p in loaded.model.parameters() if p.dim() > 1)
    assert TINY.parameters == matrices
    assert TINY.operations_per_token() == operations_per_token(loaded)
    plan = SketchPlan(False, 2, 4, 8)
    assert ranking_features(TINY, 3, 5, plan) == feature_bytes(loaded, 3, 5, plan, 4)
    assert len(loaded.site_map.sites()) == TINY.sites
    assert len(spread_sites(loaded.site_map, "all")) == TINY.kinds * TINY.layers


def test_operations_by_hand():
    weights = 2 * (4 * 16 * 16 - 2 * 16 * 8 + 3 * 16 * 20)
    assert ranking_operations(TINY, tokens=10, passes=5) == 2 * weights * 10 * 6
    assert sweep_operations(TINY, [1], tokens=10, tries=3, seeds=2) == 7 * 4 * 10 * 4 * weights / 2


def test_known_models_have_the_weights_of_their_names():
    billions = {shape.name: shape.parameters / 1e9 for shape in SHAPES}
    assert billions["135M"] == pytest.approx(0.135, rel=0.01)
    assert billions["8B"] == pytest.approx(8.03, rel=0.01)
    assert billions["70B"] == pytest.approx(70.6, rel=0.01)
    assert billions["235B, 22B active"] == pytest.approx(235, rel=0.01)
    experts = SHAPES[-1]
    assert (experts.layers * experts.per_block + 2 * experts.vocab * experts.d_model) / 1e9 == pytest.approx(
        22, rel=0.03
    )


def test_the_document_has_these_numbers():
    text = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert "\n".join(rows()) in text
