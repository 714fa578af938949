"""Training from a kept stream is training on the whole model."""

import pytest
import torch

from steerscope import Example
from steerscope.analysis.encoding import encode
from steerscope.experiments.validation.prefix import PrefixCache, run
from steerscope.models import wrap_model
from steerscope.models.hooks import edited
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

DIGITS = tuple(f" {d}" for d in range(10))


def loaded_with(family, **overrides):
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    return wrap_model(tiny_model(family, **layers, **overrides), tiny_tokenizer())


def examples(n):
    return [Example(f"[ MAX {i % 9} {i % 7} {'3 ' * (i % 4)}] =", DIGITS[i % 10], DIGITS, i % 10) for i in range(n)]


@pytest.mark.parametrize("family", FAMILIES)
def test_entering_at_a_layer_gives_the_same_logits(family):
    loaded = loaded_with(family)
    cache = PrefixCache(loaded, encode(examples(9), loaded.tokenizer, 64), batch_size=4)
    batch = cache.batch([3, 1, 7, 8])
    real = batch.mask.bool()
    with torch.no_grad():
        whole = run(loaded, batch)
        for layer in (1, 3, 2, 0):  # up, down again, and to the embeddings
            cache.move_to(layer)
            with cache.entered(batch):
                torch.testing.assert_close(run(loaded, batch)[real], whole[real], rtol=0, atol=2e-5)
        assert torch.equal(run(loaded, batch), whole)  # nothing is left behind


@pytest.mark.parametrize("kind", ["attn_heads", "resid_mid", "mlp_out", "resid_post"])
def test_edits_act_on_the_kept_stream(kind):
    loaded = loaded_with("llama")
    cache = PrefixCache(loaded, encode(examples(5), loaded.tokenizer, 64))
    batch = cache.batch(range(5))
    edit = {f"2.{kind}": lambda x: 0.5 * x.flip(-1)}
    with torch.no_grad(), edited(loaded.model, loaded.site_map, edit):
        whole = run(loaded, batch)
    cache.move_to(2)
    with torch.no_grad(), cache.entered(batch):
        without = run(loaded, batch)
        with edited(loaded.model, loaded.site_map, edit):
            found = run(loaded, batch)
    real = batch.mask.bool()
    torch.testing.assert_close(found[real], whole[real], rtol=0, atol=2e-5)
    assert float((without - whole)[real].abs().max()) > 1e-2


def test_a_stream_kept_for_one_layer_is_wrong_at_another():
    loaded = loaded_with("llama")
    cache = PrefixCache(loaded, encode(examples(3), loaded.tokenizer, 64))
    batch = cache.batch(range(3))
    cache.move_to(2)
    cache.layer = 1  # what a mistaken cache would do
    with torch.no_grad():
        with cache.entered(batch):
            wrong = run(loaded, batch)
        assert float((wrong - run(loaded, batch)).abs().max()) > 1e-2


def test_all_choices_of_an_example_are_kept():
    loaded = loaded_with("gpt2")
    many = [Example(f"{i} =", " 3 4", (" 3 4", " 5", " 6 7 8"), 0) for i in range(4)]
    cache = PrefixCache(loaded, encode(many, loaded.tokenizer, 64), batch_size=3)
    batch = cache.batch([2, 0])
    assert batch.ids.shape[0] == 6
    with torch.no_grad():
        whole = run(loaded, batch)
        cache.move_to(3)
        with cache.entered(batch):
            real = batch.mask.bool()
            torch.testing.assert_close(run(loaded, batch)[real], whole[real], rtol=0, atol=2e-5)
