"""ListOps with the instruction and the answer tag of the paper, or bare; generated, or read from files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from steerscope.experiments.tasks.answer_task import (
    MOST_GENERATED,
    AnswerExample,
    AnswerForm,
    Row,
    check_count,
    check_part,
)
from steerscope.experiments.tasks.formats.fields import answer_index, content, text
from steerscope.experiments.tasks.listops import ListOps
from steerscope.experiments.tasks.parsing import leading_integer, tagged

if TYPE_CHECKING:
    from steerscope.experiments.tasks import Split

_CHOICES = tuple(f"<answer>{digit}</answer>" for digit in range(10))
_BARE_CHOICES = tuple(f" {digit}" for digit in range(10))
# What "all examples" of a generated part means.
SIZES = {"train": 10_000, "validation": 500, "test": 2_000}


def _example(expression: str, value: int) -> AnswerExample:
    prompt = (
        "Evaluate the value of the following nested list expression.\n"
        "Return only the final numeric result inside <answer>…</answer>.\n\n"
        f"Expression:\n{expression}\n"
    )
    return AnswerExample(
        prompt, _CHOICES[value], str(value), choices=_CHOICES, answer_index=value, content=content(expression)
    )


def _bare(expression: str, value: int) -> AnswerExample:
    """The expression and an equals sign: a third of the tokens, and all that a model of a few words can read."""
    return AnswerExample(
        f"{expression} =",
        _BARE_CHOICES[value],
        str(value),
        choices=_BARE_CHOICES,
        answer_index=value,
        content=content(expression),
    )


def _form(
    name: str,
    description: str,
    example: Callable[[str, int], AnswerExample],
    parse: Callable[[str], str | None],
    max_new_tokens: int,
) -> AnswerForm:
    def build(row: Row) -> AnswerExample:
        return example(text(row, "question").strip(), answer_index(row, 10))

    return AnswerForm(
        name=name,
        description=description,
        build=build,
        parse=lambda generation, example: parse(generation),
        max_new_tokens=max_new_tokens,
        official=("train", "validation", "test"),
        source="Nangia and Bowman 2018, arXiv:1804.06028",
    )


_ASKED = "evaluate nested MIN, MAX, MED and SM of digits; the answer is a digit in a tag."
FORM = _form("listops", f"ListOps: {_ASKED}", _example, tagged, 16)
FORM_GENERATED_FILES = _form("listops_gen", f"ListOps with long expressions: {_ASKED}", _example, tagged, 16)
_BARE_WORDS = "ListOps without instruction: after the expression and an equals sign comes the digit."
BARE = _form("listops_bare", _BARE_WORDS, _bare, leading_integer, 4)


@dataclass(frozen=True)
class GeneratedListOps:
    """ListOps drawn from a seed by :class:`~steerscope.experiments.tasks.listops.ListOps`: nothing to download.

    ``n`` may be any number here; ``None`` means :data:`SIZES`. Parts are disjoint for all seeds.
    """

    is_generated: ClassVar[bool] = True

    form: AnswerForm = FORM
    example: Callable[[str, int], AnswerExample] = _example
    generator: ListOps = field(default_factory=ListOps)

    def split(self, split: Split, n: int | None = None, seed: int = 0) -> list[AnswerExample]:
        """Return ``n`` generated examples; see :class:`~steerscope.experiments.tasks.answer_task.AnswerTask`."""
        check_part(split)
        check_count(n, MOST_GENERATED, f"{split} examples of {self.form.name}")
        drawn = self.generator.split(split, SIZES[split] if n is None else n, seed)
        return [self.example(one.prompt.removesuffix(" ="), int(one.completion)) for one in drawn]


GENERATED: dict[str, GeneratedListOps] = {
    "listops": GeneratedListOps(),
    "listops_bare": GeneratedListOps(BARE, _bare),
}
