"""ListOps: labels by an evaluator that shares no code with the generator, parts that never overlap."""

import gzip
import json
import os
import statistics
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from steerscope.errors import InputError
from steerscope.experiments.tasks import ListOps, get_task, task_names

SPLITS = ("train", "validation", "test")


def evaluate(expression: str) -> int:
    """Evaluate an expression from its text, with a stack of unfinished lists and no tree."""
    stack: list[tuple[str, list[int]]] = []
    result: list[int] = []
    for token in expression.replace("[", " [ ").replace("]", " ] ").split():
        if token == "[":
            stack.append(("", []))
        elif token == "]":
            operator, arguments = stack.pop()
            assert len(arguments) >= 2, expression
            if operator == "MED":
                value = int(statistics.median(arguments))
            elif operator == "SM":
                value = int(str(sum(arguments))[-1])
            else:
                value = sorted(arguments)[{"MIN": 0, "MAX": -1}[operator]]
            (stack[-1][1] if stack else result).append(value)
        elif token.isalpha():
            assert stack[-1] == ("", []), expression
            stack[-1] = (token, [])
        else:
            assert len(token) == 1, expression
            stack[-1][1].append(int(token))
    assert not stack, expression
    (value,) = result
    return value


def expressions(examples):
    return [example.prompt.removesuffix("=") for example in examples]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MAX 3 [MIN 2 4] 5]", 5),
        ("[MED 2 8 4]", 4),
        ("[MED 1 2 8 9]", 5),
        ("[MED 1 2]", 1),
        ("[MED 9 8]", 8),
        ("[SM 9 9 9]", 7),
        ("[MIN 9 [MAX 1 0 0 ] 9 ]", 1),
        ("[SM [SM 5 6] [MED 0 [MAX 7 3] 9 1]]", 5),
    ],
)
def test_evaluator_by_hand(expression, value):
    assert evaluate(expression) == value


