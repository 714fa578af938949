"""Multiple-choice tasks read from local files: ARC, BoolQ and Winogrande, scored by the likelihood of their answers.

Files, fields, parts and what counts as the same question are those of the answer tasks in ``formats/``; only prompts
and completions are shorter. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from steerscope.analysis.data.examples import Example, content_order
from steerscope.experiments.tasks.answer_task import AnswerExample, AnswerForm, Row, RowsTask, check_count
from steerscope.experiments.tasks.formats import arc, boolq, winogrande
from steerscope.experiments.tasks.formats.fields import content
from steerscope.experiments.tasks.sources import local_rows

if TYPE_CHECKING:
    from steerscope.experiments.tasks import Split


def _arc(row: Row) -> tuple[str, list[str]]:
    return f"Question: {row['question']}\nAnswer:", [f" {choice}" for choice in row["choices"]]


def _boolq(row: Row) -> tuple[str, list[str]]:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", [" no", " yes"]


def _boolq_closed(row: Row) -> tuple[str, list[str]]:
    return f"Question: {row['question']}?\nAnswer:", [" no", " yes"]


def _winogrande(row: Row) -> tuple[str, list[str]]:
    before, _, after = str(row["question"]).partition("_")
    return before.rstrip(), [f" {choice}{after}" for choice in row["choices"]]


@dataclass(frozen=True)
class _Form:
    """A task: whose rows and parts it has, how rows become prompts and choices, and which are kept.

    Attributes:
        rows: The answer task with these rows.
        template: Gives prompt and choices of a row.
        description: One sentence.
        keeps: Whether a row is used.
        by_prompt: Whether rows with one prompt are one question, whatever else they hold.
    """

    rows: AnswerForm
    template: Callable[[Row], tuple[str, list[str]]]
    description: str
    keeps: Callable[[Row], bool] = lambda row: True
    by_prompt: bool = False

    def build(self, row: Row) -> AnswerExample:
        """Return a row with this task's prompt and choices; raises what wrong rows raise."""
        found = self.rows.build(row)  # checks all fields
        prompt, choices = self.template(row)
        right = found.answer_index
        assert right is not None
        return replace(
            found,
            prompt=prompt,
            completion=choices[right],
            choices=tuple(choices),
            content=content(prompt) if self.by_prompt else found.content,
        )

    def source(self, folder: Path) -> Callable[[str], Iterator[tuple[str, Row]]]:
        """Return the rows that are kept; two choices that read the same cannot be told apart."""
        read = local_rows(folder, self.rows.name)

        def rows(part: str) -> Iterator[tuple[str, Row]]:
            for where, row in read(part):
                try:
                    choices = self.template(row)[1]
                    wanted = self.keeps(row) and len(set(choices)) == len(choices)
                except (KeyError, IndexError, TypeError, ValueError):
                    wanted = True  # to be refused with its line when it is built
                if wanted:
                    yield where, row

        return rows


def _is_short(row: Row) -> bool:
    """Choose rows by characters, so that a tokenizer changes nothing; they are about a quarter of ARC-Easy."""
    return len(row["question"]) <= 80 and max(map(len, row["choices"])) <= 24


_SHORT = "ARC-Easy with questions of at most 80 and answers of at most 24 characters."
_CLOSED = "BoolQ without its passage: yes or no from memory."
FORMS: dict[str, _Form] = {
    "arc_easy": _Form(arc.EASY, _arc, "ARC-Easy: grade-school science, the answer's text is scored."),
    "arc_easy_short": _Form(arc.EASY, _arc, _SHORT, _is_short),
    "arc_challenge": _Form(arc.CHALLENGE, _arc, "ARC-Challenge: the harder part of the same questions."),
    "boolq": _Form(boolq.FORM, _boolq, "BoolQ: yes or no about a passage."),
    "boolq_closed": _Form(boolq.FORM, _boolq_closed, _CLOSED, by_prompt=True),
    "winogrande": _Form(winogrande.FORM, _winogrande, "Winogrande: which of two names fills the blank."),
}


@dataclass(frozen=True)
class LocalTask:
    """One of :data:`FORMS`, read from ``folder``; parts as :class:`~steerscope.experiments.tasks.answer_task.RowsTask`.

    Raises:
        InputError: There is no such folder.
    """

    name: str
    folder: Path
    _rows: RowsTask = field(init=False, repr=False, compare=False)
    _pools: dict[str, list[Example]] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        form = FORMS[self.name]
        named = replace(form.rows, name=self.name, description=form.description, build=form.build)
        object.__setattr__(self, "_rows", RowsTask(named, form.source(self.folder)))

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return FORMS[self.name].description

    def split(self, split: Split, n: int, seed: int) -> list[Example]:
        """Return ``n`` different examples of one part, in an order that content and seed decide.

        Raises:
            InputError: A file is missing or damaged, or the part has fewer than ``n`` examples.
        """
        if split not in self._pools:
            rows = self._rows.split(split)
            found = (Example(one.prompt, one.completion, one.choices, one.answer_index) for one in rows)
            self._pools[split] = list(dict.fromkeys(found))
        pool = self._pools[split]
        check_count(n, len(pool), f"{split} examples of {self.name}")
        return [pool[i] for i in content_order(pool, seed)[:n]]
