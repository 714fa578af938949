"""README and the pages of docs/ say nothing that does not run: blocks of Python, command lines, messages, figures."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer

import steerscope
from steerscope import Evaluation, Ranking, RunResults
from steerscope.analysis.data.files import example_of
from steerscope.analysis.evidence import EVIDENCE
from steerscope.analysis.scoring.scores import all_scores
from steerscope.analysis.scoring.scores.score import unregister_score
from steerscope.cli import app, options
from steerscope.experiments.runs.folder import read_results
from steerscope.experiments.training.methods import METHODS
from steerscope.site_kinds import SiteKind
from steerscope.steering.families import FAMILIES
from studies.cli_page import page as cli_page
from tests.documents import BUNDLED, PAGES, ROOT, Runner, blocks, command_lines, section_of

README, SCREEN = PAGES[0], 24
COMMANDS = typer.main.get_command(app).commands
WITH_PYTHON = [page for page in PAGES if blocks(page, "python") and page != README]
# Pages whose blocks do not build on each other.
APART = {"README.md"}
VALUES = {
    "--task": options.task_names(),
    "--method": options.METHODS,
    "--score": (*options.SCORES, *options.BASELINES),
    "--family": options.FAMILIES,
}


# --- Python --------------------------------------------------------------------------------------------------


@pytest.fixture
def runner(monkeypatch, tmp_path):
    known = {score.name for score in all_scores()}
    made = Runner(monkeypatch, tmp_path)
    before = [parameter.detach().clone() for parameter in made.loaded.model.parameters()]
    yield made
    assert set(made.asked) <= {BUNDLED}
    if not (tmp_path / "merged").exists():  # what is merged is meant to change
        after = made.loaded.model.parameters()
        assert all(value.equal(other) for value, other in zip(before, after, strict=True))
    for score in {score.name for score in all_scores()} - known:
        unregister_score(score)


@pytest.mark.filterwarnings("ignore:the prompts of this ranking cannot tell")  # they are few here
@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_every_block_of_python_runs(runner, page):
    assert runner.run(page)


@pytest.mark.filterwarnings("ignore:the prompts of this ranking cannot tell")  # they are few here
def test_the_blocks_of_readme(runner, tmp_path, capsys):
    first, second = runner.run(README, whole=False)
    assert len(blocks(README, "python")[0].splitlines()) <= SCREEN
    ranking = first["ranking"]
    assert isinstance(ranking, Ranking)
    trained = read_results(tmp_path / "run")
    assert isinstance(trained, RunResults)
    assert trained.sites == (ranking.recommended().name,)
    assert (trained.method, trained.n) == (("post-block", "vector")[ranking.recommended().family == "vector"], 4)
    said = capsys.readouterr().out.splitlines()
    assert any(trained.line in line for line in said)
    assert any(line.startswith("test accuracy ") for line in said)
    second["steered"].unload()
    with_adapter = first["evaluate"](first["loaded"], first["task"], first["asked"], adapter="run")
    assert isinstance(with_adapter, Evaluation)
    assert [str(site) for site in second["seen"]] == ["29.resid_post"]
    assert {path.name for path in (tmp_path / "my-adapter").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.filterwarnings("ignore:the prompts of this ranking cannot tell")  # they are few here
def test_the_numbers_of_readme_fit_a_small_file(runner, tmp_path):
    lines = [
        json.dumps({"prompt": f"{a} + {b} = ", "choices": ["even", "odd"], "answer_index": (a + b) % 2})
        for a in range(6)
        for b in range(10)
    ]
    assert len(lines) == int(re.search(r"with (\d+) rows or more", blocks(README, "python")[0])[1])
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    code = blocks(README, "python")[0].replace('get_task("listops")', 'FileTask.read("my.jsonl")')
    code = code.replace("import EvaluateOptions,", "import FileTask, EvaluateOptions,").replace("steps=60", "steps=2")
    names = runner.run_code(code)
    parts = {part: len(names["task"].split(part)) for part in ("train", "test")}
    assert names["ranking"].n_examples == parts["train"]
    assert read_results(tmp_path / "run").n == parts["test"]


# --- command lines -------------------------------------------------------------------------------------------


def complaint(line: str) -> str | None:
    """Return what the command line would say of a line's options, ``None`` if nothing."""
    words = shlex.split(line)
    command = COMMANDS.get(words[1]) if len(words) > 1 else None
    if len(words) == 2 and words[1] in ("--version", "-h", "--install-completion", "--show-completion"):
        return None
    if command is None:
        return f"no command {words[1:2]}"
    for option, value in pairwise(words):
        known = VALUES.get(option)
        if known and words[1] != "score-sites" and not value.isupper() and value not in known:
            return f"{option} {value}"
    # Words in capitals stand for what a reader has: numbers, where numbers are expected.
    filled = ["1" if word.isupper() and len(word) == 1 else word for word in words[2:] if word != "..."]
    try:
        command.make_context(words[1], filled)
    except Exception as error:  # click's own errors, of whichever click typer has
        return str(getattr(error, "message", error))
    return None


LINES = [(page, line) for page in PAGES for line in command_lines(page) if line.startswith("steerscope ")]


def test_there_are_command_lines():
    assert len(LINES) > 45
    assert {line.split()[1] for _, line in LINES} >= set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_line_is_one(page):
    said = [line for of, line in LINES if of == page and not line.endswith(" [OPTIONS]")]
    assert {line: found for line in said if (found := complaint(line)) is not None} == {}


