"""Of what a real training does inside a block: which part could an edit of the stream make, and from which tensor?

    python -m studies.trained_reach MODEL --task recall --text passages.txt --layers 1,5,9,13 --out reach.json

Trains a model on a task, once in full and once by LoRA, until it has learned something. Then, per block: the block is
run on the stream that enters it in the *trained* model, once with its old weights, once with the new ones, and once
for every weight matrix with that one new (lockstep: P22). The difference at the block's output is the shift that an
edit there would have to make. The best linear map from a tensor of the block to that shift, fitted by ridge regression
on one half of the texts, is tested on the other half; the part of the shift's variance that it leaves is reported, for
a full map and for one of rank 8, and for these tensors:

- ``block``: the block's output, which a post-block edit reads;
- ``mlp``: the MLP's output, which a post-MLP edit reads;
- ``attn``: the attention's output, which an edit there reads;
- ``both``: ``[I', y]``, what of the block's output is not the MLP's beside what is: every linear map of either of the
  first two is one of these, so what this leaves, neither reaches.

Tensors are read with the old weights in the block, as an edit finds them. All edits write the same thing in the same
place, so that differences are of reading alone. Texts are the task's prompts and, with ``--text``, a file with one text
per line (plain or gzip), cut to equal lengths; halves share no text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from steerscope import load_model
from steerscope.analysis.theory.block_call import BlockCall, block_calls
from steerscope.analysis.theory.common import relative_size, weight_names
from steerscope.equivalence.oracles import one_step_shift
from steerscope.equivalence.reach import RidgeReads
from steerscope.errors import InputError
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.engine.loop import train_pack
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.spec import RunSpec, Schedule
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.training.trainee import lora
from steerscope.files import json_text, write_text
from steerscope.installed import package_versions
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.changed_weights import with_update
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.sites import SiteKind
from steerscope.steering.weights import WeightModel
from studies.programs import parser_of, program
from studies.texts import lines_of, prompts_of, splits_of, windows_of

READS = ("block", "mlp", "attn", "both")
RIDGES = tuple(10.0**power for power in range(-6, 1))
RANK, ALL = 8, "all"
BATCH = 16
# Tokens whose stream is this many times longer than the median one are left out: a few carry nearly all of its energy.
OUTLIER = 4.0


def trained_update(
    loaded: LoadedModel, data: SplitData, method: str, rate: float, seed: int
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a model and return what changed in the linear maps of its blocks; the model is left as it was.

    Args:
        loaded: The model.
        data: What it learns and is tested on.
        method: ``sft`` (all parameters are trained; only the blocks' maps are returned) or ``lora``.
        rate: Learning rate.
        seed: Of examples and of LoRA's start.

    Returns:
        Change per parameter name, and the test loss (nats per example, and per token learned) and accuracy before and
        after, and how much the loss fell (mean over test examples and its standard error).
    """
    names, pad = set(weight_names(loaded).values()), pad_token(loaded.tokenizer, loaded.model)
    named = dict(loaded.model.named_parameters())
    before = {name: named[name].detach().clone() for name in names}
    model: Any = lora(loaded, RANK, seed) if method == "lora" else WeightModel(loaded, method)
    try:
        pack, held = ModelPack(model.eval(), RunSpec(None, rate, seed), pad), data.held_out("test")
        (first,) = judge_pack(pack, held.sequences, held.choices)
        train_pack(pack, {seed: data.rows(seed)}, data.schedule)
        (judged,) = judge_pack(pack, held.sequences, held.choices)
        if method == "lora":
            update = {
                f"{name}.weight": layer.get_delta_weight("default").detach().clone()
                for name, layer in model.base_model.model.named_modules()
                if hasattr(layer, "get_delta_weight")
            }
        else:
            update = {name: named[name].detach() - before[name] for name in names}
    finally:
        _ = model.unload() if method == "lora" else model.restore()
    learned = sum(len(one.ids) - one.first_target for one in held.sequences)
    gain = (first.losses - judged.losses).double()
    return update, {
        "loss_before": first.loss, "accuracy_before": first.accuracy, "loss": judged.loss, "accuracy": judged.accuracy,
        "per_token_before": float(first.losses.sum()) / learned, "per_token": float(judged.losses.sum()) / learned,
        "gain": float(gain.mean()), "gain_error": float(gain.std() / len(gain) ** 0.5),
    }  # fmt: skip


