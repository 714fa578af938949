"""The page of the site tables and their data card are true of the files."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from steerscope import InputError
from steerscope.analysis.evidence import EVIDENCE
from steerscope.analysis.scoring.scores import DEFAULT_SCORE
from steerscope.experiments.site_tables.table import Base, SiteRun, SiteTable
from steerscope.experiments.site_tables.table_parts import TableRanking, TableRankingSettings
from studies.plan_3 import judged_by_plan
from studies.shipped_evidence import shipped
from studies.site_tables_page import render, write_tables_page
from tests.experiments.site_tables.tiny import made_up

ROOT = Path(__file__).parents[3]
CARD = ROOT / "studies" / "site_tables" / "README.md"


def reporting(table):
    """Return a table of the model that the plan reports on."""
    return replace(table, model=replace(table.model, name="smollm2-135m"))


@pytest.fixture(scope="module")
def page():
    first = reporting(made_up(12, note="The sweep was stopped once."))
    first = replace(first, scores={DEFAULT_SCORE: first.scores["right"], "random": first.scores["right"]})
    second = reporting(made_up(12, task="others", seed=5))
    second = replace(second, scores={DEFAULT_SCORE: second.scores["right"]})
    not_one = replace(made_up(task="nothing learned", longer_order=-1), scores={})
    return render({"a": first, "b": second, "c": not_one}, {})


def test_the_page_has_every_table_with_its_admission_and_command(page):
    for text in (
        "## smollm2-135m on sums",
        "## small on nothing learned",
        "| smollm2-135m on sums | 48 x 3 | yes |",
        "| small on nothing learned | 24 x 3 | no |",
        "do not keep the order of 12 sites",
        "Made by: `steerscope sweep small --task sums`",
        "The sweep was stopped once.",
        "| halving |",
    ):
        assert text in page, text


def test_margins_are_over_admitted_tables_alone(page):
    section = page.partition("## Over the tables that report")[2].partition("\n## ")[0]
    assert "mean over 2 admitted tables" in section
    assert f"| `{DEFAULT_SCORE}` | +0." in section
    assert "J over depth, then kind: tasks like these" in section
    assert "| `random` |" not in section  # one table has it
    assert "No admitted table reports yet" in render({"c": made_up(longer=0)}, {})


def test_without_tables_the_page_says_so(tmp_path):
    write_tables_page(tmp_path, tmp_path, tmp_path / "page.md", tmp_path.parent / "e.json")
    assert "No table is kept yet." in (tmp_path / "page.md").read_text()
    (tmp_path / "other.md").write_text("# Something else\n")
    with pytest.raises(InputError, match="is another one than the page"):
        write_tables_page(tmp_path, tmp_path, tmp_path / "other.md", tmp_path.parent / "e.json")


def test_the_kept_page_is_the_one_that_the_kept_files_give(tmp_path):
    write_tables_page(CARD.parent, ROOT / "docs" / "results", tmp_path / "page.md", tmp_path / "evidence.json")
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "site_tables.md").read_text()
    assert (tmp_path / "evidence.json").read_text() == EVIDENCE.read_text()


def test_the_package_knows_every_table_and_why_some_may_not_judge():
    table = made_up()
    table = replace(table, scores={DEFAULT_SCORE: table.scores["right"]})
    found = judged_by_plan(table)
    line = shipped(table, found, {9: {DEFAULT_SCORE: {site: -v for site, v in table.scores[DEFAULT_SCORE].items()}}})
    assert (line["task"], line["n_sites"], line["admitted"], line["why_not"]) == ("sums", 24, True, "")
    assert [one["n_probes"] for one in line["rankings"]] == [4, 9]
    own, again = (one["scores"][DEFAULT_SCORE] for one in line["rankings"])
    assert own["spearman"] == pytest.approx(found.scores[DEFAULT_SCORE].agreement.spearman, abs=1e-4)
    assert again["spearman"] == pytest.approx(-own["spearman"], abs=1e-4)
    assert line["trained"]["0.mlp_in"][1] <= line["trained"]["0.mlp_in"][0] <= line["trained"]["0.mlp_in"][2]
    not_one = replace(
        made_up(longer_order=-1, ranking=TableRanking(settings=TableRankingSettings(num_probes=7))), scores=table.scores
    )
    line = shipped(not_one, judged_by_plan(not_one), {})
    assert (line["admitted"], line["rankings"][0]["n_probes"]) == (False, 7)
    assert line["why_not"].startswith("Twice as many steps do not keep the order of 12 sites")


def test_the_cards_example_runs(tmp_path, monkeypatch, capsys):
    made_up().save(tmp_path / "table.json")
    monkeypatch.chdir(tmp_path)
    code = CARD.read_text().partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) <= 12
    exec(compile(code, "card", "exec"), {})  # the example of the card, as a reader runs it
    out = capsys.readouterr().out
    assert "third of the way up" in out
    assert "Estimate(value=" in out


def test_the_card_names_every_field():
    text = CARD.read_text()
    for kind in (SiteTable, SiteRun, Base):
        for one in fields(kind):
            assert f"`{one.name}`" in text, one.name
