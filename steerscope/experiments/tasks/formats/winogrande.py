"""Winogrande, debiased: which of two options fills the blank (Sakaguchi et al. 2020)."""

from __future__ import annotations

from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerForm, Row
from steerscope.experiments.tasks.formats.fields import answer_index, content, options, text
from steerscope.experiments.tasks.parsing import option
from steerscope.experiments.tasks.sources import HubSource

_CHOICES = ("Answer: Option1.", "Answer: Option2.")


def _build(row: Row) -> AnswerExample:
    sentence, (first, second) = text(row, "question").strip(), options(row, 2, 2)
    right = answer_index(row, 2)
    prompt = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{sentence}\nOption1: {first}\nOption2: {second}\n"
    )
    # Twins are one sentence with a word changed and the other answer; they share their two options.
    twins = sorted(one.casefold() for one in (first, second))
    return AnswerExample(
        prompt,
        _CHOICES[right],
        str(right + 1),
        options=(first, second),
        choices=_CHOICES,
        answer_index=right,
        group=str(row["id"]).rsplit("-", 1)[0] if row.get("id") else content(*twins),
        content=content(sentence),
    )


def _convert(row: Row) -> Row:
    return {
        "question": row["sentence"],
        "choices": [row["option1"], row["option2"]],
        "answer_index": int(row["answer"]) - 1,
    }


FORM = AnswerForm(
    name="winogrande",
    description="Winogrande (debiased): which of two options fills the blank, Option1 or Option2?",
    build=_build,
    parse=lambda generation, example: option(generation),
    max_new_tokens=12,
    official=("train", "validation"),
    source="Sakaguchi et al. 2020, arXiv:1907.10641; allenai/winogrande, winogrande_debiased",
)
HUB = HubSource("allenai/winogrande", "winogrande_debiased", _convert)
