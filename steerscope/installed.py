"""What is installed: versions, and one sentence where an optional package is missing or too old.

A plain installation reads, edits, ranks and steers models in folders and on the hub. What else needs packages of its
own comes with an extra, ``pip install 'steerscope[NAME]'``; whatever needs one asks :func:`require` before it works.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from steerscope.errors import InputError

# What each extra brings; pyproject.toml says the same, and a test keeps it so.
EXTRAS = {
    "report": ("jinja2>=3.1", "matplotlib>=3.8"),
    "gguf": ("gguf>=0.18",),
    "train": ("accelerate>=1.8", "peft>=0.19.1"),
    "data": ("datasets>=4",),
    "frames": ("pandas>=2.2",),
    "ray": ("ray>=2.49",),
}

# What decides the numbers of a run, beside Python and steerscope.
_SHOWN = ("torch", "transformers", "peft", "numpy", "scipy")


def own_version() -> str:
    """Return steerscope's version, also where its source is on the path and not installed."""
    import steerscope  # here, because the public door is still being opened while this file is loaded

    return steerscope.__version__


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers, without loading them."""
    known = {"python": platform.python_version(), "steerscope": own_version()}
    return known | {name: _version(name) or "not installed" for name in _SHOWN}


def is_installed(package: str) -> bool:
    """Whether a package can be found; it is not loaded."""
    if package in sys.modules:
        return sys.modules[package] is not None
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # an importer that refuses, or a half-removed package
        return False


def require(extra: str, what: str) -> None:
    """Refuse what needs an optional package that is not there.

    Args:
        extra: A name of :data:`EXTRAS`.
        what: What needs it, the subject of the sentence: "a report (--out)".

    Raises:
        InputError: A package of the extra is not installed, or is older than steerscope works with.

    Cost: loads nothing; well below a millisecond.
    """
    wanted = [Requirement(text) for text in EXTRAS[extra]]
    advice = f"Run: pip install 'steerscope[{extra}]'."
    missing = [one.name for one in wanted if not is_installed(one.name)]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise InputError(f"{what} needs {' and '.join(missing)}, which {are} not installed. {advice}")
    for one in wanted:
        has = _version(one.name)
        if has is not None and not one.specifier.contains(has, prereleases=True):
            raise InputError(f"{what} needs {one}; version {has} is installed, which is too old. {advice}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
