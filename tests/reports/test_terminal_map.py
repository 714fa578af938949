"""The map of sites in a terminal: one block per site, in colours where there are some, and nowhere else."""

from __future__ import annotations

import io
import re

import pytest

from steerscope.analysis.scoring.standing import Standing
from steerscope.reports.ranking.candidates import main_family, sites_of_family, standing
from steerscope.reports.ranking.tables import print_ranking
from steerscope.reports.ranking.terminal_map import map_lines
from tests.reports.ranking_cases import CASES, plateau
from tests.reports.terminal import Terminal


@pytest.mark.parametrize("case", [plateau, CASES["thirty_layers"], CASES["two_layers_parallel"]])
def test_one_block_per_site_says_how_it_stands(case):
    ranking = case()
    lines = [line.plain for line in map_lines(ranking, 100)]
    sites = sites_of_family(ranking, main_family(ranking))
    marks = {Standing.EQUAL: "█", Standing.UNDETERMINED: "▒", Standing.WORSE: "▄"}
    rows = {line[:12].strip(): line[12:] for line in lines[1:-1]}
    for site in sites:
        assert rows[site.kind][site.layer] == marks[standing(ranking, site)]
    assert sum(len(row.replace(" ", "")) for row in rows.values()) == len(sites)


def test_better_is_lighter():
    ranking = plateau()
    (row,) = [line for line in map_lines(ranking, 100) if line.plain.startswith("resid_post")]
    colours = {span.start - 12: str(span.style) for span in row.spans}
    light = {layer: sum(bytes.fromhex(colour[1:])) for layer, colour in colours.items()}
    scores = {site.layer: site.score for site in sites_of_family(ranking, "linear") if site.kind == "resid_post"}
    best, worst = max(scores, key=scores.__getitem__), min(scores, key=scores.__getitem__)
    assert light[best] > light[worst]


def test_no_map_that_does_not_fit_or_says_nothing():
    assert not map_lines(CASES["hundred_layers"](), 100)
    assert not map_lines(CASES["all_negative"](), 100)
    assert map_lines(CASES["hundred_layers"](), 120)


def test_only_terminals_with_colours_show_it(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    said = {}
    for term in ("xterm-256color", "dumb"):
        monkeypatch.setenv("TERM", term)
        out = Terminal()
        print_ranking(plateau(), file=out)
        said[term] = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    pipe = io.StringIO()
    print_ranking(plateau(), file=pipe)
    assert "from left to right" in said["xterm-256color"].splitlines()[0]
    assert "▄" in said["xterm-256color"]
    assert "from left to right" not in said["dumb"] + pipe.getvalue()
    assert said["xterm-256color"].splitlines()[-1] == pipe.getvalue().splitlines()[-1]
