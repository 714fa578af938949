"""What an evaluation found: prints its one line, saves and loads as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from steerscope.analysis.shown import Shown
from steerscope.errors import Words, words
from steerscope.experiments.runs.accuracy import Accuracy
from steerscope.finite import require_finite_record
from steerscope.records import Record, fields_of

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Generation:
    """One line of ``generations.jsonl``: what was asked, written, read and right.

    ``text`` is ``None`` where the prompt did not fit into the model's context (and counts as wrong).
    ``choice_log_likelihoods`` are sums over ``choice_tokens`` tokens each.
    """

    key: str
    prompt: str
    text: str | None
    parsed: str | None
    answer: str
    is_right: bool
    num_tokens: int
    ended: bool
    choice_log_likelihoods: tuple[float, ...] | None = None
    choice_tokens: tuple[int, ...] | None = None

    def to_line(self) -> str:
        """Return the generation as one line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, repr=False)
class Evaluation(Record, Shown, what="evaluation", sign="majority_answer"):
    """How often a model was right on one part of one task.

    Attributes:
        task: Name of the task.
        split: Which part.
        correct: Right generations.
        n: Questions, those that did not fit included.
        majority: Share that the most frequent answer of these very questions is right for.
        majority_answer: That answer.
        answered: Share of generations in which an answer could be read at all.
        ended: Share that wrote the end token before the limit; ``None`` where answers are one token and have none.
        too_long: Questions that did not fit into the model's context; they count as wrong.
        gold_cut: Share of right completions that would not score, cut to ``max_new_tokens`` with this tokenizer:
            what the limit alone costs.
        loss: Nats per token of the right completions, end token included where answers have one.
        choice_sum: Accuracy of the choice with the greatest summed log-likelihood, or ``None`` for open answers.
        choice_mean: The same with sums divided by the number of tokens (length normalisation).
        max_new_tokens: Longest generation.
        batch_size: Prompts per batch.
        generated_tokens: Tokens written, end tokens included.
        seconds: Wall time of the generations.
        test_set: Hash of the questions and answers, in any order.
        schema_version: Version of this format.
    """

    task: str
    split: str
    correct: int
    n: int
    majority: float
    majority_answer: str
    answered: float
    ended: float | None
    too_long: int
    gold_cut: float
    loss: float | None
    choice_sum: Accuracy | None
    choice_mean: Accuracy | None
    max_new_tokens: int
    batch_size: int
    generated_tokens: int
    seconds: float
    test_set: str
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Refuse numbers that are NaN or infinite.

        Raises:
            InputError: There is one.
        """
        require_finite_record("the evaluation", self, "Evaluate again; where a value is not known, it is None.")

    @property
    def accuracy(self) -> Accuracy:
        """Accuracy of the generations."""
        return Accuracy(self.correct, self.n)

    @property
    def line(self) -> str:
        """``test accuracy 61.2% [59.0%, 63.3%] n=2000 (majority 12.4%)``."""
        return f"{self.split} accuracy {self.accuracy} (majority {self.majority:.1%})"

    @property
    def notes(self) -> list[Words]:
        """What a reader of the line has to know, one sentence each."""
        found: list[str] = []
        if self.choice_sum is not None and self.choice_mean is not None:
            found.append(
                f"by likelihood of the choices: {self.choice_sum} summed over tokens, {self.choice_mean} divided by "
                "their number"
            )
        ended = "" if self.ended is None else f"; {self.ended:.1%} ended before {self.max_new_tokens} tokens"
        found.append(f"an answer could be read in {self.answered:.1%} of generations{ended}")
        if self.too_long:
            found.append(f"{self.too_long} prompts did not fit into the model's context and count as wrong")
        if self.gold_cut:
            found.append(
                f"the limit of {self.max_new_tokens} tokens alone makes {self.gold_cut:.1%} of right completions score "
                "as wrong; raise [[max_new_tokens]]"
            )
        return list(map(words, found))

    def headline(self) -> str:
        """Return how often the model was right."""
        return f"{self.task}, {self.line}"

    def paragraphs(self) -> list[str]:
        """Return the notes, and the line last: with both accuracies where a model may know more than it writes."""
        other = "" if self.choice_sum is None else f"; {self.choice_sum.share:.1%} by likelihood of the choices"
        return [*(words(f"  {note.marked}.") for note in self.notes), self.line + other]

    def records(self) -> list[dict[str, Any]]:
        """Return one row: the accuracy with its interval, and all other numbers."""
        found = {
            name: value["accuracy"] if isinstance(value, dict) else value for name, value in self.as_dict().items()
        }
        return [found | self.accuracy.as_dict()]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, and the accuracies with their intervals, as JSON-able values."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("choice_sum", "choice_mean"):
            own[name] = own[name].as_dict() if own[name] is not None else None
        return own | {"accuracy": self.accuracy.as_dict()}

    @classmethod
    def _of(cls, data: Any, where: str) -> Evaluation:
        if not isinstance(data, dict):
            return super()._of(data, where)
        # What follows from counts is written for readers of the file, and not read.
        own = fields_of(cls, data)
        for name in ("choice_sum", "choice_mean"):
            if isinstance(found := own.get(name), dict):
                own[name] = {count: found[count] for count in ("correct", "n") if count in found}
        return super()._of(own, where)
