"""Linear maps whose weights are kept in fewer bits (quantised), known by what they compute and not by their class.

Libraries keep such weights each in its own way: as bytes of another shape, as tensors that pretend to be float, in
buffers beside the module. What sites need of a map are its inputs, its outputs and its derivative, so those are
measured: on what the map reads in a pass, ``f(x) - f(0)`` must be additive, and the gradient that autograd gives must
be that of ``f``. The second is no formality: kernels for inference may give outputs without any gradient through them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.calls import first_tensor, hooked
from steerscope.models.wrappers import acting_layer, in_evaluation_mode, run_on_random_tokens


@dataclass(frozen=True)
class Measured:
    """What a pass told of a packed map.

    Attributes:
        d_out: Channels that it writes.
        d_in: Channels that it reads.
        dtype: Data type of what it reads.
        error: How far it is from a linear map with its gradient, relative.
    """

    d_out: int
    d_in: int
    dtype: torch.dtype
    error: float


_MEASURED: WeakKeyDictionary[nn.Module, Measured] = WeakKeyDictionary()
# What rounding may do to a linear map: 8-bit activations err by 1 in 100, a kernel without a gradient by all of it.
_LINEAR_TO = 0.1
# More than bfloat16 makes of a sum: then activations are rounded, too.
_ROUNDS_ACTIVATIONS = 0.006


def is_packed_tensor(tensor: Tensor) -> bool:
    """Whether a tensor holds no numbers that can be read and written as float: codes, or a class of its own.

    Returns:
        False for masks and positions (boolean, 64 bits), which are no codes.
    """
    if tensor.is_floating_point():
        return tensor.dtype.itemsize < 2 or hasattr(type(tensor), "__tensor_flatten__")
    return tensor.dtype is not torch.bool and tensor.dtype.itemsize < 8


def is_packed(module: nn.Module) -> bool:
    """Whether a module keeps a weight of two axes or more packed, looking inside PEFT's wrapper of it."""
    layer = acting_layer(module)
    weight = getattr(layer, "weight", None)
    if isinstance(weight, Tensor) and weight.dim() == 2 and not is_packed_tensor(weight):
        return False
    return any(value.dim() > 1 and is_packed_tensor(value) for value in _held(layer))


