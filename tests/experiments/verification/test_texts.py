"""Data sets of tokens: the English text that comes with the package, a file of one's own, a task's prompts."""

from __future__ import annotations

import pytest

from steerscope import InputError, get_task
from steerscope.analysis.data.encoding import encode_for
from steerscope.equivalence.propositions.texts import new_contexts
from steerscope.experiments.verification.run import VerifyOptions
from steerscope.experiments.verification.texts import paragraphs, task_windows, text_windows
from tests.analysis.theory.cases import loaded


def test_the_english_text_is_of_different_paragraphs_of_some_length():
    texts = paragraphs()
    assert len(texts) == len(set(texts)) > 60
    assert min(len(text.split()) for text in texts) > 45
    assert all("\n" not in text for text in texts)
    assert len({text[:12] for text in texts}) == len(texts)  # no common beginnings


def test_windows_of_one_length_in_two_parts_that_share_no_text():
    model = loaded()
    texts = [f"{i} {i + 1} {i % 7} [MAX {i % 5} 2 {i % 3} ] = {i % 9} 1 2 3 4 5 6 7 8 9" for i in range(12)]
    found = text_windows(model, texts, "numbers")
    assert found.fitted.shape[0] == 8
    assert found.held_out.shape == (4, found.fitted.shape[1])
    rows = [tuple(row) for row in found.ids.tolist()]
    assert len(set(rows)) == len(rows)


def test_windows_of_a_task():
    model = loaded()
    found = task_windows(model, encode_for(model, get_task("listops").split("validation", 200, 0)), "listops")
    assert found.name == "listops"
    assert len(found.fitted) > 2 * len(found.held_out) - 3
    assert new_contexts(found.fitted, found.held_out)[:, -1].all()


def test_too_few_texts_are_refused(tmp_path):
    with pytest.raises(InputError, match="expected at least three"):
        text_windows(loaded(), ["1 2 3 4 5 6", "2 3 4 5 6 7"], "two")
    with pytest.raises(InputError, match="cannot read the text"):
        VerifyOptions(text=str(tmp_path / "none.txt")).check()
    (tmp_path / "some.txt").write_text("One\nparagraph.\n\n\n Two. \n")
    assert paragraphs(tmp_path / "some.txt") == ["One paragraph.", "Two."]
