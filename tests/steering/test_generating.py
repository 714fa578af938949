"""Every way of generating gives the tokens of a slow loop that computes everything again for every token."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, pipeline
from transformers.generation.logits_process import UnbatchedClassifierFreeGuidanceLogitsProcessor

from steerscope.errors import InputError
from steerscope.steering import SteeringModel
from tests.steering.cases import RULES, padded, prompts, steered
from tests.tiny import tiny_model, tiny_tokenizer

NEW = 6
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 2}
# An assistant proposes tokens until the end token at least; without a minimum all methods may end early, the same way.
COUNTED = tuple(rule for rule in RULES if rule != "all")


def slow(model: SteeringModel, rows: list[Tensor], new: int = NEW, ends: list[int] | None = None) -> list[list[int]]:
    """Greedy decoding, row by row, by passes over whole rows; the end token is never taken."""
    found = []
    for row, end in zip(rows, ends or map(len, rows), strict=True):
        ids = row[None]
        for _ in range(new):
            logits = model(input_ids=ids, prompt_lengths=torch.tensor([end]), use_cache=False).logits[:, -1]
            logits[:, 1] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        found.append(ids[0, len(row) :].tolist())
    return found


def repeating() -> Tensor:
    """A prompt in which looking up earlier n-grams proposes something."""
    return torch.tensor([5, 9, 11, 7, 5, 9, 11, 7, 5, 9])


def answers(out: Tensor, width: int) -> list[list[int]]:
    return out[:, width:].tolist()


@pytest.mark.parametrize("rule", ["all", "last:2", "completion", "first:2"])
@torch.no_grad()
def test_assistants_change_nothing(rule):
    """Candidates are computed with the prompt, which is not the whole first pass then."""
    model = steered("linear", positions=rule)
    row = repeating()
    expected = slow(model, [row])
    other = tiny_model("llama", torch.float64, seed=1)
    steered_other = steered("linear", tiny_model("llama", torch.float64, seed=1), seed=3, positions="last:2")
    ways = {
        "prompt lookup": {"prompt_lookup_num_tokens": 4},
        "prompt lookup in the configuration": {
            "generation_config": GenerationConfig(prompt_lookup_num_tokens=4, **GREEDY)
        },
        "an assistant": {"assistant_model": other},
        "its own base model": {"assistant_model": model.base_model},
        "itself": {"assistant_model": model},
        "another steered model": {"assistant_model": steered_other},
        "another model, whose edits act in it": {"assistant_model": steered_other.base_model},
        "its lower blocks": {"assistant_early_exit": 1},
        "a prompt in pieces": {"prefill_chunk_size": 3},
    }
    for way, options in ways.items():
        for mask in ({}, {"attention_mask": torch.ones_like(row)[None]}):
            found = answers(model.generate(input_ids=row[None], **mask, **GREEDY, **options), len(row))
            assert found == expected, way
    left = {"input_ids": torch.cat([torch.tensor([2, 2]), row])[None], "attention_mask": torch.ones(1, 12).long()}
    left["attention_mask"][0, :2] = 0
    for way in ("prompt lookup", "an assistant", "a prompt in pieces"):
        assert answers(model.generate(**left, **GREEDY, **ways[way]), 12) == expected, way


@torch.no_grad()
def test_a_steered_assistant_edits_the_tokens_its_rule_says():
    """A model that assists itself, by its own weights and edits, has all its candidates accepted."""
    model, twin = steered("linear", positions="last"), steered("linear", positions="last")
    row = repeating()[None]
    passes = []
    model.get_base_model().model.register_forward_hook(lambda *_: passes.append(1))
    model.generate(input_ids=row, assistant_model=twin, num_assistant_tokens=5, **GREEDY)
    assert len(passes) <= 3
    with pytest.raises(InputError, match="a model that assists another one"):
        tiny_model("llama", torch.float64).generate(input_ids=row, assistant_model=twin, **GREEDY)


@pytest.mark.parametrize("rule", ["prompt", "last", "first:2"])
@torch.no_grad()
def test_ways_of_giving_the_input(rule):
    model = steered("linear", positions=rule)
    rows = prompts()
    expected = slow(model, rows)
    batch = padded(rows, "left")
    ids, mask, width = batch["input_ids"], batch["attention_mask"], batch["input_ids"].shape[1]
    embedded = model.get_input_embeddings()(ids)
    calls = {
        "by name": lambda: model.generate(input_ids=ids, attention_mask=mask, **GREEDY),
        "by place": lambda: model.generate(ids, attention_mask=mask, **GREEDY),
        "as inputs": lambda: model.generate(inputs=ids, attention_mask=mask, **GREEDY),
        "configuration by place": lambda: model.generate(ids, GenerationConfig(**GREEDY), attention_mask=mask),
        "without a mask": lambda: model.generate(ids, **GREEDY),
        "without a mask or a cache": lambda: model.generate(ids, use_cache=False, **GREEDY),
        "static cache": lambda: model.generate(
            ids, attention_mask=mask, cache_implementation="static", disable_compile=True, **GREEDY
        ),
        "static cache, no mask": lambda: model.generate(
            ids, cache_implementation="static", disable_compile=True, **GREEDY
        ),
        "an empty cache": lambda: model.generate(
            ids, attention_mask=mask, past_key_values=DynamicCache(config=model.config), **GREEDY
        ),
        "a boolean mask": lambda: model.generate(ids, attention_mask=mask.bool(), **GREEDY),
        "lengths": lambda: model.generate(ids, attention_mask=mask, prompt_lengths=mask.sum(-1), **GREEDY),
    }
    for way, call in calls.items():
        assert answers(call(), width) == expected, way
    assert model.generate(inputs_embeds=embedded, attention_mask=mask, **GREEDY).tolist() == expected
    assert model.generate(ids, attention_mask=mask, num_return_sequences=2, num_beams=2, **GREEDY).shape[0] == 6
    torch.manual_seed(0)
    assert (
        model.generate(ids, attention_mask=mask, **{**GREEDY, "do_sample": True}, num_return_sequences=2).shape[0] == 6
    )


@pytest.mark.parametrize("rule", ["last", "completion", "first:2"])
@torch.no_grad()
def test_a_pipeline_and_a_lora_underneath(rule):
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    model = steered("linear", peft.get_peft_model(tiny_model("llama"), config), positions=rule, dtype="float32")
    rows = prompts()[:1]
    expected = slow(model, rows)
    assert answers(model.generate(input_ids=rows[0][None], **GREEDY), len(rows[0])) == expected
    found = model.generate(input_ids=rows[0][None], prompt_lookup_num_tokens=3, **GREEDY)
    assert answers(found, len(rows[0])) == expected
    tokenizer = tiny_tokenizer("left")
    text = tokenizer.decode(rows[0])
    writer = pipeline("text-generation", model=model, tokenizer=tokenizer)
    written = writer([text], generation_config=GenerationConfig(**GREEDY), return_tensors=True)
    assert written[0][0]["generated_token_ids"][-NEW:] == expected[0]


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_a_cache_that_holds_earlier_turns(rule):
    """With the same prompt_lengths in every pass, a conversation on a cache is the conversation computed at once."""
    model = steered("linear", positions=rule)
    turn, more = torch.tensor([5, 9, 11, 7]), torch.tensor([8, 3, 12])
    cache = DynamicCache(config=model.config)
    first = model.generate(input_ids=turn[None], past_key_values=cache, **GREEDY)
    whole = torch.cat([first[0], more])
    lengths = {"prompt_lengths": torch.tensor([len(turn)])}
    expected = slow(model, [whole], ends=[len(turn)])
    assert answers(model.generate(input_ids=whole[None], **lengths, **GREEDY), len(whole)) == expected
    if not rule.startswith("first"):
        with pytest.raises(InputError, match=r"past_key_values hold 9 columns already.*Pass prompt_lengths"):
            model.generate(input_ids=whole[None], past_key_values=cache, **GREEDY)
        found = model.generate(input_ids=whole[None], past_key_values=cache, **lengths, **GREEDY)
    else:
        found = model.generate(input_ids=whole[None], past_key_values=cache, **GREEDY)
    assert answers(found, len(whole)) == expected


class _Callable:
    def __call__(self, model: nn.Module, input_ids: Tensor, **_: object) -> Tensor:
        return input_ids


def refused_ways(model: SteeringModel) -> dict[str, dict]:
    ids = repeating()[None]
    guidance = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model.base_model)
    longer = UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model.base_model, torch.cat([ids[:, 1:], ids], 1))
    return {
        "guidance_scale=1.5 computes passes": {"guidance_scale": 1.5},
        "guidance_scale=1.5 computes": {"generation_config": GenerationConfig(guidance_scale=1.5, **GREEDY)},
        "guidance_scale=2 computes": {"guidance_scale": 2, "negative_prompt_ids": ids},
        "a pass over other tokens": {"logits_processor": LogitsProcessorList([guidance])},
        "a pass over other tokens while": {"logits_processor": LogitsProcessorList([longer])},
        "got custom_generate": {"custom_generate": _Callable()},
        "got custom_generate,": {"custom_generate": "transformers-community/dola"},
        "dola_layers='low' runs code": {"dola_layers": "low"},
        "penalty_alpha=0.6 runs code": {"penalty_alpha": 0.6, "top_k": 4},
        "got cache_implementation='paged'": {"cache_implementation": "paged"},
        "token_healing=True cuts": {"token_healing": True},
    }


@pytest.mark.parametrize("rule", COUNTED)
def test_what_cannot_be_told_is_refused(rule):
    model = steered("linear", positions=rule)
    for message, options in refused_ways(model).items():
        with pytest.raises(InputError, match=message):
            model.generate(input_ids=repeating()[None], **({} if "generation_config" in options else GREEDY), **options)
    model.generation_config.guidance_scale = 1.5
    with pytest.raises(InputError, match="guidance_scale"):
        model.generate(input_ids=repeating()[None], **GREEDY)
    model.generation_config.guidance_scale = None
    with pytest.raises(InputError, match="generate_batch"):
        model.generate_batch([[5, 6, 7]])
    with pytest.raises(InputError, match="expected token ids"):
        model.generate(input_ids=repeating(), **GREEDY)
    with pytest.raises(InputError, match=r"attention mask has shape \(1, 9\)"):
        model.generate(input_ids=repeating()[None], attention_mask=torch.ones(1, 9).long(), **GREEDY)


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_padding_that_may_be_text_is_refused(rule):
    """The end token is the padding token, as for models without one, and no mask is given."""
    model = steered("linear", positions=rule)
    ids = torch.tensor([[1, 1, 5, 6], [7, 8, 9, 10]])
    same = {**GREEDY, "pad_token_id": 1}
    for options in (same, {"max_new_tokens": 2, "eos_token_id": 1, "pad_token_id": None}):
        with pytest.raises(InputError, match="token 1 at the edge of a row may be padding or text"):
            model.generate(ids, **options)
    with pytest.raises(InputError, match="may be padding or text"):
        model.generate(ids[:, 1:], **same)
    begins = torch.tensor([[1, 5, 6], [1, 9, 10]])  # a token that begins every text
    expected = slow(model, list(begins))
    assert answers(model.generate(begins, **same), 3) == expected
    assert model.generate(**same)[0, 1:].tolist() == slow(model, [torch.tensor([0])])[0]  # nothing but a beginning
    mask = (ids != 1).long()
    assert answers(model.generate(ids, attention_mask=mask, **same), 4)[0] == slow(model, [ids[0, 2:]])[0]
