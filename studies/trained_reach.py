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
- ``both``: the stream between attention and MLP beside the MLP's output: every linear map of either of the first two is
  one of these, so what this leaves, no edit of this kind reaches.

Tensors are read with the old weights in the block, as an edit finds them. All edits write the same thing in the same
place, so that differences are of reading alone. Texts are the task's prompts and, with ``--text``, a file with one text
per line (plain or gzip), cut to equal lengths; halves share no text.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerscope import load_model
from steerscope.analysis.theory.common import relative_size, weight_names
from steerscope.equivalence.oracles import one_step_shift
from steerscope.errors import InputError
from steerscope.experiments.engine.judge import judge_pack
from steerscope.experiments.engine.loop import train_pack
from steerscope.experiments.engine.model_pack import ModelPack
from steerscope.experiments.engine.spec import RunSpec, Schedule
from steerscope.experiments.groundwork.split_data import SplitData
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.tasks import get_task
from steerscope.experiments.training.trainee import lora
from steerscope.files import exit_code_of, write_text
from steerscope.installed import package_versions
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import reading
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.sites import Site, SiteKind
from steerscope.steering.weights import WeightModel

READS = {
    "block": (SiteKind.RESID_POST,),
    "mlp": (SiteKind.MLP_OUT,),
    "attn": (SiteKind.ATTN_OUT,),
    "both": (SiteKind.RESID_MID, SiteKind.MLP_OUT),
}
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
        Change per parameter name, and the test loss and accuracy that training came to.
    """
    names, pad = set(weight_names(loaded).values()), pad_token(loaded.tokenizer, loaded.model)
    named = dict(loaded.model.named_parameters())
    before = {name: named[name].detach().clone() for name in names}
    model: Any = lora(loaded, RANK, seed) if method == "lora" else WeightModel(loaded, method)
    try:
        pack = ModelPack(model.eval(), RunSpec(None, rate, seed), pad)
        train_pack(pack, {seed: data.rows(seed)}, data.schedule)
        held = data.held_out("test")
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
    return update, {"loss": judged.loss, "accuracy": judged.accuracy}


@torch.no_grad()
def shifts_and_reads(
    loaded: LoadedModel, update: Mapping[str, Tensor], layer: int, ids: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what new weights of a block add at its output on the trained model's stream, and what edits read there.

    Args:
        loaded: The untrained model.
        update: Change per parameter name.
        layer: The block.
        ids: Token ids ``(text token)`` without padding.

    Returns:
        Shifts ``(text token d_model)`` by matrix of the block and for all together, and tensors read, by name.
    """
    block = loaded.site_map.blocks[layer].module
    mine = {name: path for (index, path), name in weight_names(loaded).items() if index == layer and name in update}
    own = {name: update[name] for name in mine}
    sites = {kind: Site(layer, kind) for kinds in READS.values() for kind in kinds}
    shifts: dict[str, list[Tensor]] = {}
    reads: dict[str, list[Tensor]] = {}
    for batch in ids.split(BATCH):
        entered: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        handle = block.register_forward_pre_hook(
            lambda _, args, kwargs, kept=entered: kept.append((args, dict(kwargs))), with_kwargs=True
        )
        try:
            with with_update(loaded, update):
                loaded.model(input_ids=batch.to(loaded.device), use_cache=False)
        finally:
            handle.remove()
        args, kwargs = entered[0]
        with reading(loaded, list(sites.values())) as found:
            old = _output(block(*args, **kwargs))
            for name, kinds in READS.items():
                reads.setdefault(name, []).append(torch.cat([found[sites[kind]] for kind in kinds], -1).clone())
        for name, part in {ALL: own, **{mine[name]: {name: change} for name, change in own.items()}}.items():
            with with_update(loaded, part):
                new = _output(block(*args, **kwargs))
            shifts.setdefault(name, []).append(one_step_shift(new, old))
    return {name: torch.cat(parts) for name, parts in shifts.items()}, {n: torch.cat(p) for n, p in reads.items()}


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
        self._decomposed = [self._decompose(places) for places, _ in self._parts]

    def left_over(self, shift: Tensor, rank: int | None = None) -> float:
        """Return the part of a shift's variance that the best map leaves, on tokens it has not seen.

        Args:
            shift: ``(token q)``.
            rank: Most rank of the map; None for any.

        Returns:
            A share: 0 where the map makes the whole shift; above 1 where it is worse than the mean.
        """
        chosen = min(RIDGES, key=lambda ridge: self._left(0, shift, ridge, rank))
        return self._left(1, shift, chosen, rank)

    def _decompose(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the mean, the centred tokens, and eigenvalues and eigenvectors of their second moments."""
        mean = self._x[places].mean(0)
        centred = self._x[places] - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred)
        return mean, centred, values, vectors

    def _left(self, part: int, shift: Tensor, ridge: float, rank: int | None) -> float:
        (fitted, tested), (mean, centred, values, vectors) = self._parts[part], self._decomposed[part]
        y = shift[fitted].double()
        mean_y = y.mean(0)
        cross = vectors.T @ (centred.T @ (y - mean_y))
        found = vectors @ (cross / (values + ridge * values.mean())[:, None])
        if rank is not None:
            found = reduced_map(centred, found, rank)
        target = shift[tested].double()
        error = target - mean_y - (self._x[tested] - mean) @ found
        return float(error.square().sum() / (target - target.mean(0)).square().sum())


def reduced_map(x: Tensor, found: Tensor, rank: int) -> Tensor:
    """Return a map cut to the directions of its fitted values with the most energy, as P28 does.

    Args:
        x: Centred data ``(token p)``.
        found: A map ``(p q)``.
        rank: Most rank.
    """
    fitted = x @ found
    directions = torch.linalg.eigh(fitted.T @ fitted).eigenvectors[:, -rank:]
    return found @ directions @ directions.T


def texts_of(loaded: LoadedModel, path: Path, length: int, count: int) -> Tensor:
    """Return the first tokens of a file's lines ``(text token)``; lines that are shorter are left out.

    Args:
        loaded: Whose tokenizer.
        path: Plain text or gzip, one text per line.
        length: Tokens of each.
        count: Most texts.

    Raises:
        InputError: Fewer than 16 lines are long enough.
    """
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        ids = [loaded.tokenizer(line.strip()).input_ids[:length] for line in lines]
    whole = [one for one in ids if len(one) == length][:count]
    if len(whole) < BATCH:
        raise InputError(
            f"{str(path)!r} has {len(whole)} lines of {length} tokens or more; expected {BATCH}. Give longer texts."
        )
    return torch.tensor(whole)


def prompts_of(loaded: LoadedModel, data: SplitData, count: int) -> Tensor:
    """Return prompts of the task that have the most frequent length ``(text token)``, none twice.

    Args:
        loaded: Whose tokenizer.
        data: The task.
        count: Most prompts.
    """
    prompts = dict.fromkeys(one.prompt for one in data.splits.train(2 * count, 97))
    ids = [loaded.tokenizer(prompt).input_ids for prompt in prompts]
    length = Counter(map(len, ids)).most_common(1)[0][0]
    return torch.tensor([one for one in ids if len(one) == length][:count])


def measure(loaded: LoadedModel, update: Mapping[str, Tensor], layer: int, ids: Tensor) -> list[dict[str, Any]]:
    """Return what each tensor leaves of each matrix's shift in one block.

    Args:
        loaded: The model.
        update: Change per parameter name.
        layer: The block.
        ids: Texts ``(text token)``; those of even number are fitted on.

    Returns:
        One row per matrix.
    """
    shifts, reads = shifts_and_reads(loaded, update, layer, ids)
    stream = reads["block"].norm(dim=-1)
    usual = stream <= OUTLIER * stream.median()
    fitted = (torch.arange(len(ids)) % 2 == 0)[:, None].expand_as(usual)[usual]
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
        task: What is learned.
        layers: The blocks.
        texts: More texts to measure on, by name ``(text token)``.
        given: ``steps``, ``batch_size``, ``prompts``, ``rates`` by method, ``seed``.

    Returns:
        What ``trained_reach.json`` holds.

    Raises:
        InputError: No such layer.
    """
    blocks = len(loaded.site_map.blocks)
    if wrong := [layer for layer in layers if not 0 <= layer < blocks]:
        raise InputError(f"the model has blocks 0 to {blocks - 1}; got {wrong[0]}. Name some of those.")
    schedule = Schedule(steps=given["steps"], batch_size=given["batch_size"])
    data = SplitData(loaded, splits_of_task(get_task(task)), schedule, 16, 256)
    data.check([given["seed"]])
    domains = {task: prompts_of(loaded, data, given["prompts"]), **texts}
    found: dict[str, Any] = {
        "model": loaded.identity.as_dict(), "task": task, "steps": schedule.steps, "batch_size": schedule.batch_size,
        "seed": given["seed"], "texts": {name: list(ids.shape) for name, ids in domains.items()}, "trained": {},
        "rows": [], "versions": package_versions(),
    }  # fmt: skip
    for method, rate in given["rates"].items():
        update, outcome = trained_update(loaded, data, method, rate, given["seed"])
        size = relative_size(loaded, update)
        found["trained"][method] = {"learning_rate": rate, "relative_size": size, **outcome}
        print(
            f"{method}: loss {outcome['loss']:.3f}, accuracy {outcome['accuracy']:.1%}, |dW|/|W| {size:.2e}", flush=True
        )
        for layer in layers:
            for domain, ids in domains.items():
                rows = measure(loaded, update, layer, ids)
                found["rows"] += [{"method": method, "layer": layer, "texts": domain, **row} for row in rows]
                whole = rows[0]
                parts = ", ".join(f"{name} {whole[name]:.1%}" for name in READS)
                print(f"  block {layer}, {domain}: left of {whole['matrix']}: {parts}", flush=True)
    return found


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", default="recall")
    parser.add_argument("--layers", default="2,6,10,14,18,22,26")
    parser.add_argument("--text", type=Path, help="a file with one text per line")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each text")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--prompts", type=int, default=768)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--sft-rate", type=float, default=1e-4)
    parser.add_argument("--lora-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    def work() -> None:
        loaded = load_model(asked.model)
        texts = {} if asked.text is None else {"text": texts_of(loaded, asked.text, asked.tokens, asked.texts)}
        found = run(
            loaded, asked.task, [int(part) for part in asked.layers.split(",")], texts, steps=asked.steps,
            batch_size=asked.batch_size, prompts=asked.prompts, seed=asked.seed,
            rates={"sft": asked.sft_rate, "lora": asked.lora_rate},
        )  # fmt: skip
        write_text(asked.out, json.dumps(found, indent=1, allow_nan=False) + "\n")

    return exit_code_of("study", work)


def _output(value: Any) -> Tensor:
    found = value[0] if isinstance(value, tuple) else value
    assert isinstance(found, Tensor)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
