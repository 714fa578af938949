"""All the runs that the claims compare, one ``steerscope train`` after another.

    python -m studies.claims.study [MODEL] --task T --out RUNS [--only NAME,...] [--minutes M] [-- options of train]

Every configuration gets the same seeds, steps and budget for its learning rate, chosen on validation: by every seed for
itself, or with ``--search-once`` by the first, whose rate the others take over. A finished run is read, one that was
stopped goes on, so the same command again goes on where the last one stopped. A run that fails (a learning rate that
diverges at every try, a method the model has no place for) is named at the end and left out. After ``--minutes`` no
other run is begun; those that are left are for the next call.
"""

from __future__ import annotations

import math
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from steerscope.errors import InputError, did_you_mean, typed
from steerscope.experiments.runs.folder import RESULTS, read_results
from studies.claims.leftover import LEFTOVER
from studies.claims.recalibrated import RECALIBRATED
from studies.programs import parser_of

# What every claim needs: the methods as they are, then one thing changed at a time.
CONFIGURATIONS: Mapping[str, str] = {
    "none": "--method none",
    "post-block": "--method post-block",
    "post-mlp": "--method post-mlp",
    "attn-out": "--method attn-out",
    "mlp-in": "--method mlp-in",
    "sft": "--method sft",
    "lora": "--method lora",
    "loreft": "--method loreft",
    "nonlinear": "--method nonlinear",
    "joint": "--method joint --constraint none",
    "joint-input": "--method joint --constraint input",
    "joint-output": "--method joint --constraint output",
    "noreft": "--method noreft",
    "direft": "--method direft",
    "lofit": "--method lofit",
    "vector": "--method vector",
    "bitfit": "--method bitfit",
    # At equal parameters. Joint adaptation of rank 8 has LoRA's parameters and those of the edits, 17 times the width
    # per layer; LoRA of rank 9 is the least above it wherever one rank of LoRA has as many, as with gated MLPs of 8/3
    # of the width (SmolLM2-135M: 2,747,520 against 2,736,000). LoRA of rank 1 is about the size of the edits alone.
    "lora-joint-size": "--method lora --rank 9",
    "lora-r1": "--method lora --rank 1",
    "post-block-r1": "--method post-block --rank 1",
    "post-block-r32": "--method post-block --rank 32",
    "post-block-no-bias": "--method post-block --no-bias",
    "loreft-last": "--method loreft --positions last",
    "loreft-prompt": "--method loreft --positions prompt",
    "loreft-mlp-out": "--method loreft --site mlp_out",
    "loreft-published": "--method loreft --start published",
    "post-block-published": "--method post-block --start published",
}
# Runs whose weights claim (f) is about.
_LEFTOVER_OF = ("sft", "lora")


def commands(
    model: str,
    task: str,
    out: Path,
    names: Sequence[str],
    seeds: int,
    extra: Sequence[str],
    search_once: bool = False,
) -> dict[Path, list[str]]:
    """Return the command of every run by its folder: all configurations of the first seed, then of the next.

    Raises:
        InputError: A name is none of :data:`CONFIGURATIONS`, or there are no seeds.
    """
    for name in names:
        if name not in CONFIGURATIONS:
            known = list(CONFIGURATIONS)
            raise InputError(
                f"there is no configuration {name!r}; expected one of {', '.join(known)}.{did_you_mean(name, known)}"
            )
    if seeds < 1:
        raise InputError(f"[[seeds]] is {seeds}; expected at least 1, and 3 to decide a claim.")
    found = {}
    for seed in range(seeds):
        for name in names:
            if name == "none" and seed:
                continue  # nothing is trained, so no seed changes it
            place = out / f"{name}-{seed}"
            search = [] if name == "none" else ["--learning-rate", "auto"]
            if seed and search_once:
                search += ["--learning-rate-of", str(out / f"{name}-0")]
            # What makes a configuration comes last: it is not to be overridden.
            told = [*extra, *CONFIGURATIONS[name].split(), "--seed", str(seed), *search]
            found[place] = ["train", model, "--task", task, *told, "--out", str(place), "--resume"]
    return found


def run_all(runs: Mapping[Path, Sequence[str]], ends: float = math.inf) -> tuple[list[Path], list[Path]]:
    """Run the commands, each in a process of its own so that peak memory is that of one run.

    Args:
        runs: Commands by folder. One that finished with the same command is not even read again.
        ends: The time (of :func:`time.monotonic`) from which no other run is begun.

    Returns:
        The folders of runs that failed, and of those that were not begun.
    """
    failed, left = [], []
    for i, (place, arguments) in enumerate(runs.items()):
        if _is_done(place, arguments):
            continue
        if time.monotonic() >= ends:
            left.append(place)
            continue
        print(f"[{i + 1}/{len(runs)}] steerscope {shlex.join(arguments)}", file=sys.stderr, flush=True)
        if not _succeeds("steerscope", arguments):
            failed.append(place)
    return failed, left


def _is_done(place: Path, arguments: Sequence[str]) -> bool:
    return (place / RESULTS).exists() and read_results(place).command == shlex.join(["steerscope", *arguments])


def _succeeds(module: str, arguments: Sequence[str]) -> bool:
    code = subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    return code == 0


def _measure(module: str, file: str, places: Sequence[Path], told: Sequence[str]) -> list[Path]:
    """Measure something on finished runs where it is not yet; return those it failed on."""
    open_ones = [place for place in places if (place / RESULTS).exists() and not (place / file).exists()]
    return [place / file for place in open_ones if not _succeeds(module, [str(place), *told])]


def _runs_of(runs: Mapping[Path, Sequence[str]], names: Sequence[str]) -> list[Path]:
    return [place for place in runs if place.name.rpartition("-")[0] in names]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    begun = time.monotonic()
    given = sys.argv[1:] if arguments is None else arguments
    cut = given.index("--") if "--" in given else len(given)
    parser = parser_of(__doc__)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs' folders")
    parser.add_argument("--only", default=",".join(CONFIGURATIONS), help="configurations, comma-separated")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--search-once", action="store_true", help="seeds after the first take over its learning rate")
    parser.add_argument("--data-dir", type=Path, help="folder of the task's files")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no other run after so many")
    parser.add_argument("--no-leftover", action="store_true", help="leave out the measurement of claim (f)")
    options = parser.parse_args(given[:cut])
    names = [name for name in options.only.split(",") if name]
    data = ["--data-dir", str(options.data_dir)] if options.data_dir else []
    try:
        told = [*data, *given[cut + 1 :]]
        runs = commands(
            options.model, options.task, options.out, names, options.seeds, told, search_once=options.search_once
        )
    except InputError as error:
        print(f"claims: {typed(error)}", file=sys.stderr)
        return 2
    try:
        failed, left = run_all(runs, begun + 60 * options.minutes)
        failed += _measure("studies.claims.recalibrated", RECALIBRATED, _runs_of(runs, ("none",)), data)
        if not options.no_leftover and not left:
            failed += _measure("studies.claims.leftover", LEFTOVER, _runs_of(runs, _LEFTOVER_OF), data)
    except KeyboardInterrupt:
        print("claims: stopped; the same command goes on.", file=sys.stderr)
        return 130
    if left:
        print(f"claims: {len(left)} of {len(runs)} runs are left; the same command goes on.", file=sys.stderr)
    for place in failed:
        print(f"claims: {place} failed; its message stands above.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
