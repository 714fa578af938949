"""What a block description names by attribute paths: modules, activation functions, multipliers."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path.

    Args:
        root: Where the path starts.
        path: Attribute names and indices joined by dots, such as ``"mlp.down_proj"``.

    Returns:
        The module itself, not a copy.

    Raises:
        UnsupportedModelError: There is nothing, or no module, at that path.
    """
    found = root
    for part in path.split("."):
        child = getattr(found, part, None)
        if not isinstance(child, nn.Module):
            names = [name for name, _ in found.named_children()]
            raise UnsupportedModelError(
                f"{type(root).__name__} has no module {path!r}: {part!r} is missing in "
                f"{type(found).__name__}, which has {names}. Correct the BlockDescription."
            )
        found = child
    return found


# Activations that a block may call as functions of torch, without an attribute of its own.
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.functional.silu": nn.functional.silu,
    "torch.nn.functional.gelu": nn.functional.gelu,
    "torch.nn.functional.relu": nn.functional.relu,
}


def activation_at(module: nn.Module, path: str | None) -> Callable[[Tensor], Tensor]:
    """Return the activation function that a description names.

    Args:
        module: The block.
        path: Its attribute, or one of :data:`FUNCTIONS`; ``None`` where the MLP is one map.

    Returns:
        The function; for ``None`` one that refuses.

    Raises:
        UnsupportedModelError: There is no function at that path.
    """
    if path is None:

        def none(z: Tensor) -> Tensor:
            raise UnsupportedModelError(
                "this needs the activation of an MLP that is one map here. Take sites that edit activations there."
            )

        return none
    if path in FUNCTIONS:
        return FUNCTIONS[path]
    owner, _, name = path.rpartition(".")
    activation = getattr(module_at(module, owner) if owner else module, name, None)
    if not callable(activation):
        raise UnsupportedModelError(
            f"{type(module).__name__} has no activation function at {path!r}. Correct the BlockDescription."
        )
    return cast(Callable[[Tensor], Tensor], activation)


def number_at(module: nn.Module, scale: float | str) -> float:
    """Return a multiplier that a description gives as a number, or as the attribute that holds it.

    Args:
        module: The block.
        scale: The number, or the attribute's path.

    Returns:
        The number.

    Raises:
        UnsupportedModelError: There is no number but zero at that path.
    """
    if not isinstance(scale, str):
        return float(scale)
    owner, _, name = scale.rpartition(".")
    found = getattr(module_at(module, owner) if owner else module, name, None)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found:
        raise UnsupportedModelError(
            f"{type(module).__name__} has no number but zero at {scale!r}, which the BlockDescription calls a "
            f"multiplier (there is {found!r}). Correct the BlockDescription."
        )
    return float(found)
