"""Reading and editing sites (hook points) of a running model through forward hooks.

Edits are added (x + d), never written as replaced values, so a zero edit leaves the logits bit-equal. Only
the hooks set here are removed again; other libraries' hooks stay. Hooks act in the thread or asyncio task that set
them, and what they keep between the modules of a block is kept per thread: elsewhere the model gives its own numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.addends import Edit, checked
from steerscope.models.blocks import Block, as_token_axes
from steerscope.models.calls import Call, stream_of, with_first_tensor
from steerscope.models.contexts import Entry, acts_here, hooks_bound_here
from steerscope.models.readings import Key, Readings
from steerscope.models.recomputed import recomputed_with
from steerscope.models.site_map import HasSites, SiteMap, model_and_sites
from steerscope.site_kinds import Place, Role
from steerscope.sites import Site, SiteKind, one_or_several

# Called with the tensor on the model's path at the site's write point and with what the site reads (the same
# tensor for most kinds); what it returns, unless None, takes the first one's place.
Tap = Callable[[Tensor, Tensor], Tensor | None]


def _first(value: Any) -> Tensor:
    found = value[0] if isinstance(value, tuple | list) else value
    if not isinstance(found, Tensor):
        raise UnsupportedModelError(f"expected a tensor from the block, got {type(found).__name__}.")
    return found


def _scaled(tap: Tap, scale: float, read: Callable[[Tensor], Tensor]) -> Tap:
    """Return a tap of a module's output that the block multiplies afterwards: it sees what is added to the stream.

    Args:
        tap: Called with what is added to the stream.
        scale: The block's multiplier.
        read: From what is added, what the site reads.
    """

    def of_output(value: Tensor, _: Tensor) -> Tensor | None:
        added = value * scale
        replaced = tap(added, read(added))
        # A difference, so that an edit of zero leaves every bit.
        return None if replaced is None else value + (replaced - added) / scale

    return of_output


class _Stream(threading.local):
    """The stream entering a block in this thread's pass: ``resid_mid`` needs it, flat tokens need its shape.

    ``owner`` is the context whose passes are meant, None for those of every thread.
    """

    h: Tensor

    def __init__(self, owner: Entry | None = None) -> None:
        self.owner = owner

    def is_wanted(self) -> bool:
        """Whether the current pass is one of those that are meant."""
        return acts_here(self.owner)

    def watch(self, block: Block, stack: ExitStack) -> None:
        """Keep ``h`` as it enters the block, and again as attention gets it: after edits of ``resid_pre``."""

        # Without kwargs: torch calls a hook so when another thread removes it while this one is about to call it.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
            if kwargs is not None and self.is_wanted():
                self.h = stream_of(args, kwargs)

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


def _of_copy(tap: Tap) -> Tap:
    """Return a tap that gets a copy, and of whose tensor the block gets one: it goes on to add to that itself.

    A derivative that the tap asks of its tensor would else be of what the block made of it.
    """

    def copying(value: Tensor, read: Tensor) -> Tensor | None:
        replaced = tap(value.clone(), read.clone())
        return None if replaced is None else replaced.clone()

    return copying


def _at_input(module: nn.Module, stream: _Stream, tap: Tap) -> Any:
    """Tap a module's first input."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or not stream.is_wanted():
            return None
        call = Call(args, kwargs)
        value = call.first
        assert value is not None
        seen = as_token_axes(value, *stream.h.shape[:2])
        replaced = tap(seen, seen)
        if replaced is None:
            return None
        call = call.with_first(replaced.reshape(value.shape))
        return call.args, call.kwargs

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _at_output(module: nn.Module, stream: _Stream, tap: Tap, add_stream: bool = False, scale: float = 1.0) -> Any:
    """Tap a module's output; with ``add_stream`` what is read there is ``h + output``.

    With ``scale``, the tap sees the output times that, which is what the block adds to the stream.

    Returns:
        The handle of the hook.
    """
    if scale != 1.0:
        tap = _scaled(tap, scale, lambda added: stream.h + added if add_stream else added)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if not stream.is_wanted():
            return None
        value = _first(output)
        seen = as_token_axes(value, *stream.h.shape[:2])
        replaced = tap(seen, stream.h + seen if add_stream else seen)
        if replaced is None:
            return None
        replaced = replaced.reshape(value.shape)
        return with_first_tensor(output, replaced)

    return module.register_forward_hook(hook)


