"""Claim (f): what part of a fine-tuning each space of edits leaves behind, on a finished ``sft`` or ``lora`` run.

    python -m studies.claims.leftover RUN [--data-dir DIR] [--ranks 1 8] [--examples 128]

Writes ``leftover.json`` into the run's folder. The maps are fitted and measured on halves of validation prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.provenance import content_hash
from steerscope.errors import InputError
from steerscope.experiments.engine.rows import IGNORED, Rows
from steerscope.experiments.evaluation.adapters import read_adapter, with_adapter
from steerscope.experiments.runs.folder import read_results
from steerscope.experiments.tasks import Task, get_task
from steerscope.experiments.tasks.supervised import answer_tokens, supervise
from steerscope.files import json_text, write_text
from steerscope.models import load_model
from steerscope.models.lengths import batches_within, switch_length
from steerscope.models.tokens import pad_token
from steerscope.models.wrappers import is_peft
from steerscope.sites import SiteKind
from steerscope.steering.oracles import Oracles
from studies.programs import parser_of, program

LEFTOVER = "leftover.json"
KINDS = (SiteKind.RESID_POST, SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.MLP_IN)


def measure_leftover(
    run: Path, task: Task, *, ranks: Sequence[int] = (1, 8), examples: int = 128, batch_size: int = 16
) -> dict[str, Any]:
    """Measure and write what best-fitting linear edits leave of a run's divergence from its base model.

    Args:
        run: Folder of a run of method ``sft``, ``bitfit`` or ``lora``.
        task: The run's task.
        ranks: Ranks of the maps.
        examples: Validation prompts, half of them to fit on.
        batch_size: Prompts per batch.

    Returns:
        What was written.

    Raises:
        InputError: The run trained no weights, or there are fewer than two examples.

    Cost: per kind and rank, four forward passes per layer over half of the prompts; memory of two models.
    """
    results = read_results(run)
    if results.method not in ("sft", "bitfit", "lora"):
        raise InputError(f"{str(run)!r} is a run of method {results.method!r}; expected sft, bitfit or lora.")
    name, dtype = results.model.name, results.model.dtype
    loaded = load_model(name, dtype=dtype, revision=results.model.revision)
    tuned: nn.Module = with_adapter(loaded, read_adapter(run))
    asked = task.split("validation", None, 0)[:examples]
    ends = answer_tokens(task.form, asked, loaded.tokenizer).ends
    sequences = supervise(asked, loaded.tokenizer, loaded.max_length, loaded.model, ends=ends).sequences
    if len(sequences) < 2:
        raise InputError(f"got {len(sequences)} examples that fit; expected at least 2. Ask for more.")
    pad, half = pad_token(loaded.tokenizer, loaded.model), len(sequences) // 2
    switch = switch_length(loaded.model)

    def batches(some: Sequence[Any]) -> list[dict[str, Tensor]]:
        cut = batches_within(range(len(some)), lambda i: len(some[i].ids), batch_size, switch)
        return [_batch(Rows.of([some[i] for i in rows], pad, loaded.device)) for rows in cut]

    to_fit, to_measure = batches(sequences[:half]), batches(sequences[half:])
    if is_peft(tuned):
        oracles = Oracles(tuned)
    else:
        oracles = Oracles(load_model(name, dtype=dtype, revision=results.model.revision).model, tuned)
    base = oracles.kl(to_measure, [str(loaded.site_map.sites()[-1])], "none")
    spaces = []
    for kind in [kind for kind in KINDS if kind in loaded.site_map.description.kinds]:
        for rank in ranks:
            maps = oracles.fit_linear(to_fit, [str(site) for site in loaded.site_map.sites((kind,))], rank)
            spaces.append({"kind": str(kind), "rank": rank, "kl": oracles.kl_of(to_measure, maps).kl})
    found = {
        "task": results.task,
        "method": results.method,
        "seed": results.seed,
        "model": results.model.as_dict(),
        "kl_base": base.kl,
        "tokens": base.tokens,
        "examples": len(sequences),
        "data": content_hash(asked, ordered=False),
        "spaces": spaces,
    }
    write_text(run / LEFTOVER, json_text(found))
    return found


def _batch(rows: Rows) -> dict[str, Tensor]:
    """Return rows as a model is called with them, and labels that say what is supervised."""
    is_prompt = torch.arange(rows.ids.shape[1], device=rows.ids.device) < rows.prompts[:, None]
    labels = rows.ids.masked_fill(is_prompt | (rows.mask == 0), IGNORED)
    return {"input_ids": rows.ids, "attention_mask": rows.mask, "labels": labels}


@program("leftover")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--examples", type=int, default=128)
    options = parser.parse_args()

    task = get_task(read_results(options.run).task, options.data_dir)
    found = measure_leftover(options.run, task, ranks=options.ranks, examples=options.examples)
    print(json.dumps(found, indent=1, allow_nan=False))


if __name__ == "__main__":
    raise SystemExit(main())