@torch.no_grad()
def trained_calls(
    loaded: LoadedModel, update: Mapping[str, Tensor], layers: Sequence[int], ids: Tensor
) -> dict[int, list[BlockCall]]:
    """Return blocks, with their old weights, as the trained model calls them: one call per batch of texts.

    Args:
        loaded: The untrained model.
        update: Change per parameter name.
        layers: Which blocks.
        ids: Token ids ``(text token)`` without padding.

    Returns:
        Calls by layer, in the order of the texts; use them inside ``forward_differentiable_attention``.

    Cost: a pass of the model without the unembedding.
    """
    found: dict[int, list[BlockCall]] = {layer: [] for layer in layers}
    with with_update(loaded, update):
        for batch in ids.split(BATCH):
            for layer, call in block_calls(loaded, batch.to(loaded.device), layers).items():
                found[layer].append(call)
    return found


@torch.no_grad()
def shifts_and_reads(
    loaded: LoadedModel, update: Mapping[str, Tensor], layer: int, calls: Sequence[BlockCall]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what new weights of a block add at its output on the trained model's stream, and what edits read there.

    Args:
        loaded: The untrained model.
        update: Change per parameter name.
        layer: The block.
        calls: Of :func:`trained_calls`.

    Returns:
        Shifts ``(text token d_model)`` by matrix of the block and for all together, and tensors read, by name.
    """
    mine = {name: path for (index, path), name in weight_names(loaded).items() if index == layer and name in update}
    own = {name: update[name] for name in mine}
    parts = {ALL: own, **{mine[name]: {name: change} for name, change in own.items()}}
    shifts: dict[str, list[Tensor]] = {name: [] for name in parts}
    reads: list[tuple[Tensor, ...]] = []
    with forward_differentiable_attention(loaded.model):
        for call in calls:
            found = call.tensors(loaded.site_map, layer)
            after, written = found[SiteKind.RESID_POST], found[SiteKind.MLP_OUT]
            both = torch.cat((after - written, written), -1)
            reads.append((after, written, found[SiteKind.ATTN_OUT], both))
            for name, part in parts.items():
                shifts[name].append(one_step_shift(call.output_with(part), after))
    read = dict(zip(READS, map(torch.cat, zip(*reads, strict=True)), strict=True))
    return {name: torch.cat(one) for name, one in shifts.items()}, read


class Reader:
    """The best linear maps from one tensor to many shifts: what is decomposed once serves all shifts, ridges and ranks.

    Args:
        read: What an edit reads ``(token p)``.
        fitted: Which tokens maps are fitted on ``(token)``, true or false; a fifth of them, left out for that, chooses
            the ridge.
    """

    def __init__(self, read: Tensor, fitted: Tensor) -> None:
        places = torch.nonzero(fitted)[:, 0]
        kept = torch.arange(len(places)) % 5 != 0
        self._parts = ((places[kept], places[~kept]), (places, torch.nonzero(~fitted)[:, 0]))
        self._x = read.double()
        self._reads = [RidgeReads(self._x[places]) for places, _ in self._parts]

    def left_over(self, shift: Tensor, rank: int | None = None) -> float:
        """Return the part of a shift's variance that the best map leaves, on tokens it has not seen.

        Args:
            shift: ``(token q)``.
            rank: Most rank of the map; None for any.

        Returns:
            A share: 0 where the map makes the whole shift; above 1 where it is worse than the mean.
        """
        tried = self._left(0, shift, RIDGES, rank)
        (found,) = self._left(1, shift, [RIDGES[tried.index(min(tried))]], rank)
        return found

    def _left(self, part: int, shift: Tensor, ridges: Sequence[float], rank: int | None) -> list[float]:
        fitted, tested = self._parts[part]
        wanted, target = shift[fitted].double(), shift[tested].double()
        mean, whole = wanted.mean(0), (target - target.mean(0)).square().sum()
        places = tested if rank is None else torch.cat((fitted, tested))
        found = []
        for made in self._reads[part].predictions(wanted, self._x[places], ridges):
            if rank is not None:
                directions = top_directions(made[: len(fitted)] - mean, rank)
                made = mean + (made[len(fitted) :] - mean) @ directions @ directions.T
            found.append(float((target - made).square().sum() / whole))
        return found


def top_directions(fitted: Tensor, rank: int) -> Tensor:
    """Return the directions with most energy of a map's fitted values: projected on them it has that rank (P28).

    Args:
        fitted: What the map gives on the tokens it was fitted on, centred ``(token q)``.
        rank: How many.

    Returns:
        ``(q rank)``, orthonormal.
    """
    return torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -rank:]


def measure(
    loaded: LoadedModel, update: Mapping[str, Tensor], layer: int, calls: Sequence[BlockCall]
) -> list[dict[str, Any]]:
    """Return what each tensor leaves of each matrix's shift in one block.

    Args:
        loaded: The model.
        update: Change per parameter name.
        layer: The block.
        calls: Of :func:`trained_calls`; maps are fitted on the texts of even number.

    Returns:
        One row per matrix.
    """
    shifts, reads = shifts_and_reads(loaded, update, layer, calls)
    stream = reads["block"].norm(dim=-1)
    usual = stream <= OUTLIER * stream.median()
    fitted = (torch.arange(len(stream)) % 2 == 0)[:, None].expand_as(usual)[usual]
    readers = {name: Reader(read[usual], fitted) for name, read in reads.items()}
    rows = []
    for matrix, shift in shifts.items():
        own = shift[usual]
        if float(own.square().sum()) == 0:
            continue
        size = float((own.square().sum() / reads["block"][usual].square().sum()).sqrt())
        row: dict[str, Any] = {"matrix": matrix, "size": size, "tokens": int(usual.sum())}
        for rank, suffix in ((None, ""), (RANK, f"_rank_{RANK}")):
            # Of single matrices the full map alone: reducing its rank for each ridge costs more than all the rest.
            if rank is None or matrix == ALL:
                row |= {name + suffix: reader.left_over(own, rank) for name, reader in readers.items()}
        rows.append(row)
    return rows


def run(
    loaded: LoadedModel, task: str, layers: Sequence[int], texts: Mapping[str, Tensor], **given: Any
) -> dict[str, Any]:
    """Train, and measure every block.

    Args:
        loaded: The model.
        task: What is learned: see :func:`splits_of`.
        layers: The blocks.
        texts: More texts to measure on, by name ``(text token)``.
        given: ``steps``, ``batch_size``, ``prompts``, ``tokens``, ``rates`` by method, ``seeds``; with ``path`` what is
            there is written to this file after every training, and trainings that the file has are not repeated.

    Returns:
        What the file holds: trainings with what they came to, and rows of what is left per block and matrix.

    Raises:
        InputError: A block that the model does not have, or a file of other settings.
    """
    blocks = len(loaded.site_map.blocks)
    if wrong := [layer for layer in layers if not 0 <= layer < blocks]:
        raise InputError(f"the model has blocks 0 to {blocks - 1}; got {wrong[0]}. Name some of those.")
    schedule = Schedule(steps=given["steps"], batch_size=given["batch_size"])
    data = SplitData(loaded, splits_of(task), schedule, 16, 256)
    data.check(given["seeds"])
    name = data.splits.name
    if Path(task).is_file():
        held = [f"{one.prompt}{one.completion}" for one in data.examples("test")]
        own = windows_of(loaded, held, name, given["tokens"], given["prompts"])
    else:
        own = prompts_of(loaded, data, given["prompts"])
    domains = {name: own, **texts}
    found: dict[str, Any] = {
        "model": loaded.identity.as_dict(), "task": name, "steps": schedule.steps, "batch_size": schedule.batch_size,
        "layers": list(layers), "texts": {name: list(ids.shape) for name, ids in domains.items()}, "trained": [],
        "rows": [], "versions": package_versions(),
    }  # fmt: skip
    path = given.get("path")
    if path is not None and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if odd := [key for key in found if key not in ("trained", "rows", "versions") and kept.get(key) != found[key]]:
            raise InputError(f"{str(path)!r} is of another {odd[0]}. Name another file, or the same settings.")
        found |= {"trained": kept["trained"], "rows": kept["rows"]}
    done = {(one["method"], one["seed"], one["learning_rate"]) for one in found["trained"]}
    for method, rate in given["rates"].items():
        for seed in given["seeds"]:
            if (method, seed, rate) in done:
                continue
            update, outcome = trained_update(loaded, data, method, rate, seed)
            size = relative_size(loaded, update)
            found["trained"].append(
                {"method": method, "seed": seed, "learning_rate": rate, "relative_size": size, **outcome}
            )
            print(
                f"{method}, seed {seed}: loss {outcome['loss_before']:.3f} -> {outcome['loss']:.3f} "
                f"(by {outcome['gain']:.3f} +- {outcome['gain_error']:.3f}), accuracy {outcome['accuracy_before']:.1%} "
                f"-> {outcome['accuracy']:.1%}, |dW|/|W| {size:.2e}",
                flush=True,
            )
            for domain, ids in domains.items():
                calls = trained_calls(loaded, update, layers, ids)
                for layer in layers:
                    rows = measure(loaded, update, layer, calls[layer])
                    found["rows"] += [
                        {"method": method, "seed": seed, "layer": layer, "texts": domain, **row} for row in rows
                    ]
                    parts = ", ".join(f"{name} {rows[0][name]:.1%}" for name in READS)
                    print(f"  block {layer}, {domain}: left of {rows[0]['matrix']}: {parts}", flush=True)
            if path is not None:
                write_text(path, json_text(found))
    return found


def summary(found: Mapping[str, Any]) -> str:
    """Return what edits leave as a table: means over blocks and seeds, and post-MLP minus post-block with its interval.

    Args:
        found: What :func:`run` returns.
    """
    lines = [
        f"| trained | texts | matrix | blocks x seeds | {' | '.join(READS)} | mlp - block |",
        f"|{' --- |' * (5 + len(READS))}",
    ]
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        groups.setdefault((row["method"], row["texts"], row["matrix"]), []).append(row)
    for (method, texts, matrix), rows in groups.items():
        layers = {row["layer"] for row in rows}
        # Blocks are a sample of blocks like these; seeds of one block are not independent of each other.
        gaps = [np.mean([row["mlp"] - row["block"] for row in rows if row["layer"] == layer]) for layer in layers]
        half = float(stats.t.ppf(0.975, len(gaps) - 1) * stats.sem(gaps)) if len(gaps) > 1 else float("nan")
        left = " | ".join(f"{np.mean([row[name] for row in rows]):.1%}" for name in READS)
        gap = f"{100 * np.mean(gaps):+.1f} ± {100 * half:.1f} points"
        lines.append(f"| {method} | {texts} | {matrix} | {len(layers)} x {len(rows) // len(layers)} | {left} | {gap} |")
    return "\n".join(lines)


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="recall", help="a task, or a file with one text per line to learn")
    parser.add_argument("--layers", default="2,6,10,14,18,22,26")
    parser.add_argument("--text", type=Path, help="a file with one text per line to measure on")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each text")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=768)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sft-rate", type=float, default=1e-4, help="0 to leave full fine-tuning out")
    parser.add_argument("--lora-rate", type=float, default=1e-3, help="0 to leave LoRA out")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    loaded = load_model(asked.model)
    texts = {}
    if asked.text is not None:
        texts = {"text": windows_of(loaded, lines_of(asked.text), asked.text.name, asked.tokens, asked.texts)}
    layers, seeds = ([int(part) for part in text.split(",")] for text in (asked.layers, asked.seeds))
    rates = {"sft": asked.sft_rate, "lora": asked.lora_rate}
    found = run(
        loaded, asked.task, layers, texts, steps=asked.steps, batch_size=asked.batch_size, prompts=asked.prompts,
        tokens=asked.tokens, seeds=seeds, rates={name: rate for name, rate in rates.items() if rate},
        path=asked.out,
    )  # fmt: skip
    print(summary(found))


if __name__ == "__main__":
    raise SystemExit(main())