def test_evaluator_agrees_with_published_rows():
    folder = os.environ.get("STEERSCOPE_DATA")
    if not folder:
        pytest.skip("STEERSCOPE_DATA is not set: no folder with published ListOps rows to compare with")
    path = Path(folder) / "listops-test.jsonl.gz"
    if not path.exists():
        pytest.skip("the folder STEERSCOPE_DATA has no listops-test.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) > 1000
    wrong = [row["question"] for row in rows if evaluate(row["question"]) != int(row["answer"])]
    assert wrong == []


@pytest.mark.parametrize("settings", [(2, 4), (1, 4), (3, 2), (3, 5), (2, 10)], ids=str)
def test_labels_agree_with_the_evaluator(settings):
    task = ListOps(*settings)
    for split, n in (("train", 1000), ("validation", 60), ("test", 60)):
        for expression, value in task.draw(split, n, seed=11):
            assert value == evaluate(expression), expression


def test_format():
    for example in get_task("listops").split("train", 300, seed=1):
        assert example.prompt.endswith("]=")
        assert set(example.prompt) <= set("MINAXEDS0123456789[] =")
        assert "  " not in example.prompt
        assert "[ " not in example.prompt
        assert " ]" not in example.prompt
        assert example.choices == tuple("0123456789")
        assert example.completion == example.choices[example.answer_index]


@pytest.mark.parametrize(("max_depth", "max_args"), [(1, 3), (2, 4), (3, 2)])
def test_settings_bound_the_shape_and_reach_the_bound(max_depth, max_args):
    depths, widths, operators = Counter(), Counter(), Counter()
    for expression, _ in ListOps(max_depth, max_args).draw("train", 1000, seed=0):
        open_lists, deepest = [], 0
        for token in expression.replace("[", " [ ").replace("]", " ] ").split():
            if token == "[":
                if open_lists:
                    open_lists[-1] += 1
                open_lists.append(0)
                deepest = max(deepest, len(open_lists))
            elif token == "]":
                widths[open_lists.pop()] += 1
            elif token.isalpha():
                operators[token] += 1
            else:
                open_lists[-1] += 1
        depths[deepest] += 1
    assert set(depths) == set(range(1, max_depth + 1))
    assert set(widths) == set(range(2, max_args + 1))
    # Four operators, drawn alike; answers drawn uniformly move the shares a little.
    assert set(operators) == {"MIN", "MAX", "MED", "SM"}
    assert min(operators.values()) > 0.2 * operators.total()


def test_default_prompts_are_short():
    lengths = [
        len(text.replace("[", "[ ").replace("]", " ]").split()) + 1
        for text in expressions(get_task("listops").split("train", 2000, seed=0))
    ]
    # Brackets, operators, digits and the equals sign; 5 lists of 4 arguments have 32 of them.
    assert 13 < statistics.mean(lengths) < 18
    assert max(lengths) <= 32


def test_parts_are_disjoint_even_up_to_the_order_of_arguments():
    parts: dict[str, set[tuple[str, ...]]] = {}
    task = get_task("listops")
    for split in SPLITS:
        # Different seeds and sizes on purpose: none may matter.
        texts = [
            text for seed, n in ((0, 1500), (1, 700), (99, 40)) for text in expressions(task.split(split, n, seed))
        ]
        parts[split] = {tuple(sorted(text.replace("]", " ]").split())) for text in texts}
        assert len(parts[split]) > 1000
    assert not parts["train"] & parts["validation"]
    assert not parts["train"] & parts["test"]
    assert not parts["validation"] & parts["test"]


def test_parts_are_disjoint_where_expressions_are_few():
    # 400 expressions in all: random draws of these sizes would collide many times over.
    task = ListOps(max_depth=1, max_args=2)
    train, test = task.draw("train", 100, 0), task.draw("test", 5, 1)
    assert not set(train) & set(test)


@pytest.mark.parametrize("split", SPLITS)
def test_no_duplicates_and_prefix_property(split):
    task = get_task("listops")
    long = task.split(split, 1200, seed=5)
    assert len(set(expressions(long))) == 1200
    for n in (1, 2, 17, 400):
        assert task.split(split, n, seed=5) == long[:n]


def test_seeds_differ_and_repeat():
    task = get_task("listops")
    draws = [tuple(task.split("train", 50, seed)) for seed in range(-1, 5)]
    assert len(set(draws)) == len(draws)
    assert [text for text, _ in ListOps().draw("train", 50, -1)] == expressions(draws[0])


def test_draw_is_pinned():
    # Numbers in reports hang on these draws: they must not change between versions or machines.
    drawn = {split: get_task("listops").split(split, 2, seed=0) for split in SPLITS}
    assert {split: [e.prompt + e.completion for e in examples] for split, examples in drawn.items()} == {
        "train": ["[MED [MIN 0 3 0 5] [MED 7 5 2 3] [MAX 0 1 0 6]]=4", "[MAX 9 [MIN 3 6] [MAX 8 3 5] 5]=9"],
        "validation": ["[SM [MAX 6 2] 9]=5", "[SM 1 5 [MIN 1 9 6 5] 9]=6"],
        "test": ["[MAX 8 [MIN 3 0 5]]=8", "[SM 3 7]=0"],
    }


@pytest.mark.parametrize("settings", [(2, 4), (2, 10)], ids=str)
def test_answers_are_uniform(settings):
    counts = Counter(value for _, value in ListOps(*settings).draw("train", 5000, seed=2))
    chi_square = sum((counts[digit] - 500) ** 2 / 500 for digit in range(10))
    # Uniform draws exceed 27.9 once in a thousand (9 degrees of freedom); the draw is fixed, so no flakes.
    assert chi_square < 27.9


def test_guesses_from_the_surface_stay_weak():
    examples = get_task("listops").split("train", 6000, seed=3)
    digits = [[c for c in example.prompt if c.isdigit()] for example in examples]
    features = {
        "operator": ([example.prompt.split()[0] for example in examples], 0.25),
        "length": ([len(example.prompt) for example in examples], 0.14),
        "first digit": ([d[0] for d in digits], 0.26),
        "operator and largest digit": (
            [(example.prompt.split()[0], max(d)) for example, d in zip(examples, digits, strict=True)],
            0.33,
        ),
    }
    for name, (values, bound) in features.items():
        seen = defaultdict(Counter)
        for value, example in zip(values[:3000], examples[:3000], strict=True):
            seen[value][example.answer_index] += 1
        right = sum(
            bool(seen[value]) and seen[value].most_common(1)[0][0] == example.answer_index
            for value, example in zip(values[3000:], examples[3000:], strict=True)
        )
        assert right / 3000 < bound, name
        if name == "operator":
            assert right / 3000 > 0.15, "the documented 22% should be there: is the guess still made?"


def test_exhausted_expressions_are_reported():
    with pytest.raises(InputError) as caught:
        ListOps(max_depth=1, max_args=2).draw("test", 1000, seed=0)
    text = str(caught.value)
    assert text.startswith("received n=1000; expected at most ")
    assert "different test questions" in text
    assert "max_depth=1 and max_args=2" in text
    most = int(text.split("at most ")[1].split(",")[0])
    assert 1 <= most < 100
    assert len(ListOps(max_depth=1, max_args=2).draw("test", most, seed=0)) == most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", 5, 0), "split is 'trian'; expected train, validation, test. Did you mean 'train'"),
        (("train", 0, 0), "asked for 0 train examples of listops; expected 1 to 1,000,000"),
        (("train", 5.0, 0), "asked for 5.0 train examples"),
        (("train", True, 0), "asked for True train examples"),
        (("train", 5, "0"), "seed is '0'; expected an integer."),
        (("train", 5, None), "seed is None; expected an integer."),
    ],
)
def test_split_refuses(arguments, message):
    with pytest.raises(InputError) as caught:
        get_task("listops").split(*arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0, 4), "max_depth is 0; expected an integer from 1 to 4"),
        ((5, 4), "max_depth is 5; expected an integer from 1 to 4"),
        ((2, 1), "max_args is 1; expected an integer from 2 to 10"),
        ((2, 11), "max_args is 11; expected an integer from 2 to 10"),
        ((2, 2.5), "max_args is 2.5; expected an integer from 2 to 10"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(InputError) as caught:
        ListOps(*settings)
    assert message in str(caught.value)


def test_registry(tmp_path):
    assert "listops" in task_names()
    for name in task_names():
        task = get_task(name, tmp_path)
        assert task.name == name
        assert task.description
    assert len(get_task("listops").split("validation", 3, seed=0)) == 3


@pytest.mark.parametrize("name", ["listop", "lissstops"])
def test_unknown_task_suggests(name):
    with pytest.raises(InputError) as caught:
        get_task(name)
    assert f"there is no task {name!r}; expected one of aqua, " in str(caught.value)
    assert "Did you mean 'listops'" in str(caught.value)
