"""Which runs are paired, claims as conjunctions of links, and what keeps a comparison or a training from counting."""

from __future__ import annotations

import itertools

import pytest

from studies.claims.learned import admission, has_learned
from studies.claims.outcomes import conjunction, outcome
from studies.claims.sections import SECTIONS, constraints, fine_tuning, joint, nonlinear, other_methods, sites
from tests.experiments.claims.cases import entries, first, group, of, run, untrained

BY_LETTER = {section.letter: section for section in SECTIONS}


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
    run(tmp_path, "lora", [first(9)], None, parameters=9000)
    run(tmp_path, "sft", [first(9)], None)
    run(tmp_path, "joint", [first(9)], constraint="none", parameters=10_000)
    run(tmp_path, "joint", [first(9)], constraint="input", parameters=10_000)

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
    of_joint = [(p.first.settings["constraint"], p.second.method, p.strict) for p in joint(found)]
    assert {("input", "lora", True), ("none", "post-block", True)} < set(of_joint)
    (helps,) = constraints(found)
    assert (helps.first.settings["constraint"], helps.second.settings["constraint"]) == ("input", "none")


def test_links_are_of_the_methods_as_they_are(tmp_path):
    """Not of variants, though these have more seeds in common with the other side."""
    run(tmp_path, "post-block", [first(9)])
    run(tmp_path, "post-block", [first(9)] * 2, bias=False)
    run(tmp_path, "post-block", [first(9)] * 2, scale="rms")
    run(tmp_path, "post-block", [first(9)] * 2, start="published")
    run(tmp_path, "post-block", [first(9)] * 2, rank=1)
    run(tmp_path, "loreft", [first(9)], family="loreft", bias=None)
    run(tmp_path, "loreft", [first(9)] * 2, family="loreft", bias=None, start="published")
    run(tmp_path, "noreft", [first(9)] * 2, family="noreft", bias=None)
    run(tmp_path, "lora", [first(9)] * 2, None, parameters=9000)
    run(tmp_path, "sft", [first(9)] * 2, None)
    for constraint in ("none", "input", "output"):
        run(tmp_path, "joint", [first(9)] * 2, constraint=constraint, parameters=10_000)
    found = {letter: outcome(BY_LETTER[letter], group(tmp_path)) for letter in ("b", "c", "e", "e, constraint")}
    for one in found.values():
        assert [row.link for row in one.links] == list(one.section.links)
        assert not one.missing
    blocks = [found["b"].links[0].pair.first, *(row.pair.first for row in found["c"].links)]
    blocks.append(found["e"].links[0].pair.second)
    assert {(one.rank, one.settings["bias"]) for one in blocks} == {(8, True)}
    assert not any({"scale", "start"} & one.settings.keys() for one in blocks)
    assert {(row.pair.first.method, row.pair.second.method) for row in found["c"].apart} == {
        ("post-block", "loreft"), ("post-block", "lora"), ("post-block", "post-block"), ("loreft", "noreft"),
        ("loreft", "loreft"),
    }  # fmt: skip
    assert {row.pair.first.settings["constraint"] for row in found["e"].links} == {"input"}
    assert outcome(BY_LETTER["d"], group(tmp_path)) is None


def test_lora_of_equal_size_stands_apart(tmp_path):
    run(tmp_path, "post-block", [first(9)], parameters=1000)
    run(tmp_path, "joint", [first(9)], constraint="input", parameters=9000)
    run(tmp_path, "lora", [first(9)], None, parameters=8000)
    run(tmp_path, "lora", [first(9)], None, parameters=1040, rank=1)
    run(tmp_path, "lora", [first(9)], None, parameters=9100, rank=9)
    run(tmp_path, "lora", [first(9)], None, parameters=8900, rank=7)  # smaller than joint: no answer to its size

    def apart(letter: str) -> list[tuple[str, int]]:
        rows = outcome(BY_LETTER[letter], group(tmp_path)).apart
        return [(row.pair.first.method, row.pair.second.rank) for row in rows if row.at_equal_parameters]

    assert apart("c") == [("post-block", 1)]
    assert apart("e") == [("joint", 9)]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("reproduced", "reproduced"), "reproduced"),
        (("reproduced", "undecided"), "undecided"),
        (("undecided", "not reproduced", "reproduced"), "not reproduced"),
    ],
)
def test_a_claim_holds_only_if_all_of_its_links_do(kinds, expected):
    assert all(conjunction(own) == expected for own in itertools.permutations(kinds))


def test_one_link_that_fails_and_one_without_runs(tmp_path):
    untrained(tmp_path, 20)
    run(tmp_path, "post-block", [first(150)] * 3)
    run(tmp_path, "loreft", [first(100)] * 3, family="loreft", bias=None)
    found = outcome(BY_LETTER["c"], group(tmp_path))
    assert [row.verdict.kind for row in found.links] == ["reproduced"]
    assert (found.missing, found.kind) == ((("post-block", "lora"),), "undecided")
    run(tmp_path, "lora", [first(190)] * 3, None)
    assert outcome(BY_LETTER["c"], group(tmp_path)).kind == "not reproduced"


