"""Examples and their files: what is read, what is refused, and that every refusal says where."""

import dataclasses
import gzip
import json
import random
from pathlib import Path

import pytest

from steerscope.analysis.data.examples import Example, check_examples, content_order
from steerscope.analysis.data.files import read_jsonl
from steerscope.errors import InputError

GOOD = '{"prompt": "2 + 2 =", "completion": " 4"}'
CHOICE = '{"prompt": "Up?", "choices": [" no", " yes"], "answer_index": 1}'


def write(folder: Path, *lines: str, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_jsonl(path)
    return str(caught.value)


# --- one example -------------------------------------------------------------------------------------------


def test_example_accepts_open_and_multiple_choice():
    assert Example("a", " b").choices is None
    assert Example("a", " b", (" b", " c"), 0).answer_index == 0


BAD_EXAMPLES = {
    "prompt not text": ({"prompt": 3}, "prompt is 3 (integer); expected a string"),
    "prompt empty": ({"prompt": ""}, "prompt is empty"),
    "completion not text": ({"completion": None}, "completion is None (null); expected a string"),
    "completion empty": ({"completion": ""}, "completion is empty"),
    "half a character": ({"prompt": "a\ud83d"}, "prompt holds '\\ud83d' at character 1"),
    "choices alone": ({"answer_index": None}, "there are 2 choices but no answer_index"),
    "answer_index alone": ({"choices": None}, "answer_index is 0 but there are no choices"),
    "choices not a tuple": ({"choices": "ab"}, "choices is 'ab' (string); expected a list"),
    "a list in Python": ({"choices": [" b", " c"]}, "(a tuple in Python)"),
    "one choice": ({"choices": (" b",)}, "choices has 1 entries; expected at least 2"),
    "choice not text": ({"choices": (" b", 2)}, "choices[1] is 2 (integer); expected a string"),
    "choice empty": ({"choices": (" b", "")}, "choices[1] is empty"),
    "choice repeated": ({"choices": (" b", " c", " c")}, "choices[1] and choices[2] are both ' c'"),
    "index is text": ({"answer_index": "b"}, "answer_index is 'b' (string); expected an integer from 0 to 1"),
    "index is boolean": ({"answer_index": True}, "answer_index is True (boolean); expected an integer"),
    "index too large": ({"answer_index": 2}, "answer_index is 2 for 2 choices; expected 0 to 1"),
    "index negative": ({"answer_index": -1}, "answer_index is -1 for 2 choices; expected 0 to 1"),
    "wrong completion": ({"completion": "b"}, "completion is 'b', but choices[0] is ' b'"),
}


@pytest.mark.parametrize("case", BAD_EXAMPLES)
def test_example_refuses(case):
    change, message = BAD_EXAMPLES[case]
    good = {"prompt": "a", "completion": " b", "choices": (" b", " c"), "answer_index": 0}
    with pytest.raises(InputError) as caught:
        Example(**{**good, **change})
    assert message in str(caught.value)


def test_long_values_are_cut_in_messages():
    with pytest.raises(InputError) as caught:
        Example("a", "x" * 100_000, ("b", "c"), 0)
    assert "xxx...xxx" in str(caught.value)
    assert len(str(caught.value)) < 400


# --- files that are read -----------------------------------------------------------------------------------


def test_read_open_examples_skips_blank_lines(tmp_path):
    path = write(tmp_path, "", GOOD, "  \t", '{"completion": " 6", "prompt": "3 + 3 ="}', "")
    assert read_jsonl(path) == [Example("2 + 2 =", " 4"), Example("3 + 3 =", " 6")]
    assert read_jsonl(str(path)) == read_jsonl(path)


def test_read_choices_with_and_without_completion(tmp_path):
    spelled = '{"prompt": "Up?", "completion": " yes", "choices": [" no", " yes"], "answer_index": 1}'
    expected = Example("Up?", " yes", (" no", " yes"), 1)
    assert read_jsonl(write(tmp_path, CHOICE, spelled)) == [expected, expected]


def test_other_fields_are_ignored(tmp_path):
    extra = {"id": 7, "source_index": 3, "prompt_id": "x", "metadata": {"choices": [1]}, "answer": None, "": []}
    lines = [json.dumps({**extra, **json.loads(line)}) for line in (CHOICE, CHOICE)]
    assert read_jsonl(write(tmp_path, *lines)) == [Example("Up?", " yes", (" no", " yes"), 1)] * 2


def test_null_counts_as_left_out(tmp_path):
    examples = [Example("2 + 2 =", " 4"), Example("é\u2028\u0085 =", " 5")]
    lines = [json.dumps(dataclasses.asdict(example), ensure_ascii=False) for example in examples]
    assert '"choices": null' in lines[0]
    # U+2028 and U+0085 inside a string must not end the line either.
    assert read_jsonl(write(tmp_path, *lines)) == examples


def test_read_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n" + GOOD.encode() + b"\r\n")
    assert read_jsonl(path) == [Example("2 + 2 =", " 4")] * 2


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl"])
def test_read_gzip_whatever_the_name(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(b"\xef\xbb\xbf" + GOOD.encode() + b"\n" + GOOD.encode()))
    assert read_jsonl(tmp_path / name) == [Example("2 + 2 =", " 4")] * 2


def test_read_huge_line(tmp_path):
    path = write(tmp_path, json.dumps({"prompt": "p" * 3_000_000, "completion": "c"}))
    assert len(read_jsonl(path)[0].prompt) == 3_000_000


# --- files that are refused --------------------------------------------------------------------------------

# Each stands on line 3, below one good line and one blank line.
BAD_LINES = {
    "malformed": ('{"prompt": "a", }', "malformed JSON at column"),
    "cut off": ('{"prompt": "a",', "expected one whole JSON object on one line"),
    "nested too deeply": ("[" * 100_000, "JSON that Python refuses"),
    "nested value": (
        '{"prompt": "a", "completion": "b", "choices": ' + "[" * 300 + "]" * 300 + ', "answer_index": 0}',
        "choices[0] is [[[",
    ),
    "endless integer": ('{"prompt": ' + "1" * 5000 + "}", "JSON that Python refuses"),
    "nan": ('{"prompt": "a", "completion": NaN}', "received NaN, which is not JSON"),
    "infinity": ('{"prompt": "a", "completion": "b", "answer_index": -Infinity}', "received -Infinity"),
    "not an object": ('["a", "b"]', "received ['a', 'b'] (list); expected a JSON object"),
    "no prompt": ('{"completion": "b"}', "field 'prompt' is missing or null (received ['completion'])"),
    "no completion": ('{"prompt": "b"}', "field 'completion' is missing or null (received ['prompt'])"),
    "no fields": ("{}", "field 'prompt' is missing or null (received no fields)"),
    "null prompt": ('{"prompt": null, "completion": "b"}', "field 'prompt' is missing or null"),
    "unknown field": (
        '{"promt": "a", "completion": "b"}',
        "unknown field 'promt'; expected prompt, completion, choices, answer_index (names unlike these are "
        "ignored). Did you mean 'prompt'? Rename or remove it.",
    ),
    "slip beside the right name": (
        '{"prompt": "a", "completion": "b", "choice": ["b", "c"], "id": 1}',
        "unknown field 'choice'; expected prompt",
    ),
    "slip in capitals": ('{"prompt": "a", "completion": "b", "Answer_Index": 0}', "Did you mean 'answer_index'?"),
    "far from any name": (
        '{"instruction": "a", "completions_text": "b"}',
        "field 'prompt' is missing or null (received ['instruction', 'completions_text']); expected a string. Write",
    ),
    "near but no slip": (
        '{"prompt": "a", "completed": "b"}',
        "field 'completion' is missing or null (received ['prompt', 'completed']); expected a string. "
        "Did you mean 'completed'?",
    ),
    "repeated field": ('{"prompt": "a", "prompt": "b", "completion": "c"}', "field 'prompt' appears twice"),
    "prompt not text": ('{"prompt": 7, "completion": "b"}', "prompt is 7 (integer); expected a string"),
    "prompt an object": ('{"prompt": {"a": 1}, "completion": "b"}', "prompt is {'a': 1} (object)"),
    "prompt empty": ('{"prompt": "", "completion": "b"}', "prompt is empty"),
    "completion not text": ('{"prompt": "a", "completion": false}', "completion is False (boolean)"),
    "half a character": ('{"prompt": "a", "completion": "\\ud83d"}', "half of a surrogate pair"),
    "choices text": ('{"prompt": "a", "choices": "bc", "answer_index": 0}', "choices is 'bc' (string)"),
    "one choice": ('{"prompt": "a", "choices": ["b"], "answer_index": 0}', "choices has 1 entries"),
    "repeated choice": ('{"prompt": "a", "choices": ["b", "b"], "answer_index": 0}', "are both 'b'"),
    "choice not text": (
        '{"prompt": "a", "choices": ["b", null], "answer_index": 0}',
        "choices[1] is None (null)",
    ),
    "choices alone": ('{"prompt": "a", "completion": "b", "choices": ["b", "c"]}', "but no answer_index"),
    "choices alone, open": ('{"prompt": "a", "choices": ["b", "c"]}', "but no answer_index"),
    "index alone": ('{"prompt": "a", "completion": "b", "answer_index": 0}', "there are no choices"),
    "index out of range": (
        '{"prompt": "a", "choices": ["b", "c"], "answer_index": 2}',
        "answer_index is 2 for 2 choices; expected 0 to 1",
    ),
    "index negative": ('{"prompt": "a", "choices": ["b", "c"], "answer_index": -1}', "answer_index is -1"),
    "index a float": (
        '{"prompt": "a", "choices": ["b", "c"], "answer_index": 1.0}',
        "answer_index is 1.0 (float)",
    ),
    "index a boolean": (
        '{"prompt": "a", "choices": ["b", "c"], "answer_index": true}',
        "answer_index is True (boolean)",
    ),
    "wrong completion": (
        '{"prompt": "a", "completion": "b", "choices": ["b", "c"], "answer_index": 1}',
        "completion is 'b', but choices[1] is 'c'; expected the two to be equal",
    ),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line_is_refused_with_its_number(tmp_path, case):
    line, message = BAD_LINES[case]
    path = write(tmp_path, GOOD, "", line, GOOD)
    text = refusal(path)
    assert text.startswith(f"{path}, line 3: ")
    assert message in text
    assert "expected" in text
    assert len(text) < 700


def test_not_utf8_names_line_and_byte(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b'\n{"prompt": "caf\xe9", "completion": "b"}\n')
    assert f"{path}, line 2: byte 0xe9 at position 15 is not UTF-8" in refusal(path)


def test_utf16_is_refused(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text(GOOD, encoding="utf-16")
    assert "line 1: byte 0xff at position 0 is not UTF-8" in refusal(path)


@pytest.mark.parametrize("content", [b"", b"\n \n\n", b"\xef\xbb\xbf", gzip.compress(b"\n", mtime=0)])
def test_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    assert f"{path}, line 1: the file holds no examples" in refusal(path)


def test_missing_file_names_close_ones(tmp_path):
    write(tmp_path, GOOD, name="train.jsonl")
    text = refusal(tmp_path / "trian.jsonl")
    assert "trian.jsonl does not exist" in text
    assert "Did you mean 'train.jsonl'?" in text


def test_missing_file_without_a_close_one(tmp_path):
    write(tmp_path, GOOD, name="train.jsonl")
    assert "Did you mean" not in refusal(tmp_path / "qqqqqqqq")


def test_missing_folder_is_named(tmp_path):
    text = refusal(tmp_path / "nowhere" / "train.jsonl")
    assert f"Its folder {tmp_path / 'nowhere'} cannot be listed (No such file or directory)" in text


def test_folder_is_refused(tmp_path):
    assert f"{tmp_path} is a folder; expected a file" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "File name too long"), ("a\0b", "null byte"), ("data.jsonl/inside", "Not a directory")],
)
def test_unreadable_path_is_refused(tmp_path, name, reason):
    write(tmp_path, GOOD)
    text = refusal(tmp_path / name)
    assert text.startswith("cannot read")
    assert reason in text


