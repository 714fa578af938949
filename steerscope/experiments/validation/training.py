"""One training run: an edit at given sites, LoRA or full fine-tuning, on the same batches with a stock optimizer."""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerscope.analysis.encoding import Batch
from steerscope.analysis.outputs import Probes, batch_outputs, make_probes
from steerscope.equivalence.edits import FAMILIES
from steerscope.experiments.validation.prefix import PrefixCache
from steerscope.models.blocks import is_transposed
from steerscope.models.hooks import edited
from steerscope.models.load import LoadedModel
from steerscope.sites import Site

# Batches of similar length are cut from pools of so many batches: padding would otherwise cost half of the time.
POOL = 8
# A run whose last quarter of steps has more than this multiple of the first quarter's loss has diverged, as has one
# whose loss is infinite or NaN. Single steps say nothing: batches of short and of long prompts differ by as much.
DIVERGED = 2.0

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TrainSettings:
    """How every run is trained; the learning rate is chosen per method, everything else is equal for all.

    Attributes:
        rank: Rank of the linear edits, and of LoRA.
        steps: Optimizer steps.
        batch_size: Examples per step.
        warmup: Part of the steps in which the learning rate rises linearly; it then falls linearly to zero.
    """

    rank: int = 8
    steps: int = 32
    batch_size: int = 16
    warmup: float = 0.1

    def factor(self, step: int) -> float:
        """Return the multiple of the learning rate at ``step`` (from 0)."""
        rising = max(1, round(self.warmup * self.steps))
        return min((step + 1) / rising, (self.steps - step) / max(1, self.steps - rising))


@dataclass(frozen=True)
class Judged:
    """Mean loss in nats and accuracy over some examples, with the loss of every example (``example``)."""

    loss: float
    accuracy: float
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """What a run gives: parameters by name, the loss of every step, and whether it diverged."""

    weights: Weights
    train_losses: tuple[float, ...]
    diverged: bool
    seconds: float


def train_edits(
    loaded: LoadedModel,
    sites: Sequence[Site],
    scales: Mapping[Site, float],
    data: PrefixCache,
    settings: TrainSettings,
    *,
    learning_rate: float,
    seed: int,
) -> Trained:
    """Train one linear edit ``x + U D (x / s)`` per site, together; ``s`` is the root mean square of what it reads.

    ``D`` starts at PyTorch's default for linear maps and ``U`` at zero, so the edit starts as none. The model
    itself stays frozen and as it was.

    Args:
        loaded: The model.
        sites: Where to edit, all trained together.
        scales: Per site ``s``, in the units of what it reads.
        data: Training examples; moved up to the lowest edited block.
        settings: Rank, steps and batches.
        learning_rate: Peak learning rate of AdamW (no weight decay).
        seed: Seed of ``D`` and of the order of examples.

    Cost: ``steps * batch_size`` examples, forward and backward through the blocks from the lowest site up.
    """
    generator = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for site in sites:
        width = loaded.site_map.width(site)
        bound = 1 / math.sqrt(width)
        down = (2 * torch.rand(settings.rank, width, generator=generator) - 1) * bound
        weights[f"{site}.D"] = down.to(loaded.device).requires_grad_()
        weights[f"{site}.U"] = torch.zeros(width, settings.rank, device=loaded.device, requires_grad=True)
    data.move_to(min(site.layer for site in sites))
    probes = _no_probes(data)

    def loss_of(batch: Batch) -> Tensor:
        with data.entered(batch), applied(loaded, weights, scales):
            return -batch_outputs(loaded.model, batch, data.encoded, probes).log_likelihood.mean()

    return _optimise(list(weights.values()), weights, loss_of, data, settings, learning_rate, seed)


def applied(
    loaded: LoadedModel, weights: Mapping[str, Tensor], scales: Mapping[Site, float]
) -> AbstractContextManager[nn.Module]:
    """Run the model with trained edits (the ``weights`` of :func:`train_edits`) inside the context."""
    low_rank = FAMILIES["low_rank"]
    edits = {}
    for name in {name.rpartition(".")[0] for name in weights}:
        site = loaded.site_map.resolve(name)
        own = {"D": weights[f"{name}.D"], "U": weights[f"{name}.U"]}
        edits[site] = lambda read, own=own, scale=scales[site]: low_rank.delta(own, read / scale)
    return edited(loaded.model, loaded.site_map, edits)


def judge_edits(
    loaded: LoadedModel, weights: Mapping[str, Tensor], scales: Mapping[Site, float], data: PrefixCache, batch_size: int
) -> Judged:
    """Return loss and accuracy of the model with trained edits on ``data``; without edits if there are none."""
    sites = [loaded.site_map.resolve(name.rpartition(".")[0]) for name in weights]
    if sites:
        data.move_to(min(site.layer for site in sites))
    context = applied(loaded, weights, scales) if weights else nullcontext()
    return _judge(loaded.model, data, batch_size, context)