def _attach(block: Block, kind: SiteKind, stream: _Stream, tap: Tap) -> Any:
    """Set the hook that reaches one site."""
    facts = kind.facts
    if facts.place is Place.ENTERS:
        return _at_input(block.module, stream, tap)
    if facts.place is Place.LEAVES:
        return _at_output(block.module, stream, tap)
    if facts.read_by is not None:
        return _at_input(block.reader(*facts.read_by), stream, tap)
    if facts.role is Role.STREAM and block.mid_norm is not None:
        return _at_output(block.mid_norm, stream, tap)
    # The stream inside a block (resid_mid: m = h + attn_out) has no module of its own. Adding where attention writes
    # reaches the MLP *and* the skip; a hook on the norm before the MLP would reach the MLP alone.
    branch = facts.written_by[-1]
    if block.description.copied:
        tap = _of_copy(tap)
    return _at_output(block.writer(branch), stream, tap, facts.role is Role.STREAM, block.scale(branch))


@contextmanager
def tapping(site_map: SiteMap, taps: Mapping[Site, Tap], *, every_thread: bool = False) -> Iterator[None]:
    """Call ``taps[site]`` in every forward pass inside the context.

    A tap sees the tensors after all taps before it (earlier in the mapping at the same point, or further down
    the model). With a head given, it sees and replaces that head's channels alone.

    Args:
        site_map: The model's sites.
        taps: What to call where.
        every_thread: Whether passes of other threads are tapped too, not only those of the thread that enters.

    Raises:
        InputError: A part of a block was replaced since the sites were found.
    """
    _require_bound(site_map, {site.layer for site in taps})
    with ExitStack() as stack:
        owner = None if every_thread else stack.enter_context(hooks_bound_here())
        streams: dict[int, _Stream] = {}
        for site, tap in taps.items():
            block = site_map.blocks[site.layer]
            if site.layer not in streams:
                streams[site.layer] = _Stream(owner)
                streams[site.layer].watch(block, stack)
            if site.head is not None:
                tap = _one_head(tap, site.head, site_map.n_heads)
            stack.callback(_attach(block, site.kind, streams[site.layer], tap).remove)
        for layer, stream in streams.items():
            stream.forget(site_map.blocks[layer], stack)
        yield