def test_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress("\n".join([GOOD] * 50).encode())
    path = tmp_path / "data.jsonl.gz"
    cut_off, bad_block, bad_checksum = whole[:-12], whole[:10] + b"\xff" * 9, whole[:-8] + b"\0" * 8
    bad_method = whole[:2] + b"\xff" + whole[3:]
    for damaged in (cut_off, bad_block, bad_checksum, bad_method):
        path.write_bytes(damaged)
        assert "the gzip stream is damaged" in refusal(path)


@pytest.mark.parametrize("lines", [(GOOD, "", CHOICE), (CHOICE, "", GOOD)], ids=["open first", "choices first"])
def test_mixed_file_names_both_lines(tmp_path, lines):
    text = refusal(write(tmp_path, lines[0], lines[0], *lines))
    with_choices, without = (5, 1) if lines[0] == GOOD else (1, 5)
    assert f"line {with_choices} is the first with choices, line {without} the first without" in text


# --- sets of examples --------------------------------------------------------------------------------------


def numbered(count: int) -> list[Example]:
    return [Example(f"{i} =", f" {i}") for i in range(count)]


def test_good_examples_pass_unchanged():
    examples = numbered(5)
    assert check_examples(examples, minimum=5) == (examples, [])


def test_too_few_says_how_many():
    with pytest.raises(InputError, match=r"received 5 examples; expected at least 6\."):
        check_examples(numbered(5), minimum=6)
    with pytest.raises(InputError, match=r"received 0 examples; expected at least 1\."):
        check_examples([], minimum=1)


