"""One task, one prompt: what ranking, validation, training and evaluation give a model, taken down at the model."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from steerscope.experiments.tasks import FileTask, TaskExample, chat_task, get_task
from steerscope.models import load
from tests.analysis.test_files_of_examples import chat_tokenizer
from tests.byte_models import byte_model, byte_tokenizer
from tests.cli.runs import run
from tests.experiments.tasks.rows import TASKS, row, write_rows, write_task

Row = tuple[int, ...]
# Groups of passages and twins make parts smaller than files.
SIZES = (60, 16, 16)
OWN = ("choices.jsonl", "open.jsonl", "chat.jsonl")
# Asked through the chat template.
CHAT = ("chat.jsonl", "compare")


class EnoughError(Exception):
    """Raised in the model: what a command gives it has been seen."""


class Recorder:
    """Takes down the rows of tokens that a model is given anew, without padding, one by one."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.limit, self.paused = 0, False

    def of(self, limit: int, *arguments: object) -> list[Row]:
        """Return the first ``limit`` rows that a command gives its model (all of them where there are fewer)."""
        self.rows, self.limit = [], limit
        with suppress(EnoughError):
            assert run(*arguments, "--quiet") == 0
        assert self.rows
        return self.rows

    def see(self, input_ids, attention_mask=None, past_key_values=None, **_) -> None:
        goes_on = past_key_values is not None and past_key_values.get_seq_length() > 0
        if self.paused or goes_on or input_ids.shape[1] == 1:  # one token stands for a stream that the head reads
            return
        masks = [[1] * input_ids.shape[1]] * len(input_ids) if attention_mask is None else attention_mask.tolist()
        for ids, mask in zip(input_ids.tolist(), masks, strict=True):
            self.rows.append(tuple(i for i, m in zip(ids, mask, strict=True) if m))
        if len(self.rows) >= self.limit:
            raise EnoughError


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    found, forward, check = Recorder(), LlamaForCausalLM.forward, load.check_sites

    @functools.wraps(forward)
    def seen(self, input_ids=None, **given):
        found.see(input_ids, **given)
        return forward(self, input_ids=input_ids, **given)

    def unseen(*arguments, **given):
        found.paused = True
        check(*arguments, **given)
        found.paused = False

    monkeypatch.setattr(LlamaForCausalLM, "forward", seen)
    monkeypatch.setattr(load, "check_sites", unseen)
    # Rows whole: what all prompts begin with would else be given apart.
    monkeypatch.setattr("steerscope.experiments.shared_prefix.SHORTEST", 10**9)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("one-prompt")
    byte_model().save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    for task in TASKS:
        write_task(folder, task, SIZES)
    # One answer to all questions is refused: turn the options of every other one.
    for k, (part, size) in enumerate(zip(("train", "validation", "test"), SIZES, strict=True)):
        rows = [row("aqua", 100 * k + i) for i in range(size)]
        for one in rows[::2]:
            one |= {"choices": one["choices"][::-1], "answer_index": 3}
        write_rows(folder, f"aqua-{part}", rows)
    letters = [{"prompt": f"Which is {i}? Answer:", "choices": [" A", " B"], "answer_index": i % 2} for i in range(200)]
    write_rows(folder, "choices", letters, packed=False)
    write_rows(folder, "open", [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(200)], packed=False)
    said = [
        {"messages": [{"role": "user", "content": f"{i} + 1"}, {"role": "assistant", "content": f"{i + 1}"}]}
        for i in range(200)
    ]
    write_rows(folder, "chat", said, packed=False)
    chat_tokenizer().save_pretrained(folder / "model")
    return folder


def task_of(place: Path, name: str, chat: bool):
    task = FileTask.read(place / name) if name in OWN else get_task(name, place)
    return chat_task(task, chat_tokenizer()) if chat else task


CASES = [(name, False) for name in (*TASKS, *OWN) if name != "chat.jsonl"] + [(name, True) for name in CHAT]


@pytest.mark.parametrize(("name", "chat"), CASES, ids=[f"{name}-chat" if chat else name for name, chat in CASES])
def test_every_command_shows_the_same_prompt(place, recorder, tmp_path, name, chat):
    asked = ("--data", place / name) if name in OWN else ("--task", name, "--data-dir", place)
    asked += ("--chat-template",) if chat else ()
    model, end = place / "model", byte_tokenizer().eos_token_id
    seen = {
        "evaluate": [
            prompt
            for part in ("train", "validation", "test")
            for prompt in recorder.of(
                10**9, "evaluate", model, *asked, "--split", part, "--max-new-tokens", 1, "--no-likelihoods"
            )
        ],
        "rank": recorder.of(40, "rank", model, *asked, "--max-examples", 24),
        "train": recorder.of(
            16, "train", model, *asked, "--steps", 4, "--batch-size", 4, "--out", tmp_path / "run", "--no-likelihoods"
        ),
        "validate": recorder.of(
            300, "validate", model, *asked, "--max-examples", 24, "--test-examples", 16, "--sites", 6, "--steps", 4,
            "--out", tmp_path / "validation",
        ),
    }  # fmt: skip
    examples: dict[Row, TaskExample] = {
        tuple(byte_tokenizer()(one.prompt)["input_ids"]): one  # the template spells what stands before a text
        for part in ("train", "validation", "test")
        for one in task_of(place, name, chat).split(part)
    }
    assert set(seen["evaluate"]) == set(examples)
    for command, rows in seen.items():
        for given in rows:
            prompts = [prompt for prompt in examples if given[: len(prompt)] == prompt]
            assert len(prompts) == 1, f"{command} shows {byte_tokenizer().decode(given)!r}"
            one = examples[prompts[0]]
            answers = [tuple(byte_tokenizer()(text)["input_ids"]) for text in one.choices or (one.completion,)]
            rest = given[len(prompts[0]) :]
            assert any(rest == (*answer, end)[: len(rest)] for answer in answers), command
