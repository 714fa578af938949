"""A second kernel, part of a step on: studies/velocity_share.py against whole Jacobians of the edited model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from steerscope import RankOptions, SiteTable
from steerscope.analysis.data.examples import Example, content_order
from steerscope.models.hooks import edited
from steerscope.models.load import wrap_model
from steerscope.sites import parse_site
from studies import velocity_share as study
from studies import velocity_verdict as verdict
from tests.analysis.test_gauss_newton import prompts as unordered
from tests.documents import ROOT, section_of
from tests.tiny import tiny_model, tiny_tokenizer

TABLE = Path(__file__).parents[1] / "studies" / "site_tables" / "small-gpt2-compare_next.json"


def prompts() -> list[Example]:
    found = unordered()
    return [found[i] for i in content_order(found, 0)]


def look(family="llama", exact=True):
    model = tiny_model(family)
    options = RankOptions(rank=2, batch_size=5)
    return study.SecondLook(
        wrap_model(model.double() if exact else model, tiny_tokenizer()), prompts(), options, exact=exact
    )


@pytest.mark.parametrize(
    ("family", "name"), [("llama", "0.resid_mid"), ("gpt_neox", "1.attn_heads"), ("gemma2", "0.mlp_out")]
)
def test_the_second_kernel_is_that_of_the_edited_model(family, name):
    second, site = look(family), parse_site(name)
    width, scale = second.loaded.site_map.width(site), second.first.scales[site]
    there = torch.randn(width, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64) / 10
    chosen, rows = [0, 7, 23], []
    for example in chosen:

        def outputs(matrix, example=example):
            edit = {site: lambda read: (read / scale) @ matrix.T}
            with edited(second.loaded.model, second.loaded.site_map, edit):
                ids = torch.tensor([second.encoded.sequences[example].ids])
                logits = second.loaded.model(input_ids=ids).logits[0, -1]
            return second.probes.contrasts[3] @ logits[list(second.encoded.choice_tokens[example])]

        rows.append(torch.autograd.functional.jacobian(outputs, there).flatten(1))
    expected = torch.cat(rows) @ torch.cat(rows).T
    found = second.kernel_behind(site, lambda read: (read / scale) @ there.T).probe
    where = torch.cat([(second.rows.example == example).nonzero()[:, 0] for example in chosen])
    torch.testing.assert_close(found[where][:, where], expected, rtol=1e-8, atol=1e-12)
    assert (found - second.kernel(site).probe).norm() > 1e-3 * found.norm()


@pytest.mark.parametrize("exact", [True, False])
def test_with_no_step_the_second_look_sees_what_the_first_one_saw(exact):
    second, site = look(exact=exact), parse_site("0.mlp_hidden")
    before = second.kernel(site)
    again = second.kernel_behind(site, second.step(site, before)[0](0.0))
    error = (again.probe - before.probe).norm() / before.probe.norm()
    assert error < (1e-12 if exact else 2e-3)  # sketches, the same ones, are rounded to eight bits
    scores = second.scores(site, length=0.0)
    near = 1e-9 if exact else 5e-3
    assert scores["velocity_share"] == pytest.approx(scores["learnable_share"], abs=near)
    assert scores["velocity_converged"] == pytest.approx(scores["converged_share"], abs=near)
    assert scores["after_step_share"] == pytest.approx(scores["learnable_share"], abs=near)
    assert second.scores(site)["velocity_share"] != pytest.approx(scores["learnable_share"], abs=1e-6)


def test_the_kernel_changes_in_proportion_to_a_short_step():
    second, site = look(), parse_site("0.resid_post")
    before = second.kernel(site)
    step, zero = second.step(site, before)[0], before.probe
    change = {length: second.kernel_behind(site, step(length)).probe - zero for length in (-1e-3, 5e-4, 1e-3)}
    ratio = change[1e-3].norm() / change[5e-4].norm()
    assert float(ratio) == pytest.approx(2, rel=0.02)
    bent = (change[1e-3] + change[-1e-3]).norm() / change[1e-3].norm()
    assert bent < 0.05  # the part that is even in the step is of second order


def test_the_length_of_a_step_is_that_of_its_matrix_and_bounds_the_part_put_in():
    second, site = look(), parse_site("1.resid_post")
    second.stepper.rank = 16  # nothing is cut
    before, scale = second.kernel(site), second.first.scales[site]
    edit, relative = second.step(site, before)
    matrix = edit(1.0)(torch.diag(scale)).T
    first = second.first
    expected = matrix.norm() * first.read_length[site] / first.held_length[second.loaded.site_map.write(site)]
    assert relative == pytest.approx(float(expected), rel=1e-6)
    short = second.scores(site, longest=relative / 50)
    assert short["part"] == pytest.approx(0.02)
    assert second.scores(site)["part"] == study.HALF
    assert abs(short["kernel_change"]) < abs(second.scores(site)["kernel_change"]) / 5


def test_the_program_keeps_every_site_and_goes_on(tmp_path, monkeypatch, capsys):
    out = tmp_path / "found.json"
    monkeypatch.chdir(TABLE.parents[2])  # the table names its model from there
    fixed = ["velocity_share", str(TABLE), "--layers", "13", "--out", str(out), "--prompts"]
    monkeypatch.setattr(sys, "argv", [*fixed, "24", "--limit", "1"])
    assert study.main() == 0
    first = json.loads(out.read_text())["tables"][TABLE.stem]["sites"]
    assert list(first) == ["13.attn_heads"]
    assert study.main() == 0
    both = json.loads(out.read_text())["tables"][TABLE.stem]["sites"]
    assert list(both) == ["13.attn_heads", "13.attn_out"]
    assert both["13.attn_heads"] == first["13.attn_heads"]
    monkeypatch.setattr(sys, "argv", [*fixed, "25"])
    assert study.main() == 2
    assert "scores of small-gpt2-compare_next from 24 prompts" in capsys.readouterr().err


def made_scores(better, noise=0.3):
    """Scores of a kept table's sites: ``better`` from the trained loss, the others from it with noise."""
    rng = np.random.default_rng(0)
    found = {}
    for one in SiteTable.load(TABLE).outcomes():
        site, off = str(one.site), rng.normal(0, noise)
        own = dict.fromkeys(("learnable_share", "converged_share", "gauss_newton_step"), -one.loss + off)
        own |= dict.fromkeys(("velocity_share", "velocity_converged"), -one.loss + (0 if better else off))
        found[site] = {**own, "kernel_change": -abs(off), "seconds": 1.0}
    return found


