"""A task asked through a model's chat template: the same questions, parts and answers, as a conversation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from steerscope.analysis.data.conversations import templated
from steerscope.errors import InputError
from steerscope.experiments.tasks.file_task import FileTask
from steerscope.experiments.tasks.task import Split, Task, TaskExample, TaskForm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What the name of such a task ends with.
CHAT = "-chat"


def chat_task(task: Task, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Return a task whose prompts are written by a tokenizer's chat template, for every command alike.

    The prompt of an example becomes the user's message, or its messages are taken as they are; the completion is what
    the assistant writes, without white space before it. Parts, order and answers are those of the task.

    Args:
        task: Any task.
        tokenizer: Of the model that will be asked, with a chat template.

    Returns:
        A task that is called ``NAME-chat``.

    Raises:
        InputError: The tokenizer has no chat template; later, when examples are asked for: it refuses their roles.
    """
    templated((("user", "?"),), tokenizer)
    if isinstance(task, FileTask):
        examples = tuple(_turned(one, tokenizer) for one in task.examples)
        return replace(task, name=f"{task.name}{CHAT}", examples=examples)
    return _ChatTask(task, tokenizer)


@dataclass(frozen=True)
class _ChatTask:
    """See :func:`chat_task`."""

    task: Task
    tokenizer: PreTrainedTokenizerBase

    @property
    def name(self) -> str:
        return f"{self.task.name}{CHAT}"

    @property
    def description(self) -> str:
        return f"{self.task.description} Asked through the chat template."

    @cached_property
    def form(self) -> TaskForm:
        found = self.task.form
        return replace(
            found,
            name=self.name,
            build=lambda row: _turned(found.build(row), self.tokenizer),
            samples=tuple(_turned(one, self.tokenizer) for one in found.samples),
        )

    @property
    def is_generated(self) -> bool:
        return self.task.is_generated

    def split(self, part: Split, n: int | None = None, seed: int = 0) -> list[TaskExample]:
        return [_turned(one, self.tokenizer) for one in self.task.split(part, n, seed)]


def _turned(example: TaskExample, tokenizer: PreTrainedTokenizerBase) -> TaskExample:
    """Return an example as a conversation; what makes it the same question stays."""
    choices = example.choices and tuple(map(_answer, example.choices))
    try:
        return replace(
            example,
            prompt=templated(example.messages or (("user", example.prompt),), tokenizer),
            completion=_answer(example.completion),
            choices=choices,
            messages=None,
        )
    except InputError as error:
        raise InputError(f"{example.prompt!r:.60}: {error}") from error


def _answer(text: str) -> str:
    """Return a completion as an assistant begins it: after the template, not after a word."""
    return text.lstrip() or text
