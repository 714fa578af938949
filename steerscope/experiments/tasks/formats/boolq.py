"""BoolQ: true or false about a passage (Clark et al. 2019, "BoolQ: Exploring the Surprising Difficulty ...")."""

from __future__ import annotations

from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerForm, Row
from steerscope.experiments.tasks.formats.fields import answer_index, content, text
from steerscope.experiments.tasks.parsing import boolean
from steerscope.experiments.tasks.sources import HubSource

_ANSWERS = ("false", "true")
_CHOICES = ("Answer: False.", "Answer: True.")


def _build(row: Row) -> AnswerExample:
    passage, question = text(row, "passage").strip(), text(row, "question").strip()
    right = answer_index(row, 2)
    prompt = (
        f"Answer the question with a true/false based on the given passage.\nPassage: {passage}\nQuestion: {question}\n"
    )
    return AnswerExample(
        prompt,
        _CHOICES[right],
        _ANSWERS[right],
        choices=_CHOICES,
        answer_index=right,
        # Several questions are asked about one passage: a cut must not separate them.
        group=content(passage),
        content=content(passage, question),
    )


def _convert(row: Row) -> Row:
    if not isinstance(row["answer"], bool):
        raise TypeError(f"answer is {row['answer']!r}, expected true or false")
    return {"passage": row["passage"], "question": row["question"], "answer_index": int(row["answer"])}


FORM = AnswerForm(
    name="boolq",
    description="BoolQ: is the answer to a question about a passage true or false?",
    build=_build,
    parse=lambda generation, example: boolean(generation),
    max_new_tokens=10,
    official=("train", "validation"),
    source="Clark et al. 2019, arXiv:1905.10044; google/boolq",
)
HUB = HubSource("google/boolq", None, _convert)
