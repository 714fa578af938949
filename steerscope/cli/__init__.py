"""The command line; one file per command.

Exit codes: 0 done, 1 a proposition fails, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from steerscope.cli.compare import compare
from steerscope.cli.evaluate import evaluate
from steerscope.cli.rank import rank
from steerscope.cli.sites import sites
from steerscope.cli.train import train
from steerscope.cli.validate import validate
from steerscope.cli.verify import verify
from steerscope.errors import InputError
from steerscope.installed import package_versions

INTERRUPTED = 130

app = typer.Typer(
    name="steerscope",
    help="Where should I steer this language model, and how much of fine-tuning would that recover?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(compare)
app.command()(evaluate)
app.command()(rank)
app.command()(sites)
app.command()(train)
app.command()(validate)
app.command()(verify)


def _show_version(asked: bool) -> None:
    if not asked:
        return
    found = package_versions()
    others = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft"))
    typer.echo(f"steerscope {found['steerscope']}\n{others}, Python {found['python']}")
    raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Rank the steering sites of a language model by what fine-tuning could be learned there."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (the console script exits with it)."""
    try:
        outcome = app(args=arguments, prog_name="steerscope", standalone_mode=False)
    except InputError as error:
        print(f"steerscope: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        outcome = INTERRUPTED
    except Exception as error:
        # Errors of usage (unknown option, bad number) know how to show themselves and that they exit with 2.
        show = getattr(error, "show", None)
        if not callable(show):
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if outcome == INTERRUPTED:  # typer turns Ctrl-C into this outcome without a word
        print("steerscope: interrupted before it was done. Run the command again.", file=sys.stderr)
    return outcome if isinstance(outcome, int) else 0
