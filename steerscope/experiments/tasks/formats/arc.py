"""ARC: grade-school science, the easy and the challenge set (Clark et al. 2018)."""

from __future__ import annotations

from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerForm, Row
from steerscope.experiments.tasks.formats.fields import LETTERS, answer_index, content, lettered, options, text
from steerscope.experiments.tasks.parsing import letter
from steerscope.experiments.tasks.sources import HubSource


def _build(row: Row) -> AnswerExample:
    question, choices = text(row, "question").strip(), options(row)
    right = answer_index(row, len(choices))
    completions = tuple(f"Answer: ({label}) {one}" for label, one in zip(LETTERS, choices, strict=False))
    # Options of the source end with a full stop or not; the completion is to end with exactly one.
    completions = tuple(one if one.endswith((".", "?", "!")) else f"{one}." for one in completions)
    return AnswerExample(
        f"Answer the following multiple-choice question.\nQuestion: {question}\n{lettered(choices)}\n",
        completions[right],
        LETTERS[right],
        options=choices,
        choices=completions,
        answer_index=right,
        content=content(question),
    )


def _convert(row: Row) -> Row:
    labels = list(row["choices"]["label"])  # A to E, or 1 to 5
    return {
        "question": row["question"],
        "choices": list(row["choices"]["text"]),
        "answer_index": labels.index(row["answerKey"]),
    }


def _form(name: str, title: str) -> AnswerForm:
    return AnswerForm(
        name=name,
        description=f"{title}: a science question with lettered options; the answer is a letter and its text.",
        build=_build,
        parse=lambda generation, example: letter(generation, example.options),
        # Long enough for most options' texts; the letter stands at the start, so a cut costs nothing.
        max_new_tokens=48,
        official=("train", "validation", "test"),
        source="Clark et al. 2018, arXiv:1803.05457; allenai/ai2_arc",
    )


EASY, CHALLENGE = _form("arc_easy", "ARC-Easy"), _form("arc_challenge", "ARC-Challenge")
HUB_EASY = HubSource("allenai/ai2_arc", "ARC-Easy", _convert)
HUB_CHALLENGE = HubSource("allenai/ai2_arc", "ARC-Challenge", _convert)