@dataclass(frozen=True)
class WeightMethod:
    """A way of training weights: full fine-tuning of the blocks' linear maps, or LoRA of them.

    The model is copied, so the one passed in stays as it was.
    """

    name: str

    def build(self, loaded: LoadedModel, settings: TrainSettings, seed: int) -> tuple[nn.Module, Weights]:
        """Return a copy of the model ready to train, and its trainable parameters by name."""
        model = copy.deepcopy(loaded.model)
        maps = set(loaded.site_map.linear_maps().values())
        names = [name for name, module in loaded.model.named_modules() if module in maps]
        if self.name == "lora":
            from peft import LoraConfig, get_peft_model

            torch.manual_seed(seed)  # PEFT draws from the global generator
            config = LoraConfig(
                r=settings.rank,
                lora_alpha=settings.rank,
                target_modules=names,
                fan_in_fan_out=any(map(is_transposed, maps)),
            )
            model = get_peft_model(model, config)
        else:
            for name in names:
                for parameter in model.get_submodule(name).parameters(recurse=False):
                    if parameter.dim() == 2:
                        parameter.requires_grad_(True)
        trainable: Weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return model.eval(), trainable


def train_weights(
    loaded: LoadedModel,
    method: WeightMethod,
    data: PrefixCache,
    settings: TrainSettings,
    *,
    learning_rate: float,
    seed: int,
) -> tuple[Trained, Callable[[PrefixCache, int], Judged]]:
    """Train weights on the same batches as :func:`train_edits` does; return the run and a judge of the trained model.

    Cost: ``steps * batch_size`` examples through the whole model, and a copy of its weights.
    """
    model, trainable = method.build(loaded, settings, seed)
    data.move_to(0)
    probes = _no_probes(data)

    def loss_of(batch: Batch) -> Tensor:
        return -batch_outputs(model, batch, data.encoded, probes).log_likelihood.mean()

    done = _optimise(list(trainable.values()), {}, loss_of, data, settings, learning_rate, seed)

    def judge(other: PrefixCache, batch_size: int) -> Judged:
        other.move_to(0)
        return _judge(model, other, batch_size, nullcontext())

    return done, judge


def _optimise(
    parameters: list[Tensor],
    keep: Weights,
    loss_of: Callable[[Batch], Tensor],
    data: PrefixCache,
    settings: TrainSettings,
    learning_rate: float,
    seed: int,
) -> Trained:
    started = time.perf_counter()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.factor)
    losses: list[float] = []
    for chosen in training_order(data, settings, seed):
        loss = loss_of(data.batch(chosen))
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            break
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    weights = {name: value.detach().clone() for name, value in keep.items()}
    return Trained(weights, tuple(losses), has_diverged(losses), time.perf_counter() - started)


def has_diverged(losses: Sequence[float]) -> bool:
    """Say whether a run's losses, step by step, ended far above where they began."""
    quarter = max(1, len(losses) // 4)
    first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
    return not math.isfinite(losses[-1]) or last > DIVERGED * max(first, 1.0)


def training_order(data: PrefixCache, settings: TrainSettings, seed: int) -> Iterator[list[int]]:
    """Yield the examples of every step: a seeded order, batches of similar length, as many epochs as it takes.

    The order is the same for every method, site and learning rate of one seed.
    """
    shuffler = random.Random(seed)
    length = {s.example: len(s.ids) for s in data.encoded.sequences}
    size, steps = settings.batch_size, 0
    while steps < settings.steps:
        order = list(range(data.encoded.num_examples))
        shuffler.shuffle(order)
        for start in range(0, len(order), POOL * size):
            pool = sorted(order[start : start + POOL * size], key=length.__getitem__)
            cut = [pool[i : i + size] for i in range(0, len(pool), size)]
            shuffler.shuffle(cut)
            for chosen in cut[: settings.steps - steps]:
                yield chosen
                steps += 1


def _judge(model: nn.Module, data: PrefixCache, batch_size: int, context: AbstractContextManager[object]) -> Judged:
    probes = _no_probes(data)
    length = {s.example: len(s.ids) for s in data.encoded.sequences}
    order = sorted(range(data.encoded.num_examples), key=length.__getitem__)
    losses = torch.zeros(len(order), dtype=torch.float64)
    correct = torch.zeros(len(order), dtype=torch.float64)
    with torch.no_grad(), context:
        for start in range(0, len(order), batch_size):
            batch = data.batch(order[start : start + batch_size])
            with data.entered(batch):
                outputs = batch_outputs(model, batch, data.encoded, probes)
            losses[outputs.examples.cpu()] = -outputs.log_likelihood.double().cpu()
            correct[outputs.examples.cpu()] = outputs.correct.double().cpu()
    return Judged(float(losses.mean()), float(correct.mean()), tuple(round(v, 6) for v in losses.tolist()))


def _no_probes(data: PrefixCache) -> Probes:
    """Outputs are asked for their loss alone; one probe is the least that can be asked for."""
    vocab = data.loaded.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return make_probes(data.encoded, 1, int(vocab), 0, torch.float32)