def packed_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_out, d_in)`` of a packed map, as measured in a pass.

    Raises:
        UnsupportedModelError: It did not run in the pass that :func:`measure` made.
    """
    found = _MEASURED.get(acting_layer(module))
    if found is None:
        raise UnsupportedModelError(
            f"{type(acting_layer(module)).__name__} keeps its weights packed, and no pass told what it reads and "
            "writes. Use the sites of find_sites(model), and describe modules that run."
        )
    return found.d_out, found.d_in


@torch.no_grad()
def measure(model: nn.Module, maps: Iterable[nn.Module]) -> None:
    """Find the widths of packed maps in a pass, and require that they are linear and have their true gradients.

    Args:
        model: The model, plain or wrapped.
        maps: Its linear maps; those that are not packed are passed over.

    Raises:
        UnsupportedModelError: A packed map did not run, is not linear, or has not the gradient of what it computes.

    Cost: nothing where none is packed or all were measured before; else one pass over twelve tokens, and a few calls of
    each map.
    """
    layers = {acting_layer(module) for module in maps if is_packed(module)} - set(_MEASURED)
    if not layers:
        return
    seen: dict[nn.Module, Tensor] = {}

    def hook(layer: nn.Module, args: tuple[object, ...], _: object) -> None:
        if (given := first_tensor(args)) is not None:
            seen[layer] = given.detach()

    for layer in layers:
        _use_differentiable_kernel(layer)
    with hooked(layer.register_forward_hook(hook) for layer in layers), in_evaluation_mode(model):
        run_on_random_tokens(model)
    names = {module: name for name, module in model.named_modules()}
    for layer in layers:
        if layer not in seen:
            raise UnsupportedModelError(
                f"{names.get(layer, type(layer).__name__)!r} keeps its weights packed and did not run on text. "
                "Describe the linear maps that every token goes through."
            )
        require_linear(layer, seen[layer], names.get(layer, type(layer).__name__))


def require_linear(layer: nn.Module, given: Tensor, name: str) -> None:
    """Require that a packed layer computes a linear map of each token, with its gradient; and note its widths.

    Args:
        layer: The layer.
        given: What it reads in a pass, channels last.
        name: For the message.

    Raises:
        UnsupportedModelError: It does not.
    """
    failed = _why_not_linear(layer, given)
    if failed:
        raise UnsupportedModelError(
            f"{name!r} ({type(layer).__name__}) keeps its weights packed, and {failed}. Load the model with a "
            "quantisation of weights alone that can be trained through (bitsandbytes, torchao's weight-only ones), or "
            "the model that it was made from."
        )


def computes_linear_map(layer: nn.Module, given: Tensor) -> bool:
    """Say whether a layer with packed weights computes a linear map of each token; its widths are noted if so.

    Args:
        layer: The layer.
        given: What it reads in a pass, channels last.

    Returns:
        Whether it does. A layer without packed weights does not.
    """
    if layer in _MEASURED:
        return True
    _use_differentiable_kernel(layer)
    return is_packed(layer) and not _why_not_linear(layer, given)


@torch.no_grad()
def _why_not_linear(layer: nn.Module, given: Tensor) -> str:
    """Return what failed, empty if nothing did."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator).to(like)
        return drawn * like.float().pow(2).mean().sqrt().clamp_min(1e-6).to(like)

    first, second = given.detach(), noise(given)
    try:
        nothing, one, other, both = (layer(value) for value in (0 * first, first, second, first + second))
        alone = layer(first[:, :1]) if first.dim() > 2 else layer(first[:1])
    except Exception as raised:  # whatever a module raises that takes no such tensor
        return f"it does not run on what it reads ({type(raised).__name__})"
    outputs = (nothing, one, other, both, alone)
    if not all(isinstance(value, Tensor) and value.is_floating_point() for value in outputs):
        return "it does not give back one tensor"
    if one.shape[:-1] != first.shape[:-1]:
        return "it does not map each token"
    error = _relative(both + nothing, one + other)
    of_one_token = _relative(alone, one[:, :1] if first.dim() > 2 else one[:1])
    if not error <= _LINEAR_TO or not of_one_token <= _LINEAR_TO:
        return f"what it computes is no linear map of each token (it errs by {max(error, of_one_token):.1g})"
    with torch.enable_grad():
        leaf = second.clone().requires_grad_(True)
        output = layer(leaf)
        direction = noise(output.detach())
        found = None
        if output.requires_grad:
            (found,) = torch.autograd.grad(output, leaf, direction, allow_unused=True)
    expected = ((other - nothing).float() * direction.float()).sum(-1)
    gradient = torch.zeros_like(expected) if found is None else (found.float() * second.float()).sum(-1)
    # Measured against what random directions give, not against sums that may cancel.
    scale = ((other - nothing).float().norm(dim=-1) * direction.float().norm(dim=-1)).pow(2).mean().sqrt()
    errs = float((gradient - expected).pow(2).mean().sqrt() / (scale / one.shape[-1] ** 0.5).clamp_min(1e-30))
    if not errs <= _LINEAR_TO:
        return f"its gradient here is not that of what it computes (it errs by {errs:.1g})"
    _MEASURED[layer] = Measured(one.shape[-1], given.shape[-1], given.dtype, max(error, errs))
    return ""


def _relative(found: Tensor, expected: Tensor) -> float:
    scale = expected.float().pow(2).mean().sqrt().clamp_min(1e-30)
    return float((found - expected).float().pow(2).mean().sqrt() / scale)


def _use_differentiable_kernel(layer: nn.Module) -> None:
    """Keep bitsandbytes from its kernel for inference on a CPU, which has no gradient and computes in bfloat16."""
    if getattr(layer, "support_avx512bf16_for_cpu", False):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        layer.state_dict()  # takes back a repacking that an earlier pass made


def quantisation_of(maps: Iterable[nn.Module]) -> str | None:
    """Say which linear maps of a model are packed, and what is rounded: ``None`` where none is."""
    every = [acting_layer(module) for module in maps]
    packed = [layer for layer in every if is_packed(layer)]
    if not packed:
        return None
    how = ", ".join(sorted({_how(layer) for layer in packed}))
    text = f"{len(packed)} of {len(every)} linear maps of the blocks are quantised ({how}) and used as they compute"
    if rounding := rounding_of(packed):
        text += f"; they round activations, too, so derivatives are true to about {rounding:.1g}"
    return text


