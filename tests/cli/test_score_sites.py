"""``steerscope score-sites``: a table's scores and a user's own, as a user runs it."""

import json
from dataclasses import replace

import pytest

from steerscope import RankOptions, rank_sites
from steerscope.analysis.scoring.scores import all_scores
from steerscope.cli import main
from steerscope.experiments.site_tables.table_parts import TableRanking, TableRankingSettings
from steerscope.experiments.site_tables.user_scores import scores_from, scores_of_file
from steerscope.experiments.tasks import get_task
from steerscope.models import load_model, wrap_model
from tests.experiments.site_tables.tiny import made_up
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.json"
    made_up().save(path)
    return path


def test_a_tables_scores(table, tmp_path, capsys):
    out = tmp_path / "judged.json"
    assert main(["score-sites", str(table), "--json", str(out)]) == 0
    printed = capsys.readouterr()
    for part in ("Admitted", "Scores against trained loss", "right", "depth, then kind *"):
        assert part in printed.out
    (found,) = json.loads(out.read_text())["judgements"]
    assert found["scores"]["right"]["agreement"]["spearman"] > 0.97
    assert main(["score-sites", str(table), "--json", str(out)]) == 0  # its own file may be replaced
    capsys.readouterr()
    assert main(["score-sites", str(table), "--score", "right", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["judgements"][0] == found
    folder = tmp_path / "judged"
    assert main(["score-sites", str(table), "--score", "right", "--out", str(folder)]) == 0
    assert f"report: {folder / 'index.html'}" in capsys.readouterr().err
    assert json.loads((folder / "judgements.json").read_text())["judgements"][0] == found
    assert main(["score-sites", str(table), "--score", "right", "--out", str(folder)]) == 2
    assert "add --overwrite" in capsys.readouterr().err


def test_a_score_of_ones_own(table, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def score(site, table):\n    return -site.layer - {'mlp_in': 0}.get(site.kind, 1) + 0 * table.num_layers\n"
    )
    assert main(["score-sites", str(table), "--score", str(mine), "--score", "right"]) == 0
    out = capsys.readouterr().out
    assert "mine" in out
    assert "right" in out


def test_several_tables_are_averaged(table, tmp_path, capsys):
    other = tmp_path / "other.json"
    made_up(task="others", seed=3).save(other)
    assert main(["score-sites", str(table), str(other)]) == 0
    out = capsys.readouterr().out
    assert "Over 2 tables, margin over depth, then kind" in out
    assert "small on others" in out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def score(site, table) return 1", "cannot be run: SyntaxError"),
        ("import nothing_of_that_name", "cannot be run: ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("x = 1", "has no score; expected a function score(site, table)"),
        ("def score(site, table):\n    return 1 / 0", "fails at 0.mlp_in: ZeroDivisionError: division by zero, line 2"),
        ("def score(site):\n    return 1", "TypeError"),
        ("def score(site, table):\n    return None", "is None; expected a number"),
        ("def score(site, table):\n    return float('nan')", "is NaN; expected a finite number"),
    ],
)
def test_a_file_without_a_score_is_refused(text, says, table, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text(text)
    assert main(["score-sites", str(table), "--score", str(mine)]) == 2
    said = capsys.readouterr().err
    assert says in said.replace("0.attn_out", "0.mlp_in")
    assert said.count("\n") == 1


def test_what_is_no_table_or_no_score_is_refused(table, tmp_path, capsys):
    assert main(["score-sites", str(table), "--score", "rigth"]) == 2
    said = capsys.readouterr().err
    assert "has no score 'rigth'; it has right, depth, depth_then_kind" in said
    assert main(["score-sites", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err
    assert main(["score-sites", str(table), "--score", str(tmp_path / "none.py")]) == 2
    assert "none.py" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(["score-sites", str(table), "--json", str(tmp_path / "other.json")]) == 2
    assert "holds something else" in capsys.readouterr().err


# --- registered scores: the sites are ranked anew ------------------------------------------------------------

REGISTERED = """
from steerscope import register_score

@register_score(label="kernel scale", meaning="how far a step moves the outputs", unit="number")
def kernel_scale_of_mine(candidate):
    return candidate.kernel.scale
"""


@pytest.fixture
def registered(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(REGISTERED)
    yield path
    from steerscope.analysis.scoring.scores import unregister_score

    unregister_score("kernel_scale_of_mine")


def test_a_registered_score_is_computed_with_the_tables_model(registered, tmp_path, capsys):
    place = tmp_path / "model"
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    identity = load_model(place).identity
    made = made_up(layers=2, task="listops", model=identity)
    path = tmp_path / "table.json"
    replace(made, ranking=TableRanking(examples=24)).save(path)
    asked = ["score-sites", str(path), "--score", str(registered), "--quiet"]
    assert len(get_task("listops").split("train", 24, 0)) == 24
    assert main([*asked, "--model", str(place)]) == 0
    assert "kernel scale" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["linear", "vector", "loreft"])
def test_a_registered_score_is_ranked_as_the_table_was(family, registered, tmp_path):
    """With the table's prompts, directions and training, and as the family that stands for the trained one."""
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    told = TableRanking(examples=24, seed=5, settings=TableRankingSettings(num_training=60, num_probes=2))
    table = made_up(layers=2, task="listops", model=loaded.identity, ranking=told)
    table = replace(table, edit=replace(table.edit, family=family))
    found = scores_from(scores_of_file(registered), table, loaded)["kernel_scale_of_mine"]
    examples = get_task("listops").split("train", 24, 5)
    kinds = ("attn_out", "mlp_in", "mlp_out", "resid_post")
    ranking = rank_sites(loaded, examples, RankOptions(seed=5, num_probes=2, num_training=60, kinds=kinds))
    as_family = "vector" if family == "vector" else "linear"
    own = {site.name: site.scores["kernel_scale_of_mine"] for site in ranking.sites if site.family == as_family}
    assert found == pytest.approx(own)
    assert len(set(own.values())) > 4


def test_a_registered_score_of_another_model_is_refused(registered, tmp_path, capsys):
    place = tmp_path / "model"
    tiny_model("llama").save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    path = tmp_path / "table.json"
    made_up(task="listops").save(path)
    assert main(["score-sites", str(path), "--score", str(registered), "--model", str(place)]) == 2
    assert "has other weights than the one" in capsys.readouterr().err


def test_a_registered_score_of_a_task_that_is_not_here_is_refused(registered, table, capsys):
    assert main(["score-sites", str(table), "--score", str(registered)]) == 2
    assert "needs the examples of the task 'sums'" in capsys.readouterr().err


def test_a_file_that_fails_leaves_no_score_behind(table, tmp_path, capsys):
    path = tmp_path / "half.py"
    path.write_text(REGISTERED.replace("kernel_scale_of_mine", "half_registered") + "\nraise RuntimeError('late')\n")
    assert main(["score-sites", str(table), "--score", str(path)]) == 2
    assert "RuntimeError: late" in capsys.readouterr().err
    assert "half_registered" not in {score.name for score in all_scores()}
