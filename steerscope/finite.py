"""No number is reported that was made from a NaN or an infinity: the first one ends the work with one sentence.

Wherever a forward pass, a gradient or a regression becomes a number, it is checked here under the name of what it is.
Where a quantity is undefined (the share of a shift that is zero, a correlation of constants), records hold ``None``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steerscope.errors import InputError

OVERFLOW = (
    "Numbers beyond what the data type holds are the usual cause (float16 ends at 65504): load the model in float32 or "
    "bfloat16 ([[dtype]])."
)


class NotFiniteError(InputError):
    """A number that others would be made from is NaN or infinite."""


def finite_or_none(value: float | None) -> float | None:
    """Return a number as records hold it: ``None`` for NaN, an infinity, or nothing."""
    return None if value is None or not math.isfinite(value) else float(value)


def or_infinite(value: float | None) -> float:
    """Return a kept loss as a number: infinite where a record holds ``None``, as of a run that diverged."""
    return math.inf if value is None else value


def require_finite(what: str, *values: Tensor | float, advice: str = OVERFLOW) -> None:
    """Refuse values that are NaN or infinite.

    Args:
        what: Their name, with its article: ``"the loss of example 3"``.
        values: Tensors of any shape, or numbers.
        advice: What to do, a sentence.

    Raises:
        NotFiniteError: One is.

    Cost: reads every tensor once, and waits for its device.
    """
    for value in values:
        if isinstance(value, Tensor):
            if bool(torch.isfinite(value).all()):
                continue
            shown = "NaN" if bool(torch.isnan(value).any()) else "infinite"
        elif math.isfinite(value):
            continue
        else:
            shown = "NaN" if math.isnan(value) else "infinite"
        raise NotFiniteError(f"{what} is {shown}; expected a finite number, and nothing is made from it. {advice}")


def require_finite_record(what: str, record: Any, advice: str) -> None:
    """Refuse a record (dataclasses, dictionaries, lists and what they hold) with a number that is NaN or infinite.

    Args:
        what: Its name: ``"the ranking"``.
        record: What to look through.
        advice: What to do, a sentence.

    Raises:
        NotFiniteError: There is one; the message says where.
    """
    place = _first_not_finite(record, "")
    if place is not None:
        raise NotFiniteError(
            f"{what} holds a number that is NaN or infinite ({place.lstrip('.') or 'itself'}); expected finite ones. "
            f"{advice}"
        )


def _first_not_finite(value: Any, place: str) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        parts = [(f".{key}", entry) for key, entry in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"[{index}]", entry) for index, entry in enumerate(value)]
    else:
        return None
    return next((found for name, entry in parts if (found := _first_not_finite(entry, place + name)) is not None), None)
