"""Runs kept in one file say what their folders do, and damaged files are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from studies.claims.__main__ import main
from studies.claims.page import write_claims
from tests.experiments.claims.cases import N, first, run, untrained


def test_the_page_can_be_written_from_kept_runs(tmp_path):
    run(tmp_path / "runs", "post-block", [first(150), {3, 7}, first(150)])
    run(tmp_path / "runs", "sft", [first(160)] * 3, None, losses=[2.0] * 10 + [1.0] * 10)
    untrained(tmp_path / "runs", 20, recalibrated=0.3)
    (tmp_path / "runs" / "sft-8-0" / "leftover.json").write_text(
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
    assert "The untrained model recalibrated: 30.0%." in pages[0].read_text()
    assert "| sft | 2.001 | 1.001 | 1.001 | +0.000 +- 0.000 | 0% | flat |" in pages[0].read_text()
    # More runs join those that are kept.
    run(tmp_path / "more", "post-mlp", [first(100)] * 3, "mlp_out")
    assert main([str(kept), str(tmp_path / "more"), str(pages[2]), "--keep", str(kept)]) == 0
    assert "post-block r8 >= post-mlp r8" in pages[2].read_text()
    assert main([str(kept), str(pages[1])]) == 0
    assert pages[1].read_text() == pages[2].read_text()


def test_no_path_of_a_machine_is_kept_or_printed(tmp_path):
    run(tmp_path / "runs", "post-block", [first(150)] * 3)
    for seed in range(3):
        results = tmp_path / "runs" / f"post-block-8-{seed}" / "results.json"
        place = tmp_path / "runs" / f"post-block-{seed}"
        told = json.loads(results.read_text()) | {"command": f"steerscope train m --lr 1e-3 --out {place} --resume"}
        results.write_text(json.dumps(told))
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    assert main([str(tmp_path / "runs"), str(page), "--keep", str(kept)]) == 0
    for text in (kept.read_text(), page.read_text()):
        assert str(tmp_path) not in text
        assert "steerscope train m --lr 1e-3 --out runs/post-block-" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.pop("questions"),
        lambda values: values.update(schema_version=2),
        lambda values: values["runs"][0].update(right="01"),
        lambda values: values["runs"][0].update(right="x" * N),
        lambda values: values["runs"][0].update(right="1" + "f" * (N // 4)),
        lambda values: values["runs"][0].update(leftover={}),
        lambda values: values["runs"][0].update(recalibrated={"accuracy": "high", "n": 200}),
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
    path = tmp_path / "runs" / "post-block-8-0" / "generations.jsonl"
    for i in range(30):  # one question, asked many times
        path.write_text(path.read_text().replace(f'"q{i}"', '"q"'))
    one, two, page = tmp_path / "one.json", tmp_path / "two.json", tmp_path / "page.md"
    assert main([str(tmp_path / "runs"), str(page), "--keep", str(one)]) == 0
    assert main([str(one), str(page), "--keep", str(two)]) == 0
    assert json.loads(one.read_text()) == json.loads(two.read_text())
    assert main([str(one), str(page), "--keep", str(tmp_path / "nowhere" / "kept.json")]) == 2


def test_no_other_file_is_written_over(tmp_path, capsys):
    """Where the page is forgotten, the last of the runs stands in its place."""
    kept = tmp_path / "claims.json"
    run(tmp_path / "runs", "post-block", [first(9)])
    assert main([str(tmp_path / "runs"), str(tmp_path / "claims.md"), "--keep", str(kept)]) == 0
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


def test_the_kept_page_is_made_from_the_kept_runs(tmp_path):
    docs = Path(__file__).parents[3] / "docs"
    write_claims([docs / "results" / "claims.json"], tmp_path / "claims.md")
    page = (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert page == (docs / "claims.md").read_text(encoding="utf-8")
    assert "Runs of earlier versions do not say on which data they were trained." in page
