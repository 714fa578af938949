"""AQuA-RAT: algebra with a rationale before the answer's letter (Ling et al. 2017)."""

from __future__ import annotations

import re

from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerForm, Row
from steerscope.experiments.tasks.formats.fields import LETTERS, answer_index, content, lettered, options, text
from steerscope.experiments.tasks.parsing import letter
from steerscope.experiments.tasks.sources import HubSource

_LABEL = re.compile(r"^\s*[A-E]\s*\)\s*")


def _build(row: Row) -> AnswerExample:
    question, choices = text(row, "question").strip(), options(row)
    right = answer_index(row, len(choices))
    return AnswerExample(
        f"Answer the following multiple-choice math question.\nQuestion: {question}\n{lettered(choices)}\n",
        f"{text(row, 'rationale').strip()}\nAnswer: {LETTERS[right]}.",
        LETTERS[right],
        options=choices,
        # Likelihoods are compared without a rationale: there is none for the wrong letters.
        choices=tuple(f"Answer: {label}." for label in LETTERS[: len(choices)]),
        answer_index=right,
        content=content(question),
    )


def _convert(row: Row) -> Row:
    return {
        "question": row["question"],
        "choices": [_LABEL.sub("", one) for one in row["options"]],
        "answer_index": LETTERS.index(row["correct"].strip()),
        "rationale": row["rationale"],
    }


FORM = AnswerForm(
    name="aqua",
    description="AQuA-RAT: an algebra question with five options; a rationale, then the answer's letter.",
    build=_build,
    parse=lambda generation, example: letter(generation, example.options, last=True),
    max_new_tokens=512,
    official=("train", "validation", "test"),
    source="Ling et al. 2017, arXiv:1705.04146; deepmind/aqua_rat, raw",
)
HUB = HubSource("deepmind/aqua_rat", "raw", _convert)
