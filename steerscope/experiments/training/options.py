"""What a training run can be told, and everything about it that can be refused before a model is loaded."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from steerscope.errors import InputError, did_you_mean
from steerscope.experiments.engine.rate_grid import rate
from steerscope.experiments.engine.spec import RunSpec, Schedule
from steerscope.experiments.training.methods import Method, Trains, get_method, method_name
from steerscope.installed import require
from steerscope.option_types import LOADING, LoadingOptions, plain_fields, require_least, require_seed
from steerscope.steering.config import DEFAULT_RANK, SCALES, STARTS, SteeringConfig
from steerscope.steering.families.low_rank import ACTIVATIONS
from steerscope.steering.joint import CONSTRAINTS

DTYPES = ("float32", "bfloat16", "float64")
DEFAULT_SPARSITY = 1e-3
# Of LoFiT's first stage, whose scales only choose heads; its authors' (Yin et al. 2024, TruthfulQA).
SCALES_RATE = 5e-3
# What a run is called and where it computes, not what comes out: left out of its settings.
_NOT_SETTINGS = ("task", "method", "sites", "rank", "seed", "model", *LOADING)
_ALSO_NOT = ("keep_checkpoints", "save_every", "learning_rate_of", "before")


@dataclass(frozen=True)
class TrainOptions(LoadingOptions):
    """Options of a training run; the defaults train rank 8 for 120 steps of 32 examples.

    What is trained is float32 whatever the model's ``dtype`` (float64 in a float64 model).

    Attributes:
        task: Name of the task; :func:`~steerscope.experiments.commands.train` fills in that of the one it is given.
        method: One of :data:`~steerscope.experiments.training.methods.METHODS`.
        model: Which model to load.
        sites: Names of sites or kinds; empty for all layers of the method's kind.
        rank: Rank of edits and LoRA; 8 unless given, none for methods without one.
        positions: Which tokens are edited; see :class:`~steerscope.steering.config.SteeringConfig`.
        bias: Whether linear and nonlinear edits add a vector; they do unless told otherwise.
        scale: ``rms`` divides what edits read by its root mean square.
        activation: Of ``nonlinear``.
        constraint: Of ``joint``.
        heads: Heads that LoFiT keeps; a tenth of all unless given.
        sparsity: Strength of LoFiT's penalty in its first stage; 1e-3 unless given.
        start: ``no-op``, or ``published``: edits start as their authors start them.
        steps: Optimizer steps (LoFiT: of each stage).
        batch_size: Examples per step.
        learning_rate: A value, ``auto`` for a search, or ``None`` for the method's own.
        learning_rate_of: Folder of a finished run that differs in the seed alone, whose search is taken over.
        tries: Most runs of a search.
        lr_steps: Steps of a search's runs; ``steps`` unless given.
        warmup: Part of the steps in which the learning rate rises; it then falls linearly to zero.
        seed: Of training data, order and start.
        train_examples: Training examples; as many as the steps need unless given.
        validation_examples: Examples that a search chooses on; all if there are fewer.
        test_examples: Most test questions; all unless given.
        max_length: Longest training example in tokens; the model's context unless given.
        max_new_tokens: Longest generation; the task's own limit unless given.
        eval_batch_size: Prompts per batch in evaluation.
        likelihoods: Whether the test also compares likelihoods of choices, and computes the loss.
        before: Whether the untrained model is asked the test questions too, so that the result says what was gained;
            an evaluation of it that a folder beside the run's keeps is taken over.
        save_every: Steps between checkpoints; a quarter of the run unless given.
        keep_checkpoints: Whether they stay when the run is complete.
    """

    task: str = ""
    method: str = "post-block"
    model: str = "smollm2-135m"
    sites: tuple[str, ...] = ()
    rank: int | None = None
    positions: str = "all"
    bias: bool | None = None
    scale: str = "none"
    activation: str | None = None
    constraint: str | None = None
    heads: int | None = None
    sparsity: float | None = None
    start: str = "no-op"
    steps: int = 120
    batch_size: int = 32
    learning_rate: float | str | None = None
    learning_rate_of: str | None = None
    tries: int = 7
    lr_steps: int | None = None
    warmup: float = 0.1
    seed: int = 0
    train_examples: int | None = None
    validation_examples: int = 256
    test_examples: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    eval_batch_size: int = 16
    likelihoods: bool = True
    before: bool = True
    save_every: int | None = None
    keep_checkpoints: bool = False

    def __post_init__(self) -> None:
        plain_fields(self, activation=ACTIVATIONS, constraint=CONSTRAINTS, start=STARTS, scale=SCALES)
        object.__setattr__(self, "method", method_name(self.method))

    @property
    def of(self) -> Method:
        """The method."""
        return get_method(self.method)

    @property
    def searches(self) -> bool:
        """Whether the learning rate is searched for, by this run or by the one it takes it from."""
        return self.learning_rate == "auto" and self.of.trains is not Trains.NOTHING

    @property
    def fixed_rate(self) -> float:
        """The learning rate of a run that does not search."""
        return rate(self.of.start) if self.learning_rate is None else float(self.learning_rate)

    @property
    def adapter_dtype(self) -> str:
        """Data type of what is trained beside the model."""
        return "float64" if self.dtype == "float64" else "float32"

    def check(self) -> None:
        """Refuse what cannot work, before anything is loaded.

        Raises:
            InputError: An unknown name, a number out of range, an option that the method does not have, or the extra
                ``train`` is not installed.
        """
        method = self.of
        if method.trains is not Trains.NOTHING:
            require("train", f"training by method {method.name!r}")
        self._check_numbers()
        self.schedule()
        self.spec(1.0 if self.learning_rate == "auto" else self.fixed_rate)
        if self.dtype not in DTYPES:
            hint = did_you_mean(self.dtype, list(DTYPES))
            raise InputError(f"[[dtype]] is {self.dtype!r}; training runs in {', '.join(DTYPES)}.{hint}")
        if self.dtype == "bfloat16" and method.trains is Trains.WEIGHTS:
            raise InputError(
                f"method {method.name!r} changes the model's own weights, whose small updates bfloat16 cannot hold. "
                "Use [[dtype='float32']], or a method with parameters of its own."
            )
        if not method.edits:
            for name, value in (("sites", self.sites or None), ("bias", self.bias), ("activation", self.activation)):
                if value is not None:
                    raise InputError(f"method {method.name!r} edits no site; leave out [[{name}]].")
            if self.positions != "all" or self.scale != "none" or self.start != "no-op":
                raise InputError(
                    f"method {method.name!r} edits no site; leave out [[positions]], [[scale]] and [[start]]."
                )
        if self.rank is not None and method.trains in (Trains.NOTHING, Trains.WEIGHTS):
            raise InputError(f"method {method.name!r} has no rank; leave out [[rank]].")
        if self.constraint is not None:
            if method.trains is not Trains.JOINT:
                raise InputError(f"method {method.name!r} has no constraint; use [[method='joint']].")
            if self.constraint not in CONSTRAINTS:
                hint = did_you_mean(self.constraint, list(CONSTRAINTS))
                raise InputError(f"unknown constraint {self.constraint!r}.{hint} Valid: {', '.join(CONSTRAINTS)}.")
        for name in ("heads", "sparsity"):
            if getattr(self, name) is not None and method.trains is not Trains.LOFIT:
                raise InputError(
                    f"method {method.name!r} chooses no heads; leave out [[{name}]], or use [[method='lofit']]."
                )
        if self.lr_steps is not None and not self.searches and method.trains is not Trains.NOTHING:
            raise InputError("[[lr_steps]] is of the search for a learning rate; add [[learning_rate='auto']].")
        if self.learning_rate_of is not None and not self.searches:
            raise InputError(
                "[[learning_rate_of]] takes over a search for a learning rate; add [[learning_rate='auto']], or "
                "leave it out."
            )

    def _check_numbers(self) -> None:
        least = ("rank", "heads", "tries", "lr_steps", "train_examples", "validation_examples")
        more = ("test_examples", "max_length", "max_new_tokens", "eval_batch_size", "save_every")
        require_least(self, **dict.fromkeys((*least, *more), 1))
        if self.searches and self.tries < 3:
            raise InputError(f"[[tries]] is {self.tries}; expected at least 3: a winner and its two neighbours.")
        if isinstance(self.learning_rate, str) and self.learning_rate != "auto":
            raise InputError(f"[[learning_rate]] is {self.learning_rate!r}; expected a number or 'auto'.")
        if self.sparsity is not None and not (0 <= self.sparsity < math.inf):
            raise InputError(f"[[sparsity]] is {self.sparsity}; expected a number of at least 0.")
        require_seed(self.seed)

    def steering_config(self, sites: tuple[str, ...] | None = None, family: str | None = None) -> SteeringConfig:
        """Return the configuration of the method's edits.

        Args:
            sites: Other sites than the options say (the heads that LoFiT chose).
            family: Another family than the method's (that of LoFiT's first stage).

        Returns:
            A configuration with the rank, scale and start that the options name.

        Raises:
            InputError: The method has none, or the options do not fit its family.
        """
        method = self.of
        if method.kind is None or method.family is None:
            raise InputError(f"method {method.name!r} edits no site.")
        return SteeringConfig(
            sites=sites or self.sites or (str(method.kind),),
            family=family or method.family,
            rank=self.rank,
            positions=self.positions,
            activation=self.activation,
            bias=self.bias,
            scale=self.scale,
            start=self.start,
            dtype=self.adapter_dtype,
            seed=self.seed,
        )

    def schedule(self, steps: int | None = None) -> Schedule:
        """Return how a training of this run, or of its search with other steps, goes.

        Raises:
            InputError: A number is out of range.
        """
        return Schedule(self.steps if steps is None else steps, self.batch_size, self.warmup)

    def spec(self, learning_rate: float) -> RunSpec:
        """Return what the engine trains at a learning rate.

        Raises:
            InputError: The options do not fit the method's family, or the rate is none.
        """
        return RunSpec(self.steering_config() if self.of.edits else None, learning_rate, self.seed)

    @property
    def true_sparsity(self) -> float:
        """The strength of LoFiT's penalty that is used."""
        return DEFAULT_SPARSITY if self.sparsity is None else self.sparsity

    @property
    def true_rank(self) -> int | None:
        """The rank that is used, where there is one."""
        if self.of.edits:
            return self.steering_config().rank
        return (self.rank or DEFAULT_RANK) if self.of.trains is Trains.LORA else None

    def settings(self) -> dict[str, Any]:
        """Return what decides the outcome beside task, method, sites, rank, seed and model, as JSON has it."""
        own = asdict(self)
        for name in (*_NOT_SETTINGS, *_ALSO_NOT):
            del own[name]
        if self.of.trains is Trains.NOTHING:
            return {name: own[name] for name in ("test_examples", "max_new_tokens", "eval_batch_size", "likelihoods")}
        own["learning_rate"] = "auto" if self.searches else self.fixed_rate
        if not self.searches:
            for name in ("tries", "lr_steps", "validation_examples"):
                del own[name]
        if self.of.trains is Trains.LOFIT:
            own["sparsity"] = self.true_sparsity
        else:
            del own["heads"], own["sparsity"]
        if self.of.trains is Trains.JOINT:
            own["constraint"] = self.constraint or "none"
        else:
            del own["constraint"]
        if self.of.edits:
            config = self.steering_config()
            own |= {"family": config.family, "bias": config.bias, "activation": config.activation}
        else:
            for name in ("positions", "bias", "scale", "activation"):
                del own[name]
        if self.start == "no-op":
            del own["start"]  # settings of earlier runs have none
        return own
