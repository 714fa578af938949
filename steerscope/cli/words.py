"""Sentences of the package with the options of the command that is running."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from steerscope.errors import typed

# Fields and arguments that are no field of a command's bundles, by command ("" for all).
_ALIASES: dict[tuple[str, str], str] = {
    ("", "name_or_path"): "model",
    ("train", "family"): "method",
    ("train", "sites"): "site",
    ("train", "which"): "sites_which",
}
_running: tuple[str, dict[str, Any]] = ("", {})


def command_runs(name: str, parameters: Iterable[Any]) -> None:
    """Say which command runs, with click's description of its options.

    Args:
        name: Name of the command.
        parameters: Its parameters, as click describes them.
    """
    global _running
    _running = (name, {parameter.name: parameter for parameter in parameters})


def option_of(field: str, value: str | None = None) -> str:
    """Return what is typed for a field of the options' classes, alone or with a value.

    A field that the running command has no option for is named in plain words.

    Args:
        field: Name of a field of an options' class.
        value: The value to type behind it, as text.

    Returns:
        The option as the running command spells it.
    """
    command, parameters = _running
    name = _ALIASES.get((command, field), _ALIASES.get(("", field), field))
    parameter = parameters.get(name)
    if parameter is None:
        return field.replace("_", " ") if value is None else f"{field.replace('_', ' ')} {value}"
    if not parameter.opts[0].startswith("-"):
        return (parameter.human_readable_name if value is None else value).upper()
    if value == "False" and parameter.secondary_opts:
        return str(parameter.secondary_opts[0])
    option = str(parameter.opts[0])
    return option if value is None or getattr(parameter, "is_flag", False) else f"{option} {value}"


def as_typed(sentence: object) -> str:
    """Return a sentence, or what an error says, with the running command's options."""
    return typed(sentence, option_of)
