"""Results show themselves: one line as a value, one screen when printed, all of it nowhere but in their files."""

from __future__ import annotations

import pytest

from steerscope.analysis.shown import LINES, WIDTH, Shown, screen
from steerscope.experiments.site_tables import judge
from steerscope.experiments.validation.result import Validation
from steerscope.experiments.verification.results import Verification
from steerscope.models import wrap_model
from tests.experiments.site_tables.tiny import made_up
from tests.experiments.training import cases
from tests.reports import ranking_cases
from tests.reports.test_figures_of_results import RESULTS, comparison
from tests.tiny import tiny_model, tiny_tokenizer

SHOWN = {
    "thirty layers": (ranking_cases.thirty_layers, ["First 8 of", "equally good", "9.resid_post"]),
    "a hundred layers": (ranking_cases.hundred_layers, ["First 8 of", "is open"]),
    "nothing to tell": (ranking_cases.cannot_tell, ["cannot tell"]),
    "hostile names": (ranking_cases.hostile_names, ["rank"]),
    "bare": (ranking_cases.bare, ["rank"]),
    "verification": (
        lambda: Verification.load(RESULTS / "verify-random.json"),
        ["46 propositions", "P1", "more lines"],
    ),
    "comparison": (comparison, ["accuracy on", "post-block", "majority"]),
    "run": (lambda: cases.results(cases.config()), ["test accuracy 61.0%", "post-block at 0.resid_post", "1,000 of"]),
    "judgement": (lambda: judge(made_up()), ["Admitted", "Scores against trained loss", "depth, then kind"]),
    "evaluation": (cases.evaluation, ["test accuracy 61.0%"]),
}
SHOWN |= {
    path.stem: (lambda path=path: Validation.load(path), ["Spearman", "Before training"])
    for path in RESULTS.glob("validation-*.json")
}


@pytest.mark.parametrize("case", SHOWN)
def test_a_line_and_a_screen(case):
    make, parts = SHOWN[case]
    result = make()
    assert isinstance(result, Shown)
    lines = str(result).split("\n")
    assert 1 <= len(lines) <= LINES
    assert max(map(len, lines)) <= WIDTH
    assert all(part in str(result) for part in parts), str(result)
    assert repr(result).startswith(f"<{type(result).__name__}: ")
    assert "\n" not in repr(result)
    assert len(repr(result)) <= 200
    assert result.headline()[:40] in repr(result)
    shown = result._repr_html_()
    assert shown.startswith("<pre>")
    assert "<" not in shown.removeprefix("<pre>").removesuffix("</pre>")


def test_a_loaded_model_and_its_sites_are_a_line():
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer(), name="tiny")
    assert repr(loaded).startswith("<LoadedModel 'tiny': 2 blocks of width 16 (")
    assert repr(loaded.site_map).startswith("<SiteMap of 2 ")
    assert max(len(repr(one)) for one in (loaded, loaded.site_map)) < 150


def test_a_screen_counts_what_it_leaves_out():
    assert screen(["a b", "c\nd"]) == "a b\n\nc\nd"
    found = screen(["word " * 100, "\n".join(map(str, range(100)))]).split("\n")
    assert len(found) == LINES
    # Five lines of words, one that is empty, seventeen numbers.
    assert found[-2:] == ["16", "... and 83 more lines"]