@pytest.mark.parametrize(
    "line",
    ["steerscope rnak", "steerscope rank --sed 3", "steerscope rank --seed x", "steerscope train --method lroa",
     "steerscope compare", "steerscope rank --score shares"],
)  # fmt: skip
def test_a_wrong_command_line_would_be_found(line):
    assert complaint(line) is not None


def test_targets_of_make_and_scripts_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [line for page in PAGES for line in command_lines(page)]
    made = {line.split()[1] for line in lines if line.startswith("make ")}
    assert len(made) > 3
    assert made <= targets
    modules = {line.split()[2] for line in lines if line.startswith("python -m ")}
    scripts = {line.split()[1] for line in lines if re.match(r"python \S+\.py", line)}
    missing = [one for one in modules if not list(ROOT.glob(f"{one.replace('.', '/')}*"))]
    assert missing == [one for one in scripts if not (ROOT / one).exists()] == []


def test_examples_of_files_are_read():
    found = [
        example_of(json.loads(line)) for page in PAGES for body in blocks(page, "json") for line in body.splitlines()
    ]
    assert len(found) >= 3


# --- what pages list -----------------------------------------------------------------------------------------


def test_the_page_of_the_command_line_is_what_the_commands_say():
    made = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert made == cli_page(), "python -m studies.cli_page > docs/cli.md"


def test_help_names_every_value():
    every = {score.name for score in all_scores()} - {"depth_and_kind"}  # made by validate alone
    assert {*options.SCORES, *options.BASELINES} == every
    assert {one.name for one in all_scores() if one.is_baseline} - {"depth_and_kind"} == set(options.BASELINES)
    assert tuple(kind.value for kind in SiteKind) == options.KINDS
    assert tuple(METHODS) == options.METHODS
    assert tuple(FAMILIES) == options.FAMILIES


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: steerscope\.(\w+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted([*steerscope.__all__, "reports", "theory"])


def test_messages_of_troubleshooting_are_in_the_code():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(rows) > 12
    # As it is read: pieces of one sentence that stand on several lines, joined.
    code = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "steerscope").rglob("*.py")))
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    assert [row for row in rows if row not in code] == []


def test_every_page_is_in_the_site():
    listed = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f" {page.name}" not in listed] == []


# --- figures -------------------------------------------------------------------------------------------------


# Sections of evidence.md on other scores of the same sites, whose figures tests of these studies compare.
STUDIES = ("Does a kernel made again", "How much of a verdict")


@pytest.mark.parametrize("name", ["README.md", "docs/evidence.md"])
def test_figures_of_scores_are_those_of_the_tables(name):
    """Correlations with their intervals, and what a perfect score could reach; the page of the tables has them."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for heading in STUDIES:
        text = text.replace(section_of(text, heading), "")
    page = (ROOT / "docs" / "site_tables.md").read_text(encoding="utf-8")
    kept = [table for table in json.loads(EVIDENCE.read_text(encoding="utf-8"))["tables"] if table["admitted"]]
    lines = [  # of the rankings that the pages cite, the first ones
        {**table, "score": score, **numbers}
        for table in kept
        for score, numbers in table["rankings"][0]["scores"].items()
    ]
    tables = {(one["model"], one["task"]): one["n_sites"] for one in lines}
    assert len(tables) == 3  # as both pages say; a fourth needs a column
    rows = [line for line in text.splitlines() if line.startswith("|")]
    named = [found for line in rows for found in re.findall(r"-?0\.\d\d \[-?0\.\d\d, -?0\.\d\d\]", line)]
    told = [one for one in lines if one["score"] in ("learnable_share", "predicted_loss")]
    assert len(set(named)) == len(told) == 2 * len(tables)
    for one in told:
        own = [f"`{one['score']}` | {own} |" for own in named if own.startswith(f"{one['spearman']:.2f} ")]
        assert any(row in page for row in own)
        assert f"{one['attainable']:.2f}" in text
        assert re.search(rf"\b{one['n_sites']}\b", text)
    shares = set(re.findall(r"\d+% \[\d+%, \d+%\]", text))
    assert len(shares) >= 3
    assert all(f"| {share} |" in page for share in shares)
    assert all(margin in page for margin in re.findall(r"[+]0\.\d\d \[-?0\.\d\d, -?0\.\d\d\]", text))
    depths = {f"{-one['spearman']:.2f}" for one in lines if one["score"] == "last_layer"}  # depth, the other way round
    assert all(depth in text for depth in depths)


def test_the_picture_is_there():
    (target,) = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8")))
    picture = ROOT / target
    assert picture.is_file()
    assert picture.stat().st_size < 300_000
    assert Path(target).parent == Path("docs/images")


def test_what_the_sites_theme_leaves_without_a_name_gets_one():
    from docs_site.accessible import NAMED, on_post_page

    page = (
        '<div class="md-search" data-md-component="search" role="dialog">'
        '<input class="md-toggle" data-md-toggle="search" id="s">'
    )
    made = on_post_page(page + "<p>text</p>")
    assert made.count('aria-label="Search"') == 2
    assert re.sub(' aria-label="[^"]*"', "", made) == page + "<p>text</p>"
    assert "docs_site/accessible.py" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NAMED) == 3
