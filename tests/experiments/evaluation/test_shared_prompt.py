"""What all prompts begin with is computed once: the same texts and likelihoods as of whole prompts."""

from __future__ import annotations

import pytest
import torch

from steerscope.experiments import shared_prefix
from steerscope.experiments.evaluation.generation import generate
from steerscope.experiments.evaluation.likelihood import choice_log_likelihoods, completion_loss
from steerscope.experiments.tasks.task import TaskExample
from steerscope.steering import SteeringConfig, get_steering_model
from tests.byte_models import byte_model, byte_tokenizer
from tests.steering.cases import randomise

START = "Read the line and say what it is: "
EXAMPLES = [
    TaskExample(START + text, answer, answer=answer, choices=(" yes", " no", " maybe"), answer_index=index)
    for text, answer, index in (
        ("a bee", " yes", 0),
        ("the quick fox", " no", 1),
        ("an", " maybe", 2),
        ("x y", " no", 1),
    )
]
RULES = (None, "all", "prompt", "completion", "last:2", "first:5", "first:40")


def model_of(family: str, rule: str | None):
    model = byte_model(family).eval()
    if rule is None:
        return model
    return randomise(get_steering_model(model, SteeringConfig("resid_post", rank=2, positions=rule))).eval()


def measured(model) -> tuple[list[str], list[float], float]:
    tokenizer = byte_tokenizer()
    told = [one.prompt for one in EXAMPLES]
    written = generate(model, tokenizer, told, max_new_tokens=6, batch_size=3)
    scores = choice_log_likelihoods(model, tokenizer, EXAMPLES, batch_size=7)
    return (
        [one.text for one in written],
        [value for one in scores for value in one[0]],
        completion_loss(model, tokenizer, EXAMPLES, batch_size=3),
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("rule", RULES)
def test_texts_likelihoods_and_loss_are_those_of_whole_prompts(monkeypatch, family, rule):
    model = model_of(family, rule)
    lengths: list[int] = []
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, args, out: lengths.append(args[0].shape[1]))
    found = measured(model)
    assert lengths.count(len(START)) == 6  # for each measure: once when tried out, once to keep
    longest = max(len(one.prompt + one.completion) for one in EXAMPLES) + 1
    # But for the trial of both ways no pass is over whole prompts.
    assert sum(length > len(START) for length in lengths) == 3
    monkeypatch.setattr(shared_prefix, "SHORTEST", 10**6)
    lengths.clear()
    expected = measured(model)
    assert max(lengths) == longest
    assert len(START) not in lengths
    assert found[0] == expected[0]
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(expected[1]), rtol=0, atol=2e-4)
    assert found[2] == pytest.approx(expected[2], abs=1e-5)
