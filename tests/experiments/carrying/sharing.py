"""Processes that share a sweep of a tiny model; a program, so that they can be killed.

    python -m tests.experiments.carrying.sharing FOLDER LOG SHARD:DIE_AT:BYTES[,...] ...

Every pack whose training ends is a line of LOG. A process is killed in the training of its pack DIE_AT, counted from
1; with BYTES no file of it can be longer, as on a disk that fills up. Those that are joined by commas run at once.
They are forked from one process that has imported everything and computed nothing. Exit codes, and what each said last,
are printed as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
from pathlib import Path

import torch

from steerscope import get_task, wrap_model
from steerscope.experiments.engine import sweep as engine_sweep
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.site_tables import SiteTable
from steerscope.experiments.sweeping import SweepOptions, sweep_sites
from studies.programs import exit_code_of
from tests.byte_models import byte_model, byte_tokenizer

# 24 runs: three rates at two layers of two kinds, the other layer's, a second seed at all, four longer ones.
OPTIONS = SweepOptions(
    sites=("0.resid_post", "0.mlp_out", "1.resid_post", "1.mlp_out", "2.resid_post", "2.mlp_out"),
    rank=2,
    rates=(1e-3, 1e-2, 1e-1),
    tune_layers=2,
    seeds=2,
    steps=4,
    batch_size=4,
    longer=4,
    num_selection=16,
    num_test=16,
    scores=False,
    pack_size=2,
)


def tiny():
    return wrap_model(byte_model(num_hidden_layers=3), byte_tokenizer())


def swept(folder, options=OPTIONS, loaded=None, **more) -> SiteTable:
    return sweep_sites(loaded or tiny(), splits_of_task(get_task("listops")), options, folder, **more)


def numbers(table: SiteTable):
    """All that has to be the same whoever computed it."""
    return [dataclasses.replace(run, seconds=0.0) for run in table.runs], table.base, table.data


def packs(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def work(folder: str, log: str, shard: str, die_at: int, size: int) -> int:
    trained, begun = engine_sweep.train_pack, 0

    def logged(pack, *args, **kwargs):
        nonlocal begun
        begun += 1
        if begun == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = trained(pack, *args, **kwargs)
        runs = " ".join(f"{spec.config.sites[0]}@{spec.learning_rate}/{spec.seed}" for spec in pack.specs)
        with open(log, "a") as file:
            file.write(f"{args[1].steps} {runs}\n")
        return found

    engine_sweep.train_pack = logged
    loaded = tiny()
    if size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    swept(folder, dataclasses.replace(OPTIONS, shard=shard), loaded)
    return 0


def main(folder: str, log: str, *groups: str) -> None:
    torch.set_num_threads(1)
    codes, said = [], []
    for group in groups:
        processes = {begin(folder, log, told): told for told in group.split(",")}
        codes += [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
        said += [Path(f"{log}.{told[0]}").read_text() for told in processes.values()]
    print(json.dumps([codes, said]))


def begin(folder: str, log: str, told: str) -> int:
    process = os.fork()
    if process:
        return process
    shard, die_at, size = told.split(":")
    with open(f"{log}.{told[0]}", "w") as sys.stderr:
        code = exit_code_of("sharing", lambda: work(folder, log, shard, int(die_at), int(size)))
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
