"""What a sweep and a search need before their first run: the size of packs, scales of reads, a folder of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from steerscope.analysis.provenance import model_key
from steerscope.experiments.carrying.once import begin
from steerscope.experiments.engine.pieces import NUMBERS, may_cut
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.models.load import LoadedModel
from steerscope.sites import Site
from steerscope.steering.scales import measure_scales

# Passes of a step on a CPU, of short rows and of long ones, where the engine may cut it.
CPU_PASSES = 2
MOST_RUNS = 32
# Training sequences that the scale of reads is measured on.
SCALED_ON = 64


def fitting_pack(loaded: LoadedModel, data: SplitData, seed: int) -> int:
    """Return how many runs fit the machine at once.

    On a CPU so many that it is busy. On a GPU half the free memory is filled, by an estimate of
    what the backward pass keeps: about 34 numbers per token, block and channel, and three per answer and word.

    Args:
        loaded: The model.
        data: The examples of the sweep.
        seed: Of the training examples, whose longest batch is looked at.

    Returns:
        A number of runs, at least 1.
    """
    rows = data.rows(seed)
    size = data.schedule.batch_size
    tokens = max(sum(len(row.ids) for row in rows[at : at + size]) for at in range(0, len(rows), size))
    if loaded.device.type != "cuda":
        numbers = NUMBERS * (CPU_PASSES if may_cut(loaded.model) else 1)
        return max(1, min(MOST_RUNS, numbers // (tokens * loaded.site_map.d_model)))
    free, _ = torch.cuda.mem_get_info(loaded.device)
    config: Any = loaded.model.config
    config = config.get_text_config()
    width = 2 if loaded.model.dtype in (torch.bfloat16, torch.float16) else 4
    kept = 34 * len(loaded.site_map.blocks) * int(config.hidden_size) * width * tokens
    predicted = sum(len(row.ids) - row.first_target for row in rows[:size])
    kept += 3 * 4 * int(config.vocab_size) * max(1, predicted)
    return max(1, int(free / 2 / kept))


def begin_folder(path: Path, what: str, loaded: LoadedModel, data: SplitData, options: Mapping[str, Any]) -> None:
    """Write down what the work in a folder is, or refuse to go on there with another one.

    Args:
        path: The file that says it.
        what: The work's name: "sweep".
        loaded: The model.
        data: The examples.
        options: What decides results.

    Raises:
        InputError: The folder's work was begun with another model, other examples or other options.
    """
    asked = {
        "schema_version": 1,
        "model": list(model_key(loaded.identity)),
        "task": data.splits.name,
        "test": data.content_hash("test"),
        "options": options,
    }
    begin(path, what, asked, folder=path.parent, advice="Go on with the same")


def read_scales(loaded: LoadedModel, data: SplitData, seed: int) -> dict[str, float]:
    """Return the root mean square of what every site reads in training examples, by the site's name.

    Args:
        loaded: The model.
        data: The examples.
        seed: Whose training examples.

    Returns:
        Positive numbers by name of the site.

    Cost: one forward pass over 64 of them.
    """
    kinds = loaded.site_map.description.kinds
    sites = [Site(layer, kind) for layer in range(len(loaded.site_map.blocks)) for kind in kinds]
    batches = [{"input_ids": torch.tensor([row.ids], device=loaded.device)} for row in data.rows(seed)[:SCALED_ON]]
    found = measure_scales(loaded.model, loaded.site_map, sites, batches)
    return {str(site): value for site, value in found.items()}
