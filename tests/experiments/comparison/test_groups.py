"""Runs side by side: seeds together, intervals that say what they cover, and no comparison of unlike tests."""

import io
import json
from dataclasses import replace

import pytest

from steerscope import InputError
from steerscope.experiments.comparison import compare
from steerscope.experiments.comparison.groups import Comparison
from steerscope.experiments.evaluation import wilson_interval
from steerscope.reports.comparison.figures import plot_comparison
from steerscope.reports.comparison.page import write_comparison
from steerscope.reports.comparison.tables import comparison_table, duration, print_comparison
from tests.experiments.training.cases import MODEL, evaluation, finished
from tests.identities import identity
from tests.reports.terminal import Terminal


@pytest.fixture
def runs(tmp_path):
    for seed, correct in enumerate((60, 70, 62)):
        finished(tmp_path / f"block-{seed}", evaluation(correct), seed=seed)
    finished(tmp_path / "lora", evaluation(55), 4000, method="lora", sites=())
    finished(tmp_path / "base", evaluation(10), 0, method="none", sites=(), rank=None)
    return tmp_path


def test_seeds_make_one_row(runs):
    found = compare([runs])
    assert [(e.method, e.seeds) for e in found.entries] == [("post-block", (0, 1, 2)), ("lora", (0,)), ("none", (0,))]
    block, lora, _ = found.entries
    assert block.accuracies == (0.60, 0.70, 0.62)
    assert block.accuracy == pytest.approx(0.64)
    assert block.spread == pytest.approx(0.052915, abs=1e-5)
    # At 100 questions, not at 300 answers.
    assert (block.low, block.high) == wilson_interval(block.accuracy, 100)
    assert block.high - block.low > 1.6 * (wilson_interval(0.64, 300)[1] - wilson_interval(0.64, 300)[0])
    assert lora.spread is None
    assert (found.n, found.majority, found.task) == (100, 0.124, "listops")
    # One by one, in another order, and once more: the same runs.
    places = [runs / name for name in ("lora", "base", "block-2", "block-0", "block-1")]
    assert [e.folders for e in compare([*places, runs / "lora"]).entries] == [e.folders for e in found.entries]


def test_other_settings_are_other_configurations(runs):
    finished(runs / "slow", evaluation(61), settings={"learning_rate": 1e-4, "steps": 120}, seed=4)
    finished(runs / "half", evaluation(61), model=replace(MODEL, dtype="bfloat16"), seed=5)
    finished(runs / "rank", evaluation(61), rank=4, seed=6)
    assert len(compare([runs]).entries) == 6


@pytest.mark.parametrize(
    ("changes", "other", "message"),
    [
        ({"task": "boolq"}, {"task": "boolq"}, "task is 'boolq' in .* and 'listops' in"),
        ({"test_set": "e" * 16}, {}, "test_set is"),
        ({"n": 200}, {}, "n is 200 in"),
    ],
)
def test_unlike_tests_are_refused(runs, changes, other, message):
    finished(runs / "a-new", evaluation(**changes), method="lora", sites=(), seed=9, **other)
    with pytest.raises(InputError, match=rf"(?s)answered different questions: {message}"):
        compare([runs])


def test_the_same_run_twice_is_refused(runs):
    finished(runs / "copy", evaluation(60), seed=0)
    with pytest.raises(InputError, match="same configuration with the same seed 0"):
        compare([runs])


def test_bad_folders(runs):
    with pytest.raises(InputError, match="there is no folder"):
        compare([runs / "nowhere"])
    (runs / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no finished run: .*results.json"):
        compare([runs / "lora", runs / "empty"])
    with pytest.raises(InputError, match="got no folders"):
        compare([])
    (runs / "lora" / "results.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        compare([runs])


def test_table(runs):
    found = compare([runs])
    table = comparison_table(found)
    assert table.rows[0] == (
        "post-block", "0.resid_post, 1.resid_post", "8", "1,000", "3", "64.0%", "[54.2%, 72.7%]", "5.3%", "1.0G", "77s",
    )  # fmt: skip
    assert table.rows[2][:3] == ("none", "-", "-")
    plain, rich = io.StringIO(), Terminal()
    print_comparison(found, file=plain)
    print_comparison(found, file=rich)
    assert "majority 12.4%" in plain.getvalue()
    assert "not pooled" in plain.getvalue()
    assert "\x1b" not in plain.getvalue()
    assert "─" in rich.getvalue()
    assert max(map(len, plain.getvalue().splitlines())) <= 110
    finished(runs / "big", evaluation(50), model=identity(name="big[red]", sha256="cd"), seed=0)
    assert "lora, tiny" in [row[0] for row in comparison_table(compare([runs])).rows]


def test_site_words(runs):
    sites = tuple(f"{i}.resid_post" for i in range(30))
    finished(runs / "all", evaluation(50), sites=sites)
    finished(runs / "mixed", evaluation(51), sites=(*sites[:4], "3.mlp_out"))
    words = [entry.site_words for entry in compare([runs]).entries]
    assert "resid_post x30" in words
    assert "0.resid_post, 1.resid_post, 2.resid_post and 2 more" in words


def test_duration():
    assert [duration(s) for s in (5, 99.4, 600, 7200)] == ["5s", "99s", "10min", "2.0h"]


def test_figure_draws_what_the_table_says(runs):
    found = compare([runs])
    axes = plot_comparison(found).axes[0]
    assert axes.get_xscale() == "log"
    points = {tuple(map(float, c.lines[0].get_xydata()[0])) for c in axes.containers}
    assert points == {(1000.0, 100 * found.entries[0].accuracy), (4000.0, 100 * found.entries[1].accuracy)}
    assert {100 * found.majority, 100 * found.entries[2].accuracy} <= {line.get_ydata()[0] for line in axes.lines}
    finished(runs / "twin", evaluation(57), 4000, method="joint", sites=())
    twins = plot_comparison(compare([runs])).axes[0].containers[1:]
    assert sorted(float(c.lines[0].get_xydata()[0][0]) for c in twins) == pytest.approx([4000 / 1.09, 4000 * 1.09])
    nothing = Comparison(found.task, found.test_set, found.n, found.majority, found.entries[2:])
    assert plot_comparison(nothing).axes[0].get_xscale() == "linear"


def test_files(runs, tmp_path):
    page = write_comparison(compare([runs]), tmp_path / "out")
    written = sorted(path for path in page.parent.rglob("*") if path.is_file())
    assert [path.name for path in written] == ["comparison.json", "comparison.png", "comparison.svg", "index.html"]
    saved = json.loads(written[0].read_text())
    assert saved["entries"][0]["accuracies"] == [0.6, 0.7, 0.62]
    before = [path.read_bytes() for path in written]
    write_comparison(compare([runs]), tmp_path / "out")
    assert before == [path.read_bytes() for path in written]
