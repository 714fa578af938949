"""The command line; one file per command.

Exit codes: 0 done, 1 a proposition fails, 2 bad input or a file that cannot be read or written, 130 interrupted, 141
the reader of the output has gone (``| head``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from steerscope.cli.bundles import flat
from steerscope.cli.compare import compare
from steerscope.cli.evaluate import evaluate
from steerscope.cli.export import export
from steerscope.cli.rank import rank
from steerscope.cli.score_sites import score_sites
from steerscope.cli.search import search
from steerscope.cli.sites import sites
from steerscope.cli.sweep import sweep
from steerscope.cli.train import train
from steerscope.cli.validate import validate
from steerscope.cli.values import Command
from steerscope.cli.verify import verify
from steerscope.cli.words import as_typed, command_runs
from steerscope.errors import InputError
from steerscope.files import sentence_of, trouble
from steerscope.installed import package_versions

REFUSED, INTERRUPTED, UNREAD = 2, 130, 141

_HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    name="steerscope",
    help="Where should I steer this language model, and how much of fine-tuning would that recover?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_HELP,
    epilog="Start with: steerscope rank. The bundled model on the task ListOps, in two minutes.",
)
_FIRST, _PROOF, _THEORY = "From a question to an adapter", "Is the ranking true?", "The model and the theory"
# In the order of the help: the command, its panel, and an example, which stands below its help.
_COMMANDS: tuple[tuple[Callable[..., Any], str, str], ...] = (
    (rank, _FIRST, "steerscope rank MODEL --data my.jsonl --out report"),
    (train, _FIRST, "steerscope train MODEL --data my.jsonl --sites-from report --out run"),
    (evaluate, _FIRST, "steerscope evaluate MODEL --data my.jsonl --adapter run"),
    (search, _FIRST, "steerscope search MODEL --data my.jsonl --budget 30 --out search"),
    (compare, _FIRST, "steerscope compare runs --out comparison"),
    (export, _FIRST, "steerscope export run --to lora --out lora"),
    (validate, _PROOF, "steerscope validate MODEL --task listops --sites 12 --out validation"),
    (sweep, _PROOF, "steerscope sweep MODEL --task listops --sites 48 --budget 60 --out sweep"),
    (score_sites, _PROOF, "steerscope score-sites sweep/table.json --score predicted_loss"),
    (sites, _THEORY, "steerscope sites MODEL 12.resid_post"),
    (verify, _THEORY, "steerscope verify --only P7,P12"),
)
for _command, _panel, _example in _COMMANDS:
    app.command(
        _command.__name__.replace("_", "-"),
        cls=Command,
        rich_help_panel=_panel,
        epilog=f"Example: {_example}",
        context_settings=_HELP,
    )(flat(_command))


def _show_version(asked: bool) -> None:
    if not asked:
        return
    found = package_versions()
    others = ", ".join(f"{name} {found[name]}" for name in ("torch", "transformers", "peft"))
    typer.echo(f"steerscope {found['steerscope']}\n{others}, Python {found['python']}")
    raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show versions and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Rank the steering sites of a language model by what fine-tuning could be learned there."""
    name = context.invoked_subcommand or ""
    command = getattr(context.command, "commands", {}).get(name)
    command_runs(name, [] if command is None else command.params)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code (the console script exits with it).

    Returns:
        0, or another number where the command failed, was interrupted, or lost its reader.

    Raises:
        OSError: One that says nothing a user could do something about.
        SystemExit: Something called for the end of the process.
    """
    _open_closed_streams()
    # A hub that does not answer is said in one sentence at the end, not in two lines per attempt.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    output = sys.stdout
    try:
        outcome = app(args=arguments, prog_name="steerscope", standalone_mode=False)
        output.flush()  # what is left to write may fail as well
    except InputError as error:
        return _refuse(as_typed(error))
    except (KeyboardInterrupt, typer.Abort):
        outcome = INTERRUPTED
    except BrokenPipeError:
        return _unread()
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        sys.stdout = output  # typer put another in its place
        return _unread()
    except OSError as error:
        if trouble(error) is None:
            raise
        _discard(output)
        return _refuse(sentence_of(error))
    except Exception as error:
        # Errors of usage (unknown option, bad number) know how to show themselves and that they exit with 2.
        show = getattr(error, "show", None)
        if callable(show):
            show()
            return int(getattr(error, "exit_code", REFUSED))
        if (found := trouble(error)) is None:
            raise
        return _refuse(f"reading or writing a file failed ({found[0]}). {found[1]}.")
    if outcome == INTERRUPTED:  # typer turns Ctrl-C into this outcome silently
        print("steerscope: interrupted before it was done. Run the command again.", file=sys.stderr)
    return outcome if isinstance(outcome, int) else 0


def _refuse(sentence: str) -> int:
    with suppress(OSError):
        print(f"steerscope: {sentence}", file=sys.stderr, flush=True)
    return REFUSED


def _unread() -> int:
    """Exit silently, as programs do whose reader has gone: files are written before anything is printed."""
    _discard(sys.stdout)
    return UNREAD


def _discard(stream: object) -> None:
    """Let nothing try again to write what could not be written: Python would at its end, with an error of its own."""
    with suppress(OSError, ValueError, AttributeError):
        number = stream.fileno()  # type: ignore[attr-defined]
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, number)
        os.close(nowhere)


def _open_closed_streams() -> None:
    """Give a process that was started with stdout or stderr closed (``>&-``) a place for what it says."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (until the process ends)
