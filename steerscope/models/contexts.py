"""Reading and editing sites of a running model inside a ``with``.

Edits are added (x + d), never written as replaced values, so a zero edit leaves the logits bit-equal. They act in the
thread that entered the context: in other threads the same model gives its own numbers, and nothing is recorded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.hooks import Tap, tapping
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site, SiteKind

# What an edit computes: from the tensor the site reads (batch token channel) to what is added there.
Edit = Callable[[Tensor], Tensor]


class HasSites(Protocol):
    """What knows its own sites: a loaded model, or a steered one."""

    @property
    def site_map(self) -> SiteMap:
        """The sites."""
        ...


# The keys that a context was asked with.
Key = TypeVar("Key", bound=Site | str)


class Readings(dict[Key, Tensor]):
    """What :func:`reading` found, under the keys it was asked with.

    A site is found under every name it has: ``found["3.resid_post"]``, ``found[Site(3, SiteKind.RESID_POST)]`` and
    ``found["blocks.3.hook_resid_post"]`` are one tensor.
    """

    def __init__(self, site_map: SiteMap, asked: Mapping[Site, list[Key]]) -> None:
        super().__init__()
        self._site_map, self._asked = site_map, asked

    def keep(self, site: Site, value: Tensor) -> None:
        """Keep what was read at a site."""
        for key in self._asked[site]:
            self[key] = value

    def _key(self, name: object) -> Key | None:
        """Return the key that a site is kept under, None if it was not asked for."""
        if not isinstance(name, Site | str):
            return None
        try:
            asked = self._asked.get(self._site_map.resolve(name))
        except InputError:
            return None
        return None if asked is None else asked[0]

    def __getitem__(self, name: Site | str) -> Tensor:
        key = self._key(name)
        if key is not None and dict.__contains__(self, key):
            return super().__getitem__(key)
        asked = ", ".join(str(site) for site in self._asked)
        raise KeyError(
            f"nothing was read at {str(name)!r}: "
            + (f"this context reads {asked}." if key is None else "the model has not run inside the context yet.")
        )

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, self._key(name))

    def get(self, name: Site | str, default: Any = None) -> Any:
        """Return what was read at a site, or the default."""
        try:
            return self[name]
        except KeyError:
            return default


@contextmanager
def edited(
    model: nn.Module | HasSites,
    site_map: SiteMap | Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
    edits: Mapping[Site, Edit] | Mapping[str, Edit] | None = None,
) -> Iterator[nn.Module]:
    """Run the model with edits added at sites, in this thread; leaving the context removes them.

    ``edited(model, site_map, edits)``, or ``edited(loaded, edits)`` with what knows its own sites.

    Args:
        model: The model ``site_map`` was found in, also inside a wrapper; or a loaded or steered model.
        site_map: Its sites; left out where ``model`` knows them.
        edits: Per site, a function from what the site reads (``batch token channel``) to what is added: a tensor of
            that shape, or one that is repeated over batch and tokens (``channel``, ``1 token channel``, ...), in any
            data type and on any device. It is added in the model's. Edits apply in the order in which a block computes
            its sites, whatever the order of the mapping; an edit sees what the edits before it made. Nested contexts
            apply outer edits first.

    Raises:
        InputError: A model that the site map does not belong to, a site it does not have, the same site twice, all
            heads and one of them; while the model runs, an edit that returns what cannot be added.
    """
    if edits is None and isinstance(site_map, Mapping):
        site_map, edits = None, site_map
    found = _sites_of(model) if site_map is None else site_map
    if not isinstance(found, SiteMap) or edits is None:
        raise InputError(
            f"edited() got {type(model).__name__}, {type(site_map).__name__} and {type(edits).__name__}; expected "
            "(model, site_map, edits), or (loaded, edits) with what load_model() returned."
        )
    inner = _require_belongs(found, model if isinstance(model, nn.Module) else getattr(model, "model", None))
    taps: dict[Site, Tap] = {}
    for name, edit in edits.items():
        site = found.resolve(name)
        if site in taps:
            raise InputError(f"site '{site}' is edited twice; add the two edits in one function.")
        if site.head is not None and Site(site.layer, site.kind) in map(found.resolve, edits):
            raise InputError(f"'{site}' is one of the heads of '{site.layer}.{site.kind}', which is edited too.")
        taps[site] = _adding(site, edit)
    order = list(SiteKind)
    with tapping(found, dict(sorted(taps.items(), key=lambda item: (item[0].layer, order.index(item[0].kind))))):
        yield inner


@contextmanager
def reading(site_map: SiteMap | HasSites, sites: Iterable[Key]) -> Iterator[Readings[Key]]:
    """Collect the tensors of sites (``batch token channel``) from this thread's forward passes inside the context.

    Args:
        site_map: The model's sites, or a loaded or steered model, which knows them.
        sites: Which, by name or as :class:`Site`.

    Returns:
        A dictionary with the keys that were asked for; a site is found under its other names too. It is filled as
        the model runs; a second pass overwrites the first. Enter it inside :func:`edited` to read edited values.

    Raises:
        InputError: A site the model does not have.
    """
    found_map = site_map if isinstance(site_map, SiteMap) else _sites_of(site_map)
    if found_map is None:
        raise InputError(
            f"reading() got {type(site_map).__name__}; expected a site map (loaded.site_map, or find_sites(model)), or "
            "what load_model() returned."
        )
    asked: dict[Site, list[Key]] = {}
    for name in sites:
        asked.setdefault(found_map.resolve(name), []).append(name)
    found = Readings(found_map, asked)

    def keep(site: Site) -> Tap:
        return lambda value, read: found.keep(site, read)

    with tapping(found_map, {site: keep(site) for site in asked}):
        yield found


def _sites_of(model: object) -> SiteMap | None:
    """Return the sites of what knows its own."""
    found = getattr(model, "site_map", None)
    return found if isinstance(found, SiteMap) else None


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


def _adding(site: Site, edit: Edit) -> Tap:
    def tap(value: Tensor, read: Tensor) -> Tensor:
        version = None if read.is_inference() else read._version
        added = edit(read)
        if version is not None and read._version != version:
            raise InputError(
                f"the edit at '{site}' changed the tensor it was given, which the model goes on with. Return what is "
                "to be added as a new tensor (x * 0.1, not x.mul_(0.1))."
            )
        return value + as_addend(added, value, site)

    return tap


def as_addend(added: object, value: Tensor, site: Site) -> Tensor:
    """Return what an edit gave in the data type and on the device of the model's tensor.

    Args:
        added: What the edit returned.
        value: What it is added to ``(batch token channel)``.
        site: Where, for the message.

    Raises:
        InputError: It cannot be added, or could be in more than one way.
    """
    if not isinstance(added, Tensor):
        what = type(added).__name__
    elif added.is_complex():
        what = f"a tensor of {added.dtype}"
    elif not _fits(added.shape, value.shape):
        what = f"shape {tuple(added.shape)}"
    else:
        return added.to(device=value.device, dtype=value.dtype)
    batch, token, channel = value.shape
    raise InputError(
        f"the edit at '{site}' returned {what}; expected a real tensor that can be added to (batch, token, channel) = "
        f"{(batch, token, channel)}, of {channel} channels: of that shape, with 1 for batch or token, or ({channel},)."
    )


def _fits(shape: torch.Size, value: torch.Size) -> bool:
    """Whether a shape can be repeated to another, over batch and token alone.

    Of two axes it could be meant as batch or as token, and torch would take it as token.
    """
    if not shape or shape[-1] != value[-1] or len(shape) > 3:
        return False
    lead = shape[:-1]
    if len(lead) == 1:
        return lead[0] == 1 or (value[0] == 1 and lead[0] == value[1])
    return all(size in (1, full) for size, full in zip(lead, value[:-1], strict=True)) if lead else True
