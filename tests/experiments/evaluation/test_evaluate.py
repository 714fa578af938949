"""Evaluations of known texts: gold scores 100% on every task, and what must not score does not."""

import json

import pytest
from scipy import stats

from steerscope import InputError
from steerscope.experiments.evaluation import Accuracy, Evaluation, wilson_interval
from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.tasks import get_task
from steerscope.experiments.tasks.task import TaskExample, TaskForm, fingerprint
from tests.byte_models import byte_model, byte_tokenizer
from tests.experiments.evaluation.scripted import Scripted, evaluated
from tests.experiments.tasks.rows import TASKS, write_task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    for task in TASKS:
        write_task(place, task)
    return place


@pytest.mark.parametrize("name", TASKS)
def test_gold_scores_all_and_the_rest_nothing(folder, name):
    task = get_task(name, folder)
    examples = task.split("test")
    found, generations = evaluated(task.form, examples, [one.completion for one in examples])
    assert found.accuracy.share == found.answered == 1
    # One byte is one token here, and needs no end.
    one_byte = all(len(one.completion) == 1 for one in examples)
    assert found.ended == (None if one_byte and not task.form.ends else 1)
    assert found.gold_cut == 0
    assert [one.text for one in generations] == [one.completion for one in examples]
    assert [one.prompt for one in generations] == [one.prompt for one in examples]
    for text in ("", "I do not know.", "Answer:", "<answer>"):
        nothing, _ = evaluated(task.form, examples, [text] * len(examples))
        assert (nothing.correct, nothing.answered) == (0, 0)


def test_a_limit_too_short_for_the_answer_is_said(folder):
    task = get_task("gsm8k", folder)
    examples = task.split("test")
    found, _ = evaluated(task.form, examples, [one.completion for one in examples], max_new_tokens=20)
    assert found.gold_cut == pytest.approx(1 - found.accuracy.share)
    assert found.gold_cut > 0.5
    assert found.ended == 0


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_answer_is_wrong(folder, name):
    task = get_task(name, folder)
    examples = task.split("test")
    open_wrong = "Answer: A." if name == "aqua_paper" else "Answer: 99991"
    others = [
        next((c for i, c in enumerate(one.choices) if i != one.answer_index), "") if one.choices else open_wrong
        for one in examples
    ]
    found, _ = evaluated(task.form, examples, others)
    assert (found.correct, found.answered) == (0, 1)


@pytest.mark.parametrize("name", ["boolq", "winogrande", "arc_easy", "listops"])
def test_going_on_after_the_answer(folder, name):
    # A model that never ends writes the next question and answers it: the first answer counts.
    task = get_task(name, folder)
    examples = task.split("test", 6)
    wrong = [one.choices[(one.answer_index + 1) % len(one.choices)] for one in examples]
    texts = [f"{one.completion}\nQuestion: again\n{bad}" for one, bad in zip(examples, wrong, strict=True)]
    assert evaluated(task.form, examples, texts)[0].correct == 6


FORM = TaskForm("toy", "Toy.", lambda row: None, lambda text, example: text.strip() or None, 4, ("train",), "none")


def example(prompt, answer, choices=None):
    index = None if choices is None else choices.index(answer)
    return TaskExample(prompt, answer, answer=answer, choices=choices, answer_index=index)