def test_too_few_counts_different_examples():
    examples = numbered(4) + numbered(2)
    message = r"received 6 examples, of which 4 differ \(2 exact duplicates removed\); expected at least 5"
    with pytest.raises(InputError, match=message):
        check_examples(examples, minimum=5)


@pytest.mark.parametrize("minimum", [0, -1, 1.0, True])
def test_minimum_is_checked(minimum):
    with pytest.raises(InputError, match="expected an integer of at least 1"):
        check_examples(numbered(3), minimum=minimum)


def test_duplicates_are_removed_with_a_sentence():
    examples = numbered(3)
    kept, warnings = check_examples([*examples, examples[1]], minimum=3)
    assert kept == examples
    assert warnings == [
        "1 exact duplicate removed, 3 of 4 examples left; the first is example 4, equal to example 2 (counted from 1)."
    ]


def test_contradictions_are_kept_with_a_sentence():
    examples = [*numbered(3), Example("1 =", " one"), Example("2 =", " two"), Example("2 =", " zwei")]
    kept, warnings = check_examples(examples, minimum=1)
    assert kept == examples
    assert warnings == [
        "2 prompts appear with different answers, which no model can all give: '1 =' is answered ' 1' in "
        "example 2 and ' one' in example 4 (counted from 1)."
    ]


