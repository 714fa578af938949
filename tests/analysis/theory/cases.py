"""A tiny loaded model in float64, tokens for it and an update of its linear maps."""

from __future__ import annotations

import torch

from steerscope.analysis.theory.common import weight_names
from steerscope.models.load import LoadedModel, wrap_model
from tests.tiny import VOCAB, tiny_model, tiny_tokenizer


def loaded(family: str = "llama", dtype: torch.dtype = torch.float64, **overrides) -> LoadedModel:
    return wrap_model(tiny_model(family, dtype, **overrides), tiny_tokenizer())


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(rows: int = 3, length: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def update_of(model: LoadedModel, size: float = 0.05, seed: int = 1, only: str = "") -> dict[str, torch.Tensor]:
    """A random update of every linear map whose name contains ``only``, of the given relative size."""
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.model.named_parameters())
    made = {}
    for name in weight_names(model).values():
        noise = torch.randn(named[name].shape, generator=generator, dtype=torch.float64)
        made[name] = (size * named[name].norm() * noise / noise.norm()).to(named[name])
    return {name: change for name, change in made.items() if only in name}


def bits(model: LoadedModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.model.named_parameters()}


def assert_same_bits(model: LoadedModel, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.model.named_parameters():
        assert torch.equal(value, before[name]), name
        assert not value.requires_grad, name
