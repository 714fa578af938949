"""Options that several commands have, stated once: name, help, panel and the values that a shell completes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from steerscope.experiments.tasks import FileTask, Task, task_names

DEFAULT_MODEL, DEFAULT_TASK = "smollm2-135m", "listops"
# Panels of the help, in their order.
PANELS = ("Task and examples", "Sites and edits", "Training", "Results", "Model", "How it runs")
DATA, SITES, TRAINING, RESULTS, MODEL, RUNNING = PANELS
# Names that options take. Written out, since importing what knows them takes seconds; a test compares.
SCORES = (
    "learnable_share", "learnable_share_with_mean", "in_sample_share", "own_direction", "predicted_loss",
    "predicted_loss_bounded", "converged_share", "reading_gain", "learned_at_n", "gauss_newton_step", "alignment",
    "gradient_capture",
)  # fmt: skip
BASELINES = (
    "gradient_norm", "projected_residual_norm", "activation_norm", "depth", "middle_layer", "last_layer",
    "depth_then_kind", "random", "relative_gradient_norm", "lens_accuracy", "block_change", "feature_norm",
)  # fmt: skip
KINDS = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
METHODS = (
    "post-block", "post-mlp", "attn-out", "mlp-in", "vector", "nonlinear", "loreft", "direft", "noreft", "lofit",
    "lora", "sft", "bitfit", "joint", "none",
)  # fmt: skip
FAMILIES = ("vector", "linear", "nonlinear", "loreft", "direft", "noreft", "lofit_scale", "lofit_offset")


def option(help: str, panel: str, *names: str, values: tuple[str, ...] = (), **more: Any) -> Any:
    """Return an option with its place in the help; a shell completes its values.

    Args:
        help: What it does, in a sentence.
        panel: The panel it stands in.
        *names: How it is typed, where that is not the parameter's name.
        values: What it may be; the help names them where it says ``{values}``.
        **more: Of :func:`typer.Option`.

    Returns:
        What an annotation of a parameter holds.
    """
    if values:
        more["autocompletion"] = _completion(values)
    return typer.Option(*names, help=help.replace("{values}", ", ".join(values)), rich_help_panel=panel, **more)


def _completion(values: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        done, comma, last = incomplete.rpartition(",")
        return [f"{done}{comma}{value}" for value in values if value.startswith(last)]

    return complete


ModelName = Annotated[
    str,
    typer.Argument(help="smollm2-135m, a folder, a .gguf file or a Hugging Face name (OWNER/NAME)."),
]
Device = Annotated[str, option("cpu, cuda, cuda:1, mps; auto: a GPU if there is one; balanced: over all GPUs.", MODEL)]
Dtype = Annotated[
    str,
    option("{values}; also fp32, bf16 and the like.", MODEL, values=("float32", "bfloat16", "float16", "float64")),
]
Revision = Annotated[str | None, option("Branch, tag or commit of a Hugging Face name.", MODEL)]
TrustRemoteCode = Annotated[bool, option("Run code that comes with the model.", MODEL, "--trust-remote-code")]

TaskName = Annotated[
    str | None,
    option(f"One of {{values}}; without it and --data, {DEFAULT_TASK}.", DATA, values=tuple(task_names())),
]
TaskFiles = Annotated[
    Path | None,
    option("Folder with the task's files; without it, tasks that can be are generated, others downloaded.", DATA),
]
OwnExamples = Annotated[
    Path | None,
    option(
        "Your examples instead of --task: a file (.jsonl of prompts or of chat messages, .csv, .tsv), or a data set "
        "of the datasets package (a folder, OWNER/NAME). 60% train, 15% validation, 25% test.",
        DATA,
    ),
]
ChatTemplate = Annotated[
    bool,
    option("Ask through the tokenizer's chat template: prompts become the user's messages.", DATA, "--chat-template"),
]

EditFamily = Annotated[str, option("Family of the edits: {values}.", SITES, values=FAMILIES)]
EditRank = Annotated[int | None, option("Rank of the edits; 8 unless given.", SITES)]
EditBias = Annotated[bool | None, option("A vector on what linear and nonlinear edits write; on.", SITES)]
EditScale = Annotated[
    str, option("rms: divide what is read by its root mean square; or none.", SITES, values=("none", "rms"))
]
RankedExamples = Annotated[int, option("Most prompts that the ranking is made from.", DATA, "--max-examples")]
SelectionExamples = Annotated[int, option("Most held-out prompts that choose.", DATA, "--selection-examples")]
TestExamples = Annotated[int, option("Most test prompts.", DATA, "--test-examples")]
StepBatch = Annotated[int, option("Examples per step.", TRAINING)]

Sharing = Annotated[
    str,
    option(
        "i/n: one of n processes with the same --out, which share the work; auto: as torchrun or Slurm says; none.",
        RUNNING,
    ),
]
Engine = Annotated[str, option("What carries the work, {values}.", RUNNING, values=("local", "ray"))]
Address = Annotated[str | None, option("Of a Ray cluster (auto, HOST:PORT); without it, one of this machine.", RUNNING)]
WorkerCpus = Annotated[int | None, option("CPUs and threads of one process on a Ray cluster.", RUNNING)]
WorkerGpus = Annotated[float | None, option("GPUs of one process on a Ray cluster; may be a fraction.", RUNNING)]

JsonTarget = Annotated[str | None, option("Write the result as JSON to this file; - prints it instead.", RESULTS)]
Overwrite = Annotated[bool, option("Replace the report in a folder that is not empty.", RESULTS, "--overwrite")]
Resume = Annotated[bool, option("Go on with the runs that the folder holds.", RESULTS, "--resume")]
Quiet = Annotated[bool, option("No progress.", RUNNING, "--quiet", "-q")]


def names_in(text: str) -> tuple[str, ...]:
    """Return names that are separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def number_or_sites(text: str) -> int | tuple[str, ...]:
    """Read a number of sites, or their names."""
    from steerscope.sites import parse_site

    if text.strip().isdecimal():
        return int(text)
    return tuple(str(parse_site(name)) for name in names_in(text))


def show_warnings(task: Task) -> None:
    """Print what is to be known about a user's examples."""
    for warning in task.warnings if isinstance(task, FileTask) else ():
        print(f"  warning: {warning}", file=sys.stderr, flush=True)


def command_line() -> str:
    """Return what the user typed, to be kept with results."""
    return shlex.join(["steerscope", *sys.argv[1:]])
