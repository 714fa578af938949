"""What decides a result: the data and the model by content, the options, and the code.

Everything that resumes earlier work or puts results side by side (``--resume``, ``compare``,
``--learning-rate-of``, the claims, the store of a validation's runs) looks at the same things, and they come from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from steerscope.model_identity import ModelIdentity

# Raised when a change of this package's code makes earlier results incomparable. Versions of packages are recorded and
# never refused: a patch release moves last bits, not meanings.
RECIPE = 2
_PARTS = {"train": "training data", "validation": "validation data", "test": "test data"}


class _Example(Protocol):
    @property
    def prompt(self) -> str: ...
    @property
    def completion(self) -> str: ...
    @property
    def choices(self) -> tuple[str, ...] | None: ...
    @property
    def answer_index(self) -> int | None: ...


def content_hash(examples: Sequence[_Example], *, ordered: bool) -> str:
    """Return a hash of examples: prompts, completions, choices and which of them is right, whatever file they are in.

    Args:
        examples: With repetitions, which count.
        ordered: Whether their order decides what is computed from them. It does not where they are drawn or sorted by
            content, as tasks and rankings do.

    Returns:
        A hexadecimal SHA-256 digest.
    """
    rows = [
        hash_of(one.prompt, one.completion, getattr(one, "answer", ""), str(one.answer_index), *(one.choices or ()))
        for one in examples
    ]
    return hash_of(*(rows if ordered else sorted(rows)))[:16]


def model_key(model: ModelIdentity | Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what a model is by content, of what a result says of it: weights, what else is in its folder, data type.

    Its name is none of it: a folder can be moved, and another model put in its place. Results of before the second was
    kept have it empty.

    Args:
        model: What a result says of it; or that as a file has it, which may be of before.

    Returns:
        Three texts, empty where not known.
    """
    told = model if isinstance(model, Mapping) else model.as_dict()
    weights = told.get("sha256") or told.get("name") or ""
    return str(weights), str(told.get("setup") or ""), str(told.get("dtype") or "")


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return in words what two configurations of runs (or parts of them) do not share, options with marks.

    Settings are looked into, and of models only what :func:`model_key` says.

    Args:
        first: Configuration of a run, or a part of one.
        second: Configuration of the other run, the same part.

    Returns:
        Names in alphabetical order; an option stands in double brackets, as messages have it.

    Example:
        >>> differing({"task": "a", "settings": {"rank": 4}}, {"task": "a", "settings": {"rank": 8}})
        ['[[rank]]']
    """
    one, other = _flat(first), _flat(second)
    return sorted({_PARTS.get(name, name) for name in {*one, *other} if one.get(name) != other.get(name)})


def knows_data(settings: Mapping[str, Any]) -> bool:
    """Whether a run's settings say which data it used; those of earlier versions of this package do not."""
    return isinstance(settings.get("data"), Mapping)


def changed_versions(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return which packages changed, ``torch 2.6.0 to 2.13.0, peft 0.18.0 to 0.21.0``, or an empty string.

    Args:
        before: Version by package, as an earlier run kept them.
        now: Version by package of this environment.

    Returns:
        Packages that both have and whose versions differ.

    Example:
        >>> changed_versions({"torch": "2.6.0", "peft": "0.19.0"}, {"torch": "2.13.0", "peft": "0.19.0"})
        'torch 2.6.0 to 2.13.0'
    """
    names = [name for name in now if name in before and before[name] != now[name]]
    return ", ".join(f"{name} {before[name]} to {now[name]}" for name in names)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = config.get("settings", {})
    found = {name: value for name, value in config.items() if name not in ("settings", "model", "versions")}
    found |= {f"[[{name}]]" if name != "recipe" else "version": v for name, v in settings.items() if name != "data"}
    if knows_data(settings):
        found |= settings["data"]
    if isinstance(config.get("model"), ModelIdentity | Mapping):
        found["model"] = model_key(config["model"])
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def hash_of(*texts: str) -> str:
    """Return the SHA-256 of some texts, each with its length: no two lists of texts have the same."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "big") + text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
