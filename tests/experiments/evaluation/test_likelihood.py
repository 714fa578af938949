"""Log-likelihoods in padded batches against one text at a time, token by token."""

import pytest
import torch

from steerscope import InputError
from steerscope.experiments.evaluation.likelihood import (
    choice_log_likelihoods,
    completion_loss,
    sequence_log_likelihoods,
)
from steerscope.experiments.evaluation.shared_prompt import continuation_log_likelihoods
from steerscope.experiments.tasks.task import TaskExample
from steerscope.steering import SteeringConfig, get_steering_model
from tests.byte_models import byte_model, byte_tokenizer

EXAMPLES = [
    TaskExample("q\n", "Answer: yes.", answer="yes", choices=("Answer: no.", "Answer: yes."), answer_index=1),
    TaskExample("a longer question\n", "b", answer="b", choices=("aaaa", "b", "cc"), answer_index=1),
    TaskExample("…", "x y", answer="x", choices=("x y", "z"), answer_index=0),
]


@torch.no_grad()
def slowly(model, tokenizer, prompt, text, end=False):
    before, after = tokenizer(prompt)["input_ids"], tokenizer(text)["input_ids"]
    ids, total = before, 0.0
    for token in [*after, *([tokenizer.eos_token_id] if end else [])]:
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total, len(ids) - len(before)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_against_one_token_at_a_time(family, batch_size):
    model, tokenizer = byte_model(family), byte_tokenizer()
    found = choice_log_likelihoods(model, tokenizer, EXAMPLES, batch_size=batch_size)
    for example, (sums, counts) in zip(EXAMPLES, found, strict=True):
        expected = [slowly(model, tokenizer, example.prompt, choice) for choice in example.choices]
        # float32 logits against float32 logits in another order of summation
        assert sums == pytest.approx([total for total, _ in expected], abs=2e-4)
        assert counts == [count for _, count in expected]
    losses = [slowly(model, tokenizer, one.prompt, one.completion, end=True) for one in EXAMPLES]
    expected_loss = -sum(total for total, _ in losses) / sum(count for _, count in losses)
    assert completion_loss(model, tokenizer, EXAMPLES, batch_size=batch_size) == pytest.approx(expected_loss, abs=2e-5)


def test_what_does_not_fit():
    model, tokenizer = byte_model(), byte_tokenizer()
    exact = len("a longer question\n") + 4
    found = choice_log_likelihoods(model, tokenizer, EXAMPLES, max_length=exact - 1)
    assert [one is None for one in found] == [False, True, False]
    assert None not in choice_log_likelihoods(model, tokenizer, EXAMPLES, max_length=exact)
    with pytest.raises(InputError, match="no example fits with its choices"):
        choice_log_likelihoods(model, tokenizer, EXAMPLES, max_length=3)
    with pytest.raises(InputError, match="has no choices"):
        choice_log_likelihoods(model, tokenizer, [TaskExample("q", "a", answer="a")])


def test_a_model_without_cache_that_always_computes_all_logits():
    tokenizer = byte_tokenizer()
    model = byte_model()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask, position_ids, use_cache):
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
            return self.inner(**given, use_cache=False)

    found = choice_log_likelihoods(Plain(), tokenizer, EXAMPLES)
    expected = choice_log_likelihoods(model, tokenizer, EXAMPLES)
    for (sums, counts), (others, numbers) in zip(found, expected, strict=True):
        assert sums == pytest.approx(others, abs=2e-4)
        assert counts == numbers


def test_a_steered_model_is_told_where_prompts_end():
    model, told = byte_model(), []

    class Steered(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, prompt_lengths=None, **others):
            told.append(prompt_lengths.tolist())
            return self.inner(**others)

    choice_log_likelihoods(Steered(), byte_tokenizer(), EXAMPLES[:2], batch_size=5)
    assert told == [[2, 18], [2, 2, 18, 18, 18]]  # the prompts, and their choices
    told.clear()
    completion_loss(Steered(), byte_tokenizer(), EXAMPLES[:2])
    assert told == [[2, 18]]


@pytest.mark.parametrize("positions", ["all", "prompt", "completion", "last"])
def test_likelihoods_are_those_of_generation_under_steering(positions):
    # Scored in one pass and generated step by step with a cache, the same tokens must be edited.
    model, tokenizer = byte_model(), byte_tokenizer()
    steered = get_steering_model(model, SteeringConfig("resid_post", rank=2, positions=positions))
    with torch.no_grad():
        for parameter in steered.edits.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    steered.eval()
    expected, examples = [], []
    for prompt in ("a", "some longer prompt"):
        inputs = tokenizer(prompt, return_tensors="pt")
        told = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        out = steered.generate(**inputs, eos_token_id=None, pad_token_id=2, **told)
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        logits = torch.stack(out.logits)[:, 0].double().log_softmax(-1)
        expected.append(float(logits.gather(-1, new[:, None]).sum()))
        rows = (*inputs["input_ids"][0].tolist(), *new.tolist()), inputs["input_ids"].shape[1]
        examples.append(rows)
    found = sequence_log_likelihoods(steered, examples, 2, batch_size=2)
    assert found.tolist() == pytest.approx(expected, abs=2e-4)
    shared = continuation_log_likelihoods(
        steered, [(ids[:start], [ids[start:], ids[start : start + 2]]) for ids, start in examples], 2, batch_size=4
    )
    assert [sums[0] for sums in shared] == pytest.approx(expected, abs=2e-4)
    with steered.disable_adapter():
        plain = sequence_log_likelihoods(steered, examples, 2, batch_size=2)
    assert not torch.allclose(plain, found, atol=1e-2)
