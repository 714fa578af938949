"""Linear layers that keep their weights in 4 bits, as quantising libraries do: bytes of another shape, in buffers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.tiny import tiny_model


class Nibbles(nn.Module):
    """A linear map of 16 levels per weight, two in a byte; no ``nn.Linear``, and without a tensor named weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(1, keepdim=True) / 7
        levels = (weight / scale).round().clamp(-8, 7).add(8).to(torch.uint8).flatten()
        self.register_buffer("codes", levels[0::2] | (levels[1::2] << 4))
        self.codes = self.codes[:, None]
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().clone())

    def matrix(self) -> Tensor:
        levels = torch.stack([self.codes & 15, self.codes >> 4], -1).flatten()
        return (levels.to(self.scale) - 8).view(len(self.scale), -1) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.matrix(), self.bias)


class ForInferenceOnly(Nibbles):
    """As above, by a kernel that autograd does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach())


class RoundsActivations(Nibbles):
    """As above, with what it reads rounded to 8 bits per token, and the gradient of the map that does not round."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().amax(-1, keepdim=True).clamp_min(1e-9) / 127
        rounded = (x / step).round() * step
        return super().forward(x + (rounded - x).detach())


class NotLinear(Nibbles):
    """Packed weights, and a gate."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def pack(model: nn.Module, layer: type[Nibbles] = Nibbles, heads: bool = False) -> nn.Module:
    """Replace the linear layers of a model, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (heads or "lm_head" not in name):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], layer(module))
    return model


def twins(family: str = "llama", layer: type[Nibbles] = Nibbles, **options) -> tuple[nn.Module, nn.Module]:
    """Return a quantised tiny model, and one of plain linear layers that computes the same."""
    packed, plain = pack(tiny_model(family, **options), layer), tiny_model(family, **options)
    with torch.no_grad():
        for name, module in packed.named_modules():
            if isinstance(module, Nibbles):
                plain.get_submodule(name).weight.copy_(module.matrix())
    return packed, plain
