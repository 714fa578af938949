"""Run a model from one block on: what lies below an edit does not depend on it and need not be computed again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from steerscope.models.site_map import SiteMap


@contextmanager
def entering_block(site_map: SiteMap, layer: int, stream: Tensor) -> Iterator[None]:
    """Run the model's blocks from ``layer`` on, with ``stream`` (``batch token d_model``) entering that block.

    The blocks below do nothing inside the context. Enter it before hooks that read or edit sites. The model is to be
    run on as many tokens as the stream has: masks and positions are made of them.
    """
    skipped = [block.module for block in site_map.blocks[:layer]]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return ((stream, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": stream})

    handle = site_map.blocks[layer].module.register_forward_pre_hook(hook, with_kwargs=True)
    for module in skipped:
        module.forward = pass_through
    try:
        yield
    finally:
        handle.remove()
        for module in skipped:
            del module.forward  # the class's own method shows again


def pass_through(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand in for a block's ``forward`` where the block is to do nothing."""
    return hidden_states


@contextmanager
def above_blocks(site_map: SiteMap, stream: Tensor) -> Iterator[None]:
    """Run nothing but what follows the last block, with ``stream`` (``batch token d_model``) leaving that block.

    The model is to be run on as many tokens as the stream has.
    """
    last = site_map.blocks[-1]
    with entering_block(site_map, last.index, stream):
        last.module.forward = pass_through
        try:
            yield
        finally:
            del last.module.forward  # the class's own method shows again
