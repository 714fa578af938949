"""ListOps: the expression and an equals sign, or the paper's instruction and answer tag; generated, or from files."""

from __future__ import annotations

from steerscope.experiments.tasks.formats.generated import GeneratedTask, digit_after_equals, row_form
from steerscope.experiments.tasks.generator import DIGITS
from steerscope.experiments.tasks.listops import ListOps
from steerscope.experiments.tasks.parsing import leading_integer, tagged
from steerscope.experiments.tasks.task import TaskExample, TaskForm, folded

_TAGS = tuple(f"<answer>{digit}</answer>" for digit in DIGITS)


def _paper(expression: str, value: int) -> TaskExample:
    prompt = (
        "Evaluate the value of the following nested list expression.\n"
        "Return only the final numeric result inside <answer>…</answer>.\n\n"
        f"Expression:\n{expression}\n"
    )
    return TaskExample(prompt, _TAGS[value], _TAGS, value, answer=str(value), content=folded(expression))


def _form(name: str, words: str, *, paper: bool = False) -> TaskForm:
    tag = " in a tag (the paper's template)" if paper else ""
    return row_form(
        name,
        f"{words}: evaluate nested MIN, MAX, MED and SM (sum modulo 10); the answer is a digit{tag}.",
        source="Nangia and Bowman 2018, arXiv:1804.06028",
        template=_paper if paper else digit_after_equals,
        parse=tagged if paper else leading_integer,
        max_new_tokens=16 if paper else None,
        ends=paper,
    )


FORM, PAPER = _form("listops", "ListOps"), _form("listops_paper", "ListOps", paper=True)
GEN = _form("listops_gen", "ListOps with long expressions")
GEN_PAPER = _form("listops_gen_paper", "ListOps with long expressions", paper=True)
GENERATED = (GeneratedTask(FORM, ListOps()), GeneratedTask(PAPER, ListOps(), _paper))
