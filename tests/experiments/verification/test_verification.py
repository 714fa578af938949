"""Running, saving, drawing and documenting a verification."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from steerscope import InputError, load_model
from steerscope.experiments.verification.results import Verification, VerifySettings, plain
from steerscope.experiments.verification.run import VerifyOptions, verify_model, verify_random
from steerscope.reports.verification.figures import FIGURE_STEMS
from steerscope.reports.verification.folder import write_verification
from steerscope.reports.verification.tables import headline, measurement_tables, number, proposition_table
from studies import theory as docs
from tests.cli.runs import save_model
from tests.experiments.verification.cases import EVERY, FINE, RIGHT, SMALL, proposition

ROOT = Path(__file__).parents[3]


def loaded_in(name, dtype):
    return load_model(name, dtype=dtype)


@pytest.fixture(scope="module")
def on_random() -> Verification:
    return replace(verify_random(EVERY), settings=VerifySettings(command="steerscope verify"))


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, int, int]]:
    return []


@pytest.fixture(scope="module")
def on_model(tmp_path_factory, stages) -> Verification:
    folder = save_model(tmp_path_factory.mktemp("verify") / "model", num_hidden_layers=3)
    return verify_model(partial(loaded_in, folder), FINE, SMALL, progress=lambda *seen: stages.append(seen))


# --- what is found -----------------------------------------------------------------------------------------


def test_verdicts(on_random):
    assert {one.name: one.verdict for one in on_random.propositions} == {
        "P1": "holds",
        "P3": "holds with correction",
        "P7": "fails",
        "P12": "not applicable",
        "P13": "fails",
    }
    assert on_random.failed == ("P7", "P13")
    assert on_random.counts() == {"holds": 1, "fails": 2, "holds with correction": 1, "not applicable": 1}
    assert on_random.model is None
    assert on_random.measurements == {}


def test_decisive_measurement(on_random):
    by_name = {one.name: one for one in on_random.propositions}
    assert by_name["P1"].decisive().name == "llama: norm of a draw"  # nearer to its bound than the zero
    assert by_name["P7"].decisive().name == "llama: slope"  # the one that fails
    assert by_name["P12"].decisive() is None
    assert by_name["P13"].decisive().value is None


def test_what_older_files_call_vacuous_holds_where_something_was_measured(on_random):
    data = json.loads(on_random.to_json())
    for one in data["propositions"]:
        if one["name"] in ("P1", "P12"):
            one |= {"verdict": "vacuous here", "vacuous": "why"}
            del one["limit"]
            for entry in one["claims"]:
                del entry["of_subject"]
    read = {one.name: one for one in Verification.from_json(json.dumps(data)).propositions}
    assert (read["P1"].verdict, read["P1"].limit, read["P1"].vacuous) == ("holds", "why", "")
    assert (read["P12"].verdict, read["P12"].limit, read["P12"].vacuous) == ("not applicable", "", "why")


def test_a_number_that_is_the_same_on_any_model_is_not_shown_as_measured_on_one(on_random, on_model):
    def with_claims(found, *of_subject):
        (one,) = (one for one in found.propositions if one.name == "P1")
        claims = tuple(replace(one.claims[0], value=v, of_subject=own) for v, own in of_subject)
        return replace(found, propositions=(replace(one, claims=claims),))

    both = with_claims(on_model, (99.0, False), (5.0, True))
    assert both.propositions[0].decisive().value == 5.0  # though 99 is nearer to the end of the interval
    text = docs.document(with_claims(on_random, (99.0, True)), with_claims(on_model, (99.0, False)))
    (row,) = re.findall(r"^\| P1 .*$", text, re.MULTILINE)
    assert row.endswith("| nothing of the model |  |  |")
    assert row.count(" 99 ") == 1


def test_limits_stand_beside_the_verdict(on_random, tmp_path):
    (one,) = (one for one in on_random.propositions if one.name == "P1")
    found = replace(on_random, propositions=(replace(one, limit="for 12 tokens"),))
    assert "| holds: for 12 tokens |" in docs.document(found)
    assert "P1: for 12 tokens." in proposition_table(found).note
    assert "for 12 tokens" in write_verification(found, tmp_path).read_text(encoding="utf-8")


def test_measurements_are_all_made(on_model, stages):
    assert set(on_model.measurements) == set(FIGURE_STEMS) - {"verdicts", "curves"}
    assert all(on_model.measurements.values())
    assert on_model.finetune.steps == len(on_model.finetune.losses) == 2
    assert 0 < on_model.finetune.relative_size < 0.1
    assert on_model.finetune.loss_after < on_model.finetune.loss_before
    assert on_model.subject == on_model.model.name
    assert on_model.model.dtype == "float64"
    assert set(on_model.timing) == {name for name, _, _ in stages}
    updates = {one["update"] for one in on_model.measurements["radius"]}
    assert updates == {"trained", "random 0", "random 1"}


def test_quick_run_measures_nothing(on_model):
    quick = verify_model(partial(loaded_in, on_model.model.name), [RIGHT], replace(SMALL, quick=True))
    assert quick.measurements == {}
    assert any("Quick run" in warning for warning in quick.warnings)


@pytest.mark.parametrize(("options", "words"), [({"seed": -1}, "seed"), ({"rows": 7}, "rows"), ({"steps": 0}, "steps")])
def test_bad_options(options, words):
    with pytest.raises(InputError, match=words):
        verify_random([RIGHT], VerifyOptions(**options))


def test_a_check_that_raises_fails_with_its_reason():
    def broken(subject):
        raise ValueError("no such block")

    (one,) = verify_random([proposition(5, broken)]).propositions
    assert one.verdict == "fails"
    assert "no such block" in one.notes[0]
    assert one.decisive() is None


# --- JSON --------------------------------------------------------------------------------------------------


def test_json_contract(on_random, on_model):
    for found in (on_random, on_model):
        data = json.loads(found.to_json())
        assert set(data) == {
            "schema_version", "subject", "model", "seed", "tokens", "propositions", "measurements", "finetune",
            "settings", "versions", "timing", "warnings",
        }  # fmt: skip
        assert data["schema_version"] == 1
        for one in data["propositions"]:
            assert {"name", "verdict", "claim", "source", "claims", "controls", "series", "seconds"} <= set(one)
            for entry in one["claims"]:
                assert set(entry) == {"name", "value", "low", "high", "inside", "expected", "of_subject"}
        assert Verification.from_json(found.to_json()).to_json() == found.to_json()


def test_numbers_that_are_none(on_random):
    data = json.loads(on_random.to_json())
    entry = data["propositions"][-1]["claims"][0]
    assert (entry["value"], entry["low"], entry["inside"]) == (None, None, False)
    assert plain({"a": (float("inf"), 0.123456789)}) == {"a": [None, 0.123457]}
    assert [number(value) for value in (None, -0.0, 1234.5)] == ["none", "0", "1.23e+03"]


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 9}', '{"schema_version": 1}'])
def test_other_json_is_refused(text):
    with pytest.raises(InputError):
        Verification.from_json(text)


# --- page and tables ---------------------------------------------------------------------------------------


def test_page(on_model, tmp_path):
    page = write_verification(on_model, tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {"index.html", "verify.json", *(f"figures/{s}.{e}" for s in FIGURE_STEMS for e in ("svg", "png"))}
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import""", text)
    assert "a &lt;b&gt;note&lt;/b&gt;" in text  # what a check says is escaped
    assert text.count("<img ") == len(FIGURE_STEMS)
    assert all(alt for alt in re.findall(r'<img [^>]*alt="([^"]*)"', text))
    assert "Nothing fails" in text
    before = page.read_bytes()
    assert write_verification(on_model, tmp_path / "out").read_bytes() == before