def test_contradiction_places_count_removed_duplicates():
    examples = [Example("a", "b"), Example("a", "b"), Example("a", "c")]
    _, warnings = check_examples(examples, minimum=1)
    assert len(warnings) == 2
    assert "1 prompt appears with different answers" in warnings[1]
    assert "'b' in example 1 and 'c' in example 3" in warnings[1]


def test_contradiction_with_choices_needs_the_same_choices():
    first = Example("a", "b", ("b", "c"), 0)
    assert check_examples([first, Example("a", "d", ("d", "e"), 0)], minimum=1)[1] == []
    (warning,) = check_examples([first, Example("a", "c", ("c", "b"), 0)], minimum=1)[1]
    assert "1 prompt appears with different answers" in warning


def test_equal_answers_are_refused():
    same = [Example(f"{i} =", " yes") for i in range(4)]
    with pytest.raises(InputError, match="all 4 examples have the completion ' yes'; expected at least two"):
        check_examples(same, minimum=1)
    with_choices = [Example(f"{i} =", " yes", (" no", " yes"), 1) for i in range(4)]
    with pytest.raises(InputError, match="all 4 examples have the completion ' yes'"):
        check_examples(with_choices, minimum=1)


def test_one_different_answer_is_enough():
    examples = [Example(f"{i} =", " yes", (" no", " yes"), 1) for i in range(4)]
    examples.append(Example("5 =", " no", (" no", " yes"), 0))
    assert check_examples(examples, minimum=5) == (examples, [])
    assert check_examples(examples[:1], minimum=1) == (examples[:1], [])


def test_mixed_sorts_name_both_examples():
    with_choices = Example("a", "b", ("b", "c"), 0)
    with pytest.raises(InputError, match="example 4 is the first with choices, example 1 the first without"):
        check_examples([*numbered(3), with_choices], minimum=1)
    with pytest.raises(InputError, match="example 1 is the first with choices, example 2 the first without"):
        check_examples([with_choices, *numbered(3)], minimum=1)


# --- order -------------------------------------------------------------------------------------------------


def test_content_order_does_not_depend_on_file_order():
    examples = [*numbered(50), *numbered(5)]
    wanted = [examples[i] for i in content_order(examples, seed=3)]
    rng = random.Random(0)
    for _ in range(20):
        shuffled = rng.sample(examples, len(examples))
        order = content_order(shuffled, seed=3)
        assert sorted(order) == list(range(len(examples)))
        assert [shuffled[i] for i in order] == wanted


def test_content_order_depends_on_seed_and_mixes():
    examples = numbered(200)
    orders = {tuple(content_order(examples, seed)) for seed in range(10)}
    assert len(orders) == 10
    # The mean index in the first half is 99.5 with standard deviation 4.1 if orders are random.
    for order in orders:
        assert abs(sum(order[:100]) / 100 - 99.5) < 5 * 4.1


def test_content_hash_is_pinned():
    # Published splits hang on this value: it must not change between versions.
    assert Example("a", " b").content_hash(1).startswith("b2ab52bfa3673876")
    assert Example("a", " b", (" b", " c"), 0).content_hash(1) != Example("a", " b").content_hash(1)
