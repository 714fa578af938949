"""ARC: grade-school science, the easy and the challenge set (Clark et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from steerscope.experiments.tasks.formats.fields import (
    LETTERS,
    answer_index,
    lettered,
    lettered_question,
    options,
    text,
)
from steerscope.experiments.tasks.parsing import letter
from steerscope.experiments.tasks.sources import HubSource
from steerscope.experiments.tasks.task import Row, TaskExample, TaskForm, folded


def _build_paper(row: Row) -> TaskExample:
    question, choices = text(row, "question").strip(), options(row)
    right = answer_index(row, len(choices))
    completions = tuple(f"Answer: ({label}) {one}" for label, one in zip(LETTERS, choices, strict=False))
    # Options of the source end with a full stop or not; the completion is to end with exactly one.
    completions = tuple(one if one.endswith((".", "?", "!")) else f"{one}." for one in completions)
    return TaskExample(
        f"Answer the following multiple-choice question.\nQuestion: {question}\n{lettered(choices, '({}) {}')}\n",
        completions[right],
        completions,
        right,
        answer=LETTERS[right],
        options=choices,
        content=folded(question),
    )


def _convert(row: Row) -> Row:
    labels = list(row["choices"]["label"])  # A to E, or 1 to 5
    return {
        "question": row["question"],
        "choices": list(row["choices"]["text"]),
        "answer_index": labels.index(row["answerKey"]),
    }


def _is_short(row: Row) -> bool:
    """Choose rows by characters, so that a tokenizer changes nothing; they are about a quarter of ARC-Easy."""
    return len(text(row, "question")) <= 80 and max(map(len, options(row))) <= 24


def _form(
    name: str, words: str, build: Callable[[Row], TaskExample], max_new_tokens: int | None, ends: bool
) -> TaskForm:
    return TaskForm(
        name=name,
        description=words,
        build=build,
        parse=lambda generation, example: letter(generation, example.options),
        max_new_tokens=max_new_tokens,
        official=("train", "validation", "test"),
        source="Clark et al. 2018, arXiv:1803.05457; allenai/ai2_arc",
        ends=ends,
    )


_ASKED = "a science question with lettered options; the answer is"
_LETTER, _TEXT = f"{_ASKED} a letter.", f"{_ASKED} a letter and its text (the paper's template)."
EASY = _form("arc_easy", f"ARC-Easy: {_LETTER}", lettered_question, None, ends=False)
CHALLENGE = _form("arc_challenge", f"ARC-Challenge: {_LETTER}", lettered_question, None, ends=False)
_SHORT = "ARC-Easy with questions of at most 80 and answers of at most 24 characters; the answer is a letter."
EASY_SHORT = replace(EASY, name="arc_easy_short", description=_SHORT, keeps=_is_short)
# Long enough for most options' texts; the letter stands at the start, so a cut costs nothing.
EASY_PAPER = _form("arc_easy_paper", f"ARC-Easy: {_TEXT}", _build_paper, 48, ends=True)
CHALLENGE_PAPER = _form("arc_challenge_paper", f"ARC-Challenge: {_TEXT}", _build_paper, 48, ends=True)
HUB_EASY = HubSource("allenai/ai2_arc", "ARC-Easy", _convert)
HUB_CHALLENGE = HubSource("allenai/ai2_arc", "ARC-Challenge", _convert)
