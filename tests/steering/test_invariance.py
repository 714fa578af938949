"""Every family and rule of positions: the same numbers in any batch, with padding on either side, with a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steerscope.errors import InputError
from steerscope.models import true_float64
from steerscope.steering.positions import Positions, token_mask
from steerscope.steering.prompt_end import Columns
from tests.steering.cases import RULES, SETTINGS, close, padded, prompts, real_logits, steered
from tests.tiny import LAYOUTS, tiny_model

NEW = 4
GREEDY = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 2}


def precise(family: str) -> torch.dtype:
    """In float64 Gemma-2's own attention is not a number at padding on the left, with or without edits."""
    return torch.float32 if family == "gemma2" else torch.float64


def generated(model, rows: list[Tensor], side: str = "left", **options) -> list[Tensor]:
    batch = padded(rows, side)
    del batch["position_ids"]
    out = model.generate(**batch, **GREEDY, **options)
    return list(out[:, batch["input_ids"].shape[1] :])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", SETTINGS)
@torch.no_grad()
def test_batch_padding_and_cache_change_nothing(family, rule):
    model = steered(family, positions=rule)
    rows = prompts()
    with true_float64(model):
        # Token for token: one by one with a cache, one by one without, all at once with padding.
        alone = [generated(model, [row], use_cache=False)[0] for row in rows]
        for found in (
            [generated(model, [row])[0] for row in rows],
            generated(model, rows),
            generated(model, rows, use_cache=False),
        ):
            assert [row.tolist() for row in found] == [row.tolist() for row in alone]
        # Logits of whole sequences, padded on either side, against the row alone.
        whole = [torch.cat([row, new]) for row, new in zip(rows, alone, strict=True)]
        lengths = torch.tensor([len(row) for row in rows])
        single = [
            model(**padded([row], "left"), prompt_lengths=length[None]).logits[0]
            for row, length in zip(whole, lengths, strict=True)
        ]
        for side in ("left", "right"):
            batch = padded(whole, side)
            found = model(**batch, prompt_lengths=lengths, use_cache=False).logits
            for row, expected in zip(real_logits(found, batch["attention_mask"]), single, strict=True):
                close(row, expected)
        # What generation computed is what a pass over everything computes.
        scores = model.generate(
            input_ids=rows[0][None], **GREEDY, output_logits=True, return_dict_in_generate=True
        ).logits
        close(torch.cat(scores), single[0][len(rows[0]) - 1 : -1])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "all"])
@torch.no_grad()
def test_rules_differ_from_all_and_from_no_edit(rule):
    """Otherwise the test above could pass with edits that do nothing."""
    row = torch.cat([prompts()[0], torch.tensor([5, 9, 11])])
    batch, length = padded([row], "left"), torch.tensor([6])
    model = steered("linear", positions=rule)
    found = model(**batch, prompt_lengths=length).logits
    with model.disable_adapter():
        plain = model(**batch).logits
    everywhere = steered("linear", positions="all")(**batch).logits
    assert (found - plain).abs().max() > 1e-3
    assert (found - everywhere).abs().max() > 1e-3


@pytest.mark.parametrize("family", LAYOUTS)
@torch.no_grad()
def test_layouts_generate_the_same_in_a_batch(family):
    model = steered("linear", tiny_model(family, precise(family)), positions="last:2")
    rows = prompts()
    alone = [generated(model, [row], use_cache=False)[0].tolist() for row in rows]
    assert [row.tolist() for row in generated(model, rows)] == alone


@pytest.mark.parametrize("rule", ["all", "prompt", "completion", "last"])
@torch.no_grad()
def test_beam_search(rule):
    """Beams of a batch equal beams of the rows alone, with and without a cache."""
    model = steered("linear", positions=rule)
    rows = prompts()
    alone = [generated(model, [row], num_beams=3, use_cache=False)[0].tolist() for row in rows]
    assert [row.tolist() for row in generated(model, rows, num_beams=3)] == alone
    with model.disable_adapter():
        assert [row.tolist() for row in generated(model, rows, num_beams=3)] != alone


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("rule", ["prompt", "completion", "first:4"])
@torch.no_grad()
def test_caches_of_fixed_length_and_sliding_windows(family, rule):
    """Their masks have other shapes, so columns are counted here."""
    window = {} if family == "llama" else {"sliding_window": 4}
    model = steered("linear", tiny_model(family, precise(family), **window), positions=rule)
    rows = prompts()
    alone = [generated(model, [row], use_cache=False)[0].tolist() for row in rows]
    assert [row.tolist() for row in generated(model, rows)] == alone
    static = {"cache_implementation": "static", "disable_compile": True}
    assert [row.tolist() for row in generated(model, rows, **static)] == alone
    beams = generated(model, rows, num_beams=2)
    assert [row.tolist() for row in generated(model, rows, num_beams=2, **static)] == [row.tolist() for row in beams]


