"""AQuA-RAT: algebra with five options; the answer's letter at once, or after a rationale (Ling et al. 2017)."""

from __future__ import annotations

import re
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

_LABEL = re.compile(r"^\s*[A-E]\s*\)\s*")


def _build_paper(row: Row) -> TaskExample:
    question, choices = text(row, "question").strip(), options(row)
    right = answer_index(row, len(choices))
    return TaskExample(
        f"Answer the following multiple-choice math question.\nQuestion: {question}\n{lettered(choices, '({}) {}')}\n",
        # No choices: there is no rationale for the wrong letters.
        f"{text(row, 'rationale').strip()}\nAnswer: {LETTERS[right]}.",
        answer=LETTERS[right],
        options=choices,
        content=folded(question),
    )


def _convert(row: Row) -> Row:
    return {
        "question": row["question"],
        "choices": [_LABEL.sub("", one) for one in row["options"]],
        "answer_index": LETTERS.index(row["correct"].strip()),
        "rationale": row["rationale"],
    }


FORM = TaskForm(
    name="aqua",
    description="AQuA-RAT: an algebra question with five options; the answer is a letter, without a rationale.",
    build=lettered_question,
    parse=lambda generation, example: letter(generation, example.options),
    max_new_tokens=None,
    official=("train", "validation", "test"),
    source="Ling et al. 2017, arXiv:1705.04146; deepmind/aqua_rat, raw",
    ends=False,
)
PAPER = replace(
    FORM,
    name="aqua_paper",
    description="AQuA-RAT: an algebra question with five options; a rationale, then the answer's letter (the paper's "
    "template).",
    build=_build_paper,
    parse=lambda generation, example: letter(generation, example.options, last=True),
    max_new_tokens=512,
    ends=True,
)
HUB = HubSource("deepmind/aqua_rat", "raw", _convert)
