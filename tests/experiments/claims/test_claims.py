"""The rule on numbers whose verdict is known, which runs are paired, and the page from real tiny runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.experiments.comparison import compare
from steerscope.experiments.training import RunFolder
from steerscope.experiments.training.train import train
from steerscope.reports.comparison.figures import plot_comparison
from steerscope.reports.comparison.tables import comparison_table
from studies.claims.__main__ import main
from studies.claims.leftover import measure_leftover
from studies.claims.page import render, studies, write_claims
from studies.claims.rule import Difference, difference, is_fair, rights, verdict
from studies.claims.sections import SECTIONS, fine_tuning, joint, nonlinear, other_methods, sites
from tests.experiments.training.cases import GENERATIONS, config, evaluation, results
from tests.experiments.training.tiny_runs import make_place, options, task_of

N = 200
SETTINGS = {
    "steps": 120, "batch_size": 32, "learning_rate": "auto", "tries": 7, "positions": "all", "family": "linear",
    "bias": True,
}  # fmt: skip


def run(
    folder,
    method: str,
    right: list[set[int]],
    kind: str | None = "resid_post",
    parameters: int = 1000,
    interior: bool = True,
    searched_once: bool = False,
    **settings,
):
    """One run per seed, with these questions of N answered rightly."""
    for seed, chosen in enumerate(right):
        own = config(
            method=method,
            seed=seed,
            sites=() if kind is None else (f"0.{kind}", f"1.{kind}"),
            rank=None if method == "sft" else 8,
            settings=SETTINGS | settings,
        )
        name = "-".join([method, *(f"{key}{value}" for key, value in settings.items()), str(seed)]).replace(":", "")
        place = RunFolder.create(folder / name, own)
        lines = [replace(GENERATIONS[0], key=f"q{i}", is_right=i in chosen) for i in range(N)]
        found = replace(
            results(own, evaluation(len(chosen), N), parameters),
            training={"learning_rate_is_interior": interior, "learning_rate_of_seed": 0 if searched_once else seed},
        )
        place.finish(found, lines)


def first(count: int) -> set[int]:
    return set(range(count))


def entries(folder):
    return compare([folder]).entries


def of(folder, method: str, **settings):
    (found,) = [
        e for e in entries(folder) if e.method == method and all(e.settings.get(k) == v for k, v in settings.items())
    ]
    return found


def test_the_interval_is_that_of_the_rule(tmp_path):
    run(tmp_path, "post-block", [first(120), first(130), first(125)])
    run(tmp_path, "post-mlp", [first(110), first(112), first(114)], "mlp_out")
    found = difference(of(tmp_path, "post-block"), of(tmp_path, "post-mlp"))
    assert found.mean == pytest.approx((10 + 18 + 11) / 3 / N)
    seeds = [10 / N, 18 / N, 11 / N]
    mean = sum(seeds) / 3
    of_seeds = 4.302653 * math.sqrt(sum((d - mean) ** 2 for d in seeds) / 2) / math.sqrt(3)
    # Questions 110 to 129: how many of three seeds only the first method has right.
    counts = [sum(b <= q < a for a, b in ((120, 110), (130, 112), (125, 114))) / 3 for q in range(N)]
    of_questions = 1.96 * math.sqrt(sum((c - mean) ** 2 for c in counts) / (N - 1)) / math.sqrt(N)
    assert found.high - found.mean == pytest.approx(math.hypot(of_seeds, of_questions), rel=1e-6)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)
    assert (found.seeds, found.n) == (3, N)
    with_two = difference(of(tmp_path, "post-block"), replace(of(tmp_path, "post-mlp"), seeds=(0, 1, 7)))
    assert (with_two.seeds, with_two.low) == (2, -math.inf)
    assert difference(of(tmp_path, "post-block"), replace(of(tmp_path, "post-mlp"), seeds=(7, 8, 9))) is None


@pytest.mark.parametrize(
    ("low", "high", "strict", "expected"),
    [
        (0.01, 0.05, False, "reproduced"),
        (0.01, 0.05, True, "reproduced"),
        (-0.009, 0.05, False, "reproduced"),
        (-0.009, 0.05, True, "undecided"),
        (-0.02, 0.05, False, "undecided"),
        (-0.009, -0.001, False, "not reproduced"),
        (-0.05, -0.01, True, "not reproduced"),
    ],
)
def test_verdicts(low, high, strict, expected):
    found = Difference((low + high) / 2, low, high, 3, N)
    assert verdict(found, strict=strict, fair=True) == expected
    assert verdict(found, strict=strict, fair=False).startswith("undecided (learning rates")
    assert verdict(replace(found, seeds=2), strict=strict, fair=True).startswith("undecided (fewer")
    assert verdict(None, strict=strict, fair=True).startswith("undecided (fewer")


def test_a_training_that_failed_decides_nothing():
    found = Difference(0.03, 0.01, 0.05, 3, N)
    assert verdict(found, strict=True, fair=True, learned=False) == (
        "undecided (training left the second below the untrained model)"
    )


def test_the_page_knows_what_the_untrained_model_reached(tmp_path):
    def verdict_of_the_page() -> str:
        (row,) = [one for one in render(studies([tmp_path]), []).splitlines() if "| at least as good |" in one]
        return row.split("|")[-2].strip()

    run(tmp_path, "post-block", [first(150)] * 3)
    run(tmp_path, "post-mlp", [first(100)] * 3, "mlp_out")
    assert verdict_of_the_page() == "reproduced"
    run(tmp_path, "none", [first(105)], None)
    assert verdict_of_the_page() == "reproduced"  # 100 of 200 do not differ from 105
    run(tmp_path, "none", [first(120)], None, max_new_tokens=9)
    assert verdict_of_the_page() == "undecided (training left the second below the untrained model)"


def test_a_first_side_that_failed_is_not_reproduced(tmp_path):
    run(tmp_path, "post-block", [first(50)] * 3)
    run(tmp_path, "post-mlp", [first(100)] * 3, "mlp_out")
    run(tmp_path, "none", [first(90)], None)
    (row,) = [one for one in render(studies([tmp_path]), []).splitlines() if "| at least as good |" in one]
    assert row.split("|")[-2].strip() == "not reproduced (training left the first below the untrained model)"


def test_only_equal_searches_are_fair(tmp_path):
    run(tmp_path, "post-block", [first(9)])
    run(tmp_path, "lora", [first(9)], None, tries=3)
    run(tmp_path, "sft", [first(9)], None, learning_rate=1e-3)
    run(tmp_path, "loreft", [first(9)], interior=False)
    block, lora, sft, edge = (of(tmp_path, name) for name in ("post-block", "lora", "sft", "loreft"))
    assert is_fair(block, block)
    assert not is_fair(block, edge)
    assert not is_fair(edge, block)
    assert not is_fair(block, lora)
    assert not is_fair(sft, sft)


def test_one_search_for_all_seeds_is_fair_to_one_search_for_all_seeds(tmp_path):
    run(tmp_path, "post-block", [first(9)] * 2)
    run(tmp_path, "lora", [first(9)] * 2, None, searched_once=True)
    run(tmp_path, "sft", [first(9)] * 2, None, searched_once=True)
    each, once, other = (of(tmp_path, name) for name in ("post-block", "lora", "sft"))
    assert is_fair(once, other)
    assert not is_fair(each, once)


def test_pairs_differ_in_what_the_claim_is_about(tmp_path):
    run(tmp_path, "post-block", [first(9)])
    run(tmp_path, "post-block", [first(9)], positions="last:1")
    run(tmp_path, "post-block", [first(9)], bias=False)
    run(tmp_path, "post-block", [first(9)], steps=9)
    run(tmp_path, "post-mlp", [first(9)], "mlp_out")
    run(tmp_path, "attn-out", [first(9)], "attn_out")
    run(tmp_path, "mlp-in", [first(9)], "mlp_in", parameters=999)
    run(tmp_path, "nonlinear", [first(9)], family="nonlinear", activation="silu")
    run(tmp_path, "loreft", [first(9)], family="loreft", bias=None)
    run(tmp_path, "noreft", [first(9)], family="noreft", bias=None)
    run(tmp_path, "lora", [first(9)], None)
    run(tmp_path, "sft", [first(9)], None)
    run(tmp_path, "joint", [first(9)], constraint="none")
    run(tmp_path, "joint", [first(9)], constraint="input")

    def names(pairs):
        return sorted((p.first.method, p.second.method, p.strict) for p in pairs)

    found = entries(tmp_path)
    # mlp-in has other parameters; the post-block run without bias pairs with nothing.
    assert names(sites(found)) == [("post-block", "post-mlp", False), ("post-mlp", "attn-out", False)]
    assert names(fine_tuning(found)) == [("post-block", "sft", False)] * 2  # with and without a bias
    assert names(nonlinear(found)) == [("post-block", "nonlinear", False)]
    assert names(other_methods(found)) == [
        ("loreft", "noreft", False),
        ("post-block", "lora", False),
        ("post-block", "lora", False),
        ("post-block", "loreft", False),
        ("post-block", "loreft", False),
        ("post-block", "post-block", False),
        ("post-block", "post-block", False),
    ]
    changed = [p for p in other_methods(found) if p.first.method == p.second.method]
    assert {(p.second.settings["positions"], p.second.settings["bias"]) for p in changed} == {
        ("last:1", True), ("all", False),
    }  # fmt: skip
    alone = [(p.first.settings["constraint"], p.second.method, p.strict) for p in joint(found)]
    assert ("input", "joint", False) in alone
    assert ("none", "joint", False) not in alone
    assert ("input", "lora", True) in alone
    assert ("none", "post-block", True) in alone


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


def test_the_page_says_what_the_runs_decide(tmp_path):
    run(tmp_path / "runs", "post-block", [first(150), first(151), first(150)])
    run(tmp_path / "runs", "post-mlp", [first(100), first(101), first(100)], "mlp_out")
    run(tmp_path / "runs", "attn-out", [first(140), first(141), first(140)], "attn_out")
    run(tmp_path / "runs", "sft", [first(160)], None)
    write_claims([tmp_path / "runs"], tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    rows = [line for line in page.splitlines() if "| at least as good |" in line]
    assert [row.split("|")[-2].strip() for row in rows] == [
        "reproduced",
        "not reproduced",
        "undecided (fewer than three seeds in common)",
    ]
    assert "| (a) Steering all layers at equal parameters: post-block >= post-MLP" in page
    assert "| 1 | 1 | 0 |" in page
    assert page.count("No runs to decide it yet.") == 4
    assert page == render(studies([tmp_path / "runs"]), [])


def test_the_page_can_be_written_from_kept_runs(tmp_path):
    run(tmp_path / "runs", "post-block", [first(150), {3, 7}, first(150)])
    run(tmp_path / "runs", "sft", [first(160)] * 3, None)
    (tmp_path / "runs" / "sft-0" / "leftover.json").write_text(
        json.dumps(
            {"task": "t", "method": "sft", "seed": 0, "model": {"name": "m"}, "kl_base": 2.0, "spaces": [
                {"kind": "mlp_out", "rank": 1, "kl": 1.0}
            ]}
        )
    )  # fmt: skip
    kept, pages = tmp_path / "kept.json", [tmp_path / f"{i}.md" for i in range(3)]
    assert main([str(tmp_path / "runs"), str(pages[0]), "--keep", str(kept)]) == 0
    assert main([str(kept), str(pages[1])]) == 0
    assert pages[1].read_text() == pages[0].read_text()
    assert "mlp_out | 1 | 1 | 50.0%" in pages[0].read_text()
    # More runs join those that are kept.
    run(tmp_path / "more", "post-mlp", [first(100)] * 3, "mlp_out")
    assert main([str(kept), str(tmp_path / "more"), str(pages[2]), "--keep", str(kept)]) == 0
    assert "post-block r8 | post-mlp r8 | at least as good" in pages[2].read_text()
    assert main([str(kept), str(pages[1])]) == 0
    assert pages[1].read_text() == pages[2].read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("questions"),
        lambda values: values.update(schema_version=2),
        lambda values: values["runs"][0].update(right="01"),
        lambda values: values["runs"][0].update(right="x" * N),
        lambda values: values["runs"][0].update(right="1" + "f" * (N // 4)),
        lambda values: values["runs"][0].update(leftover={}),
        lambda values: values.update(runs=[]),
        lambda values: values["runs"].append(None),
        lambda values: values["runs"][0]["results"].update(test_accuracy=2.0),
    ],
)
def test_a_damaged_file_of_kept_runs_is_refused(tmp_path, change, capsys):
    run(tmp_path / "runs", "post-block", [first(150)])
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    assert main([str(tmp_path / "runs"), str(page), "--keep", str(kept)]) == 0
    before, values = page.read_text(), json.loads(kept.read_text())
    change(values)
    kept.write_text(json.dumps(values))
    assert main([str(kept), str(page)]) == 2
    assert str(kept) in capsys.readouterr().err
    assert page.read_text() == before


def test_what_is_kept_is_kept_again_as_it_was(tmp_path):
    run(tmp_path / "runs", "post-block", [first(150)])
    path = tmp_path / "runs" / "post-block-0" / "generations.jsonl"
    for i in range(30):  # one question, asked many times
        path.write_text(path.read_text().replace(f'"q{i}"', '"q"'))
    one, two, page = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "page.md"
    assert main([str(tmp_path / "runs"), str(page), "--keep", str(one)]) == 0
    assert main([str(one), str(page), "--keep", str(two)]) == 0
    assert json.loads(one.read_text()) == json.loads(two.read_text())
    assert main([str(one), str(page), "--keep", str(tmp_path / "nowhere" / "kept.json")]) == 2


def test_without_runs_the_page_says_so(tmp_path):
    assert main([str(tmp_path / "claims.md")]) == 0
    page = (tmp_path / "claims.md").read_text()
    assert "No runs yet: every claim is open." in page
    assert page.count("No runs to decide it yet.") == len(SECTIONS) + 1
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "claims.md")]) == 2


def test_questions_must_be_the_same(tmp_path):
    run(tmp_path, "post-block", [first(9)] * 3)
    run(tmp_path, "post-mlp", [first(9)] * 3, "mlp_out")
    path = tmp_path / "post-mlp-1" / "generations.jsonl"
    path.write_text(path.read_text().replace('"q7"', '"q6"'))
    with pytest.raises(InputError, match="answered other questions"):
        difference(of(tmp_path, "post-block"), of(tmp_path, "post-mlp"))
    assert {"q6#0", "q6#1"} < set(rights(str(tmp_path / "post-mlp-1")))
    path.write_text(path.read_text().replace(GENERATIONS[0].text, "a\u2028b\x85c"))  # line ends to some, not to JSON
    assert len(rights.__wrapped__(str(tmp_path / "post-mlp-1"))) == N
    (tmp_path / "post-block-0" / "generations.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"no readable generations\.jsonl"):
        rights.__wrapped__(str(tmp_path / "post-block-0"))


@pytest.mark.parametrize("method", ["sft", "lora"])
def test_what_a_space_leaves_is_measured_on_a_run(tmp_path, method):
    place = make_place(tmp_path)
    task = task_of(place)
    train(options(place, method, steps=10, learning_rate=0.02), task, tmp_path / "runs" / "one")
    found = measure_leftover(tmp_path / "runs" / "one", task, ranks=(1, 16), examples=12, batch_size=4)
    left = {(row["kind"], row["rank"]): row["kl"] / found["kl_base"] for row in found["spaces"]}
    assert found["kl_base"] > 1e-3
    assert len(left) == 8
    # Maps of full rank on the stream come nearer than those of rank 1, which come nearer than nothing.
    assert left["resid_post", 16] < left["resid_post", 1] < 1
    write_claims([tmp_path / "runs"], tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text()
    assert f"| listops | model | {method} | resid_post | 1 | 1 | {left['resid_post', 1]:.1%} |" in page
    assert json.loads((tmp_path / "runs" / "one" / "leftover.json").read_text()) == found


def test_other_runs_leave_nothing_to_measure(tmp_path):
    run(tmp_path, "post-block", [first(9)])
    with pytest.raises(InputError, match="expected sft, bitfit or lora"):
        measure_leftover(tmp_path / "post-block-0", None)


def test_the_kept_page_is_made_from_the_kept_runs(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    write_claims([docs / "results" / "claims.json"], tmp_path / "claims.md")
    assert (tmp_path / "claims.md").read_text(encoding="utf-8") == (docs / "claims.md").read_text(encoding="utf-8")


def test_no_other_file_is_written_over(tmp_path, capsys):
    """Where the page is forgotten, the last of the runs stands in its place."""
    kept = tmp_path / "claims.json"
    kept.write_bytes((Path(__file__).parents[3] / "docs" / "results" / "claims.json").read_bytes())
    before = kept.read_bytes()
    assert main([str(kept)]) == 2
    assert "is there and is another one than the page" in capsys.readouterr().err
    assert kept.read_bytes() == before
    (tmp_path / "notes.json").write_text('{"mine": 1}')
    assert main([str(kept), str(tmp_path / "claims.md"), "--keep", str(tmp_path / "notes.json")]) == 2
    assert "holds something else" in capsys.readouterr().err
    assert (tmp_path / "notes.json").read_text() == '{"mine": 1}'
    assert main([str(kept), str(tmp_path / "claims.md"), "--keep", str(kept)]) == 0
    assert main([str(kept), str(tmp_path / "claims.md" / "below")]) == 2
    assert "claims: cannot write" in capsys.readouterr().err


def test_the_page_says_that_the_data_of_earlier_runs_is_unknown(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    write_claims([docs / "results" / "claims.json"], tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert "Runs of earlier versions do not say on which data they were trained." in page
