"""Reading and editing sites of a running model through forward hooks.

Edits are added (x + d), never written as replaced values, so a zero edit leaves the logits bit-equal. Only
the hooks set here are removed again; other libraries' hooks stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.blocks import Block, as_token_axes
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site, SiteKind

# What an edit computes: from the tensor the site reads (batch token channel) to what is added there.
Edit = Callable[[Tensor], Tensor]
# Called with the tensor on the model's path at the site's write point and with what the site reads (the same
# tensor for most kinds); what it returns, unless None, takes the first one's place.
Tap = Callable[[Tensor, Tensor], Tensor | None]


def _first(value: Any) -> Tensor:
    found = value[0] if isinstance(value, tuple) else value
    if not isinstance(found, Tensor):
        raise UnsupportedModelError(f"expected a tensor from the block, got {type(found).__name__}.")
    return found


class _Stream:
    """The stream entering a block in the pass under way: ``resid_mid`` needs it, flat tokens need its shape."""

    h: Tensor

    def watch(self, block: Block, stack: ExitStack) -> None:
        """Keep ``h`` as it enters the block, and again as attention gets it: after edits of ``resid_pre``."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.h = args[0] if args else kwargs["hidden_states"]

        for module in (block.module, block.attn_norm or block.attn):
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def forget(self, block: Block, stack: ExitStack) -> None:
        """Let go of ``h`` when the block is done: hooks that stay would keep every block's until the next pass.

        Set after all taps, so that it runs after them. A block that runs again in backward (gradient checkpointing)
        gets ``h`` again where attention gets it.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.__dict__.pop("h", None)

        stack.callback(block.module.register_forward_hook(hook).remove)


def _at_input(module: nn.Module, stream: _Stream, tap: Tap) -> Any:
    """Tap a module's first input."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = None if args else next(iter(kwargs))
        value = args[0] if name is None else kwargs[name]
        seen = as_token_axes(value, *stream.h.shape[:2])
        replaced = tap(seen, seen)
        if replaced is None:
            return None
        replaced = replaced.reshape(value.shape)
        return ((replaced, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: replaced})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _at_output(module: nn.Module, stream: _Stream, tap: Tap, add_stream: bool = False) -> Any:
    """Tap a module's output; with ``add_stream`` what is read there is ``h + output``."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        value = _first(output)
        seen = as_token_axes(value, *stream.h.shape[:2])
        replaced = tap(seen, stream.h + seen if add_stream else seen)
        if replaced is None:
            return None
        replaced = replaced.reshape(value.shape)
        return (replaced, *output[1:]) if isinstance(output, tuple) else replaced

    return module.register_forward_hook(hook)


def _attach(block: Block, kind: SiteKind, stream: _Stream, tap: Tap) -> Any:
    """Set the hook that reaches one site."""
    match kind:
        case SiteKind.RESID_PRE:
            return _at_input(block.module, stream, tap)
        case SiteKind.ATTN_HEADS:
            return _at_input(block.attn_write, stream, tap)
        case SiteKind.ATTN_OUT:
            return _at_output(block.attn_writer, stream, tap)
        case SiteKind.RESID_MID:
            # m = h + attn_out has no module of its own. Adding where attention writes reaches the MLP *and*
            # the skip; a hook on the norm before the MLP would reach the MLP alone.
            return _at_output(block.attn_writer, stream, tap, add_stream=True)
        case SiteKind.MLP_IN:
            return _at_input(block.mlp_in, stream, tap)
        case SiteKind.MLP_HIDDEN:
            return _at_input(block.mlp_write, stream, tap)
        case SiteKind.MLP_OUT:
            return _at_output(block.mlp_writer, stream, tap)
        case SiteKind.RESID_POST:
            return _at_output(block.module, stream, tap)


@contextmanager
def tapping(site_map: SiteMap, taps: Mapping[Site, Tap]) -> Iterator[None]:
    """Call ``taps[site]`` in every forward pass inside the context.

    A tap sees the tensors after all taps before it (earlier in the mapping at the same point, or further down
    the model). With a head given, it sees and replaces that head's channels alone.
    """
    with ExitStack() as stack:
        streams: dict[int, _Stream] = {}
        for site, tap in taps.items():
            block = site_map.blocks[site.layer]
            if site.layer not in streams:
                streams[site.layer] = _Stream()
                streams[site.layer].watch(block, stack)
            if site.head is not None:
                tap = _one_head(tap, site.head, site_map.n_heads)
            stack.callback(_attach(block, site.kind, streams[site.layer], tap).remove)
        for layer, stream in streams.items():
            stream.forget(site_map.blocks[layer], stack)
        yield


def _one_head(tap: Tap, head: int, n_heads: int) -> Tap:
    def narrowed(value: Tensor, read: Tensor) -> Tensor | None:
        split = value.unflatten(-1, (n_heads, -1))
        part = split[..., head, :]
        replaced = tap(part, part)
        if replaced is None:
            return None
        heads = list(split.unbind(-2))
        heads[head] = replaced
        return torch.cat(heads, dim=-1)

    return narrowed


@contextmanager
def edited(model: nn.Module, site_map: SiteMap, edits: Mapping[Site, Edit] | Mapping[str, Edit]) -> Iterator[nn.Module]:
    """Run the model with edits added at sites; leaving the context removes them.

    Args:
        model: The model ``site_map`` was found in.
        site_map: Its sites.
        edits: Per site, a function from what the site reads (``batch token channel``) to what is added. Edits
            apply in the order in which a block computes its sites, whatever the order of the mapping; an edit
            sees what the edits before it made. Nested contexts apply outer edits first.

    Raises:
        InputError: A site this model does not have, the same site twice, or all heads and one of them.
    """
    taps: dict[Site, Tap] = {}
    for name, edit in edits.items():
        site = site_map.resolve(name)
        if site in taps:
            raise InputError(f"site '{site}' is edited twice; add the two edits in one function.")
        if site.head is not None and Site(site.layer, site.kind) in map(site_map.resolve, edits):
            raise InputError(f"'{site}' is one of the heads of '{site.layer}.{site.kind}', which is edited too.")
        taps[site] = _adding(edit)
    order = list(SiteKind)
    with tapping(site_map, dict(sorted(taps.items(), key=lambda item: (item[0].layer, order.index(item[0].kind))))):
        yield model


def _adding(edit: Edit) -> Tap:
    return lambda value, read: value + edit(read)


@contextmanager
def reading(site_map: SiteMap, sites: Iterable[Site | str]) -> Iterator[dict[Site, Tensor]]:
    """Collect the tensors of sites (``batch token channel``) from the forward passes inside the context.

    The dictionary is filled as the model runs; a second pass overwrites the first. Enter it inside
    :func:`edited` to read edited values.
    """
    found: dict[Site, Tensor] = {}

    def keep(site: Site) -> Tap:
        def tap(value: Tensor, read: Tensor) -> None:
            found[site] = read

        return tap

    with tapping(site_map, {s: keep(s) for s in map(site_map.resolve, sites)}):
        yield found
