"""``steerscope rank``: what it prints and writes, what its options do, and what an interruption leaves behind."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from steerscope import Ranking, __version__
from steerscope.analysis.scoring.scores import Needs, ranking_scores
from steerscope.experiments.tasks import FileTask
from steerscope.reports.ranking.captions import FIGURE_STEMS
from steerscope.sites import SiteKind
from tests.cli.runs import lines, one_sentence, question, run, save_model, write_jsonl

# The console script of the environment the tests run in.
STEERSCOPE = Path(sys.executable).with_name("steerscope")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model and three sorts of data."""
    folder = tmp_path_factory.mktemp("rank")
    save_model(folder / "model")
    write_jsonl(folder / "data.jsonl", lines(60))
    return folder


def trained(path: Path) -> int:
    """How many of a file's examples are in the part that rankings use."""
    return len(FileTask.read(path).split("train"))


def ranked(place: Path, *options: object, data: str | Path = "data.jsonl", kinds: str = "mlp_out,resid_post") -> dict:
    """Rank a few kinds of site without a report and return the JSON."""
    target = place / "ranking-of-a-test.json"
    target.unlink(missing_ok=True)
    arguments = ["rank", place / "model", "--data", place / data, "--kinds", kinds, "--json", target, *options]
    assert run(*arguments, "--quiet") == 0
    return json.loads(target.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def report(place) -> Path:
    """A whole report: every kind of site, all figures."""
    out = place / "report"
    assert run("rank", place / "model", "--data", place / "data.jsonl", "--out", out, "--quiet") == 0
    return out


@pytest.fixture(scope="module")
def ranking(report) -> dict:
    return json.loads((report / "ranking.json").read_text(encoding="utf-8"))


# --- what is written ---------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_report_is_complete(report):
    figures = {f"figures/{stem}.{ending}" for stem in FIGURE_STEMS[2:] for ending in ("svg", "png")}
    assert set(files(report)) == {"index.html", "ranking.json", *figures}
    assert all(files(report).values())
    assert sorted(p.name for p in report.iterdir()) == ["figures", "index.html", "ranking.json"]


def test_json_contract(ranking, place):
    wanted = {"schema_version", "model", "task", "n_examples", "seed", "versions", "score", "sites", "kinds", "greedy"}
    assert wanted <= set(ranking)
    assert ranking["schema_version"] == 1
    assert {"name", "revision", "sha256", "layers", "quantised"} <= set(ranking["model"])
    model = ranking["model"]
    assert (model["name"], model["revision"], model["layers"]) == (str(place / "model"), None, 2)
    assert model["quantised"] is None
    assert model["sha256"] == hashlib.sha256((place / "model" / "model.safetensors").read_bytes()).hexdigest()
    assert (ranking["task"], ranking["n_examples"], ranking["seed"]) == ("data.jsonl", trained(place / "data.jsonl"), 0)
    assert ranking["score"] == "learnable_share"
    assert ranking["versions"]["steerscope"] == __version__
    assert {"python", "torch", "transformers"} <= set(ranking["versions"])
    assert ranking["settings"]["command"].split()[0] == "steerscope"


def test_sites_of_the_contract(ranking):
    # resid_pre once, the seven other kinds in each of two layers; two families of edits at each
    keys = [(s["layer"], s["kind"], s["family"]) for s in ranking["sites"]]
    assert len(keys) == len(set(keys)) == 2 * (1 + 2 * 7)
    assert {kind for _, kind, _ in keys} == {kind.value for kind in SiteKind}
    scores = [s["score"] for s in ranking["sites"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]
    for site in ranking["sites"]:
        assert site["ci_low"] <= site["score"] <= site["ci_high"]
        assert set(site["scores"]) == set(ranking_scores())
        assert site["scores"]["learnable_share"] == site["score"] <= 1
        width = {"mlp_hidden": 20}.get(site["kind"], 16)
        assert site["n_params"] == (width if site["family"] == "vector" else 2 * 8 * width)


def test_what_a_server_of_loras_runs_is_told(ranking, report):
    told = {(s["kind"], s["family"]): s["served_as"] for s in ranking["sites"]}
    of_kinds = {kind: told[kind, "linear"] for kind in ("mlp_out", "mlp_in", "attn_heads", "resid_post", "resid_mid")}
    assert of_kinds == {
        "mlp_out": "lora",
        "mlp_in": "lora",
        "attn_heads": "lora",
        "resid_post": "adapter",
        "resid_mid": "adapter",
    }
    assert told["resid_post", "vector"] == "lora_with_bias"
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "whether the edit is exactly one (a linear edit without its bias)" in page


def test_kinds_and_greedy_of_the_contract(ranking):
    assert {k["kind"] for k in ranking["kinds"]} == {kind.value for kind in SiteKind}
    assert all({"kind", "family", "score", "ci_low", "ci_high", "n_params"} <= set(k) for k in ranking["kinds"])
    greedy = ranking["greedy"]
    assert [step["step"] for step in greedy] == list(range(1, len(greedy) + 1))
    assert {"layer", "kind", "score", "ci_low", "ci_high", "n_params"} <= set(greedy[0])
    best = max(s["score"] for s in ranking["sites"] if s["family"] == "linear")
    assert greedy[0]["score"] == pytest.approx(best)
    assert [s["score"] for s in greedy] == sorted(s["score"] for s in greedy)


def test_json_loads_again(report, ranking):
    loaded = Ranking.load(report / "ranking.json")
    assert json.loads(loaded.to_json()) == ranking


def test_page_names_model_and_best_site(report, ranking):
    page = (report / "index.html").read_text(encoding="utf-8")
    best = ranking["sites"][0]
    assert best["kind"] in page
    assert ranking["model"]["sha256"][:12] in page


# --- what is printed ---------------------------------------------------------------------------------------


def test_prints_a_plain_table(place, capsys):
    assert run("rank", place / "model", "--data", place / "data.jsonl", "--kinds", "mlp_out", "--limit", 1) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "First 1 of " in out
    assert "95% interval" in out
    said = " ".join(out.split())
    assert "Not trained on this model and task. Elsewhere the order was surely better than chance in" in said
    assert "which steerscope sweep or validate tests" in said
    assert f"steerscope search {place / 'model'} --data " in said
    assert "Greedy set" not in out
    assert "scoring sites, done" in err


def test_quiet_is_quiet(place, capfd):
    ranked(place)
    out, err = capfd.readouterr()
    assert err == ""
    assert "95% interval" in out


def test_console_command_prints_json_and_nothing_else(place):
    arguments = ["rank", place / "model", "--data", place / "data.jsonl", "--kinds", "mlp_out", "--json", "-"]
    done = subprocess.run([STEERSCOPE, *arguments], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    document, end = json.JSONDecoder().raw_decode(done.stdout)
    assert done.stdout[end:].strip() == ""
    assert document["schema_version"] == 1
    assert {s["kind"] for s in document["sites"]} == {"mlp_out"}
    assert document["settings"]["command"].endswith("--kinds mlp_out --json -")
    assert "\x1b" not in done.stderr


def environment() -> dict[str, str]:
    """The caller's environment, without colours and the network."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "CLICOLOR_FORCE")}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


# --- options -----------------------------------------------------------------------------------------------


def comparable(ranking: dict) -> dict:
    """Leave out what may differ between equal runs."""
    rest = {k: v for k, v in ranking.items() if k != "timing"}
    return rest | {"settings": {k: v for k, v in ranking["settings"].items() if k != "command"}}


def test_same_seed_same_numbers(place):
    first, second = ranked(place, "--seed", 5), ranked(place, "--seed", 5)
    assert comparable(first) == comparable(second)
    assert first["seed"] == 5


def test_another_seed_other_numbers(place):
    first, second = ranked(place, "--seed", 5), ranked(place, "--seed", 6)
    assert [s["score"] for s in first["sites"]] != [s["score"] for s in second["sites"]]


def test_score_orders_the_sites(place):
    by_alignment = ranked(place, "--score", "alignment")
    assert by_alignment["score"] == "alignment"
    values = [s["scores"]["alignment"] for s in by_alignment["sites"]]
    assert values == [s["score"] for s in by_alignment["sites"]] == sorted(values, reverse=True)
    shares = [s["scores"]["learnable_share"] for s in by_alignment["sites"]]
    assert shares != sorted(shares, reverse=True)  # the order is another one


def test_extra_adds_scores_and_an_unknown_one_is_refused_before_a_model_is_loaded(place, capsys):
    more = ranked(place, "--extra", "spectrum")
    assert set(more["sites"][0]["scores"]) == set(ranking_scores()) | set(ranking_scores(Needs.SPECTRUM))
    assert run("rank", place / "nothing", "--data", place / "data.jsonl", "--extra", "spectra") == 2
    assert "--extra has 'spectra'; expected spectrum or step" in one_sentence(capsys.readouterr().err)


def test_kinds_narrow_the_sites_and_take_aliases(place):
    narrowed = ranked(place, kinds=" mlp_out,hook_attn_out, post-block")
    assert {s["kind"] for s in narrowed["sites"]} == {"mlp_out", "attn_out", "resid_post"}
    assert {k["kind"] for k in narrowed["kinds"]} == {"mlp_out", "attn_out", "resid_post"}
    assert narrowed["settings"]["kinds"] == ["mlp_out", "attn_out", "resid_post"]


def test_kinds_do_not_change_the_numbers(place, ranking):
    narrowed = ranked(place)
    whole = {(s["layer"], s["kind"], s["family"]): s["score"] for s in ranking["sites"]}
    assert narrowed["sites"]
    for site in narrowed["sites"]:
        assert site["score"] == pytest.approx(whole[site["layer"], site["kind"], site["family"]], rel=1e-6)


def test_max_examples(place):
    assert ranked(place, "--max-examples", 24)["n_examples"] == 24


def test_budget_and_max_sites_bound_the_set(place, ranking):
    assert ranking["greedy"][-1]["n_params"] > 300  # without a bound the set is larger
    bounded = ranked(place, "--budget", 300, kinds="mlp_out,resid_post,mlp_in,mlp_hidden")
    assert 0 < bounded["greedy"][-1]["n_params"] <= 300
    assert ranked(place, "--budget", 1)["greedy"] == []
    assert len(ranked(place, "--max-sites", 1)["greedy"]) == 1


def test_rank_of_the_edit_counts_parameters_only(place):
    first, second = ranked(place), ranked(place, "--rank", 2)
    assert [s["score"] for s in first["sites"]] == [s["score"] for s in second["sites"]]
    linear = [s["n_params"] for s in second["sites"] if s["family"] == "linear"]
    assert set(linear) == {2 * 2 * 16}


def test_batch_size_changes_rounding_only(place):
    first, second = ranked(place), ranked(place, "--batch-size", 3)
    by_site = {(s["layer"], s["kind"], s["family"]): s["score"] for s in second["sites"]}
    for site in first["sites"]:
        # float32 features: sums in another order differ in the last digits, amplified by the regression
        assert site["score"] == pytest.approx(by_site[site["layer"], site["kind"], site["family"]], abs=1e-3)


def test_file_order_does_not_matter(place):
    write_jsonl(place / "reversed.jsonl", lines(60)[::-1])
    first, second = ranked(place), ranked(place, data="reversed.jsonl")
    assert [s["score"] for s in first["sites"]] == [s["score"] for s in second["sites"]]


def test_overwrite_replaces_the_report(place, report, tmp_path):
    out = tmp_path / "report"
    shutil.copytree(report, out)
    (out / "notes.txt").write_text("mine")
    arguments = ["rank", place / "model", "--data", place / "data.jsonl", "--kinds", "mlp_out", "--seed", "9"]
    assert run(*arguments, "--out", out, "--overwrite", "--quiet") == 0
    assert json.loads((out / "ranking.json").read_text())["seed"] == 9
    assert (out / "notes.txt").read_text() == "mine"
    assert set(files(out)) - set(files(report)) == {"notes.txt"}


# --- data --------------------------------------------------------------------------------------------------


def test_choices_of_several_tokens(place):
    rows = [{"prompt": question(i), "choices": [" 1 2", " 3 4", " 5"], "answer_index": i % 3} for i in range(60)]
    write_jsonl(place / "several.jsonl", rows)
    assert ranked(place, data="several.jsonl")["outputs"]["mode"] == "choice_likelihoods"


def test_no_choices(place):
    rows = [{"prompt": question(i), "completion": f" {i % 5} {i % 3}"} for i in range(60)]
    write_jsonl(place / "open.jsonl", rows)
    found = ranked(place, "--probes", 2, data="open.jsonl")
    assert found["outputs"]["mode"] == "completion"
    assert found["outputs"]["n_probes"] == 2


def test_choices_of_different_numbers_compressed_with_duplicates_and_other_fields(place):
    rows = [{**row, "id": i, "choices": row["choices"] + [" 4"] * (i % 2)} for i, row in enumerate(lines(60))]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, rows[3]])
    (place / "data.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    found = ranked(place, data="data.jsonl.gz")
    assert found["n_examples"] == trained(place / "data.jsonl.gz")
    assert found["outputs"]["mode"] == "choice_logits"
    assert any("1 exact duplicate removed" in warning for warning in found["warnings"])


def test_without_data_the_task_is_listops(place, capsys):
    arguments = ["--kinds", "mlp_out", "--max-examples", "24", "--json", "-", "--quiet"]
    assert run("rank", place / "model", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["n_examples"]) == ("listops", 24)


@pytest.mark.parametrize("family", ["gemma2", "gpt2", "phi"])
def test_other_layouts(place, family):
    save_model(place / family, family)
    target = place / f"{family}.json"
    arguments = ["rank", place / family, "--data", place / "data.jsonl", "--max-examples", "24", "--json", target]
    assert run(*arguments, "--max-sites", 1, "--quiet") == 0
    kinds = {s["kind"] for s in json.loads(target.read_text())["sites"]}
    assert kinds == {k.value for k in SiteKind} - ({"resid_mid"} if family == "phi" else set())


# --- interruption ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["loading the model", "forward and backward passes 25%", "scoring sites"])
def test_interrupt_leaves_the_earlier_report(place, report, tmp_path, stage):
    out = tmp_path / "report"
    shutil.copytree(report, out)
    before = files(out)
    rows = [{**row, "prompt": f"{i // 40} {row['prompt']}"} for i, row in enumerate(lines(400))]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    options = ["--max-examples", "300", "--batch-size", "2", "--out", out, "--overwrite"]
    said = interrupted(["rank", place / "model", "--data", data, *options], stage)
    assert "interrupted" in said
    assert files(out) == before
    assert sorted(p.name for p in out.iterdir()) == ["figures", "index.html", "ranking.json"]


def test_interrupt_leaves_no_new_report(place, tmp_path):
    out = tmp_path / "new" / "report"
    interrupted(["rank", place / "model", "--data", place / "data.jsonl", "--out", out], "scoring sites")
    assert not (tmp_path / "new").exists()


def interrupted(arguments: list, stage: str) -> str:
    """Start the console command, press Ctrl-C when it reports a stage, and return its message."""
    command = [str(a) for a in (STEERSCOPE, *arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    # Whoever runs the tests in the background has Ctrl-C ignored, and a child would inherit that.
    with subprocess.Popen(
        command, **options, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith(stage):
                break
        else:
            pytest.fail(f"never reached {stage!r}")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    return one_sentence(err)


@pytest.mark.parametrize("calls", [1, 5, 12])
def test_interrupt_while_writing_leaves_the_earlier_report(place, report, tmp_path, monkeypatch, capsys, calls):
    out = tmp_path / "report"
    shutil.copytree(report, out)
    before = files(out)
    count, write = 0, Path.write_bytes

    def slow(path: Path, content: bytes) -> int:
        nonlocal count
        count += 1
        if count == calls:
            write(path, content[: len(content) // 2])
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", slow)
    arguments = ["rank", place / "model", "--data", place / "data.jsonl", "--seed", "1", "--out", out, "--overwrite"]
    assert run(*arguments, "--quiet") == 130
    assert count == calls
    assert "interrupted" in one_sentence(capsys.readouterr().err)
    assert files(out) == before
    assert sorted(p.name for p in out.iterdir()) == ["figures", "index.html", "ranking.json"]
