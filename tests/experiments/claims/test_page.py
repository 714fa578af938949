"""What the page says of runs, in its summary and its tables."""

from __future__ import annotations

import pytest

from steerscope.experiments.comparison import compare
from steerscope.reports.comparison.figures import plot_comparison
from steerscope.reports.comparison.tables import comparison_table
from studies.claims.__main__ import main
from studies.claims.groups import studies
from studies.claims.page import render
from studies.claims.sections import SECTIONS
from tests.experiments.claims.cases import REAL, first, run, untrained


def test_configurations_of_one_method_have_different_names(tmp_path):
    for settings in ({}, {"positions": "last"}, {"bias": False}, {"start": "published"}, {"scale": "rms"}):
        run(tmp_path, "post-block", [first(9)], **settings)
    for constraint in ("none", "input"):
        run(tmp_path, "joint", [first(9)], constraint=constraint)
    names = [row[0] for row in comparison_table(compare([tmp_path])).rows]
    assert sorted(names) == [
        "joint constraint input",
        "joint constraint none",
        "post-block",
        "post-block on last",
        "post-block published start",
        "post-block scaled",
        "post-block without bias",
    ]
    legend = [text.get_text() for text in plot_comparison(compare([tmp_path])).legends[0].get_texts()]
    assert len({label for label in legend if label.startswith(("post-block", "joint"))}) == 7


def test_without_runs_the_page_says_so(tmp_path):
    assert main([str(tmp_path / "claims.md")]) == 0
    page = (tmp_path / "claims.md").read_text()
    assert "No runs yet of a real model with today's prompts: every claim is open." in page
    assert page.count("No runs to decide it yet.") == len(SECTIONS) + 1
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "claims.md")]) == 2


def page_of(folder) -> str:
    return render(studies([folder]), [])


def sentence(page: str, letter: str) -> str:
    (found,) = [line for line in page.splitlines() if line.startswith(f"- **({letter})**")]
    return found


def claims_of(folder, model: dict | None = None, **settings):
    untrained(folder, 20, model=model)
    for method, kind, count in (
        ("post-block", "resid_post", 150),
        ("post-mlp", "mlp_out", 100),
        ("mlp-in", "mlp_in", 80),
    ):
        run(folder, method, [first(count + i) for i in range(3)], kind, model=model, **settings)
    run(folder, "attn-out", [first(140 + i) for i in range(3)], "attn_out", model=model, **settings)
    run(folder, "lora", [first(130 + i) for i in range(3)], None, parameters=1050, rank=1, model=model, **settings)
    run(folder, "lora", [first(150 + i) for i in range(3)], None, parameters=8000, model=model, **settings)


def test_the_summary_comes_first_and_says_every_claim_of_the_real_model(tmp_path):
    claims_of(tmp_path, REAL)
    page = page_of(tmp_path)
    assert page.index("## Summary") < page.index("## The rule") < page.index("## Runs")
    assert "listops, tiny, 120 steps of 32, 200 test questions (3 seeds): counts, since the best of 6 methods" in page
    found = sentence(page, "a")
    assert ": **not reproduced**." in found
    assert "post-block >= post-mlp +25.0 [+19.1, +30.9], reproduced" in found
    assert "post-mlp >= attn-out -20.0 [-25.5, -14.5], not reproduced" in found
    assert "post-mlp >= mlp-in +10.0 [+5.9, +14.1], reproduced" in found
    found = sentence(page, "c")
    assert ": **undecided**." in found
    assert "post-block against loreft: no runs" in found
    assert "Apart, at equal parameters: post-block r8 >= lora r1 +10.0 [+5.9, +14.1], reproduced." in found
    for letter in ("b", "d", "e", "e, constraint", "f"):
        assert "**no runs** of this model" in sentence(page, letter)
    table = page[page.index("## (c)") : page.index("## (d)")]
    assert table.index("Apart, at equal parameters:") < table.index("| post-block r8 >= lora r1 |")
    assert "| post-block >= loreft | - | - | no runs |  |" in table


@pytest.mark.parametrize(
    ("model", "settings", "title"),
    [(None, {}, "## Appendix: tiny models"), (REAL, {"recipe": 1}, "## Appendix: earlier runs")],
)
def test_tiny_models_and_earlier_prompts_stand_in_an_appendix(tmp_path, model, settings, title):
    claims_of(tmp_path, model, **settings)
    page = page_of(tmp_path)
    summary, appendix = page[: page.index(title)], page[page.index(title) :]
    assert "**no runs** of this model" in sentence(summary, "a")
    assert "post-block r8" not in summary
    assert "| post-mlp r8 >= attn-out r8 | 1,000 : 1,000 | -20.0 [-25.5, -14.5] | not reproduced |" in appendix
    assert "## Appendix" not in appendix[len(title) :]


def test_several_trainings_are_counted_and_those_that_do_not_count_are_named(tmp_path):
    claims_of(tmp_path, REAL)
    for method, kind, count in (("post-block", "resid_post", 150), ("post-mlp", "mlp_out", 100)):
        run(tmp_path, method, [first(count + i) for i in range(3)], kind, model=REAL, steps=60)
        run(tmp_path, method, [first(15)] * 3, kind, model=REAL, steps=30)
    page = page_of(tmp_path)
    assert ": **not reproduced on 1, undecided on 1** of 2 trainings." in sentence(page, "a")
    (line,) = [line for line in page.splitlines() if line.startswith("- listops, tiny, 30 steps of 32")]
    assert "(3 seeds): does not count, since the best of 2 methods, post-block, does not surely gain: -2.5" in line


def test_a_claim_without_a_training_that_counts_is_undecided(tmp_path):
    claims_of(tmp_path, REAL)
    (tmp_path / "none-8-0" / "recalibrated.json").write_text('{"accuracy": 0.9, "n": 200}')
    found = sentence(page_of(tmp_path), "a")
    assert ": **undecided**, as no training with runs of it counts" in found


def test_the_page_gives_intervals_over_seeds_and_how_searches_went(tmp_path):
    untrained(tmp_path, 20, model=REAL)
    run(tmp_path, "post-block", [first(120), first(130), first(125)], model=REAL, lr_steps=60)
    run(tmp_path, "lora", [first(120)] * 3, None, model=REAL, interior=False)
    page = page_of(tmp_path)
    (block,) = [line for line in page.splitlines() if line.startswith("| post-block r8 | 1,000 |")]
    (lora,) = [line for line in page.splitlines() if line.startswith("| lora r8 | 1,000 |")]
    # 4.303 standard errors of the mean of 60%, 65% and 62.5%.
    assert "| 62.5% | [56.3%, 68.7%] | [55.6%, 68.9%] | 0.003 (searched with 60 steps) |" in block
    assert lora.endswith("| 0.003 (searched, at the edge of the budget) |")
    assert "(3 seeds, learning rates searched with 60 steps): counts" in page


def test_the_page_says_what_would_decide(tmp_path):
    untrained(tmp_path, 20, model=REAL)
    run(tmp_path, "post-block", [first(120), first(126), first(117)], model=REAL)
    run(tmp_path, "sft", [first(118)] * 3, None, model=REAL)
    page = page_of(tmp_path)
    (row,) = [line for line in page.splitlines() if line.startswith("| post-block r8 >= sft")]
    assert row.split("|")[4].strip() == "undecided"
    assert row.split("|")[5].strip().endswith("would decide")
    assert "of two equal methods, one would be found at least as good as the other in" in page
