"""A ranking by processes that share a folder: each captures slices of the prompts, one makes the scores of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from steerscope.analysis.capture.features import Features
from steerscope.analysis.capture.slices import Slice, capture_slice, joined
from steerscope.analysis.data.examples import Example
from steerscope.analysis.provenance import RECIPE, content_hash, model_key
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.stopwatch import StageProgress
from steerscope.experiments.carrying.jobs import FileJob, Stage
from steerscope.experiments.carrying.once import begin
from steerscope.experiments.carrying.shard import Shard
from steerscope.experiments.carrying.shards import Shards
from steerscope.models.load import LoadedModel

# In the folder that is shared: what is in progress, and is of no use when the ranking is there.
SLICES = "slices"


def shared_ranking(
    loaded: LoadedModel,
    examples: Sequence[Example],
    options: RankOptions,
    folder: Path,
    shard: Shard,
    *,
    task: str = "examples",
    progress: StageProgress | None = None,
    say: Callable[[str], None] | None = None,
) -> Ranking:
    """Rank the sites of a model together with other processes that have the same folder, model, examples and options.

    The numbers are those of :func:`~steerscope.analysis.ranking.rank_sites` in one process. Slices of a process that
    died are captured by the others.

    Args:
        loaded: The model.
        examples: As for ``rank_sites``.
        options: As for ``rank_sites``.
        folder: A folder that all processes see; what they hand each other is in ``slices`` below it.
        shard: Which process this is; there are as many slices as processes.
        task: Name of the task.
        progress: Called with stage, steps done and steps in all.
        say: Called with a sentence on the memory that the whole will take, before the long work begins.

    Returns:
        The ranking, the same in all processes.

    Raises:
        InputError: What ``rank_sites`` refuses, fewer batches than slices, or a folder in which another ranking was
            begun.

    Cost: its slices' part of the passes; the scores are made by one process. Features of all prompts are in that
        process's memory, and on disk until the ranking is there.
    """
    place = folder / SLICES
    _begin(place, loaded, examples, options, shard.count)
    carrier, result = Shards(place / "claims", shard, progress), place / "ranking.json"
    paths = [place / f"slice_{at + 1}_of_{shard.count}.safetensors" for at in range(shard.count)]
    rank = partial(rank_sites, loaded, examples, options, task=task, progress=progress)

    def slices_captured(*given: Any, **more: Any) -> None:
        parts = [partial(capture_slice, *given, **more, index=at, count=shard.count) for at in range(shard.count)]
        carrier.carry([[_together([SliceJob(*own, result) for own in zip(paths, parts, strict=True)])]])

    def captured(*given: Any, **more: Any) -> Features:
        slices_captured(*given, **more)
        return joined([Slice.load(path, loaded.device) for path in paths])

    def only_captured(*given: Any, **more: Any) -> Features:
        slices_captured(*given, **more)
        raise _Captured

    def scored() -> None:
        rank(capture_by=captured).save(result)
        for path in paths:
            path.unlink(missing_ok=True)

    with suppress(_Captured):
        rank(capture_by=only_captured, say=say)
    carrier.carry([[FileJob(result, scored).stage()]])
    return Ranking.load(result)


class _Captured(Exception):
    """This process has nothing more to capture."""


class SliceJob(FileJob):
    """The capture of one slice, which nobody needs when the ranking is there that is made of all."""

    def __init__(self, path: Path, part: Callable[[], Slice], result: Path) -> None:
        super().__init__(path, lambda: part().save(path))
        self.result = result

    def is_done(self) -> bool:
        """Say whether it is captured, or needed no more."""
        return super().is_done() or self.result.exists()


def _together(jobs: Sequence[SliceJob]) -> Stage:
    yield jobs


def _begin(place: Path, loaded: LoadedModel, examples: Sequence[Example], options: RankOptions, count: int) -> None:
    """Write down which ranking is made in a folder, or refuse to share another one.

    Raises:
        InputError: Another one was begun there.
    """
    asked = {
        "schema_version": 2,  # slices hold sums over weights in eight bits
        "model": list(model_key(loaded.identity)),
        "data": content_hash(list(examples), ordered=False),
        "options": asdict(options),
        "recipe": RECIPE,
        "number of processes": count,
    }
    begin(place / "begun.json", "ranking", asked, folder=place.parent, advice="Give the same in every process")
