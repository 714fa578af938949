"""A ranking takes the models that edits and readings take, and gives them back as they were."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from steerscope import Ranking, RankOptions, rank_sites, wrap_model
from steerscope.errors import InputError
from tests.analysis.test_slices import examples
from tests.tiny import tiny_model, tiny_tokenizer

OPTIONS = RankOptions(kinds=("resid_post",), num_probes=1, num_groups=2, max_sites=1)


def of_any_name(found: Ranking) -> Ranking:
    return replace(found, timing={}, model=replace(found.model, name=""))


@pytest.mark.parametrize("adapted", [False, True], ids=["transformers", "PEFT"])
def test_a_model_of_transformers_is_ranked_as_a_loaded_one(adapted):
    def model():
        made = tiny_model("llama")
        return get_peft_model(made, LoraConfig(target_modules=["q_proj"], init_lora_weights=True)) if adapted else made

    given = model().train()
    given.get_input_embeddings().eval()
    flags = {name: p.requires_grad for name, p in given.named_parameters()}
    modes = {name: module.training for name, module in given.named_modules()}
    assert set(modes.values()) == {False, True}
    found = rank_sites(given, examples("one token"), OPTIONS, tokenizer=tiny_tokenizer())
    assert of_any_name(found) == of_any_name(
        rank_sites(wrap_model(model(), tiny_tokenizer()), examples("one token"), OPTIONS)
    )
    assert {name: p.requires_grad for name, p in given.named_parameters()} == flags
    assert {name: module.training for name, module in given.named_modules()} == modes
    with pytest.raises(InputError, match=r"got 3; expected at least 24|needs at least|at least 24"):
        rank_sites(given, examples("one token")[:3], OPTIONS, tokenizer=tiny_tokenizer())
    assert {name: p.requires_grad for name, p in given.named_parameters()} == flags


def test_the_tokenizer_is_asked_for_where_it_is_missing_and_refused_where_there_is_one():
    with pytest.raises(
        InputError, match=r"a LlamaForCausalLM says nothing of how texts become tokens\. Give tokenizer="
    ):
        rank_sites(tiny_model("llama"), examples("one token"), OPTIONS)
    loaded = wrap_model(tiny_model("llama"), tiny_tokenizer())
    with pytest.raises(InputError, match="got a tokenizer with a loaded model, which has its own"):
        rank_sites(loaded, examples("one token"), OPTIONS, tokenizer=tiny_tokenizer())
    with pytest.raises(InputError, match=r"expected a loaded model, got a str"):
        rank_sites("smollm2-135m", examples("one token"), OPTIONS)
