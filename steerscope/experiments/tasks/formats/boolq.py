"""BoolQ: yes or no, with a passage or without (Clark et al. 2019, "BoolQ: Exploring the Surprising Difficulty ...")."""

from __future__ import annotations

from collections.abc import Callable

from steerscope.experiments.tasks.formats.fields import answer_index, text
from steerscope.experiments.tasks.parsing import boolean, yes_or_no
from steerscope.experiments.tasks.sources import HubSource
from steerscope.experiments.tasks.task import Row, TaskExample, TaskForm, folded


def _build(row: Row) -> TaskExample:
    passage, question = text(row, "passage").strip(), _question(row)
    prompt = f"{passage}\nQuestion: {question}?\nAnswer:"
    return _example(row, prompt, (" no", " yes"), folded(passage, question))


def _build_closed(row: Row) -> TaskExample:
    question = _question(row)
    # What is one question with two passages is one question here.
    return _example(row, f"Question: {question}?\nAnswer:", (" no", " yes"), folded(question))


def _build_paper(row: Row) -> TaskExample:
    passage, question = text(row, "passage").strip(), text(row, "question").strip()
    prompt = (
        f"Answer the question with a true/false based on the given passage.\nPassage: {passage}\nQuestion: {question}\n"
    )
    return _example(row, prompt, ("Answer: False.", "Answer: True."), folded(passage, _question(row)))


def _question(row: Row) -> str:
    """Return the question without its mark, which the data set leaves out."""
    return text(row, "question").strip().rstrip("?").rstrip()


def _example(row: Row, prompt: str, choices: tuple[str, str], content: str) -> TaskExample:
    right = answer_index(row, 2)
    return TaskExample(
        prompt,
        choices[right],
        choices,
        right,
        answer=choices[right].removeprefix("Answer:").strip(" .").lower(),
        # Several questions are asked about one passage: a cut must not separate them.
        group=folded(text(row, "passage")),
        content=content,
    )


def _convert(row: Row) -> Row:
    if not isinstance(row["answer"], bool):
        raise TypeError(f"answer is {row['answer']!r}, expected true or false")
    return {"passage": row["passage"], "question": row["question"], "answer_index": int(row["answer"])}


def _form(
    name: str,
    words: str,
    build: Callable[[Row], TaskExample],
    parse: Callable[[str], str | None],
    max_new_tokens: int | None,
) -> TaskForm:
    return TaskForm(
        name=name,
        description=words,
        build=build,
        parse=lambda generation, example: parse(generation),
        max_new_tokens=max_new_tokens,
        official=("train", "validation"),
        source="Clark et al. 2019, arXiv:1905.10044; google/boolq",
        ends=max_new_tokens is not None,
    )


FORM = _form("boolq", "BoolQ: a passage and a question; the answer is yes or no.", _build, yes_or_no, None)
CLOSED = _form("boolq_closed", "BoolQ without its passage: yes or no from memory.", _build_closed, yes_or_no, None)
_PAPER = "BoolQ: is the answer to a question about a passage true or false (the paper's template)?"
PAPER = _form("boolq_paper", _PAPER, _build_paper, boolean, 10)
HUB = HubSource("google/boolq", None, _convert)
