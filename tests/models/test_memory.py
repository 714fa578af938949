"""The memory said beforehand is about what a pass keeps."""

from __future__ import annotations

import pytest
import torch

from steerscope import RankOptions, rank_sites
from steerscope.analysis.data.examples import Example
from steerscope.models import wrap_model
from steerscope.models.memory import Memory, memory_needed
from tests.models.quantised import pack
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4}
SIZES = {
    "gpt2": {"n_embd": 64, "n_inner": 160, "n_layer": 4},
    "opt": {**WIDE, "word_embed_proj_dim": 64, "ffn_dim": 160},
}


def kept_by_a_pass(model, ids):
    """Return the bytes that autograd keeps of one pass, each tensor's memory once, weights left out."""
    weights = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = {}

    def keep(tensor):
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            kept[memory.data_ptr()] = memory.nbytes()
        return tensor

    embedded = model.get_input_embeddings()(ids).detach().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(inputs_embeds=embedded, use_cache=False).logits
        loss = torch.log_softmax(logits.float(), -1).sum()
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_estimate_is_right_within_a_factor_of_two(family, dtype):
    model = tiny_model(family, dtype, **SIZES.get(family, WIDE)).requires_grad_(False)
    loaded = wrap_model(model, tiny_tokenizer())
    ids = torch.arange(96).remainder(60).view(4, 24)
    found, kept = memory_needed(loaded, ids.numel(), ids.numel()), kept_by_a_pass(model, ids)
    assert kept / 2 < found.batch < 2 * kept
    assert found.weights == sum(value.numel() * value.element_size() for value in model.parameters())


def test_packed_weights_count_as_they_are_kept():
    loaded = wrap_model(pack(tiny_model("llama")), tiny_tokenizer())
    plain = sum(value.numel() * 4 for value in tiny_model("llama").parameters())
    assert memory_needed(loaded, 1, 1).weights < plain


def test_what_is_short_is_said():
    enough, short = Memory(10**9, 3 * 10**8, 0, 10**9), Memory(10**9, 3 * 10**8, 10**6, 2 * 10**8)
    assert str(enough) == "memory about 1.3 GB: weights 1.0 GB, one batch 0.3 GB, what stays 0.1 MB"
    assert "only 0.2 GB are free beside the weights" in str(short)
    assert memory_needed(wrap_model(tiny_model("llama"), tiny_tokenizer()), 10**12, 1).is_short


def test_a_ranking_says_it_before_its_passes():
    order = []
    examples = [Example(prompt=f"{i} {i % 7} =", completion=str(i % 5)) for i in range(24)]
    rank_sites(
        wrap_model(tiny_model("llama"), tiny_tokenizer()),
        examples,
        RankOptions(num_probes=3, max_sites=2, num_groups=4),
        progress=lambda stage, done, total: order.append(stage),
        say=order.append,
    )
    assert order[0].startswith("memory about")
    assert order[1] == "capture"