def test_page_of_a_failure(on_random, tmp_path):
    text = write_verification(on_random, tmp_path).read_text(encoding="utf-8")
    assert "P7 and P13 fail" in text
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {"verdicts", "curves"}


def test_folder_that_is_a_file(on_random, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        write_verification(on_random, tmp_path / "file")


def test_tables(on_random, on_model):
    table = proposition_table(on_random)
    assert [row[0] for row in table.rows] == ["P1", "P3", "P7", "P12", "P13"]
    assert table.rows[2][2:] == ("1", "1.95 to 2.05", "fails")
    assert table.rows[3][2:] == ("", "", "not applicable")
    assert headline(on_random).startswith("5 propositions on random blocks (llama, gpt2, gemma2): holds 1, fails 2")
    tables = measurement_tables(on_model)
    assert len(tables) == len(FIGURE_STEMS) - 2
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)


def test_slopes_of_blocks_say_which_are_outside_and_from_where_they_are_inside(on_model):
    entries = on_model.measurements["block_slopes"]
    assert [one["at"] for one in entries] == [f"{layer}.resid_post" for layer in range(3) for _ in range(4)]
    first = entries[0] | {"within": False, "slope": 1.8, "within_up_to": 1e-3}
    second = entries[1] | {"within": False, "slope": 1.2, "within_up_to": None}
    changed = replace(on_model, measurements={"block_slopes": [first, second, *entries[2:4]]})
    (table,) = measurement_tables(changed)
    (row,) = table.rows
    assert row[:3] == ("0", "1.800", "1.200")
    assert "trained from 0.001; random 0 from none" in row
    assert table.note.startswith("2 of 4 slopes are")


# --- the document ------------------------------------------------------------------------------------------


def test_document(on_random, on_model):
    text = docs.document(on_random, on_model)
    assert "steerscope verify --seed 0 --json docs/results/verify-random.json" in text
    assert "\\|a\\| <= b." in text  # a formula's bars do not end a cell
    assert "## Public statements that need a correction" in text
    assert "published form: 163, expected at most 1e-12" in text
    assert "- P12 on random blocks (llama, gpt2, gemma2): there is no gate" in text
    assert (
        "- P7 on random blocks (llama, gpt2, gemma2): statement 7. Outside: llama: slope: 1, expected 1.95 to 2.05"
        in text
    )
    for row in re.findall(r"^\| P.*$", text, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", row)) == 10
    assert "## Measurements on" in text
    assert "## Measurements on" not in docs.document(on_random)


def test_document_command(on_random, tmp_path, capsys):
    on_random.save(tmp_path / "random.json")
    assert docs.main([str(tmp_path / "random.json")]) == 0
    assert capsys.readouterr().out == docs.document(Verification.load(tmp_path / "random.json")).rstrip("\n") + "\n"
    assert docs.main([]) == 2
    assert docs.main([str(tmp_path / "missing.json")]) == 2
    assert "steerscope: cannot read" in capsys.readouterr().err


def test_theory_md_is_what_the_generator_makes():
    files = [ROOT / name for name in (docs.RANDOM, docs.MODEL)]
    made = docs.document(*map(Verification.load, files)).rstrip("\n") + "\n"
    assert (ROOT / "docs" / "theory.md").read_text(encoding="utf-8") == made
