"""ListOps: the expression and an equals sign, or the paper's instruction and answer tag; generated, or from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from steerscope.experiments.tasks.formats.fields import answer_index, text
from steerscope.experiments.tasks.listops import ListOps
from steerscope.experiments.tasks.parsing import leading_integer, tagged
from steerscope.experiments.tasks.task import (
    MOST_GENERATED,
    Row,
    Split,
    TaskExample,
    TaskForm,
    check_count,
    check_part,
    folded,
)

_DIGITS = tuple("0123456789")
_TAGS = tuple(f"<answer>{digit}</answer>" for digit in range(10))
# What "all examples" of a generated part means.
SIZES = {"train": 10_000, "validation": 500, "test": 2_000}


def _example(expression: str, value: int) -> TaskExample:
    """No space: after ``=`` most tokenizers have one token for a digit, and two for a space and a digit."""
    return TaskExample(f"{expression}=", _DIGITS[value], _DIGITS, value, answer=str(value), content=folded(expression))


def _paper(expression: str, value: int) -> TaskExample:
    prompt = (
        "Evaluate the value of the following nested list expression.\n"
        "Return only the final numeric result inside <answer>…</answer>.\n\n"
        f"Expression:\n{expression}\n"
    )
    return TaskExample(prompt, _TAGS[value], _TAGS, value, answer=str(value), content=folded(expression))


def _form(name: str, words: str, *, paper: bool = False) -> TaskForm:
    example, parse = (_paper, tagged) if paper else (_example, leading_integer)
    tag = " in a tag (the paper's template)" if paper else ""

    def build(row: Row) -> TaskExample:
        return example(text(row, "question").strip(), answer_index(row, 10))

    return TaskForm(
        name=name,
        description=f"{words}: evaluate nested MIN, MAX, MED and SM (sum modulo 10); the answer is a digit{tag}.",
        build=build,
        parse=lambda generation, example: parse(generation),
        max_new_tokens=16 if paper else None,
        official=("train", "validation", "test"),
        source="Nangia and Bowman 2018, arXiv:1804.06028",
        ends=paper,
    )


FORM, PAPER = _form("listops", "ListOps"), _form("listops_paper", "ListOps", paper=True)
GEN = _form("listops_gen", "ListOps with long expressions")
GEN_PAPER = _form("listops_gen_paper", "ListOps with long expressions", paper=True)


@dataclass(frozen=True)
class GeneratedListOps:
    """ListOps drawn from a seed by :class:`~steerscope.experiments.tasks.listops.ListOps`: nothing to download.

    ``n`` may be any number here; ``None`` means :data:`SIZES`. Parts are disjoint for all seeds.
    """

    is_generated: ClassVar[bool] = True

    form: TaskForm = FORM
    example: Callable[[str, int], TaskExample] = _example
    generator: ListOps = field(default_factory=ListOps)

    @property
    def name(self) -> str:
        """The name that results keep."""
        return self.form.name

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return f"{self.form.description} {self.generator.description}"

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        """Return ``n`` generated examples, answers drawn uniformly; see :class:`~steerscope.experiments.tasks.Task`."""
        check_part(part)
        check_count(n, MOST_GENERATED, f"{part} examples of {self.name}")
        drawn = self.generator.draw(part, SIZES[part] if n is None else n, seed)
        return [self.example(expression, value) for expression, value in drawn]


GENERATED = {"listops": GeneratedListOps(), "listops_paper": GeneratedListOps(PAPER, _paper)}
