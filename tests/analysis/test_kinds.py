"""A kind at all its layers is the sum of its sites' kernels, each at unit scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from steerscope.analysis.capture.capture import capture
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring import kernels
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores.learnable_share import share_of
from steerscope.models.load import wrap_model
from tests.analysis.test_slices import examples
from tests.tiny import tiny_model, tiny_tokenizer

OPTIONS = RankOptions(num_probes=2, num_groups=4, max_sites=1)


@pytest.mark.parametrize("few", [0.0, 1e9], ids=["by matrices", "by features"])
def test_a_kind_is_the_sum_of_its_sites(few, monkeypatch):
    monkeypatch.setattr(kernels, "_FEW", few)
    loaded = wrap_model(tiny_model("llama").double(), tiny_tokenizer())
    kept = []

    def captured(*given, **more):
        kept.append(capture(*given, **more))
        return replace(kept[0], linear=dict(kept[0].linear))

    found = rank_sites(loaded, examples("one token"), OPTIONS, capture_by=captured)
    (features,) = kept
    rows = Rows.of(features)
    count = features.valid.shape[0]
    halves = (range(count // 2), range(count // 2, count))
    problem = Problem.of(Kernel.of(features.weights, features, rows), rows, halves, num_groups=4, ridge=1.0)
    assert {(kind.kind, kind.family) for kind in found.kinds} == {(s.kind, s.family) for s in found.sites}
    for kind in found.kinds:
        sites = [site for site in loaded.site_map.sites() if site.kind.value == kind.kind]
        assert len(sites) == kind.n_layers
        total = torch.zeros(len(rows.example), len(rows.example), dtype=torch.float64)
        for site in sites:
            feature = features.linear[site] if kind.family == "linear" else features.vector[loaded.site_map.write(site)]
            own = Kernel.of([feature], features, rows).probe
            total += own / own.diagonal().mean()
        expected = jackknife_interval(share_of(total, problem), 1.0)
        assert (kind.score, kind.ci_low, kind.ci_high) == pytest.approx(
            expected, abs=2e-6
        )  # kernels of linear edits are kept in float32
