"""Run a part of a model: from one block on, as nothing below an edit depends on it; the last MLP where it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from steerscope.models.blocks import Block
from steerscope.models.calls import Call, as_given_back, hooked, stream_of
from steerscope.models.description import BlockDescription


class DescribedBlocks(Protocol):
    """What is needed of a site map: it is made with what stands here, so its class is not to be had."""

    @property
    def blocks(self) -> Sequence[Block]:
        """From below."""
        ...

    @property
    def description(self) -> BlockDescription:
        """Whether they read more than the stream."""
        ...


@contextmanager
def entering_block(site_map: DescribedBlocks, layer: int, stream: Tensor) -> Iterator[None]:
    """Run the model's blocks from ``layer`` on, with ``stream`` (``batch token d_model``) entering that block.

    The blocks below do nothing inside the context, unless those above read more of them than the stream. Enter it
    before hooks that read or edit sites. The model is to be run on the stream's own tokens: masks and positions are
    made of them, and some models' blocks read them.

    Args:
        site_map: The model's blocks.
        layer: The first block that computes, from 0.
        stream: The residual stream entering it, ``batch token d_model``, in the model's data type.
    """
    skipped = [] if site_map.description.reads_below else [block.module for block in site_map.blocks[:layer]]

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = Call(args, kwargs).with_first(stream)
        return call.args, call.kwargs

    with site_map.blocks[layer].module.register_forward_pre_hook(hook, with_kwargs=True), doing_nothing(skipped):
        yield


@contextmanager
def streams_entering(site_map: DescribedBlocks) -> Iterator[list[Tensor]]:
    """Keep what enters every block of a forward pass inside the context, to begin there again.

    Args:
        site_map: The model's blocks.

    Yields:
        A list that the pass fills, from below: the residual stream before each block, ``batch token d_model``.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(stream_of(args, kwargs))

    with hooked(block.module.register_forward_pre_hook(keep, with_kwargs=True) for block in site_map.blocks):
        yield seen


@contextmanager
def with_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another ``forward`` inside the context, whoever else replaced theirs; hooks are called all the same.

    Args:
        forwards: Per module what stands in for it.
    """
    # Where layers are on several devices or offloaded, accelerate keeps a ``forward`` of its own on the module.
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)  # the class's own method shows again
            else:
                module.forward = own


def doing_nothing(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Let blocks, of a site map that was checked, hand on the stream that enters them inside the context."""

    def passing(block: nn.Module) -> Callable[..., Any]:
        return lambda *args, **kwargs: as_given_back(block, stream_of(args, kwargs))

    return with_forward({module: passing(module) for module in modules})


@contextmanager
def mlp_at(block: Block, row: Tensor, token: Tensor) -> Iterator[None]:
    """Compute a block's MLP at ``(row, token)`` alone inside the context; at other tokens it adds zero.

    Of the last block nothing else is read where logits are asked for at these tokens alone. What the MLP reads has
    another shape inside: no hook may read or edit it. A block without a module for its MLP computes all.

    Args:
        block: The block.
        row: ``selected``: which sequences of the batch.
        token: ``selected``: the token in each of them.
    """
    write = block.mlp_write_or_none  # one map of experts looks at all tokens at once
    if write is None or write is block.mlp_in or write not in set(block.mlp_in.modules()):
        yield
        return
    shapes: list[torch.Size] = []

    def gather(module: nn.Module, args: tuple[Any, ...]) -> Any:
        if not args:
            return None
        shapes.append(args[0].shape)
        return (args[0][row, token][None], *args[1:])

    def scatter(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not shapes:
            return None
        shape = shapes.pop()
        return output.new_zeros(*shape[:2], output.shape[-1]).index_put((row, token), output[0])

    with block.mlp_in.register_forward_pre_hook(gather), block.mlp_in.register_forward_hook(scatter):
        yield


@contextmanager
def above_blocks(site_map: DescribedBlocks, stream: Tensor) -> Iterator[None]:
    """Run nothing but what follows the last block, with ``stream`` (``batch token d_model``) leaving that block.

    The model is to be run on as many tokens as the stream has.

    Args:
        site_map: The model's blocks.
        stream: The residual stream leaving the last block, ``batch token d_model``.
    """
    last = site_map.blocks[-1]
    with entering_block(site_map, last.index, stream), doing_nothing([last.module]):
        yield
