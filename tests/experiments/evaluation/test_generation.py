"""Batched greedy generation against one step at a time, alone and without padding or cache."""

import pytest
import torch
from transformers import GenerationConfig
from transformers.utils import logging

from steerscope import InputError
from steerscope.experiments.evaluation.generation import generate, left_padded
from tests.byte_models import byte_model, byte_tokenizer

PROMPTS = ["a", "hello world", "Question: x\n", "yes", "a much longer prompt than the others…", "b"]
NEW = 6


@torch.no_grad()
def one_by_one(model, tokenizer, prompt, steps, ends):
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(steps):
        following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if following in ends:
            break
        ids = [*ids, following]
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2", "opt", "qwen3"])
def test_same_text_in_any_batch(family):
    model, tokenizer = byte_model(family), byte_tokenizer()
    alone = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=1)
    together = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=16)
    assert alone == together
    assert [one.text for one in alone] == [one_by_one(model, tokenizer, p, NEW, {1}) for p in PROMPTS]
    assert len({one.text for one in alone}) > 1


def test_stops_at_the_end_and_cuts_what_follows():
    model, tokenizer = byte_model(seed=3), byte_tokenizer()
    free = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    for _ in range(3):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    end = ids[-1]
    assert end not in ids[1:-1]
    # Another end than the tokenizer's, as the model's own settings name it; other rows of the batch go on.
    model.generation_config = GenerationConfig(eos_token_id=[1, end])
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    assert (found[0].num_tokens, found[0].ended) == (3, True)
    assert found[0].text == tokenizer.decode(ids[1:3])
    assert free[0].num_tokens == NEW
    assert not free[0].ended
    assert any(one.num_tokens == NEW for one in found)


def test_the_models_own_settings_do_not_leak_in():
    model, tokenizer = byte_model(), byte_tokenizer()
    plain = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    own = GenerationConfig(repetition_penalty=50.0, no_repeat_ngram_size=1, suppress_tokens=list(range(3, 90)))
    model.generation_config = own
    penalised = model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=NEW, do_sample=False)
    assert tokenizer.decode(penalised[0, 1:]) != plain[0].text  # the settings do something
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=NEW) == plain
    assert model.generation_config is own


def test_wrapped_by_peft():
    from peft import LoraConfig, get_peft_model

    tokenizer = byte_tokenizer()
    plain = generate(byte_model(), tokenizer, PROMPTS, max_new_tokens=NEW)
    wrapped = get_peft_model(byte_model(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert generate(wrapped, tokenizer, PROMPTS, max_new_tokens=NEW) == plain  # a LoRA starts as no change
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0))
    changed = generate(wrapped, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=1)
    assert changed != plain
    assert generate(wrapped, tokenizer, PROMPTS, max_new_tokens=NEW, batch_size=16) == changed
    wrapped.get_base_model().generation_config.repetition_penalty = 50.0
    assert generate(wrapped, tokenizer, PROMPTS, max_new_tokens=NEW) == changed


@pytest.mark.parametrize("options", [{"pad_token": None}, {"pad_token": "<eos>"}])
def test_any_padding_token(options):
    model = byte_model("gpt2")
    expected = generate(model, byte_tokenizer(), PROMPTS, max_new_tokens=NEW)
    assert generate(model, byte_tokenizer(**options), PROMPTS, max_new_tokens=NEW) == expected


def test_dropout_is_off_and_the_mode_is_given_back():
    model, tokenizer = byte_model("gpt2", resid_pdrop=0.5), byte_tokenizer()
    expected = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW)
    model.train()
    model.lm_head.eval()
    assert generate(model, tokenizer, PROMPTS, max_new_tokens=NEW) == expected
    assert model.training
    assert not model.lm_head.training


def test_a_prompt_without_room_is_left_out_not_cut():
    model, tokenizer = byte_model(), byte_tokenizer()
    longest = max(len(tokenizer(p)["input_ids"]) for p in PROMPTS)
    found = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, max_length=longest + NEW - 1)
    full = generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, max_length=longest + NEW)
    assert [one is None for one in found] == [i == 4 for i in range(6)]
    assert None not in full
    assert found[:4] == full[:4]
    with pytest.raises(InputError, match="no prompt fits: the shortest has 1 tokens"):
        generate(model, tokenizer, PROMPTS, max_new_tokens=NEW, max_length=NEW)


def test_padding_is_to_the_longest_of_the_batch():
    ids, mask = left_padded([[5, 1], [7], [1, 1, 8]], 1, torch.device("cpu"))
    assert ids.tolist() == [[1, 5, 1], [1, 1, 7], [1, 1, 8]]
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 1]]  # a real token that equals the padding is kept


def test_progress_and_bad_sizes():
    model, tokenizer = byte_model(), byte_tokenizer()
    seen = []
    generate(model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=4, progress=lambda *s: seen.append(s))
    assert seen == [(4, 6), (6, 6)]
    for options in ({"max_new_tokens": 0}, {"max_new_tokens": 1, "batch_size": 0}):
        with pytest.raises(InputError, match="expected at least 1 of each"):
            generate(model, tokenizer, PROMPTS, **options)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        generate(model, byte_tokenizer(eos_token=None), PROMPTS, max_new_tokens=1)
    with pytest.raises(InputError, match="a prompt has no token"):
        generate(model, tokenizer, ["a", ""], max_new_tokens=1)


def test_nothing_is_said_twice_to_transformers(caplog):
    """Prompts that begin alike go on from a cache; transformers warns once of settings that are given in two ways."""
    logging.get_logger("transformers.generation.utils").warning_once.__func__.cache_clear()
    prompts = ["The same beginning of all of them: " + end for end in "abc"]
    generate(byte_model(), byte_tokenizer(), prompts, max_new_tokens=2)
    assert [one.getMessage() for one in caplog.records if "deprecated" in one.getMessage()] == []
