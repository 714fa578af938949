"""Pages of every kind of result: the first screen answers, all is sound, and nothing else in a folder is touched."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from steerscope import InputError, Validation, Verification, reports
from steerscope.analysis.result_parts import Evidence, ReferenceLoss, TrainedPoint
from steerscope.experiments.site_tables import judge
from steerscope.reports import svg
from steerscope.reports.comparison.page import told_apart
from steerscope.reports.figure_style import figure_bytes
from steerscope.reports.ranking.cost import choices, pareto_line
from steerscope.reports.site_tables.trained_table import best_sites
from tests.experiments.site_tables.tiny import made_up
from tests.reports import ranking_cases
from tests.reports.pages import assert_sound, contrast, palette
from tests.reports.search_cases import searched
from tests.reports.test_figures_of_results import RESULTS, comparison, on_blocks

LISTOPS = RESULTS / "validation-smollm2-135m-listops.json"


compared = cache(comparison)  # its folders are new ones every time

WRITERS = {
    "validation": (lambda folder: reports.write_validation(Validation.load(LISTOPS), folder), "validation.json"),
    "search": (lambda folder: reports.write_search(searched(), folder), "search.json"),
    "site table": (lambda folder: reports.write_site_table(made_up(), folder), "table.json"),
    "a few sites": (lambda folder: reports.write_site_table(made_up(1, scores={}), folder), "table.json"),
    "judgements": (lambda folder: reports.write_judgements([judge(made_up()), judge(made_up(seeds=1))], folder),
                   "judgements.json"),
    "comparison": (lambda folder: reports.write_comparison(compared(), folder), "comparison.json"),
    "verification": (lambda folder: reports.write_verification(on_blocks(), folder), "verify.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every kind of page: name -> folder."""
    found = {}
    for name, (write, _) in WRITERS.items():
        folder = tmp_path_factory.mktemp("pages") / name.replace(" ", "-")
        assert write(folder) == folder / "index.html"
        found[name] = folder
    return found


def text_of(html: str) -> str:
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html.split("<body>")[1].split("<script>")[0]))
    return plain.replace("&#39;", "'").replace("&#34;", '"')


@pytest.mark.parametrize("name", WRITERS)
def test_every_page_is_sound(written, name):
    html = (written[name] / "index.html").read_text(encoding="utf-8")
    page = assert_sound(html, name)
    assert len(html) < 1_000_000
    stems = {path.stem for path in written[name].glob("figures/*")}
    there = {"index.html", WRITERS[name][1], *(["figures"] if stems else [])}
    assert {path.name for path in written[name].iterdir()} == there
    assert bool(stems) != (name == "a few sites")
    assert len(page.alts) == len(stems)
    assert html.count("<table data-sort") or name == "a few sites"


SAYS = {
    "validation": ["not surely better than chance", "did best at 3.mlp_out", "came out 0.073 nats above it",
                   "steerscope train smollm2-135m --task listops --method post-block --site 3.mlp_out --rank 8"],
    "search": ["Train at 9.resid_post: 61.0% of test examples right, untrained 20.0%", "lora, with 460,800 numbers, is "
               "behind", "cannot be told from it", "--task listops --adapter found/adapter"],
    "site table": ["Train at 0.mlp_in", "steerscope train small --task", "--site 0.mlp_in", "Admitted"],
    "a few sites": ["Train at 0.mlp_in"],
    "judgements": ["1 of 2 tables may judge scores", "may not judge scores", "foresaw training best: Spearman 1.00"],
    "comparison": ["cannot be told from", "always giving the most frequent answer"],
    "verification": ["Nothing fails", "46 propositions"],
}  # fmt: skip


@pytest.mark.parametrize("name", SAYS)
def test_the_first_screen_answers(written, name):
    header = text_of((written[name] / "index.html").read_text(encoding="utf-8"))
    for part in SAYS[name]:
        assert part in header, (part, header[:1500])


def test_the_same_bytes_again_and_a_result_that_is_there_stays(written, tmp_path):
    for name in ("search", "comparison"):
        folder, (write, file) = written[name], WRITERS[name]
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        stamp = (folder / file).stat()
        (folder / "mine").mkdir()
        (folder / "mine" / "kept.json").write_text("{}")
        write(folder)
        assert {path: path.read_bytes() for path in before} == before
        after = (folder / file).stat()
        assert (after.st_ino, after.st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)
        assert (folder / "mine" / "kept.json").read_text() == "{}"
        (folder / "mine" / "kept.json").unlink()
        (folder / "mine").rmdir()


