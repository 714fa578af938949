"""Public doors: modules whose names are loaded from their homes when first used."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from importlib import import_module
from typing import Any

from steerscope.installed import require


def door(
    module: str, homes: Mapping[str, str], drawn: Container[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a module that gives names of other modules.

    Args:
        module: Its name, ``steerscope.reports``.
        homes: Where each name lives, below ``steerscope``: ``"models.load"``, or ``"models.load:other"`` where it has
            another name there.
        drawn: Names that need the extra ``report``.

    Returns:
        The two functions.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        if name in drawn:
            require("report", f"{name}()")
        home, _, other = homes[name].partition(":")
        return getattr(import_module(f"steerscope.{home}"), other or name)

    return get, lambda: sorted(homes)
