"""GSM8K: grade-school word problems, a worked solution and a number (Cobbe et al. 2021)."""

from __future__ import annotations

from fractions import Fraction

from steerscope.experiments.tasks.formats.fields import text
from steerscope.experiments.tasks.parsing import decimal_form, number, same_number
from steerscope.experiments.tasks.sources import HubSource
from steerscope.experiments.tasks.task import Row, TaskExample, TaskForm, folded


def _build(row: Row) -> TaskExample:
    question, solution = text(row, "question").strip(), text(row, "solution").strip()
    answer = text(row, "answer").replace(",", "").strip()
    return TaskExample(
        f"{question}\n",
        f"{solution}\nAnswer: {answer}",
        answer=decimal_form(Fraction(answer)),  # not by the parser that this answer is to test
        content=folded(question),
    )


def _convert(row: Row) -> Row:
    solution, mark, answer = row["answer"].rpartition("####")
    if not mark:
        raise ValueError("no line '#### answer'")
    return {"question": row["question"], "solution": solution.strip(), "answer": answer.strip().replace(",", "")}


FORM = TaskForm(
    name="gsm8k",
    description="GSM8K: a word problem; a worked solution, then a number (the paper's template).",
    build=_build,
    parse=lambda generation, example: number(generation),
    same=same_number,
    # 100 tokens, as the paper's code has it, would cut most right solutions before their answer.
    max_new_tokens=512,
    official=("train", "test"),
    source="Cobbe et al. 2021, arXiv:2110.14168; openai/gsm8k, main",
)
HUB = HubSource("openai/gsm8k", "main", _convert)
