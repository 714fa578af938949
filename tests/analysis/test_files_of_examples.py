"""Tables, conversations and data sets as files of examples."""

from __future__ import annotations

import gzip
import json

import pytest

from steerscope import Example, InputError
from steerscope.analysis.data.files import read_examples
from steerscope.experiments.tasks import FileTask, chat_task
from tests.byte_models import byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


TABLES = {
    "plain.csv": "prompt,completion\n2 + 2 =, 4\n3 + 3 =, 6\n",
    "quoted.csv": '﻿id,completion,prompt\r\n1," 4","2 + 2 ="\r\n\r\n2," 6","3 + 3 ="\r\n',
    "plain.tsv": "prompt\tcompletion\n2 + 2 =\t 4\n3 + 3 =\t 6\n",
    "PACKED.CSV.gz": "prompt,completion\n2 + 2 =, 4\n3 + 3 =, 6\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path, name):
    content = TABLES[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_examples(tmp_path / name) == [Example("2 + 2 =", " 4"), Example("3 + 3 =", " 6")]


def test_a_line_break_in_a_cell_stays_and_lines_are_counted(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('prompt,completion\n"first\nsecond",yes\nno,\n')
    with pytest.raises(InputError, match=r"line 4: completion is empty"):
        read_examples(path)
    path.write_text('prompt,completion\n"first\nsecond",yes\n')
    assert read_examples(path) == [Example("first\nsecond", "yes")]


WRONG_TABLES = {
    "no header": ("2 + 2 =, 4\n", "expected a first row that names prompt and completion"),
    "column twice": ("prompt,completion,prompt\na,b,c\n", "each once"),
    "choices": ("prompt,choices,answer_index\na,b|c,0\n", "write JSON lines (for multiple choice"),
    "a cell too many": ("prompt,completion\na,b,c\n", "line 2: the row has 3 cells and the first one 2"),
    "open quote": ('prompt,completion\n"a,b\n', "no row of a table"),
    "empty": ("", "holds no examples"),
    "header alone": ("prompt,completion\n", "holds no examples"),
}


@pytest.mark.parametrize("case", WRONG_TABLES)
def test_tables_that_are_refused(tmp_path, case):
    text, message = WRONG_TABLES[case]
    path = tmp_path / "data.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(path))


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in turns]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_conversations(tmp_path):
    first = said(("system", "Be short."), ("user", "Hi?"), ("assistant", "Yes."), ("user", "2+2"), ("assistant", "4"))
    parts = [{"role": "user", "content": [{"type": "text", "text": "3+3"}]}, *said(("assistant", "6"))]
    rows = [
        {"messages": first, "id": 1},
        {"messages": parts},
        {"prompt": said(("user", "1+1")), "completion": said(("assistant", "2"))},
        {"prompt": "of another sort", "messages": said(("user", "5+5"), ("assistant", "10"))},
    ]
    found = read_examples(write(tmp_path / "chat.jsonl", *rows))
    assert [one.completion for one in found] == ["4", "6", "2", "10"]
    assert found[0].messages == tuple((m["role"], m["content"]) for m in first[:-1])
    assert found[1].prompt == "user: 3+3"
    with pytest.raises(InputError, match="conversations, which the model's chat template has to write"):
        FileTask.of("own", found).split("train")


WRONG_MESSAGES = {
    "no list": ("hello", "expected a list such as"),
    "empty": ([], "expected a list such as"),
    "no answer": (said(("assistant", "Hi"), ("user", "?")), "the last of 2 messages is by 'user'"),
    "answer alone": (said(("assistant", "Hi")), "after a question"),
    "no role": ([{"content": "a"}, *said(("assistant", "b"))], "expected a role and a text"),
    "a picture": ([{"role": "user", "content": [{"type": "image"}]}, *said(("assistant", "b"))], "a text as content"),
    "a call": ([*said(("user", "a")), {"role": "assistant", "content": None}], "a text as content"),
}


@pytest.mark.parametrize("case", WRONG_MESSAGES)
def test_conversations_that_are_refused(tmp_path, case):
    messages, text = WRONG_MESSAGES[case]
    path = write(tmp_path / "chat.jsonl", {"messages": messages})
    with pytest.raises(InputError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}, line 1: ")
    assert text in str(caught.value)


def test_sorts_do_not_mix(tmp_path):
    rows = [{"prompt": "a", "completion": "b"}, {"messages": said(("user", "a"), ("assistant", "b"))}]
    with pytest.raises(InputError, match="mixes conversations"):
        read_examples(write(tmp_path / "mixed.jsonl", *rows))


def test_a_template_changes_the_words_and_nothing_else(tmp_path):
    rows = [{"prompt": f"{i}?", "choices": [" no", " yes"], "answer_index": i % 2} for i in range(40)]
    plain = FileTask.read(write(tmp_path / "own.jsonl", *rows))
    tokenizer = chat_tokenizer()
    asked = chat_task(plain, tokenizer)
    assert asked.name == "own.jsonl-chat"
    for part in ("train", "validation", "test"):
        for before, after in zip(plain.split(part), asked.split(part), strict=True):
            assert after.prompt == f"<bos><|user|>{before.prompt}\n<|assistant|>"
            assert (after.choices, after.completion) == (("no", "yes"), before.completion.strip())
            assert (after.answer, after.content) == (before.answer, before.content)
            told = tokenizer.apply_chat_template(said(("user", before.prompt)), add_generation_prompt=True)
            assert tokenizer(after.prompt)["input_ids"] == getattr(told, "input_ids", told)
    with pytest.raises(InputError, match="has no chat template"):
        chat_task(plain, byte_tokenizer())


def test_named_tasks_too():
    from steerscope import get_task

    plain, asked = get_task("compare"), chat_task(get_task("compare"), chat_tokenizer())
    before, after = plain.split("test", 5, 1), asked.split("test", 5, 1)
    assert [one.prompt for one in after] == [f"<bos><|user|>{one.prompt}\n<|assistant|>" for one in before]
    assert asked.form.name == asked.name == "compare-chat"
    assert asked.is_generated
    assert asked.form.parse(before[0].completion, after[0]) == after[0].answer


def test_roles_that_a_template_refuses():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x"
    example = Example("system: a\nuser: b", "c", messages=(("system", "a"), ("user", "b")))
    other = Example("system: a\nuser: d", "e", messages=(("system", "a"), ("user", "d")))
    with pytest.raises(InputError, match=r"refuses messages by system, user \(no system\)"):
        chat_task(FileTask.of("own", [example, other]), tokenizer)


def test_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": f"{i} + 1 =", "completion": f" {i + 1}"} for i in range(3)]
    made = datasets.Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=made, test=made.select([0])).save_to_disk(str(tmp_path / "parts"))
    datasets.DatasetDict(a=made, b=made).save_to_disk(str(tmp_path / "unnamed"))
    expected = [Example(**row) for row in rows]
    assert read_examples(tmp_path / "one") == read_examples(tmp_path / "parts") == expected
    with pytest.raises(InputError, match="has the parts a, b; expected one called train"):
        read_examples(tmp_path / "unnamed")


def test_a_name_that_is_no_file_is_looked_for_as_a_data_set(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="there is no file 'nobody/nothing', and no data set of that name"):
        read_examples("nobody/nothing")
    with pytest.raises(InputError, match="does not exist"):
        read_examples("nobody/nothing.jsonl")
