"""The report: one file that loads nothing, sentences that do not pretend, the same bytes every time."""

from __future__ import annotations

import io
import re
import shutil
from dataclasses import replace
from itertools import pairwise

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr

from steerscope import reports as report
from steerscope.analysis.result_parts import ReferenceLoss
from steerscope.analysis.results import Ranking
from steerscope.errors import InputError
from steerscope.reports.figure_style import figure_bytes
from steerscope.reports.page_folder import Drawn, draw
from steerscope.reports.ranking import figures, text, verdict
from steerscope.reports.ranking.candidates import agreements, candidates, kind_candidates
from steerscope.reports.ranking.captions import FIGURE_STEMS, figure_entries
from steerscope.reports.ranking.page import render_page
from steerscope.reports.ranking.tables import format_summary, site_table
from steerscope.reports.ranking.trained import foreseen_table, plot_predicted_against_trained
from steerscope.reports.tables import plain_table
from steerscope.reports.vocabulary import clean, format_score, listing, score_words
from tests.reports.pages import Page, assert_sound
from tests.reports.ranking_cases import CASES, format_table

PLOTS = [getattr(figures, name) for name in figures.__all__]


WRITTEN = ("two_layers_parallel", "hostile_names", "bare")


@pytest.fixture(scope="module")
def pages():
    """Every case with its page: name -> (ranking, html). Stand-ins for the figures save half a minute."""
    rankings = {name: case() for name, case in CASES.items()}
    return {
        name: (ranking, render_page(ranking, [Drawn(entry, b"<svg/>") for entry in figure_entries(ranking)]))
        for name, ranking in rankings.items()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Some cases really written: name -> (ranking, folder)."""
    found = {}
    for name in WRITTEN:
        ranking, folder = CASES[name](), tmp_path_factory.mktemp(name)
        assert report.write_report(ranking, folder) == folder / "index.html"
        found[name] = (ranking, folder)
    return found


def test_page_loads_nothing(pages, written):
    htmls = {name: html for name, (_, html) in pages.items()}
    htmls |= {f"{name} as written": (folder / "index.html").read_text() for name, (_, folder) in written.items()}
    for name, html in htmls.items():
        assert_sound(html, name)


def test_every_figure_says_what_it_shows(pages):
    for name, (ranking, html) in pages.items():
        alts = Page(html).alts
        assert len(alts) == len(figure_entries(ranking)), name
        assert all(len(alt) > 40 for alt in alts), name


def test_hostile_names_are_escaped(written):
    ranking, folder = written["hostile_names"]
    html = (folder / "index.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert html.lower().count("<script") == 1, "the page's own"
    for character in ("\x1b", "\u202e"):
        assert character in ranking.task
        assert character not in html
        assert character not in format_summary(ranking)
        assert character not in format_table(ranking)


@pytest.mark.parametrize("name", WRITTEN)
def test_files(written, name):
    ranking, folder = written[name]
    stems = {entry.stem for entry in figure_entries(ranking)}
    assert stems <= set(FIGURE_STEMS)
    assert {path.name for path in folder.iterdir()} == {"index.html", "ranking.json", "figures"}
    expected = {f"{stem}.{ending}" for stem in stems for ending in ("svg", "png")}
    assert {path.name for path in (folder / "figures").iterdir()} == expected
    for stem in stems:
        with Image.open(folder / "figures" / f"{stem}.png") as image:
            image.load()
            assert image.width == 780
            assert len(image.getcolors(1 << 24) or []) > 8, "the picture is blank"
        svg = (folder / "figures" / f"{stem}.svg").read_text(encoding="utf-8")
        assert "<text" not in svg, "text must be paths: the reader may lack the font"
        assert not re.search(r"20\d\d-\d\d-\d\dT", svg), "a date would make equal reports differ"


def test_complete_ranking_has_every_figure():
    # The first two are drawn for rankings that were compared with training alone.
    foreseen, trained, *others = FIGURE_STEMS
    assert (foreseen, trained) == ("foreseen", "predicted_against_trained")
    assert [entry.stem for entry in figure_entries(CASES["thirty_layers"]())] == others
    assert next(entry.stem for entry in figure_entries(CASES["two_layers_parallel"]())) == trained
    assert [entry.stem for entry in figure_entries(CASES["bare"]())] == ["heat_map", "ranking", "kinds_over_depth"]


def test_json_round_trips(written):
    for name, (ranking, folder) in written.items():
        assert Ranking.load(folder / "ranking.json") == ranking, name


def test_same_ranking_same_bytes(written, tmp_path):
    ranking, folder = written["two_layers_parallel"]
    # The second writing goes through JSON and under other settings: neither may leave a trace.
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "none", "axes.grid": True}):
        report.write_report(Ranking.from_json(ranking.to_json()), tmp_path)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert len(files) == 18
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_other_ranking_other_bytes(written):
    first, second = (written[name][1] for name in ("two_layers_parallel", "hostile_names"))
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    shared = {file for file in files if "predicted_against_trained" not in file.name}  # the second was not trained
    assert len(shared) == len(files) - 2
    for file in shared:
        assert (first / file).read_bytes() != (second / file).read_bytes(), file


def test_writing_again_removes_figures_that_no_longer_belong(written, tmp_path):
    shutil.copytree(written["two_layers_parallel"][1], tmp_path, dirs_exist_ok=True)
    assert (tmp_path / "figures" / "greedy_growth.svg").exists()
    (tmp_path / "figures" / "mine.svg").write_text("kept")
    report.write_report(CASES["bare"](), tmp_path)
    assert not (tmp_path / "figures" / "greedy_growth.svg").exists()
    assert (tmp_path / "figures" / "mine.svg").exists()


def test_refuses_a_file_as_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="cannot write the report"):
        report.write_report(CASES["bare"](), tmp_path / "taken")


@pytest.mark.parametrize("name", CASES)
def test_plain_text_fits_a_pipe(name):
    ranking = CASES[name]()
    for printed in (format_table(ranking), format_summary(ranking)):
        printed.encode("ascii")
        assert "\x1b" not in printed
        # What is to be copied is kept whole, however long.
        lines = [line for line in printed.splitlines() if not line.startswith(("  steerscope ", "  SteeringConfig("))]
        assert max(map(len, lines)) <= 100
        assert not re.search(r"\bnan\b|None", printed)


def test_long_names_still_fit():
    ranking = CASES["two_layers_parallel"]()
    long = replace(ranking.sites[0], kind="k" * 200, family="f" * 50, n_params=10**12)
    printed = format_table(replace(ranking, sites=(long, *ranking.sites[1:])))
    assert max(map(len, printed.splitlines())) <= 100


def test_print_is_plain_in_a_pipe_and_rich_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    ranking, pipe, terminal = CASES["hostile_names"](), io.StringIO(), Terminal()
    report.print_ranking(ranking, limit=3, file=pipe)
    report.print_ranking(ranking, limit=3, file=terminal)
    assert pipe.getvalue() == f"{plain_table(site_table(ranking, 3))}\n\n{format_summary(ranking)}\n"
    assert "[red]" in terminal.getvalue(), "markup in a name must stay text"
    assert "1.resid_post" in terminal.getvalue()


def test_cannot_tell_leads_and_recommends_nothing(pages):
    ranking, html = pages["cannot_tell"]
    assert verdict.headline(ranking) == "The data cannot tell the sites apart."
    assert format_summary(ranking).startswith("The data cannot tell the sites apart.\n")
    for said in (format_summary(ranking, verbose=True), html.split("<section")[0]):
        assert "equally good" not in said
        assert "does best" not in said
        assert "SteeringConfig" not in said
        assert "steerscope search smollm2-135m --task capitals" in said
    assert "<h1>The data cannot tell the sites apart.</h1>" in html
    assert html.index("<h1>") < html.index("do not order the sites alike") < html.index("The highest learnable share")
    assert " equal\n" not in format_table(ranking)
    # The same scores with agreeing halves do recommend: it is the stability that silences the report.
    steady = replace(ranking, stability=replace(ranking.stability, can_tell=True, top_agreement=0.9))
    assert "may be it" in verdict.headline(steady)


def test_negative_scores_are_printed_and_explained(pages):
    ranking, html = pages["all_negative"]
    assert max(site.score for site in ranking.sites) < 0
    assert verdict.headline(ranking).startswith("No single site can be recommended")
    assert format_score(ranking.sites[0].score, ranking.score).startswith("-")
    for said in (format_summary(ranking).replace("\n", " "), html):
        assert format_score(ranking.sites[0].score, ranking.score) in said
        assert "worse than predicting no update" in said
    assert not text.negative_sentence(CASES["thirty_layers"]())


def test_interval_that_holds_zero_is_said():
    ranking = CASES["thirty_layers"]()
    wide = replace(ranking.sites[0], ci_low=-0.1)
    assert "includes zero" not in verdict.amount_sentence(ranking)
    assert "includes zero" in verdict.amount_sentence(replace(ranking, sites=(wide, *ranking.sites[1:])))


def test_evidence_warnings_and_mean_are_said(pages):
    unproven, unproven_html = pages["thirty_layers"]
    proven, proven_html = pages["two_layers_parallel"]
    assert "not yet been validated" in format_summary(unproven)
    assert "not yet been validated" in unproven_html
    assert "not yet been validated" not in proven_html
    assert proven.evidence.summary in proven_html
    assert "4 to 6 bits" in unproven_html
    assert "4 to 6 bits" not in proven_html
    assert "makes 62% of the target&#39;s energy. It is left out of the score" in unproven_html
    assert "steerscope rank smollm2-135m --task capitals --seed 0" in unproven_html
    assert "9f2c" * 16 in unproven_html
    # A loader may put its own sentence about quantised weights among the warnings: once is enough.
    twice = replace(unproven, warnings=(unproven.model.quantised,))
    assert len(text.warning_sentences(twice)) == 1


def test_page_and_terminal_say_the_same(pages):
    for name, (ranking, html) in pages.items():
        plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html))
        plain = plain.replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">")
        for sentence in [
            verdict.headline(ranking),
            *verdict.answer_sentences(ranking),
            *text.certainty_sentences(ranking),
        ]:
            assert sentence in plain, (name, sentence)


def test_one_vector_is_one_candidate():
    ranking = CASES["thirty_layers"]()
    vectors = [row for row in candidates(ranking) if row.site.family == "vector"]
    assert sum(row.kinds == ("mlp_out", "resid_post") for row in vectors) == 30
    assert sum(row.kinds == ("attn_out", "resid_mid") for row in vectors) == 30
    assert all(not row.is_merged for row in candidates(ranking) if row.site.family == "linear")
    assert sum(len(row.kinds) for row in candidates(ranking)) == len(ranking.sites)
    assert any(row.label == "mlp_out = resid_post" for row in kind_candidates(ranking))
    trio = [row for row in candidates(CASES["two_layers_parallel"]()) if len(row.kinds) == 3]
    assert [row.kinds for row in trio] == [("attn_out", "mlp_out", "resid_post")] * 2


def test_different_vectors_stay_apart():
    ranking = CASES["thirty_layers"]()
    moved = tuple(
        replace(site, score=site.score + 1e-3) if (site.kind, site.family) == ("mlp_out", "vector") else site
        for site in ranking.sites
    )
    rows = candidates(replace(ranking, sites=moved))
    assert not any("mlp_out" in row.kinds and row.is_merged for row in rows)


def test_agreement_is_spearman():
    ranking = CASES["cannot_tell"]()
    linear = [site for site in ranking.sites if site.family == "linear"]
    for other in agreements(ranking):
        values = [site.scores[other.name] for site in linear]
        expected = spearmanr(values, [site.score for site in linear]).statistic
        assert other.spearman == pytest.approx(expected, abs=1e-12)
        assert {site.scores[other.name] for site in other.best} == {np.max(values)}
    assert ranking.score not in {other.name for other in agreements(ranking)}


def test_constant_score_has_no_correlation():
    ranking = CASES["two_layers_parallel"]()
    by_name = {other.name: other for other in agreements(ranking)}
    # With two layers both are equally near the middle.
    assert by_name["middle_layer"].spearman is None
    assert len(by_name["middle_layer"].best) == 13
    report.plot_other_scores(ranking)


@pytest.mark.parametrize("name", CASES)
def test_plots_draw_or_refuse(name):
    ranking = CASES[name]()
    drawn = {entry.plot for entry in figure_entries(ranking)}
    for plot in PLOTS:
        if plot in drawn:
            assert plot(ranking).axes
        else:
            with pytest.raises(InputError):
                plot(ranking)
    assert not plt.get_fignums(), "figures must not join pyplot's global list"


def test_heat_map_holds_every_cell_of_both_families():
    ranking = CASES["thirty_layers"]()
    axes = [ax for ax in report.plot_heat_map(ranking).axes if ax.get_xlabel().endswith("edits")]
    assert [ax.get_xlabel() for ax in axes] == ["linear edits", "vector edits"]
    best = ranking.sites[0].score
    for ax, family in zip(axes, ("linear", "vector"), strict=True):
        cells = np.ma.asarray(ax.collections[0].get_array())
        assert cells.shape == (30, 8)
        assert int(np.ma.count_masked(cells)) == 29
        sites = [site for site in ranking.sites if site.family == family]
        for site in sites:
            column = [label.get_text() for label in ax.get_xticklabels()].index(site.kind)
            assert cells[site.layer, column] == pytest.approx(100 * (best - site.score))
        assert len([label for label in ax.texts if label.get_text()]) == 211
        hatched = [patch for patch in ax.patches if patch.get_hatch() == "xxx"]
        framed = [patch for patch in ax.patches if patch.get_linewidth() == 1.1]
        assert len(hatched) == sum(site.standing == "undetermined" for site in sites)
        assert len(framed) == sum(site.standing == "equal" for site in sites)
    assert len(report.plot_heat_map(ranking, "vector").axes) == 2
    with pytest.raises(InputError, match="no sites of family 'cubic'"):
        report.plot_heat_map(ranking, "cubic")


def test_one_awful_site_does_not_eat_the_colours():
    ranking = CASES["thirty_layers"]()
    awful = replace(ranking.sites[-1], score=-40.0, ci_low=-41.0, ci_high=-39.0)
    worse = replace(ranking, sites=(*ranking.sites[:-1], awful))
    panels = [ax for ax in report.plot_heat_map(worse).axes if ax.get_xlabel().endswith("edits")]
    norm = panels[0].collections[0].norm
    assert norm.vmin == 0
    assert norm.vmax < 50
    below = f"{100 * (ranking.sites[0].score + 40):.0f}"
    assert any(label.get_text() == below for ax in panels for label in ax.texts)


def test_a_page_stays_below_a_megabyte(pages):
    ranking, _ = pages["thirty_layers"]
    drawn = [draw(entry, ranking) for entry in figure_entries(ranking)]
    assert len(render_page(ranking, drawn)) < 1_000_000
    unsure = tuple(replace(site, standing="undetermined") for site in ranking.sites[1:])
    mixed = replace(ranking, sites=(ranking.sites[0], *unsure))
    assert len(figure_bytes(report.plot_heat_map(mixed), "svg")) < 350_000
    # One spot per site and family, inside the figure.
    (cells,) = [one.spots for one in drawn if one.entry.stem == "heat_map"]
    assert len(cells) == len(ranking.sites)
    assert len({(round(spot.left, 3), round(spot.top, 3)) for spot in cells}) == len(cells)
    assert all(0 <= spot.left < spot.left + spot.width <= 1 and 0 <= spot.top <= 1 for spot in cells)
    best = ranking.sites[0]
    assert sum(spot.text.startswith(f"{best.name} ({best.family}): ") for spot in cells) == 1
    assert "below the best, worse" in "".join(spot.text for spot in cells)


def test_axes_do_not_hold_a_zero_that_is_far_away():
    near, far = CASES["cannot_tell"](), CASES["plateau"]()
    assert report.plot_ranking(near).axes[0].get_xlim()[0] <= 0
    assert report.plot_ranking(far).axes[0].get_xlim()[0] > 85
    assert report.plot_kinds_over_depth(far).axes[0].get_ylim()[0] > 30


def test_unknown_names_are_not_fatal():
    ranking = CASES["two_layers_parallel"]()
    sites = tuple(
        replace(site, kind=f"new_{site.kind}", family="cubic", scores={**site.scores, "brand_new": site.score})
        for site in ranking.sites
    )
    strange = replace(ranking, score="brand_new", sites=sites, task="汉字 $x")
    # Saving draws: a glyph that the font lacks would warn here.
    drawn = [draw(entry, strange) for entry in figure_entries(strange)]
    html = render_page(strange, drawn)
    assert "brand new" in html
    assert "汉字" in html
    assert "%" not in verdict.amount_sentence(strange).replace("95%", "")


def test_empty_ranking_is_reported_not_raised(tmp_path):
    empty = replace(CASES["bare"](), sites=())
    assert "no sites" in verdict.headline(empty)
    assert format_table(empty) == ""
    assert "no sites" in report.write_report(empty, tmp_path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "name", "printed"),
    [
        (0.4127, "learnable_share", "41.3%"),
        (-0.0001, "learnable_share", "0.0%"),
        (-12.5, "learnable_share", "-1,250.0%"),
        (0.4127, "alignment", "0.413"),
        (1234.5, "gradient_norm", "1.23e+03"),
    ],
)
def test_format_score(value, name, printed):
    assert format_score(value, name) == printed


def test_words():
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a", "b", "c"], limit=2) == "a, b and 1 more"
    assert clean("a\x1b[2J\n b\u202e\ud83d") == "a [2J b"
    assert clean("abcdefghij", 6) == "ab..ij"
    assert score_words("my_own").label == "my own"


def test_names_of_reference_lines_that_are_close_stay_apart():
    ranking = CASES["two_layers_parallel"]()
    lines = tuple(ReferenceLoss(name, 2.1 + 0.001 * i) for i, name in enumerate(["no training", "lora", "full"]))
    figure = plot_predicted_against_trained(replace(ranking, evidence=replace(ranking.evidence, references=lines)))
    figure.canvas.draw()
    names = {line.name for line in lines}
    found = [text for text in figure.axes[0].texts if text.get_text() in names]
    boxes = [text.get_window_extent() for text in sorted(found, key=lambda text: text.xy[1])]
    assert len(boxes) == 3
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


@pytest.mark.parametrize(("attainable", "words"), [(0.7, "a perfect score would have"), (0.0, "no order here")])
def test_what_an_attainable_correlation_means_is_said(attainable, words):
    ranking = CASES["two_layers_parallel"]()
    assert words in foreseen_table(replace(ranking, evidence=replace(ranking.evidence, attainable=attainable))).note
