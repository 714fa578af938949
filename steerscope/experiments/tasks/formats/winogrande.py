"""Winogrande, debiased: which of two options fills the blank (Sakaguchi et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

from steerscope.experiments.tasks.formats.fields import LETTERS, answer_index, lettered, letters, options, text
from steerscope.experiments.tasks.parsing import letter, option
from steerscope.experiments.tasks.sources import HubSource
from steerscope.experiments.tasks.task import Row, TaskExample, TaskForm, folded


def _build(row: Row) -> TaskExample:
    sentence, pair = text(row, "question").strip(), options(row, 2, 2)
    return _example(row, f"{sentence}\n{lettered(pair)}\nAnswer:", letters(pair), LETTERS)


def _build_paper(row: Row) -> TaskExample:
    sentence, (first, second) = text(row, "question").strip(), options(row, 2, 2)
    prompt = (
        "Please choose the correct answer to fill in the blank to complete the given sentence: "
        f"{sentence}\nOption1: {first}\nOption2: {second}\n"
    )
    return _example(row, prompt, ("Answer: Option1.", "Answer: Option2."), "12")


def _example(row: Row, prompt: str, choices: tuple[str, ...], answers: str) -> TaskExample:
    pair, right = options(row, 2, 2), answer_index(row, 2)
    # Twins are one sentence with a word changed and the other answer; they share their two options.
    twins = sorted(one.casefold() for one in pair)
    return TaskExample(
        prompt,
        choices[right],
        choices,
        right,
        answer=answers[right],
        options=pair,
        group=str(row["id"]).rsplit("-", 1)[0] if row.get("id") else folded(*twins),
        content=folded(text(row, "question")),
    )


def _convert(row: Row) -> Row:
    return {
        "question": row["sentence"],
        "choices": [row["option1"], row["option2"]],
        "answer_index": int(row["answer"]) - 1,
    }


def _form(
    name: str,
    words: str,
    build: Callable[[Row], TaskExample],
    parse: Callable[[str, TaskExample], str | None],
    max_new_tokens: int | None,
) -> TaskForm:
    return TaskForm(
        name=name,
        description=f"Winogrande (debiased): which of two options fills the blank, {words}?",
        build=build,
        parse=parse,
        max_new_tokens=max_new_tokens,
        official=("train", "validation"),
        source="Sakaguchi et al. 2020, arXiv:1907.10641; allenai/winogrande, winogrande_debiased",
        ends=max_new_tokens is not None,
    )


FORM = _form("winogrande", "A or B", _build, lambda generation, example: letter(generation, example.options), None)
_PAPER = "Option1 or Option2 (the paper's template)"
PAPER = _form("winogrande_paper", _PAPER, _build_paper, lambda generation, example: option(generation), 12)
HUB = HubSource("allenai/winogrande", "winogrande_debiased", _convert)
