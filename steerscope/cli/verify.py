"""``steerscope verify``: try the theory's propositions on random blocks or on a model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.options import (
    MODEL,
    RESULTS,
    RUNNING,
    SITES,
    Device,
    JsonTarget,
    Overwrite,
    Quiet,
    Revision,
    TrustRemoteCode,
    command_line,
    names_in,
    option,
)
from steerscope.errors import InputError

FAILED = 1


def verify(
    model: Annotated[
        str | None,
        typer.Argument(
            help="smollm2-135m, a folder, a .gguf file or a Hugging Face name; without it, random blocks.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    only: Annotated[
        str | None, option("Propositions, comma-separated, for example P7,P12; all unless given.", SITES)
    ] = None,
    out: Annotated[Path | None, option("Folder for verify.json, index.html and figures.", RESULTS)] = None,
    json: JsonTarget = None,
    seed: Annotated[int, option("Seed of random blocks, draws and the fine-tuning.", RUNNING)] = 0,
    quick: Annotated[bool, option("With a model: propositions only, no measurements.", RUNNING, "--quick")] = False,
    text: Annotated[
        str | None,
        option("With a model: a text file for what one edit for all tokens can do; by default English text.", RUNNING),
    ] = None,
    device: Device = "cpu",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> int:
    """Try the theory's propositions, and measure its quantities on a model; exit code 1 if a proposition fails."""
    from steerscope.cli.output import check_folder, check_json_target, give_json
    from steerscope.cli.progress import stage_progress
    from steerscope.experiments.commands import verify as verify_model
    from steerscope.experiments.verification.run import VerifyOptions, catalogue
    from steerscope.folders import Kind
    from steerscope.installed import require
    from steerscope.reports.verification.tables import print_verification

    # Everything that can be refused is refused here, before a model is loaded.
    options = VerifyOptions(
        seed=seed, quick=quick, text=text, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    options.check()
    names = None
    if only is not None:
        names = names_in(only)
        if not names:
            raise InputError(f"[[only]] is {only!r}; expected names of propositions such as P7,P12.")
    catalogue.propositions(names)
    if out is not None:
        require("report", "a report ([[out]])")
        check_folder(out, Kind.VERIFICATION, overwrite=overwrite)
    check_json_target(json, "propositions")

    with stage_progress(quiet=quiet) as show:
        found = verify_model(model, options, only=names, progress=show)
    found = replace(found, settings=replace(found.settings, command=command_line()))

    if out is not None:
        from steerscope.reports.verification.folder import write_verification  # matplotlib is slow to load

        page = write_verification(found, out)
    if not give_json(json, found.to_json(), "propositions"):
        print_verification(found, file=sys.stdout)
    if out is not None:
        print(f"report: {page}", file=sys.stderr)
    return FAILED if found.failed else 0
