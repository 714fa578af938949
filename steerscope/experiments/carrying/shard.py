"""Which of several processes that share work this one is, as told or as a launcher's environment says."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from steerscope.errors import InputError

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class Shard:
    """One of several processes that share work.

    Attributes:
        index: Which, from 1.
        count: How many there are. It only decides where each begins: any of them can do all of the work.
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def chosen_shard(told: str | None, environment: Mapping[str, str] | None = None) -> Shard | None:
    """Return which shard this process is.

    What is told wins over ``RANK`` and ``WORLD_SIZE`` (torchrun), and these over ``SLURM_ARRAY_TASK_ID`` and
    ``SLURM_ARRAY_TASK_COUNT``, whose numbers may begin anywhere and have steps.

    Args:
        told: ``i/n`` with i from 1 to n; ``auto`` for what the environment says; ``none`` or None for no shard.
        environment: Environment variables; those of this process unless given.

    Returns:
        The shard, or None where work is not shared: nothing is told, or the environment knows of one process only.

    Raises:
        InputError: Neither of these, or an environment that cannot be right.

    Example:
        >>> chosen_shard("2/4"), chosen_shard("auto", {"RANK": "0", "WORLD_SIZE": "2"}), chosen_shard("auto", {})
        (Shard(index=2, count=4), Shard(index=1, count=2), None)
    """
    if told is None or told == NONE:
        return None
    if told != AUTO:
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", told.strip())
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(
                f"[[shard]] is {told!r}; expected i/n, such as 1/4 for the first of four processes, {AUTO!r} for what "
                f"torchrun or Slurm says, or {NONE!r}."
            )
        return Shard(int(found[1]), int(found[2]))
    environment = os.environ if environment is None else environment
    shard = _of_torchrun(environment) or _of_slurm(environment)
    return shard if shard is not None and shard.count > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Shard | None:
    if not _has(environment, "RANK") and not _has(environment, "WORLD_SIZE"):
        return None
    rank, count = _number(environment, "RANK", "WORLD_SIZE"), _number(environment, "WORLD_SIZE", "RANK")
    if rank >= count:
        raise InputError(
            f"the environment has RANK={rank} and WORLD_SIZE={count}; expected a rank from 0 to {count - 1}. {_ADVICE}"
        )
    return Shard(rank + 1, count)


def _of_slurm(environment: Mapping[str, str]) -> Shard | None:
    if not _has(environment, "SLURM_ARRAY_TASK_ID"):
        return None
    place = _number(environment, "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_ID")
    least, step = (
        _number(environment, name, "SLURM_ARRAY_TASK_ID") if _has(environment, name) else default
        for name, default in (("SLURM_ARRAY_TASK_MIN", 0), ("SLURM_ARRAY_TASK_STEP", 1))
    )
    if count < 1 or place < least:
        raise InputError(
            f"the environment has SLURM_ARRAY_TASK_ID={place}, SLURM_ARRAY_TASK_MIN={least} and "
            f"SLURM_ARRAY_TASK_COUNT={count}; expected those of a job array. {_ADVICE}"
        )
    # The numbers of an array may have gaps (--array=1,5,7): the place only says where to begin.
    return Shard((place - least) // max(step, 1) % count + 1, count)


_ADVICE = "Give [[shard]] as i/n, or 'none' to share no work."


def _has(environment: Mapping[str, str], name: str) -> bool:
    return bool(environment.get(name, "").strip())


def _number(environment: Mapping[str, str], name: str, beside: str) -> int:
    text = environment.get(name, "").strip()
    if not text:
        raise InputError(f"the environment has {beside}={environment[beside]} and no {name}; expected both. {_ADVICE}")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"the environment has {name}={text!r}; expected a whole number from 0. {_ADVICE}")
    return int(text)
