"""What tests of steering share: every family with settings, random parameters, batches padded either way."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from tests.tiny import VOCAB, tiny_model

# Sites and settings per family; float64, so that equal means equal to rounding.
SETTINGS: dict[str, dict] = {
    "vector": {"sites": ("0.resid_post", "1.mlp_out")},
    "linear": {"sites": ("0.resid_post", "1.mlp_hidden"), "rank": 3},
    "nonlinear": {"sites": ("0.resid_post", "1.mlp_in"), "rank": 3},
    "loreft": {"sites": ("0.resid_post", "1.resid_post"), "rank": 3},
    "direft": {"sites": ("0.resid_post", "1.attn_out"), "rank": 3},
    "noreft": {"sites": ("0.mlp_out", "1.resid_post"), "rank": 3},
    "lofit_scale": {"sites": ("0.attn_heads", "1.attn_heads.2")},
    "lofit_offset": {"sites": ("0.attn_heads.1", "1.attn_heads.2")},
}
RULES = ("all", "prompt", "completion", "last", "first:2", "last:2")


def config_of(family: str, **changes) -> SteeringConfig:
    return SteeringConfig(**{"family": family, "dtype": "float64", **SETTINGS[family], **changes})


def randomise(steering: SteeringModel, seed: int = 0, size: float = 0.3) -> SteeringModel:
    """Move every parameter of the edits away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in steering.edits.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(size * noise.to(parameter.dtype))
    return steering


def steered(family: str, model: nn.Module | None = None, seed: int = 0, **changes) -> SteeringModel:
    """A tiny Llama-type model with a random adapter of a family in it."""
    base = tiny_model("llama", torch.float64) if model is None else model
    return randomise(get_steering_model(base, config_of(family, **changes)).eval(), seed)


def prompts() -> list[Tensor]:
    """Three prompts of different lengths."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCAB, (length,), generator=generator) for length in (6, 3, 4)]


def padded(rows: list[Tensor], side: str) -> dict[str, Tensor]:
    """Pad rows to one length: ids, mask and positions."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), 2)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, tokens in enumerate(rows):
        at = slice(longest - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, at], mask[row, at] = tokens, 1
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}


def real_logits(logits: Tensor, mask: Tensor) -> list[Tensor]:
    """The logits of real tokens, row by row."""
    return [row[real != 0] for row, real in zip(logits, mask, strict=True)]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    scale = float(expected.detach().abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
