"""What a field of an option class may hold, by its annotation, checked and made plain before any work starts.

Whole numbers and floats of numpy become Python's, so that results can be written as JSON; a bool is not a number, a
float no whole number, and NaN nothing at all.
"""

from __future__ import annotations

import math
import operator
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, TypeVar

from steerscope.errors import InputError, same_name, shortened, words
from steerscope.sites import Site

Options = TypeVar("Options")
# How data types are called elsewhere.
_DTYPES = {
    "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32", "fp64": "float64",
    "double": "float64",
}  # fmt: skip
_MISFIT = object()
_WORDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", type(None): "None"}


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a model that is given by its name is loaded; for classes of options to inherit.

    Attributes:
        device: Where the model is loaded to.
        dtype: Its data type.
        revision: Branch, tag or commit of a Hugging Face name.
        trust_remote_code: Run code that comes with the model.
    """

    device: str = "cpu"
    dtype: str = "float32"
    revision: str | None = None
    trust_remote_code: bool = False


# Fields that decide no result beside the model's own record.
LOADING = tuple(field.name for field in fields(LoadingOptions))


def loading_of(options: Any) -> dict[str, Any]:
    """Return the arguments of ``load_model`` that options have."""
    return {name: getattr(options, name) for name in LOADING if hasattr(options, name)}


def plain_fields(options: Any, **names: Iterable[str]) -> None:
    """Replace the fields of a frozen dataclass by plain values of their annotated types; for ``__post_init__``.

    Args:
        options: The dataclass.
        **names: The names that fields may hold: another spelling in case or dashes becomes the name, and what is none
            of them is left for the class to refuse.

    Raises:
        InputError: A field is of another type.
    """
    for name, plain in plain_values(type(options), vars(options)).items():
        if name == "dtype":
            plain = dtype_name(plain)
        elif name in names:
            valid = names[name]
            several = isinstance(plain, tuple)
            plain = tuple(same_name(one, valid) for one in plain) if several else same_name(plain, valid)
        object.__setattr__(options, name, plain)


def require_least(options: Any, **least: int) -> None:
    """Refuse numbers that are too small.

    Args:
        options: The options.
        **least: The least value by name of the field; None in a field is no number.

    Raises:
        InputError: A number is below its least value.
    """
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and value < minimum:
            raise InputError(f"[[{name}]] is {value}; expected at least {minimum}.")


def require_seed(seed: int, bits: int = 31) -> None:
    """Refuse a seed that generators do not take.

    Args:
        seed: The seed.
        bits: Of the largest seed.

    Raises:
        InputError: It is negative or too large.
    """
    if not 0 <= seed < 2**bits:
        raise InputError(f"[[seed]] is {seed}; expected an integer from 0 to 2**{bits} - 1.")


def require_budget(minutes: float | None) -> None:
    """Refuse a number of minutes in which nothing can be done; None is no limit.

    Raises:
        InputError: It is not above 0.
    """
    if minutes is not None and not minutes > 0:
        raise InputError(f"[[budget]] is {minutes}; expected a number of minutes above 0.")


def deciding(options: Any, *left_out: str) -> dict[str, Any]:
    """Return what decides a result, as JSON-able values; the model's own record says how it was loaded.

    Args:
        options: The options.
        *left_out: Further fields that decide nothing.

    Returns:
        Values by name of the field.
    """
    values = {name: value for name, value in asdict(options).items() if name not in (*LOADING, *left_out)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def dtype_name(value: Any) -> Any:
    """Return the name of a data type that is called otherwise: ``bf16``, ``torch.float32``.

    >>> dtype_name("bf16"), dtype_name("torch.float32"), dtype_name("Float16"), dtype_name("int8")
    ('bfloat16', 'float32', 'float16', 'int8')
    """
    if not isinstance(value, str):
        return value
    plain = value.strip().removeprefix("torch.").lower()
    return _DTYPES.get(plain, plain)


def plain_values(kind: Any, values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return values of a dataclass's fields as their annotations have them; fields that are not there are left out.

    Args:
        kind: The dataclass.
        values: By name of field; other names are left out too.
        where: What stands before the field's name in messages, with a space; for what is read from a file.

    Returns:
        Values by name of the field.

    Raises:
        InputError: One is of another type.
    """
    found = {}
    for name, hint in _kinds(kind).items():
        if name in values:
            found[name] = _plain(values[name], hint)
            if found[name] is _MISFIT:
                field = f"{where}{name}" if where else f"[[{name}]]"
                raise InputError(words(f"{field} is {shortened(repr(values[name]))}; expected {_said(hint)}."))
    return found


def options_or_default(options: Options | None, kind: type[Options]) -> Options:
    """Return options as they are, or the default ones for ``None``.

    Args:
        options: What a caller gave.
        kind: The class that they have to be of.

    Returns:
        An instance of ``kind``.

    Raises:
        InputError: They are something else, a dictionary for example.
    """
    if options is None:
        return kind()
    if not isinstance(options, kind):
        raise InputError(f"options is a {type(options).__name__}; expected {kind.__name__}(...), or None.")
    return options


def _kinds(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _parts(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def _plain(value: Any, kind: Any) -> Any:
    """Return a value as one of the types of an annotation has it, or ``_MISFIT``."""
    return next((plain for part in _parts(kind) if (plain := _plain_one(value, part)) is not _MISFIT), _MISFIT)


def _plain_one(value: Any, kind: Any) -> Any:
    is_bool = type(value).__name__ in ("bool", "bool_")  # numpy's is not Python's bool
    if kind is bool:
        return bool(value) if is_bool else _MISFIT
    if kind is int and not is_bool:
        try:
            return operator.index(value)
        except TypeError:
            return _MISFIT
    if kind is float and isinstance(value, Real) and not is_bool and not math.isnan(value):
        return value if type(value) in (int, float) else float(value)
    if kind is str and isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if typing.get_origin(kind) is tuple:
        return _names(value)
    return value if kind not in (int, float, str) and isinstance(value, kind) else _MISFIT


def _names(value: Any) -> Any:
    """Return names as a tuple; one alone is a tuple of one."""
    if isinstance(value, str | Site):
        return (value if isinstance(value, str) else str(value),)
    if not isinstance(value, Iterable) or isinstance(value, bytes | dict):
        return _MISFIT
    found = tuple(value)
    return tuple(map(str, found)) if all(isinstance(one, str | Site) for one in found) else _MISFIT


def _said(kind: Any) -> str:
    return " or ".join(
        _WORDS.get(part) or ("names" if typing.get_origin(part) is tuple else f"a {part.__name__}")
        for part in _parts(kind)
    )
