"""Options that are typed without the value they take, or with one that they do not take, are told so.

A parser would take the next option for the value, and then stumble over something that is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer.core import TyperCommand

from steerscope.errors import InputError

# What is typed behind an option that is on or off. A model or folder of that name is written ./true.
_ON_OR_OFF = {"true", "false", "yes", "no", "on", "off", "none", "0", "1"}


class Command(TyperCommand):
    """A command whose options are checked for their values before they are parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments, once every option has its value.

        Args:
            ctx: What click knows of the command that runs.
            args: What was typed behind its name.

        Returns:
            What is left of them.

        Raises:
            InputError: An option that takes a value has none, or one that takes none has one.
        """
        if not ctx.resilient_parsing:  # as a shell completes them, they may be unfinished
            require_values(self.get_params(ctx), args)
        found: list[str] = super().parse_args(ctx, args)
        return found


def require_values(parameters: Sequence[Any], arguments: Sequence[str]) -> None:
    """Refuse options without the value that they take, and with a value that they do not take.

    Args:
        parameters: Those of the command, as click describes them.
        arguments: What was typed behind the command.

    Raises:
        InputError: There is one; the message says what the option takes.
    """
    known = {name: one for one in parameters for name in (*one.opts, *one.secondary_opts) if name.startswith("-")}
    rest = list(arguments)
    while rest and (typed := rest.pop(0)) != "--":
        name, equals, value = typed.partition("=")
        option = known.get(name)
        if option is None:
            continue
        if option.is_flag:
            if not equals and rest and rest[0].lower() in _ON_OR_OFF:
                equals, value = " ", rest[0]
            if equals:
                other = option.secondary_opts[0] if option.secondary_opts else "nothing"
                raise InputError(
                    f"{name}{equals}{value}: {name} takes no value, it is on where it is typed. Type {option.opts[0]}, "
                    f"or {other}."
                )
        elif not value:
            follows = rest.pop(0) if rest and not equals else None
            if follows in (None, "--") or str(follows).partition("=")[0] in known:
                told = "nothing" if follows in (None, "--") else f"the option {follows}"
                raise InputError(
                    f"{name} takes a value, and {told} follows it; expected: {str(option.help).rstrip('.')}. Type "
                    f"{name} VALUE."
                )
