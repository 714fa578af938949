"""Tensors at sites, under every name that a site has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, TypeVar, cast

from torch import Tensor

from steerscope.errors import InputError
from steerscope.models.site_map import SiteMap
from steerscope.sites import Site

# The keys that a context was asked with.
Key = TypeVar("Key", bound=Site | str)


class Readings(dict[Key, Tensor]):
    """What was read or predicted at sites, under the keys that were asked for.

    A site is found under every name it has: ``found["3.resid_post"]``, ``found[Site(3, SiteKind.RESID_POST)]`` and
    ``found["blocks.3.hook_resid_post"]`` are one tensor.
    """

    def __init__(self, site_map: SiteMap, names: Iterable[Key]) -> None:
        super().__init__()
        self._site_map, self._asked = site_map, dict[Site, list[Key]]()
        for name in names:
            self._asked.setdefault(site_map.resolve(name), []).append(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies, and what is saved, are ordered dictionaries under the names asked for: the model stays out."""
        return OrderedDict, (), None, None, iter(dict(self).items())

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that were asked for, each once."""
        return tuple(self._asked)

    def keep(self, site: Site, value: Tensor) -> None:
        """Keep what was read at a site.

        Args:
            site: Where it was read; one that was asked for.
            value: ``batch token channel``, kept under every name that the site was asked for by.
        """
        for key in self._asked[site]:
            self[key] = value

    def _key(self, name: object) -> Key | None:
        """Return the key that a site is kept under, None if it was not asked for."""
        if not isinstance(name, Site | str):
            return None
        if dict.__contains__(self, name):  # what is no site has one name: the logits
            return cast(Key, name)
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
            f"there is nothing at {str(name)!r}: "
            + (f"asked for were {asked}." if key is None else "the model has not run inside the context yet.")
        )

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, self._key(name))

    def get(self, name: Site | str, default: Any = None) -> Any:
        """Return what was read at a site, or the default.

        Args:
            name: A site, or any name of it that :class:`~steerscope.sites.Site` takes.
            default: What comes back for a site that was not read.

        Returns:
            ``batch token channel`` of the latest pass, or the default.
        """
        try:
            return self[name]
        except KeyError:
            return default