def _how(layer: nn.Module) -> str:
    weight = getattr(layer, "weight", None)
    named = weight is not None and hasattr(type(weight), "__tensor_flatten__")
    return type(weight if named else layer).__name__


def rounding_of(maps: Iterable[nn.Module]) -> float:
    """Return how far packed maps are from linear ones, relative; 0 where none rounds what it reads."""
    found = max((_MEASURED[layer].error for layer in map(acting_layer, maps) if layer in _MEASURED), default=0.0)
    return found if found > _ROUNDS_ACTIVATIONS else 0.0


def require_plain_weights(model: nn.Module, what: str) -> None:
    """Refuse a model with packed weights where weights themselves are read as numbers or changed.

    Args:
        model: A language model or a wrapper of one.
        what: What needs them, a noun.

    Raises:
        InputError: It has such weights.
    """
    for name, module in model.named_modules():
        if not any(module.children()) and is_packed(module):
            raise InputError(
                f"the weights of this model are quantised ({name!r}, for example, is a {_how(acting_layer(module))}), "
                f"and {what} needs them as plain numbers. Take the model that it was made from; ranking, steering and "
                "training edits work on this one."
            )


def num_weights(model: nn.Module) -> int:
    """Return the number of a model's parameters, packed maps counted by their widths."""
    packed = {layer: found for layer in model.modules() if (found := _MEASURED.get(layer)) is not None}
    inside = {id(value) for layer in packed for value in layer.parameters()}
    biases = sum(p.numel() for layer in packed for p in layer.parameters() if p.dim() == 1 and not is_packed_tensor(p))
    plain = sum(value.numel() for value in model.parameters() if id(value) not in inside)
    return plain + biases + sum(found.d_out * found.d_in for found in packed.values())


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the data type of a model's activations: that of its first weight that is not packed."""
    return next(value.dtype for value in model.parameters() if not is_packed_tensor(value))


def has_maps(module: nn.Module) -> bool:
    """Whether a module holds weights of two axes or more, packed or not: norms and activations hold none."""
    return any(
        value.dim() > 1 and (isinstance(value, nn.Parameter) or is_packed_tensor(value)) for value in _held(module)
    )


@torch.no_grad()
def matrix_of(module: nn.Module) -> Tensor:
    """Return the matrix ``(out in)`` of a packed map, from what it computes.

    Cost: a call of the map on as many tokens as it reads channels.
    """
    layer = acting_layer(module)
    _, d_in = packed_shape(module)
    columns = torch.eye(d_in, dtype=_MEASURED[layer].dtype, device=next(iter(_held(layer))).device)[None]
    run: Any = layer.forward  # without the hooks of edits
    found: Tensor = run(columns)[0] - run(torch.zeros_like(columns[:, :1]))[0]
    return found.T


def stored(layer: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Yield what a packed layer keeps, scales included, by name: tensors of numbers and codes, in a fixed order."""
    for name, value in sorted(layer.state_dict().items()):
        if isinstance(value, Tensor):
            yield from _flat(name, value)
        else:
            yield name, torch.frombuffer(bytearray(repr(value).encode()), dtype=torch.uint8)


def stored_bytes(value: Tensor) -> int:
    """Return how many bytes a weight takes where it is kept; one that is offloaded as in memory."""
    return sum(part.numel() * part.element_size() for _, part in _flat("", value))


def _flat(name: str, value: Tensor) -> Iterable[tuple[str, Tensor]]:
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        yield name, value
        return
    for inner in flatten()[0]:
        if isinstance(part := getattr(value, inner), Tensor):
            yield from _flat(f"{name}.{inner}", part)


def _held(layer: nn.Module) -> Iterable[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()


def weights_besides(module: nn.Module, maps: Iterable[nn.Module]) -> tuple[str, ...]:
    """Return the names of a module's weights of two axes or more that are none of its linear maps'.

    Args:
        module: A block.
        maps: Its linear maps, plain or packed.

    Returns:
        Names of parameters and of packed buffers, without what PEFT put around them.
    """
    known = {id(value) for one in maps for value in _held(acting_layer(one))}
    held = [*module.named_parameters(), *(pair for pair in module.named_buffers() if is_packed_tensor(pair[1]))]
    return tuple(
        name.replace("base_layer.", "")
        for name, value in held
        if value.dim() > 1 and id(value) not in known and "lora_" not in name
    )
