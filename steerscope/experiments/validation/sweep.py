"""Train at every chosen site, for every seed, with a learning rate chosen per site; every run kept as it ends.

The learning rate is chosen with the first seed, on selection examples, and kept for the other seeds. Test
examples are judged with the chosen rate only. Work goes seed by seed and up the layers, so that the stream below
is computed once per seed; the order changes no result, and what a store already has is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from steerscope.analysis.capture import read_scales
from steerscope.analysis.encoding import encode_for
from steerscope.analysis.examples import Example
from steerscope.experiments.validation.data import DataSplits, fingerprint
from steerscope.experiments.validation.learning_rates import Choice, choose
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.validation.prefix import PrefixCache
from steerscope.experiments.validation.store import RunStore
from steerscope.experiments.validation.training import (
    Judged,
    Trained,
    WeightMethod,
    judge_edits,
    train_edits,
    train_weights,
)
from steerscope.models.lengths import require_one_side
from steerscope.models.load import LoadedModel
from steerscope.sites import Site, SiteKind, parse_site

# Where the search for a learning rate starts, as places on the grid of half decades: 0.01 for edits, whose reads have
# unit scale, 1e-3 for LoRA, 1e-4 for full fine-tuning.
START = {"edit": -4, "lora": -6, "full": -8}
JUDGE_BATCH = 32

# Called with what is being done, runs done and runs in all (an estimate: searches for a rate vary in length).
SweepProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Method:
    """What is trained: edits at sites (one, or a set together), or weights (``full`` or ``lora``)."""

    sites: tuple[Site, ...] = ()
    weights: str = ""

    @property
    def name(self) -> str:
        """``12.resid_post``, ``3.mlp_out+9.resid_post``, ``lora`` or ``full``."""
        return self.weights or "+".join(str(site) for site in self.sites)

    @classmethod
    def named(cls, name: str) -> Method:
        """Return the method of a name."""
        return cls(weights=name) if name in ("full", "lora") else cls(tuple(parse_site(n) for n in name.split("+")))


@dataclass(frozen=True)
class Outcome:
    """What training at one site (or by one method) came to.

    Attributes:
        method: Its name.
        learning_rate: The chosen rate; ``interior`` whether both neighbours on the grid were worse.
        tried: Selection loss by learning rate.
        losses: Test loss per seed, in nats; infinite where the run diverged.
        accuracies: Test accuracy per seed.
        seconds: Training time of every run, searches included.
    """

    method: str
    learning_rate: float
    interior: bool
    tried: dict[str, float]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-able values; an infinite loss is written as ``None``."""
        found = asdict(self)
        found["losses"] = [v if math.isfinite(v) else None for v in self.losses]
        found["tried"] = {k: v if math.isfinite(v) else None for k, v in self.tried.items()}
        return found