def test_rows_apart_decide_nothing(tmp_path):
    untrained(tmp_path, 20)
    run(tmp_path, "post-block", [first(150)] * 3)
    run(tmp_path, "sft", [first(150)] * 3, None)
    run(tmp_path, "post-block", [first(90)] * 3, rank=1, parameters=100)
    found = outcome(BY_LETTER["b"], group(tmp_path))
    assert [row.verdict.kind for row in found.apart] == ["not reproduced"]
    assert found.kind == "reproduced"


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((150, 100), "undecided (training left the second below the untrained model)"),
        ((100, 150), "undecided (training left the first below the untrained model)"),
        ((118, 121), "undecided (neither side learned more than a constant answer)"),
        ((118, 150), "not reproduced"),
        ((150, 118), "reproduced"),
    ],
)
def test_what_failed_to_train_decides_nothing_on_either_side(tmp_path, counts, reason):
    untrained(tmp_path, 120)
    run(tmp_path, "post-block", [first(counts[0])] * 3)
    run(tmp_path, "sft", [first(counts[1])] * 3, None)
    (row,) = outcome(BY_LETTER["b"], group(tmp_path)).links
    assert str(row.verdict) == reason


def test_a_training_counts_if_the_best_method_learned(tmp_path):
    run(tmp_path, "post-block", [first(150), first(152), first(149)])
    run(tmp_path, "sft", [first(60)] * 3, None)
    assert admission(group(tmp_path)).sentence == "there is no run of the untrained model (method none)."
    run(tmp_path, "none", [first(50)], None)
    assert "recalibrated model was not measured" in admission(group(tmp_path)).sentence
    place = tmp_path / "none-8-0" / "recalibrated.json"
    for recalibrated, holds in (("null", True), ("0.3", True), ("0.74", False)):
        place.write_text(f'{{"accuracy": {recalibrated}, "n": 200}}')
        assert admission(group(tmp_path)).holds is holds
    assert admission(group(tmp_path)).sentence.startswith("the best of 2 methods, post-block, does not surely gain:")
    assert "points over the recalibrated model" in admission(group(tmp_path)).sentence
    place.write_text('{"accuracy": 0.3, "n": 200}')
    assert has_learned(of(tmp_path, "post-block"), group(tmp_path))
    assert not has_learned(of(tmp_path, "sft"), group(tmp_path))  # 30%, as the recalibrated model


def test_one_lucky_method_among_many_does_not_admit_a_training(tmp_path):
    """The interval of the best of several methods is that of a level divided by their number."""
    untrained(tmp_path, 20, recalibrated=0.23)
    run(tmp_path, "post-block", [first(68), first(66), first(67)])
    assert admission(group(tmp_path)).holds
    for rank in range(20, 28):
        run(tmp_path, "lora", [first(50)] * 3, None, rank=rank)
    assert not admission(group(tmp_path)).holds


def test_runs_of_two_seeds_admit_nothing(tmp_path):
    untrained(tmp_path, 20)
    run(tmp_path, "post-block", [first(150)] * 2)
    assert admission(group(tmp_path)).sentence == "no method was trained with 3 seeds."


def test_a_training_that_does_not_count_decides_no_claim(tmp_path):
    run(tmp_path, "post-block", [first(150)] * 3)
    run(tmp_path, "sft", [first(100)] * 3, None)
    found = outcome(BY_LETTER["b"], group(tmp_path))  # without a run of the untrained model
    assert [row.verdict.kind for row in found.links] == ["reproduced"]
    assert (found.admission.holds, found.kind) == (False, "undecided")


@pytest.mark.parametrize(
    ("counts", "falls", "said"),
    [
        ((100, 150), "first", "undecided (the first is behind and was still learning when training ended)"),
        ((150, 100), "second", "undecided (the second is behind and was still learning when training ended)"),
        ((100, 150), "second", "not reproduced"),
        ((150, 100), "first", "reproduced"),
    ],
)
def test_a_side_behind_that_was_still_learning_decides_nothing(tmp_path, counts, falls, said):
    untrained(tmp_path, 20)
    flat, falling = [2.0] * 4 + [1.0] * 16, [2.0 - 0.05 * i for i in range(20)]
    for which, method, kind, count in (("first", "post-block", "resid_post", 0), ("second", "sft", None, 1)):
        run(tmp_path, method, [first(counts[count])] * 3, kind, losses=falling if which == falls else flat)
    (row,) = outcome(BY_LETTER["b"], group(tmp_path)).links
    assert str(row.verdict) == said
