"""The catalogue: 46 propositions, each once; chosen by name; tried on random blocks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from steerscope.equivalence.propositions import catalogue
from steerscope.equivalence.propositions.base import Evidence, Measurement, Series, Source, Verdict
from steerscope.equivalence.propositions.catalogue import all_propositions, file_names, propositions, run
from steerscope.errors import InputError
from steerscope.experiments.verification.results import PropositionResult, plain
from steerscope.files import json_text
from tests.equivalence.propositions.trials import fingerprint, random_blocks

ALL = all_propositions()


def test_46_propositions_each_once_and_in_order():
    assert [proposition.number for proposition in ALL] == list(range(1, 47))


def test_the_name_of_a_file_has_the_numbers_of_its_propositions_and_no_others():
    folder = Path(catalogue.__file__).parent
    numbered: dict[str, list[str]] = {}
    for file in sorted(folder.glob("p[0-9]*.py")):
        digits = re.fullmatch(r"p((?:\d\d_)+)[a-z][a-z0-9_]*\.py", file.name)
        assert digits is not None, f"{file.name} is not named pNN_topic.py or pNN_NN_topic.py"
        for number in digits[1].strip("_").split("_"):
            numbered.setdefault(f"P{int(number)}", []).append(file.name)
    assert numbered == {name: [file] for name, file in file_names().items()}
    assert list(file_names()) == [proposition.name for proposition in ALL]


def test_every_proposition_says_what_it_claims_and_who_says_so():
    for proposition in ALL:
        assert proposition.title
        assert proposition.group
        assert len(proposition.claim) > 20, proposition.name
        assert isinstance(proposition.source, Source)


def test_propositions_by_name():
    assert [p.name for p in propositions("P12, p7")] == ["P7", "P12"]
    assert [p.name for p in propositions(["P7", "P7"])] == ["P7"]


@pytest.mark.parametrize("names", ["", " , ", []])
def test_no_name_is_refused(names):
    with pytest.raises(InputError, match="expected names such as P7,P12"):
        propositions(names)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(InputError, match=r"unknown proposition 'P47'\. Did you mean .*P1 to P46"):
        propositions("P7,P47")


def test_none_fails_on_random_blocks_and_the_model_stays_as_it_was():
    subject = random_blocks(0)
    before, seen = fingerprint(subject), []
    results = run(subject, ALL, progress=seen.append)
    failed = {r.proposition.name: r.evidence.notes for r in results if r.verdict is Verdict.FAILS}
    assert not failed
    assert tuple(seen) == results
    assert fingerprint(subject) == before
    json_text([plain(PropositionResult.of(result)) for result in results])


def test_a_check_that_raises_fails_with_its_reason():
    def broken(subject):
        raise RuntimeError("no such matrix")

    (result,) = run(random_blocks(0), [replace(ALL[0], check=broken)])
    assert result.verdict is Verdict.FAILS
    assert result.evidence.notes == ("the check raised RuntimeError: no such matrix",)


def test_on_several_subjects_every_measurement_counts():
    small, large = replace(random_blocks(0), name="a"), replace(random_blocks(0), name="b")

    def evidence(value, published=0.5, reason=""):
        claim, control, public = (Measurement(n, v, high=1.0) for n, v in (("m", value), ("c", 2.0), ("p", published)))
        return Evidence((claim,), (control,), (public,), inapplicable=reason)

    def check(*on_large, **more):
        return lambda subject: evidence(*on_large, **more) if subject is large else evidence(0.5)

    def verdict(check):
        (result,) = run([small, large], [replace(ALL[0], check=check)])
        return result.verdict, [m.name for m in result.evidence.claim]

    assert verdict(check(0.5)) == (Verdict.HOLDS, ["a: m", "b: m"])
    assert verdict(check(2.0))[0] is Verdict.FAILS
    assert verdict(check(0.5, published=2.0))[0] is Verdict.CORRECTED
    assert verdict(check(2.0, reason="no gate")) == (Verdict.HOLDS, ["a: m"])
    assert verdict(lambda subject: Evidence(inapplicable="no gate"))[0] is Verdict.NOT_APPLICABLE


def test_a_result_as_json_data():
    found = Evidence(
        claim=(Measurement("error", 0.5, high=1.0),),
        controls=(Measurement("wrong", float("nan"), high=1.0),),
        series={"curve": Series("x", "y", (1.0,), (float("inf"),))},
    )
    (result,) = run(random_blocks(0), [replace(ALL[0], check=lambda subject: found)])
    data = json.loads(json_text(plain(PropositionResult.of(result))))
    assert data["verdict"] == "holds"
    (claim,) = data["claims"]
    assert {name: claim[name] for name in ("name", "value", "low", "high", "inside", "of_subject")} == {
        "name": "error", "value": 0.5, "low": None, "high": 1.0, "inside": True, "of_subject": True,
    }  # fmt: skip
    assert data["controls"][0]["value"] is None
    assert data["series"]["curve"] == {"x_name": "x", "y_name": "y", "x": [1.0], "y": [None]}
