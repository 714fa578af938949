"""Which tokens are edited in training rows, however a collator makes them; and rows that cannot tell are refused."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    DynamicCache,
    default_data_collator,
)

from steerscope.errors import InputError
from steerscope.steering import SteeringModel
from tests.steering.cases import RULES, close, padded, prompts, real_logits, steered
from tests.tiny import tiny_tokenizer

COUNTED = tuple(rule for rule in RULES if rule != "all")
NEED_PROMPT = tuple(rule for rule in COUNTED if not rule.startswith("first"))
# Two answers after prompts of four and three tokens.
ROWS = [torch.arange(3, 11), torch.arange(20, 25)]
ENDS = (4, 3)


def features(mask: bool = True) -> list[dict[str, list[int]]]:
    found = []
    for row, end in zip(ROWS, ENDS, strict=True):
        one = {"input_ids": row.tolist(), "labels": [-100] * end + row[end:].tolist()}
        found.append(one | {"attention_mask": [1] * len(row)} if mask else one)
    return found


def edited_tokens(model: SteeringModel, batch: dict[str, Tensor]) -> list[list[int]]:
    """The ids of the tokens that a pass edited, row by row."""
    model(**batch, use_cache=False)
    return [ids[mask].tolist() for ids, mask in zip(batch["input_ids"], model.edited_tokens, strict=True)]


def alone(rule: str) -> list[list[int]]:
    model = steered("linear", positions=rule)
    found = []
    for row, end in zip(ROWS, ENDS, strict=True):
        batch = {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]}
        found += edited_tokens(model, batch | {"prompt_lengths": torch.tensor([end])})
    return found


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_collators(rule):
    model, expected = steered("linear", positions=rule), alone(rule)
    assert all(expected)
    for side in ("left", "right"):
        tokenizer = tiny_tokenizer(side)
        batch = DataCollatorForSeq2Seq(tokenizer, return_tensors="pt")(features())
        assert edited_tokens(model, dict(batch)) == expected
        rows = [{name: one[name] for name in ("input_ids", "attention_mask")} for one in features()]
        batch = DataCollatorWithPadding(tokenizer, return_tensors="pt")(rows)
        assert edited_tokens(model, dict(batch) | {"prompt_lengths": torch.tensor(ENDS)}) == expected
    for one, tokens in zip(features(), expected, strict=True):
        assert edited_tokens(model, default_data_collator([one])) == [tokens]
        assert edited_tokens(model, default_data_collator([{k: one[k] for k in ("input_ids", "labels")}])) == [tokens]


@pytest.mark.parametrize("rule", COUNTED)
@pytest.mark.parametrize("start", [0, 2])
def test_packed_rows(rule, start):
    """Sequences flattened into one row give the tokens, logits and gradients of rows of their own."""
    model = steered("linear", positions=rule).train()
    options = {"position_ids_start": start} if start else {}
    try:
        collator = DataCollatorWithFlattening(return_tensors="pt", **options)
    except TypeError:
        pytest.skip("this transformers numbers positions from 0")
    batch = collator(features(mask=False))
    assert edited_tokens(model, dict(batch)) == [[token for row in alone(rule) for token in row]]
    found = model(**batch, use_cache=False).logits[0]
    expected = []
    for row, end in zip(ROWS, ENDS, strict=True):
        places = torch.arange(len(row))[None] + start
        expected += [
            model(row[None], position_ids=places, prompt_lengths=torch.tensor([end]), use_cache=False).logits[0]
        ]
    close(found, torch.cat(expected))
    flash = DataCollatorWithFlattening(return_tensors="pt", return_flash_attn_kwargs=True, return_seq_idx=True)
    assert edited_tokens(model, dict(flash(features(mask=False)))) == [[token for row in alone(rule) for token in row]]


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_packed_rows_that_cannot_tell(rule):
    model = steered("linear", positions=rule)
    batch = dict(DataCollatorWithFlattening(return_tensors="pt")(features(mask=False)))
    ones = torch.ones_like(batch["input_ids"])
    numbered = torch.cat([torch.ones(1, 8), torch.full((1, 5), 2.0)], 1).long()
    bare = DataCollatorWithFlattening(return_tensors="pt", return_position_ids=False, return_flash_attn_kwargs=True)
    jumping = batch["position_ids"].clone()
    jumping[0, 8:] += 3
    cases = {
        "position_ids restart inside a row": batch | {"attention_mask": ones},
        "values other than 0 and 1": batch | {"attention_mask": numbered},
        "do not say where they begin": dict(bare(features(mask=False))),
        "position_ids go backwards": batch | {"position_ids": jumping},
        "which comes? with a cache": batch | {"past_key_values": model(ROWS[0][None], **told(4)).past_key_values},
    }
    if rule in NEED_PROMPT:
        cases["for packed rows, which hold several"] = batch | {"prompt_lengths": torch.tensor([4])}
        full = [{"input_ids": row.tolist()} for row in ROWS]
        cases["supervise a sequence from its second token"] = dict(
            DataCollatorWithFlattening(return_tensors="pt")(full)
        )
    for message, given in cases.items():
        with pytest.raises(InputError, match=message):
            model(**given)
    steered("linear", positions="all")(**batch, attention_mask=ones)
    steered("linear", positions="mask")(**batch, attention_mask=numbered, steering_mask=ones)


def told(*lengths: int) -> dict[str, Tensor]:
    return {"prompt_lengths": torch.tensor(lengths)}


@pytest.mark.parametrize("rule", NEED_PROMPT)
@torch.no_grad()
def test_labels_that_cannot_tell(rule):
    model = steered("linear", positions=rule)
    row = torch.tensor([[5, 6, 7, 8, 9, 10]])
    turns = torch.tensor([[-100, -100, 7, 8, -100, 10]])
    with pytest.raises(InputError, match="the labels of row 0 supervise several spans"):
        model(row, labels=turns)
    collator = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm=False)
    batch = collator([{"input_ids": [5, 6, 2, 8, 9]}, {"input_ids": [3, 4, 5]}])  # padding's id in the text
    with pytest.raises(InputError, match="supervise several spans"):
        model(**batch)
    with pytest.raises(InputError, match=r"labels have shape \(1, 3\)"):
        model(row, labels=turns[:, :3])
    # Padding between tokens does not part a span.
    mask = torch.tensor([[1, 1, 1, 0, 1, 1]])
    assert model(row, attention_mask=mask, labels=row.masked_fill(mask == 0, -100).index_fill(1, torch.arange(2), -100))
    with pytest.raises(InputError, match="prompt_lengths holds -1"):
        model(row, **told(-1))
    with pytest.raises(InputError, match=r"prompt_lengths is a tensor of torch.int64 of shape \(1, 1\)"):
        model(row, prompt_lengths=torch.tensor([[3]]))


@pytest.mark.parametrize("rule", NEED_PROMPT)
@torch.no_grad()
def test_a_mark_whose_label_went_with_the_padding(rule):
    """Padding is the token that begins and ends texts, as people set it for GPT-2."""
    tokenizer = tiny_tokenizer("left")
    tokenizer.pad_token = tokenizer.eos_token
    model = steered("linear", positions=rule)
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([{"input_ids": [1, 5, 6, 7]}, {"input_ids": [1, 8]}])
    with pytest.raises(InputError, match="the only tokens of row 0 before its labels begin are special ones"):
        model(**batch)
    model(**{name: batch[name] for name in ("input_ids", "attention_mask")}, **told(2, 1))


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_rows_without_a_mask(rule):
    model = steered("linear", positions=rule)
    batch = padded(prompts(), "left")
    for side in ("left", "right"):
        with pytest.raises(InputError, match="no attention_mask was given, and token 2 at the edge"):
            model(padded(prompts(), side)["input_ids"], **told(6, 3, 4))
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    with pytest.raises(InputError, match="token 1 at the edge of a row may be padding or text"):
        model(torch.where(batch["attention_mask"] == 0, 1, batch["input_ids"]), **told(6, 3, 4))
    begins = torch.tensor([[1, 5, 6], [1, 9, 10]])
    close(model(begins, **told(2, 2)).logits, model(begins, torch.ones_like(begins), **told(2, 2)).logits)
    # One token after another on a cache may be the end token in some rows.
    start = model(torch.tensor([[5, 6], [7, 8]]), **told(2, 2), use_cache=True)
    model(torch.tensor([[1], [9]]), past_key_values=start.past_key_values, **told(2, 2))


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_masks_that_do_not_fit(rule):
    model = steered("linear", positions=rule)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    start = model(ids, **told(2, 2), use_cache=True)
    cases = {
        r"has shape \(1, 3\); expected \(2, 3\)": {"attention_mask": torch.ones(1, 3)},
        r"has shape \(2, 4\); expected \(2, 3\)": {"attention_mask": torch.ones(2, 4)},
        r"has shape \(2, 3\); expected \(2, 6\)": {
            "attention_mask": torch.ones(2, 3),
            "past_key_values": start.past_key_values,
        },
        r"got one of shape \(2, 1, 3, 3\)": {"attention_mask": torch.ones(2, 1, 3, 3)},
        "got one as a dict": {"attention_mask": {"full_attention": None}},
        "values other than 0 and 1": {"attention_mask": torch.tensor([[0.0, 0, 0], [-torch.inf, 0, 0]])},
    }
    for message, given in cases.items():
        with pytest.raises(InputError, match=message):
            model(ids, **told(2, 2), **given)


@pytest.mark.parametrize("rule", COUNTED)
@torch.no_grad()
def test_labels_after_a_cache(rule):
    """What the cache holds precedes the labels, and belongs to the prompt."""
    model = steered("linear", positions=rule)
    rows = torch.stack([torch.arange(3, 11), torch.arange(20, 28)])
    labels = rows.clone()
    labels[:, :6] = -100
    labels[1, 6] = -100
    whole = model(rows, labels=labels, use_cache=False)
    cache = DynamicCache(config=model.config)
    start = model(rows[:, :4], **told(6, 7), past_key_values=cache)
    rest = model(rows[:, 4:], labels=labels[:, 4:], past_key_values=cache)
    close(torch.cat([start.logits, rest.logits], 1), whole.logits)
    mask = torch.ones_like(rows)
    mask[1, :2] = 0
    whole = model(rows, mask, labels=labels, use_cache=False)
    cache = DynamicCache(config=model.config)
    start = model(rows[:, :4], mask[:, :4], **told(6, 7), past_key_values=cache)
    rest = model(rows[:, 4:], mask, labels=labels[:, 4:], past_key_values=cache)
    for found, expected in zip(
        real_logits(torch.cat([start.logits, rest.logits], 1), mask), real_logits(whole.logits, mask), strict=True
    ):
        close(found, expected)


@pytest.mark.parametrize("rule", NEED_PROMPT)
@torch.no_grad()
def test_prompt_lengths_are_numbers_of_tokens_of_their_rows(rule):
    model, row = steered("linear", positions=rule), torch.tensor([[5, 6, 7, 8, 9, 10]])
    wrong = {
        "holds 7 for row 0, which has 6 tokens": [7],
        "holds -3": torch.tensor([-3]),
        "is a tensor of torch.float32": torch.tensor([4.5]),
        "is a tensor of torch.bool": torch.tensor([True]),
        "is int": 3,
        "is str": "3",
        "is a tensor of torch.int64 of shape (2, 1)": [[3], [3]],
    }
    for message, lengths in wrong.items():
        with pytest.raises(InputError, match=re.escape(f"prompt_lengths {message}")):
            model(row, prompt_lengths=lengths)
        with pytest.raises(InputError, match=re.escape(f"prompt_lengths {message}")):
            model.generate(input_ids=row, prompt_lengths=lengths, max_new_tokens=1)
    padding = {"input_ids": torch.tensor([[2, *range(5, 11)]]), "attention_mask": torch.tensor([[0] + [1] * 6])}
    with pytest.raises(InputError, match="holds 7 for row 0, which has 6 tokens"):
        model(**padding, prompt_lengths=torch.tensor([7]))
    assert torch.equal(model(row, prompt_lengths=[4]).logits, model(row, prompt_lengths=torch.tensor([4])).logits)


@torch.no_grad()
def test_a_steering_mask_says_yes_or_no():
    model, row = steered("linear", positions="mask"), torch.tensor([[5, 6, 7]])
    expected = model(row, steering_mask=torch.tensor([[True, False, True]])).logits
    for mask in ([[1, 0, 1]], torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1, 0, 1]]).numpy()):
        assert torch.equal(model(row, steering_mask=mask).logits, expected)
    for value in (float("nan"), 0.5, 2, -1):
        with pytest.raises(InputError, match="holds values other than 0 and 1"):
            model(row, steering_mask=torch.tensor([[1, value, 0]]))
        with pytest.raises(InputError, match="holds values other than 0 and 1"):
            model.generate(input_ids=row, steering_mask=torch.tensor([[1, value, 0]]), max_new_tokens=1)
    with pytest.raises(InputError, match="steering_mask is str"):
        model(row, steering_mask="all")
