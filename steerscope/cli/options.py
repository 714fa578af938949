"""Options that several commands have, in the same words."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "smollm2-135m"

ModelName = Annotated[str, typer.Argument(help="smollm2-135m, a folder, a .gguf file or a Hugging Face name.")]
AnswerTaskName = Annotated[
    str,
    typer.Option(help="listops, listops_bare, listops_gen, boolq, winogrande, arc_easy, arc_challenge, gsm8k or aqua."),
]
AnswerTaskFiles = Annotated[
    Path | None, typer.Option(help="Folder with <task>-<part>.jsonl.gz; without it, the datasets package.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hugging Face name.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run code that comes with the model.")]
JsonTarget = Annotated[str | None, typer.Option(help="Write the result as JSON to this file, or - for stdout.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the report in a folder that is not empty.")]
Quiet = Annotated[bool, typer.Option(help="No progress.")]


def command_line() -> str:
    """Return what the user typed, to be kept with results."""
    return shlex.join(["steerscope", *sys.argv[1:]])