def test_the_rule_tells_a_better_score_from_the_same(tmp_path, monkeypatch, capsys):
    for better, expected in ((True, "worth it"), (False, "not worth it")):
        found = {"one": verdict.judged(SiteTable.load(TABLE), made_scores(better, noise=1.0))}
        assert found["one"].admitted
        assert found["one"].judgement.scores["velocity_share"].agreement.spearman == pytest.approx(1) or not better
        assert found["one"].warning.low > 0.2  # the change of the kernel was made from the very errors
        for candidate in verdict.CANDIDATES:
            assert verdict.answer(found, candidate)["verdict"] == expected
    gap = found["one"].differences["velocity_share"]["learnable_share"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((0, 0, 0), abs=1e-12)
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"tables": {TABLE.stem: {"sites": made_scores(True)}}}))
    monkeypatch.setattr(sys, "argv", ["velocity_verdict", str(kept), str(TABLE.parent)])
    assert verdict.main() == 0
    assert "velocity_share: " in capsys.readouterr().out
    assert json.loads(kept.read_text())["judged"]["tables"][TABLE.stem]["sites"] == 98


def test_the_page_says_what_was_kept():
    section = section_of((ROOT / "docs" / "evidence.md").read_text(encoding="utf-8"), "Does a kernel made again")
    kept = json.loads((ROOT / "studies/results/velocity_share.json").read_text(encoding="utf-8"))["judged"]
    counted = [one for one in kept["tables"].values() if one["admitted"]]
    for label, score in (
        ("converged share of `K + K'`", "velocity_converged"),
        ("converged share of `K` |", "converged_share"),
        ("learnable share of `K + K'`", "velocity_share"),
        ("learnable share of `K` |", "learnable_share"),
        ("`gauss_newton_step`", "gauss_newton_step"),
        ("depth, then kind", "depth_then_kind"),
    ):
        (row,) = (line for line in section.splitlines() if line.startswith(f"| {label}"))
        own = [one["scores"][score]["J"] for one in counted]
        assert " | ".join(f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in own) in row
    for one in kept["answers"]:
        assert one["verdict"] == "not worth it"
    for gap in (kept["answers"][0]["differences"][other] for other in verdict.SAME_HALF):
        assert f"{-gap['value']:.2f} " in section
        assert f"[{gap['low']:.2f}, {gap['high']:.2f}]" in section
