"""A tiny model of four layers, and examples it can read."""

from __future__ import annotations

from steerscope import Example
from steerscope.models import wrap_model
from tests.tiny import tiny_model, tiny_tokenizer

DIGITS = tuple(f" {d}" for d in range(10))


def loaded_with(family, **overrides):
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    return wrap_model(tiny_model(family, **layers, **overrides), tiny_tokenizer())


def examples(n):
    return [Example(f"[ MAX {i % 9} {i % 7} {'3 ' * (i % 4)}] =", DIGITS[i % 10], DIGITS, i % 10) for i in range(n)]