def test_a_page_goes_into_no_folder_of_something_else(written, tmp_path):
    for name, (write, _) in WRITERS.items():
        for other, folder in written.items():
            if WRITERS[other][1] == WRITERS[name][1]:
                continue
            before = sorted(folder.rglob("*"))
            with pytest.raises(InputError, match="nothing was touched"):
                write(folder)
            assert sorted(folder.rglob("*")) == before


def test_a_comparison_takes_the_place_of_an_earlier_figure(tmp_path):
    reports.write_comparison(comparison(), tmp_path)
    (tmp_path / "comparison.svg").write_text("<svg/>")
    reports.write_comparison(comparison(), tmp_path)
    assert not (tmp_path / "comparison.svg").exists()


# --- what is said ----------------------------------------------------------------------------------------------------


def test_a_search_that_gained_nothing_recommends_nothing(tmp_path):
    page = text_of(reports.write_search(searched(accuracy=0.22), tmp_path).read_text(encoding="utf-8"))
    assert "not surely better than without it" in page
    assert "Train at" not in page


def test_one_seed_names_no_winner(tmp_path):
    page = text_of(reports.write_site_table(made_up(seeds=1), tmp_path).read_text(encoding="utf-8"))
    assert "one seed cannot say how surely" in page
    assert "Train at" not in page.split("How sure")[0]


def test_which_sites_the_seeds_cannot_tell_from_the_best():
    clear, noisy = best_sites(made_up(noise=0.001)), best_sites(made_up(noise=0.5))
    assert len(clear) < 4 < len(noisy)
    assert str(clear[0].site) == "0.mlp_in"
    assert [one.loss for one in noisy] == sorted(one.loss for one in noisy)


def test_configurations_are_told_apart_by_their_intervals():
    near, behind = told_apart(comparison())
    first = comparison().entries[0]
    assert all(one.high >= first.low for one in near)
    assert all(one.high < first.low for one in behind)
    assert len(near) + len(behind) + 1 == len(comparison().entries)


def test_nothing_cheaper_beats_what_is_on_the_line():
    found = choices(ranking_cases.thirty_layers())
    line = pareto_line(found)
    for one in found:
        is_beaten = any(other.n_params <= one.n_params and other.score > one.score for other in found)
        as_good = [other for other in line if other.n_params <= one.n_params and other.score == one.score]
        assert bool(as_good) != is_beaten
    assert [one.n_params for one in line] == sorted({one.n_params for one in line})
    assert [one.score for one in line] == sorted(one.score for one in line)
    assert max(one.score for one in found) == line[-1].score


def test_a_ranking_shows_a_table_of_its_model_and_task(tmp_path):
    ranking = ranking_cases.build(ranking_cases.Shape(layers=6), task="sums")
    ranking = replace(ranking, model=replace(ranking.model, sha256="0" * 64), curves=(), greedy=())
    html = reports.write_report(ranking, tmp_path, table=made_up()).read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "foreseen.svg").exists()
    assert "Test loss after training at 24 sites of this model on this task" in html
    with pytest.raises(InputError, match="not of one task: other and sums"):
        reports.write_report(ranking, tmp_path, table=made_up(task="other"))
    with pytest.raises(InputError, match="not of one weights"):
        reports.write_report(ranking_cases.thirty_layers(), tmp_path / "b", table=made_up(task="capitals"))
    assert not (tmp_path / "b").exists()


# --- looks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(scheme):
    colours = palette(scheme)
    grounds = {"ink": ("paper", "card", "soft", "warn-soft"), "muted": ("paper", "card"), "accent": ("paper", "card"),
               "warn": ("paper", "card", "warn-soft")}  # fmt: skip
    for text, names in grounds.items():
        for ground in names:
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def test_every_colour_of_a_figure_has_one_for_dark_pages():
    drawn = [
        reports.plot_ranking(ranking_cases.plateau()),
        reports.plot_kinds_over_depth(ranking_cases.thirty_layers()),
        reports.plot_gain_and_cost(ranking_cases.plateau()),
        reports.plot_greedy_growth(ranking_cases.plateau()),
        reports.plot_other_scores(ranking_cases.plateau()),
        reports.plot_predicted_against_trained(Validation.load(LISTOPS)),
        reports.plot_agreements(Validation.load(LISTOPS)),
        reports.plot_tested(searched()),
        reports.plot_contenders(searched()),
        reports.plot_losses(made_up()),
        reports.plot_comparison(comparison()),
    ]
    fixed = {"#ffffff", "#000000"}
    for figure in drawn:
        text = figure_bytes(figure, "svg").decode()
        body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
        used = set(re.findall(r"#[0-9a-f]{6}\b", body))
        assert used - fixed <= set(svg.DARK), figure._suptitle.get_text()
        for colour in used & set(svg.DARK):
            assert f"{svg.DARK[colour]}" in text