def _require_bound(site_map: SiteMap, layers: set[int]) -> None:
    """Refuse hooks that would miss what was put around a module since: a LoRA wraps the maps of a block, for example.

    Raises:
        InputError: It was.
    """
    for layer in layers:
        block = site_map.blocks[layer]
        now = Block.bind(block.module, block.description, block.index)
        for name, part in vars(block).items():
            found = getattr(now, name)
            parts = zip(part, found, strict=True) if isinstance(part, tuple) else [(part, found)]
            if any(isinstance(old, nn.Module) and old is not new for old, new in parts):
                told = name.removesuffix("_or_none")
                raise InputError(
                    f"'{told}' of block {layer} was replaced after this site map was made (a LoRA put on later does "
                    "so), so what is read and edited there would miss it. Call find_sites(model) again."
                )


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
def edited(
    model: nn.Module | HasSites,
    site_map: SiteMap | Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
    edits: Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
) -> Iterator[nn.Module]:
    """Run the model with edits added at sites, in this thread or task; leaving the context removes them.

    ``edited(model, edits)``, or ``edited(model, site_map, edits)`` with sites that were found before.

    Args:
        model: A loaded or steered model, or one of transformers; the one ``site_map`` was found in, also inside a
            wrapper.
        site_map: Its sites, where they are known already.
        edits: Per site, a function from what the site reads (``batch token channel``) to what is added: a tensor of
            that shape, or one that is repeated over batch and tokens (``channel``, ``1 token channel``, ...), in any
            data type and on any device. It is added in the model's. Edits apply in the order in which a block computes
            its sites, whatever the order of the mapping; an edit sees what the edits before it made. Nested contexts
            apply outer edits first.

    Yields:
        The transformers model inside, to be called as usual.

    Raises:
        InputError: What is no model, or one that the site map does not belong to, a site it does not have, the same
            site twice, all heads and one of them; while the model runs, an edit that returns what cannot be added.
        UnsupportedModelError: The sites of a model of transformers cannot be found.
    """
    if edits is None and isinstance(site_map, Mapping):
        site_map, edits = None, site_map
    if not isinstance(site_map, SiteMap | None) or not isinstance(edits, Mapping):
        raise InputError(
            f"edited() got {type(model).__name__}, {type(site_map).__name__} and {type(edits).__name__}; expected "
            "(model, {site: function}), or (model, site_map, {site: function})."
        )
    found = model_and_sites(model)[1] if site_map is None else site_map
    inner = _require_belongs(found, model if isinstance(model, nn.Module) else getattr(model, "model", None))
    taps: dict[Site, Tap] = {}
    for name, edit in edits.items():
        site = found.resolve(name)
        if site in taps:
            raise InputError(f"site '{site}' is edited twice; add the two edits in one function.")
        if site.head is not None and Site(site.layer, site.kind) in map(found.resolve, edits):
            raise InputError(f"'{site}' is one of the heads of '{site.layer}.{site.kind}', which is edited too.")
        taps[site] = _adding(checked(site, edit))
    ordered = {site: taps[site] for site in sorted(taps, key=lambda s: (s.layer, s.kind.order))}
    edited_blocks = [found.blocks[layer].module for layer in {site.layer for site in ordered}]
    with tapping(found, ordered), recomputed_with(edited_blocks, lambda: tapping(found, ordered)):
        yield inner


@contextmanager
def reading(model: SiteMap | HasSites | nn.Module, sites: Iterable[Key] | Key) -> Iterator[Readings[Key]]:
    """Collect the tensors of sites (``batch token channel``) from this thread's or task's forward passes inside the
    context.

    Args:
        model: A loaded or steered model, or one of transformers; or its sites, where they are known already.
        sites: Which, by name or as :class:`Site`; one or several.

    Yields:
        A dictionary with the keys that were asked for; a site is found under its other names too. It is filled as
        the model runs; a second pass overwrites the first. Enter it inside :func:`edited` to read edited values.

    Raises:
        InputError: A site the model does not have, or what is no model.
        UnsupportedModelError: The sites of a model of transformers cannot be found.
    """
    site_map = model if isinstance(model, SiteMap) else model_and_sites(model)[1]
    found: Readings[Key] = Readings(site_map, one_or_several(sites))

    def keep(site: Site) -> Tap:
        return lambda value, read: found.keep(site, read)

    with tapping(site_map, {site: keep(site) for site in found.sites}):
        yield found


def _require_belongs(site_map: SiteMap, model: object) -> nn.Module:
    """Return the model if its blocks are those of the site map.

    Raises:
        InputError: They are not.
    """
    if isinstance(model, nn.Module) and {block.module for block in site_map.blocks} <= set(model.modules()):
        return model
    raise InputError(
        f"the site map was found in another model than the {type(model).__name__} that was given, which would run "
        "without the edits. Give the model's own site map: loaded.site_map, or find_sites(model)."
    )


def _adding(edit: Edit) -> Tap:
    return lambda value, read: value + edit(read).to(device=value.device, dtype=value.dtype)