def test_what_is_counted():
    examples = [example("p1", "ab"), example("p22", "cd"), example("p333", "ab"), example("p4444", "abcdef")]
    model = Scripted({"p1": "ab", "p22": "", "p333": "xy", "p4444": "abcdef"})
    found, generations = evaluate(
        model, model.tokenizer, FORM, examples, split="validation", batch_size=3, max_length=8, likelihoods=False
    )
    # p4444 needs 5 + 4 tokens: left out and wrong; its gold, cut to 4 tokens, would not score either.
    assert (found.correct, found.n, found.too_long) == (1, 4, 1)
    assert (found.answered, found.ended, found.gold_cut) == (0.5, 0.75, 0.25)
    assert (found.majority_answer, found.majority) == ("ab", 0.5)
    assert found.generated_tokens == 3 + 1 + 3
    assert [one.text for one in generations] == ["ab", "", "xy", None]
    assert [one.is_right for one in generations] == [True, False, False, False]
    assert model.batches == [(3, 4)]
    assert found.test_set == fingerprint(examples)
    assert found.line == "validation accuracy 25.0% [4.6%, 69.9%] n=4 (majority 50.0%)"
    assert str(found).endswith(found.line)
    assert any("did not fit" in note for note in found.notes)
    assert any("raise max_new_tokens" in note for note in found.notes)
    assert found.choice_sum is None
    assert json.loads(generations[1].to_line())["parsed"] is None


def test_likelihoods_with_and_without_length_normalisation():
    # The scripted logits like runs of the alphabet: "ab" loses a nat per token less than "aa".
    examples = [example("x", "aaaa", ("aaaa", "c")), example("y", "ab", ("ab", "aa")), example("z", "q", ("q", "r"))]
    found, generations = evaluated(FORM, examples, ["aaaa", "ab", "r"], likelihoods=True)
    assert found.choice_sum.n == 3
    assert found.choice_sum.correct == 1  # the longer one of the first loses; q and r tie, which is no answer
    assert found.choice_mean.correct == 1
    assert generations[0].choice_tokens == (4, 1)
    sums = generations[0].choice_log_likelihoods
    assert sums[1] > sums[0]
    assert sums[1] / 1 == pytest.approx(sums[0] / 4)
    longer = [example("x", "zabc", ("zabc", "c"))]
    found, _ = evaluated(FORM, longer, ["zabc"], likelihoods=True)
    assert (found.choice_sum.correct, found.choice_mean.correct) == (0, 1)
    assert found.loss > 0


def test_saves_and_loads(tmp_path):
    examples = [example("x", "a", ("a", "b")), example("y", "b", ("a", "b"))]
    found, _ = evaluated(FORM, examples, ["a", "b"], likelihoods=True)
    found.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == found
    saved = json.loads((tmp_path / "evaluation.json").read_text())
    assert saved["accuracy"]["accuracy"] == 1
    for change in ({"schema_version": 9}, {"n": None}):
        other = {k: v for k, v in (saved | change).items() if v is not None}
        with pytest.raises(InputError, match=r"is not an evaluation: it (has schema_version 9|lacks 'n')"):
            Evaluation.from_dict(other)
    with pytest.raises(InputError, match="cannot read the evaluation"):
        Evaluation.load(tmp_path / "nothing.json")


def test_no_examples():
    model = Scripted({})
    with pytest.raises(InputError, match="got no examples"):
        evaluate(model, model.tokenizer, FORM, [])


def test_real_generations_do_not_depend_on_the_batch(folder):
    task = get_task("listops", folder)
    examples, model, tokenizer = task.split("test", 7), byte_model(), byte_tokenizer()
    one, first = evaluate(model, tokenizer, task.form, examples, batch_size=1)
    many, second = evaluate(model, tokenizer, task.form, examples, batch_size=16)
    assert [g.text for g in first] == [g.text for g in second]
    assert one.loss == pytest.approx(many.loss, abs=1e-4)
    assert one.choice_sum == many.choice_sum


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (10, 10), (3, 10), (61, 100), (1, 1), (1234, 2000)])
def test_wilson(correct, n):
    low, high = wilson_interval(correct / n, n)
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert low <= correct / n <= high
    assert Accuracy(correct, n).interval == (low, high)


@pytest.mark.parametrize("bad", [(-1, 2), (3, 2), (0, 0)])
def test_impossible_counts(bad):
    with pytest.raises(InputError, match="expected 0 to n"):
        Accuracy(*bad)
    with pytest.raises(InputError, match="expected a share"):
        wilson_interval(1.5, 2)