@pytest.mark.parametrize("side", [0, 1])
def test_lines_of_figures_have_contrast_with_their_paper(side):
    paper = next(iter(svg.DARK.items()))[side]
    grounds = {"#d9dde3", "#e8eef6", "#eceef1", "#dbe6f4", "#7fa6d6", "#f1f2f4", "#b9c0ca", "#fffffe"}
    for pair in svg.DARK.items():
        if pair[0] not in grounds:
            assert contrast(pair[side], paper) >= 3, pair


def test_a_figure_keeps_its_picture_when_it_is_shortened():
    assert svg._path("M 0 10.1234 \nL 5.5555 10.1234 \nL 5.5555 20 \nL 0 20 \nz \n") == "M0 10.12H5.56V20H0z"
    assert svg._path("M 1 2 \nQ 3 4 5 6 \nL 5 7 \n") == "M1 2Q3 4 5 6V7"
    made = svg.finished_svg(
        b'<svg><defs><style>*{}</style></defs><g id="a"><path id="m1" d="M 0 0 \nL 0 3.5 \n" style="stroke: #1d2430"/>'
        b'<use xlink:href="#m1" x="96.678574" y="2" style="fill: #00224e"/></g></svg>'
    ).decode()
    assert 'id="i0"' in made
    assert 'href="#i0"' in made
    assert 'd="M0 0V3.5"' in made
    assert 'x="96.68"' in made
    assert '[style*="stroke:#1d2430"]{stroke:#e8eaee!important}' in made
    assert "#00224e" in made


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ('<g>\n<g id="a">\n<g/>\n<g style="fill: red">\n<path/>\n</g>\n</g>\n</g>', '<g style="fill:red"><path/></g>'),
        ('<g transform="scale(2)">\n<use xlink:href="#m"/>\n</g>', '<use href="#m" transform="scale(2)"/>'),
        (
            '<use xlink:href="#m" x="1" style="fill: red"/>\n<use xlink:href="#m" x="2" style="fill: red"/>',
            '<g style="fill:red"><use href="#m" x="1"/><use href="#m" x="2"/></g>',
        ),
        (  # what is transparent together is not what is transparent one by one
            '<use href="#m" style="opacity: 0.5"/>\n<use href="#m" style="opacity: 0.5"/>',
            '<use href="#m" style="opacity:0.5"/><use href="#m" style="opacity:0.5"/>',
        ),
        (
            '<use href="#m" style="fill: red"/>\n<use href="#m" style="fill: blue"/>',
            '<use href="#m" style="fill:red"/><use href="#m" style="fill:blue"/>',
        ),
    ],
)
def test_what_a_picture_does_not_need_is_left_out(long, short):
    assert svg._shortened(f"<svg>\n{long}\n</svg>") == f"<svg>{short}</svg>"


def test_the_ranking_of_a_trained_model_stays_below_a_megabyte(tmp_path):
    """With the trained losses of all sites in it, the longest page there is."""
    ranking = ranking_cases.thirty_layers()
    sites = [site for site in ranking.sites if site.family == "linear"]
    points = tuple(
        TrainedPoint(site.name, site.score, 2 - site.score, low=1.9 - site.score, high=2.1 - site.score)
        for site in sites
    )
    assert len(sites) > 200
    made = replace(ranking, evidence=Evidence(summary="Trained.", points=points))
    assert reports.write_report(made, tmp_path / "report").stat().st_size < 1_000_000


def test_a_reference_far_above_all_sites_is_said_and_does_not_squash_them():
    ranking = ranking_cases.two_layers_parallel()
    lines = (ReferenceLoss("lora", 1.4), ReferenceLoss("no training", 30.0))
    figure = reports.plot_predicted_against_trained(
        replace(ranking, evidence=replace(ranking.evidence, references=lines))
    )
    assert figure.axes[0].get_ylim()[1] < 4
    said = [text.get_text() for text in figure.axes[0].texts]
    assert "above: no training 30.00" in said
    assert "lora" in said


def test_most_values_decide_the_scale_over_depth():
    """A model whose last layers fail must not press the others into one line at the top."""
    ranking = ranking_cases.plateau(first=0, last=20, layers=22)
    bad = tuple(
        replace(site, score=0.05 if site.layer == 21 else 0.955 + 0.0005 * site.layer, ci_low=0.0, ci_high=1.0)
        for site in ranking.sites
    )
    figure = reports.plot_kinds_over_depth(replace(ranking, sites=bad))
    low, high = figure.axes[0].get_ylim()
    assert low > 80
    assert high < 110
    assert "below the scale" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1


def test_the_verification_of_a_model_stays_below_a_megabyte(tmp_path):
    found = Verification.load(Path(RESULTS) / "verify-smollm2-135m.json")
    assert reports.write_verification(found, tmp_path).stat().st_size < 1_000_000
