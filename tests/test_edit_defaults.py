"""Which bias and scale an edit has by default: studies/edit_defaults.py."""

from __future__ import annotations

import math

import pytest

from steerscope.models.load import wrap_model
from studies.edit_defaults import VARIANTS, contrasts, run
from tests.byte_models import byte_model, byte_tokenizer


def losses_of(cost):
    sites = ("1.resid_post", "3.resid_post", "1.mlp_out", "3.attn_out")
    return {(site, bias, scale): (cost(site, bias, scale),) * 2 for site in sites for bias, scale in VARIANTS}


def test_a_contrast_is_what_the_other_value_changes_at_every_site():
    """A missing bias costs 0.5 and 0.1 by turns of the sites; division by the rms helps branches alone."""

    def cost(site, bias, scale):
        helped = scale == "rms" and not site.endswith("resid_post")
        return 1.0 + (0.0 if bias else 0.5 if site[0] == "1" else 0.1) - (0.2 if helped else 0.0)

    rows = {(row["factor"], row["sites"]): row for row in contrasts(losses_of(cost))}
    assert rows["no bias", "all"]["difference"] == pytest.approx(0.3)
    # Standard error of (0.5, 0.1, 0.5, 0.1), times Student's t of 3 degrees of freedom at 97.5%.
    assert rows["no bias", "all"]["high"] - 0.3 == pytest.approx(3.1824 * math.sqrt(4 * 0.04 / 3) / 2, abs=1e-4)
    assert rows["no bias", "all"]["better"] == 0
    assert rows["rms", "stream"]["difference"] == pytest.approx(0.0)
    assert (rows["rms", "branches"]["difference"], rows["rms", "branches"]["better"]) == (pytest.approx(-0.2), 2)
    assert rows["rms", "all"]["number"] == 4


def test_a_site_where_a_variant_diverged_is_left_out():
    losses = losses_of(lambda site, bias, scale: 1.0)
    losses["1.mlp_out", True, "rms"] = (math.inf, 1.0)
    assert {row["number"] for row in contrasts(losses) if row["sites"] == "all"} == {3}


def test_the_study_runs_on_a_tiny_model_and_goes_on(tmp_path):
    loaded = wrap_model(byte_model(), byte_tokenizer())
    given = {"steps": 3, "batch_size": 4, "seeds": 1}
    none = run(loaded, "compare", ["0.resid_post", "1.mlp_out"], tmp_path, minutes=0.0, **given)
    assert none["missing"] == ["0.resid_post", "1.mlp_out"]
    first = run(loaded, "compare", ["0.resid_post"], tmp_path, minutes=5.0, **given)
    assert [(one["bias"], one["scale"]) for one in first["edits"]] == list(VARIANTS)
    assert all(len(one["tried"]) >= 3 for one in first["edits"])
    again = run(loaded, "compare", ["0.resid_post"], tmp_path, minutes=0.0, **given)
    assert again["edits"] == first["edits"]
