"""Multiple-choice tasks read from local files: ARC, BoolQ and Winogrande, scored by the likelihood of their answers.

A folder holds ``<task>-<part>.jsonl`` or ``.jsonl.gz``, one object per line with ``question``, ``choices`` and
``answer_index`` (BoolQ also ``passage``). Nothing is downloaded. A task without an official test part is tested on its
validation part; what selects learning rates then is the last tenth of its training part.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerscope.analysis.examples import Example, content_order
from steerscope.errors import InputError

if TYPE_CHECKING:
    from steerscope.experiments.tasks import Split

Row = Mapping[str, Any]


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
    """A task: its files, whether they have an official test part, how rows become prompts, and which are kept."""

    files: str
    has_test: bool
    template: Callable[[Row], tuple[str, list[str]]]
    description: str
    keeps: Callable[[Row], bool] = lambda row: True


def _is_short(row: Row) -> bool:
    """Choose rows by characters, so that a tokenizer changes nothing; they are about a quarter of ARC-Easy."""
    return len(row["question"]) <= 80 and max(map(len, row["choices"])) <= 24


FORMS: dict[str, _Form] = {
    "arc_easy": _Form("arc_easy", True, _arc, "ARC-Easy: grade-school science, the answer's text is scored."),
    "arc_easy_short": _Form(
        "arc_easy", True, _arc, "ARC-Easy with questions of at most 80 and answers of at most 24 characters.", _is_short
    ),
    "arc_challenge": _Form("arc_challenge", True, _arc, "ARC-Challenge: the harder part of the same questions."),
    "boolq": _Form("boolq", False, _boolq, "BoolQ: yes or no about a passage."),
    "boolq_closed": _Form("boolq", False, _boolq_closed, "BoolQ without its passage: yes or no from memory."),
    "winogrande": _Form("winogrande", False, _winogrande, "Winogrande: which of two names fills the blank."),
}


@dataclass(frozen=True)
class LocalTask:
    """One of :data:`FORMS`, read from ``folder``."""

    name: str
    folder: Path
    _parts: dict[str, list[Example]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def description(self) -> str:
        """One sentence: what is asked, and what an answer looks like."""
        return FORMS[self.name].description

    def split(self, split: Split, n: int, seed: int) -> list[Example]:
        """Return ``n`` different examples of one part, in an order that content and seed decide.

        Raises:
            InputError: A file is missing or damaged, or the part has fewer than ``n`` examples.
        """
        pool = self._part(split)
        if not 1 <= n <= len(pool):
            raise InputError(
                f"asked for {n} {split} examples of {self.name}; expected 1 to {len(pool)}. Ask for fewer."
            )
        return [pool[i] for i in content_order(pool, seed)[:n]]

    def _part(self, split: str) -> list[Example]:
        if split not in self._parts:
            if FORMS[self.name].has_test:
                found = self._read(split)
            elif split == "test":
                found = self._read("validation")
            else:
                train = self._read("train")
                kept = len(train) - len(train) // 10
                found = train[:kept] if split == "train" else train[kept:]
            self._parts[split] = list(dict.fromkeys(found))
        return self._parts[split]

    def _read(self, part: str) -> list[Example]:
        form = FORMS[self.name]
        stem = self.folder / f"{form.files}-{part}.jsonl"
        path = next((p for p in (stem, stem.with_name(f"{stem.name}.gz")) if p.is_file()), None)
        if path is None:
            raise InputError(
                f"task {self.name!r} needs {stem.name} or {stem.name}.gz in {str(self.folder)!r}, which is not there. "
                "Give the folder that holds it as --data-dir."
            )
        found = []
        try:
            with (
                gzip.open(path, "rt", encoding="utf-8")
                if path.suffix == ".gz"
                else path.open(encoding="utf-8") as lines
            ):
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        found.append(_example(json.loads(line), form, f"{path.name}, line {number}"))
        except (OSError, EOFError, ValueError) as error:
            raise InputError(f"cannot read {path.name} of task {self.name!r} ({error}). Get the file again.") from error
        return [example for example in found if example is not None]


def _example(row: Row, form: _Form, where: str) -> Example | None:
    """Return a row as an example; ``None`` where the task leaves it out or two of its choices read the same."""
    try:
        prompt, choices = form.template(row)
        answer = int(row["answer_index"])
        if not form.keeps(row) or len(set(choices)) < len(choices):
            return None
        return Example(prompt, choices[answer], tuple(choices), answer)
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(
            f"{where} lacks a field or has a wrong one ({error!r}); expected question, choices, answer_index."
        ) from error
