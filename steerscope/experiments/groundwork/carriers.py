"""What carries the packs of a sweep or search, by its options: this process, several that share a folder, or Ray."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from steerscope.analysis.stopwatch import StageProgress
from steerscope.errors import InputError
from steerscope.experiments.carrying.jobs import Carrier, InProcess
from steerscope.experiments.carrying.once import kept_once
from steerscope.experiments.carrying.ray_actors import RayActors
from steerscope.experiments.carrying.shard import Shard
from steerscope.experiments.carrying.shards import Shards
from steerscope.experiments.groundwork.elsewhere import Elsewhere, Sent
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.installed import require
from steerscope.models.load import LoadedModel

CLAIMS = "claims"
LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)


@dataclass(frozen=True, kw_only=True)
class CarryingOptions:
    """What carries the packs of a sweep or a search; for classes of options to inherit.

    Attributes:
        engine: What trains: ``local``, this process; ``ray``, a Ray cluster. What is no pack of edits stays here.
        address: Of the cluster; None for one of this machine, which ends with the work.
        num_cpus: CPUs (and threads) of one process of the cluster; None for as many as this process has threads.
        num_gpus: Its GPUs, which may be a fraction; None for one if the model is on a GPU.
    """

    engine: str = LOCAL
    address: str | None = None
    num_cpus: int | None = None
    num_gpus: float | None = None


# They decide no result.
CARRYING = tuple(field.name for field in fields(CarryingOptions))


def check_carrying(options: CarryingOptions) -> None:
    """Refuse what says nothing, or contradicts itself, about what carries the work.

    Raises:
        InputError: An unknown engine, a bad number, what is of Ray without asking for Ray, or Ray is not installed.
    """
    if options.engine not in ENGINES:
        raise InputError(f"[[engine]] is {options.engine!r}; expected one of {', '.join(ENGINES)}.")
    for name in CARRYING[1:]:
        if getattr(options, name) is not None and options.engine != RAY:
            raise InputError(f"[[{name}]] is of a Ray cluster; add [[engine='ray']], or leave it out.")
    if options.num_cpus is not None and options.num_cpus < 1:
        raise InputError(f"[[num_cpus]] is {options.num_cpus}; expected at least 1, the CPUs of one process.")
    if options.num_gpus is not None and not 0 <= options.num_gpus < math.inf:
        raise InputError(f"[[num_gpus]] is {options.num_gpus}; expected at least 0, the GPUs of one process.")
    if options.engine == RAY:
        require("ray", "[[engine='ray']]")


@contextmanager
def carrier_of(
    options: CarryingOptions,
    data: SplitData,
    scales: Callable[[], Mapping[str, float]],
    folder: Path,
    *,
    shard: Shard | None = None,
    progress: StageProgress | None = None,
    load: Callable[[], LoadedModel] | None = None,
) -> Iterator[Carrier]:
    """Give what carries packs.

    Args:
        options: What was asked for.
        data: Model and examples; where the model is on a GPU, a process of a cluster gets one unless told otherwise.
        scales: Of what sites read; asked for only if another machine needs them.
        folder: Of the work.
        shard: Which of several processes with this folder this one is, if it is.
        progress: Called while others are waited for.
        load: How a process of a cluster loads the model; without it the model itself is sent there.

    Yields:
        A carrier; what it began on a cluster ends with the context.
    """
    if options.engine == RAY:
        threads = options.num_cpus or torch.get_num_threads()
        gpus = (1.0 if data.loaded.device.type == "cuda" else 0.0) if options.num_gpus is None else options.num_gpus
        sizes = (data.num_selection, data.num_test)
        elsewhere = Elsewhere(load or Sent(data.loaded), data.splits, *sizes, dict(scales()), threads)
        with RayActors(elsewhere, address=options.address, num_cpus=threads, num_gpus=gpus) as actors:
            yield actors
    elif shard is not None:
        yield Shards(folder / CLAIMS, shard, progress)
    else:
        yield InProcess()


def kept_pack_size(path: Path, steps: int, told: int | None, fitting: Callable[[], int], shard: Shard | None) -> int:
    """Return how many runs train together: the same number for all who work in a folder, now and later.

    Args:
        path: The file that keeps it, by length of runs.
        steps: Of the runs.
        told: What was asked for, if something was; it wins, unless processes share the folder.
        fitting: Computes what fits this machine.
        shard: Which of several processes with this folder this one is, if it is.

    Returns:
        Runs per pack.

    Raises:
        InputError: Processes that share the folder train another number together.
    """
    if told is not None and shard is None:
        return told
    kept = path.with_name(f"{path.stem}_{steps}{path.suffix}")
    size = int(kept_once(kept, lambda: {"pack_size": told or fitting()})["pack_size"])
    if told not in (None, size):
        raise InputError(
            f"[[pack_size]] is {told}, and the work in {str(path.parent)!r} was begun with {size}: packs that overlap "
            "would be trained twice. Give the same number, or leave it out."
        )
    return size