@dataclass
class Sweep:
    """All training of one validation."""

    loaded: LoadedModel
    splits: DataSplits
    options: ValidateOptions
    store: RunStore
    progress: SweepProgress | None = None
    _train: dict[int, PrefixCache] = field(default_factory=dict)
    _held: dict[str, PrefixCache] = field(default_factory=dict)
    _examples: dict[str, list[Example]] = field(default_factory=dict)
    _scales: dict[Site, float] = field(default_factory=dict)
    _near: dict[SiteKind | str, int] = field(default_factory=dict)
    _done: int = 0
    _total: int = 0

    def check(self) -> None:
        """Refuse, before anything is computed, examples that the model cannot read or that cannot share batches.

        Raises:
            InputError: There are such.
        """
        for part in ("selection", "test"):
            self._held_out(part)
        for index in range(self.options.seeds):
            self._train_data(self.options.seed + index)
        self._train.clear()

    def before(self) -> Judged:
        """Return the untrained model's loss and accuracy on the test examples.

        Raises:
            InputError: There, or on the selection examples, it has a loss that is NaN or infinite: it would be taken
                for that of trainings that diverged.
        """
        found = {}
        for part in ("selection", "test"):
            held = self._held_out(part)
            held.move_to(0)
            found[part] = judge_edits(self.loaded, {}, {}, held, JUDGE_BATCH)
        return found["test"]

    def run(self, methods: Sequence[Method], seeds: int | None = None) -> list[Outcome]:
        """Train every method with every seed (or the first ``seeds``); return outcomes in the order of ``methods``."""
        seeds = seeds or self.options.seeds
        order = sorted(methods, key=lambda m: min((s.layer for s in m.sites), default=-1))
        self._done, self._total = 0, len(order) * (3 + seeds - 1)
        choices: dict[str, Choice] = {}
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for index in range(seeds):
            seed = self.options.seed + index
            for method in order:
                if index == 0:
                    choices[method.name] = self._choose(method, seed)
                rate = choices[method.name].learning_rate
                found[method.name, seed] = self._tested(method, rate, seed)
            self._train.clear()
        return [self._outcome(m, choices[m.name], found, seeds) for m in methods]

    def _outcome(
        self, method: Method, choice: Choice, found: Mapping[tuple[str, int], dict[str, Any]], num_seeds: int
    ) -> Outcome:
        seeds = [self.options.seed + index for index in range(num_seeds)]
        judged = [found[method.name, seed] for seed in seeds]
        runs = [self.store.get(self._config(method, rate, seeds[0])) for rate in choice.tried]
        runs += [self.store.get(self._config(method, choice.learning_rate, seed)) for seed in seeds[1:]]
        return Outcome(
            method=method.name,
            learning_rate=choice.learning_rate,
            interior=choice.interior,
            tried={f"{rate:g}": loss for rate, loss in choice.tried.items()},
            losses=tuple(float(j["loss"]) for j in judged),
            accuracies=tuple(float(j["accuracy"]) for j in judged),
            seconds=sum(float(run["seconds"]) for run in runs if run is not None),
        )

    def _choose(self, method: Method, seed: int) -> Choice:
        kind = method.sites[0].kind if len(method.sites) == 1 else method.weights or "set"
        start = self._near.get(kind, START[method.weights or "edit"])
        runs = 0

        def loss_at(rate: float) -> float:
            nonlocal runs
            runs += 1
            self._tell(f"{method.name}, learning rate {rate:g}", 1 if runs <= 3 else 0)
            return float(self._trained(method, rate, seed)["selection_loss"])

        choice = choose(loss_at, start)
        # The next site of this kind most likely wants the same rate: one that starts there needs fewest runs.
        self._near[kind] = round(2 * math.log10(choice.learning_rate))
        return choice

    def _trained(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        """Return the record of a training run, from the store or made now."""
        config = self._config(method, rate, seed)
        known = self.store.get(config)
        if known is not None:
            return known
        data = self._train_data(seed)
        if method.weights:
            way = WeightMethod(method.weights)
            done, judge = train_weights(self.loaded, way, data, self.options.training, learning_rate=rate, seed=seed)
            judged = judge(self._held_out("selection"), JUDGE_BATCH)
            # Weights are not kept (hundreds of megabytes a run): the test examples are judged at once.
            tested = judge(self._held_out("test"), JUDGE_BATCH)
            self.store.put(self._judge_config(method, rate, seed), _record_of(tested, done), {})
        else:
            scales = self._scales_of(method.sites)
            done = train_edits(
                self.loaded, method.sites, scales, data, self.options.training, learning_rate=rate, seed=seed
            )
            judged = judge_edits(self.loaded, done.weights, scales, self._held_out("selection"), JUDGE_BATCH)
        record = {
            "selection_loss": _outcome(judged, done.diverged),
            "selection_accuracy": judged.accuracy,
            "diverged": done.diverged,
            "train_losses": [round(v, 5) if math.isfinite(v) else None for v in done.train_losses],
            "seconds": done.seconds,
        }
        self.store.put(config, record, done.weights)
        return record

    def _tested(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        """Return loss and accuracy on the test examples of a run, training it first if need be."""
        config = self._judge_config(method, rate, seed)
        known = self.store.get(config)
        if known is not None:
            return known
        self._tell(f"{method.name}, seed {seed}", int(seed != self.options.seed))
        run = self._trained(method, rate, seed)
        known = self.store.get(config)  # training weights has just judged them
        if known is not None:
            return known
        weights = self.store.weights(self._config(method, rate, seed))
        judged = judge_edits(self.loaded, weights, self._scales_of(method.sites), self._held_out("test"), JUDGE_BATCH)
        record = {"loss": _outcome(judged, run["diverged"]), "accuracy": judged.accuracy}
        self.store.put(config, record, {})
        return record

    # --- data, kept while it is used ---

    def _train_data(self, seed: int) -> PrefixCache:
        if seed not in self._train:
            data = self._cache(self.train_examples(seed))
            if self.options.batch_size > 1:
                lengths = [len(sequence.ids) for sequence in data.encoded.sequences]
                advice = "Give examples on one side of it, or [[batch_size]] 1."
                require_one_side(lengths, data.encoded.switch, "training examples", advice)
            self._train[seed] = data
        return self._train[seed]

    def train_examples(self, seed: int) -> list[Example]:
        """Return the training examples of one seed, in their order."""
        key = f"train {seed}"
        if key not in self._examples:
            wanted = self.options.steps * self.options.batch_size
            self._examples[key] = self.splits.train(wanted, seed)
        return self._examples[key]

    def _held_examples(self, part: str) -> list[Example]:
        if part not in self._examples:
            draw = self.splits.selection if part == "selection" else self.splits.test
            wanted = self.options.num_selection if part == "selection" else self.options.num_test
            self._examples[part] = draw(wanted)
        return self._examples[part]

    def _held_out(self, part: str) -> PrefixCache:
        if part not in self._held:
            self._held[part] = self._cache(self._held_examples(part))
        return self._held[part]

    def _cache(self, examples: list[Example]) -> PrefixCache:
        return PrefixCache(self.loaded, encode_for(self.loaded, examples))

    def _scales_of(self, sites: Sequence[Site]) -> dict[Site, float]:
        if not self._scales:
            # The first seed's examples, whatever seed is trained: an edit means the same for all of them.
            encoded = encode_for(self.loaded, self.train_examples(self.options.seed)[:64])
            found = read_scales(self.loaded, encoded, batch_size=JUDGE_BATCH, max_examples=64)
            self._scales = {site: _root_mean_square(scale) for site, scale in found.items()}
        return {site: self._scales[site] for site in sites}

    # --- names of runs ---

    def _config(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        return {
            **model_of(self.loaded),
            "dtype": self.loaded.identity.dtype,
            "train": fingerprint(self.train_examples(seed)),
            "selection": fingerprint(self._held_examples("selection")),
            "scales_from": fingerprint(self.train_examples(self.options.seed)[:64]),
            "method": method.name,
            "learning_rate": rate,
            "seed": seed,
            **asdict(self.options.training),
        }

    def _judge_config(self, method: Method, rate: float, seed: int) -> dict[str, Any]:
        return {**self._config(method, rate, seed), "test": fingerprint(self._held_examples("test"))}

    def _tell(self, what: str, step: int) -> None:
        self._done = min(self._done + step, self._total)
        if self.progress is not None:
            self.progress(what, self._done, self._total)


def model_of(loaded: LoadedModel) -> dict[str, str]:
    """Return the model by content; what only a folder has is left out where there is none, as in earlier stores."""
    setup = loaded.identity.setup
    return {"model": loaded.identity.sha256} | ({"setup": setup} if setup else {})


def _record_of(judged: Judged, done: Trained) -> dict[str, Any]:
    return {"loss": _outcome(judged, done.diverged), "accuracy": judged.accuracy}


def _outcome(judged: Judged, diverged: bool) -> float:
    """Return the loss of a training, infinite where it diverged; the untrained model had one (:meth:`Sweep.before`)."""
    return judged.loss if math.isfinite(judged.loss) and not diverged else math.inf


def _root_mean_square(scale: Tensor) -> float:
    return float(scale.pow(2).mean().sqrt())