@torch.no_grad()
def test_a_given_mask():
    model = steered("linear", positions="mask")
    rows = prompts()
    batch = padded(rows, "left")
    mask = torch.zeros_like(batch["input_ids"])
    mask[:, -2] = 1  # the last but one token of every prompt
    found = model(**batch, steering_mask=mask).logits
    same = steered("linear", positions="last:2")
    both = same(**batch, prompt_lengths=torch.tensor([6, 3, 4])).logits
    assert (found - both).abs().max() > 1e-3
    only = torch.stack([padded([row], "left")["attention_mask"].sum() for row in rows])
    assert only.tolist() == [6, 3, 4]
    # the same mask again, row by row, and generating with beams
    for row, tokens in enumerate(rows):
        alone = torch.zeros(1, len(tokens), dtype=torch.bool)
        alone[0, -2] = True
        close(
            real_logits(found, batch["attention_mask"])[row],
            model(**padded([tokens], "left"), steering_mask=alone).logits[0],
        )
        cached = model.generate(input_ids=tokens[None], steering_mask=alone, num_beams=2, **GREEDY)
        uncached = model.generate(input_ids=tokens[None], steering_mask=alone, num_beams=2, use_cache=False, **GREEDY)
        assert torch.equal(cached, uncached)


@torch.no_grad()
def test_a_loop_with_a_cache_by_hand():
    model = steered("linear", positions="completion")
    row, length = torch.cat([prompts()[0], torch.tensor([5, 9, 11])])[None], torch.tensor([6])
    whole = model(input_ids=row, prompt_lengths=length, use_cache=False).logits
    start = model(input_ids=row[:, :7], prompt_lengths=length, use_cache=True)
    rest = model(input_ids=row[:, 7:], prompt_lengths=length, past_key_values=start.past_key_values)
    close(torch.cat([start.logits, rest.logits], 1), whole)


def test_labels_say_where_the_prompt_ends():
    rows = [torch.arange(3, 10), torch.arange(3, 8)]
    for side in ("left", "right"):
        batch = padded(rows, side)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, tokens in enumerate(rows):
            start = labels.shape[1] - len(tokens) if side == "left" else 0
            labels[row, start : start + 3 + row] = -100
        model = steered("linear", positions="prompt")
        told = model(**batch, prompt_lengths=torch.tensor([3, 4])).logits
        assert torch.equal(model(**batch, labels=labels).logits, told)


def test_masks_of_one_small_case():
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    lengths = torch.tensor([[2], [3]])

    def chosen(text: str, queries: int = 6) -> list[str]:
        found = token_mask(Positions.parse(text), Columns.of_rows(mask != 0, queries), ends=lengths)
        return ["".join(str(int(x)) for x in row) for row in found]

    assert chosen("prompt") == ["001100", "111000"]
    assert chosen("completion") == ["000011", "000110"]
    assert chosen("last") == ["000100", "001000"]
    assert chosen("last:5") == ["001100", "111000"]
    assert chosen("first:3") == ["001110", "111000"]
    assert chosen("completion", queries=2) == ["11", "10"]
    assert chosen("first:5", queries=1) == ["1", "0"]
    assert token_mask(Positions.parse("all"), Columns.of_rows(mask != 0, 6)) is None


@pytest.mark.parametrize("text", ["", "first", "last:0", "first:-1", "middle", "last:n", "ALL"])
def test_unknown_positions_are_refused(text):
    with pytest.raises(InputError, match=r"unknown positions .* Valid: all, prompt"):
        Positions.parse(text)


@pytest.mark.parametrize("rule", ["prompt", "completion", "last"])
@torch.no_grad()
def test_a_pass_without_a_prompt_is_refused(rule):
    model = steered("linear", positions=rule)
    with pytest.raises(InputError, match=r"need to know where the prompt ends\. Pass labels"):
        model(**padded(prompts(), "left"))
    with pytest.raises(InputError, match="got 2 prompt lengths for a batch of 3"):
        model(**padded(prompts(), "left"), prompt_lengths=torch.tensor([1, 2]))


@torch.no_grad()
def test_missing_masks_are_refused():
    model = steered("linear", positions="mask")
    with pytest.raises(InputError, match="need a mask with every pass"):
        model(**padded(prompts(), "left"))
    with pytest.raises(InputError, match=r"steering_mask has shape \(2, 6\)"):
        model(**padded(prompts(), "left"), steering_mask=torch.ones(2, 6))
    whole = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(InputError, match="attention mask"):
        model(input_ids=padded(prompts(), "left")["input_ids"], attention_mask=whole, steering_mask=torch.ones(3, 6))
