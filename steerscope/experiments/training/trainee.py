"""A model made ready to train by one method, and given back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.experiments.training.methods import Trains
from steerscope.experiments.training.options import TrainOptions
from steerscope.finite import NotFiniteError
from steerscope.installed import require
from steerscope.models.blocks import is_transposed
from steerscope.models.hooks import reading
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import device_of
from steerscope.models.site_map import find_sites
from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model
from steerscope.steering.beneath import write_peft
from steerscope.steering.config import DEFAULT_RANK
from steerscope.steering.families.low_rank import NonlinearAdapter, start_slope
from steerscope.steering.joint import JointCallback, JointConstraint
from steerscope.steering.lofit import SparseScales
from steerscope.steering.model import steered_by
from steerscope.steering.weights import WeightModel

# Of a training batch: what start slopes, and the interaction of joint training at every log, are measured on.
_MEASURED_ROWS = 4


@dataclass(frozen=True)
class Trainee:
    """A model ready to train.

    Attributes:
        model: What is trained.
        restore: Takes the method off again; the base model is then as it was.
        joint: What keeps a LoRA and edits apart and measures how they lie to each other, if it is both.
        penalty: What keeps LoFiT's scales sparse, if it is these.
        notes: What a user should know, a sentence each.
        write: Writes what was trained to a folder, where ``model.save_pretrained`` alone would not do.
        measured: What was measured along the training, to be kept with its results.
    """

    model: Any
    restore: Callable[[], object]
    joint: JointCallback | None = None
    penalty: SparseScales | None = None
    notes: tuple[str, ...] = ()
    write: Callable[[Path], object] | None = None
    measured: Callable[[], dict[str, Any]] = dict

    @property
    def device(self) -> torch.device:
        """Where it is trained."""
        return device_of(self.model)

    @property
    def parameters(self) -> tuple[int, int]:
        """How many numbers are trained, and how many there are."""
        trained, total = self.model.get_nb_trainable_parameters()
        return int(trained), int(total)

    def save(self, folder: Path, known: Mapping[str, object]) -> None:
        """Write the adapter or the changed weights.

        Args:
            folder: Where.
            known: What a model card says beside what the adapter itself tells.
        """
        if self.write is not None:
            self.write(folder)
        elif isinstance(self.model, SteeringModel):
            self.model.save_pretrained(folder, measured=known)
        else:
            self.model.save_pretrained(str(folder))

    @property
    def is_finite(self) -> bool:
        """Whether every trained number is."""
        return all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad)

    def require_finite(self, learning_rate: float) -> None:
        """Refuse what no number can come of.

        Raises:
            NotFiniteError: A trained number is NaN or infinite.
        """
        if not self.is_finite:
            raise NotFiniteError(
                f"training diverged with learning rate {learning_rate:g}: parameters are NaN or infinite. Give a "
                "smaller [[learning_rate]], or 'auto'."
            )


def build(
    loaded: LoadedModel,
    options: TrainOptions,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    sites: tuple[str, ...] | None = None,
    family: str | None = None,
) -> Trainee:
    """Make a model ready to train.

    Args:
        loaded: The model, frozen.
        options: The method and its settings.
        batches: What the scale of edits is measured on, if they have one.
        sites: Other sites than the options name (the heads that LoFiT chose).
        family: Another family than the method's (that of LoFiT's first stage).

    Returns:
        The model with trainable parameters, and how to save and remove them.

    Raises:
        InputError: The model lacks a site, or the method trains nothing.
    """
    match options.of.trains:
        case Trains.EDITS | Trains.LOFIT:
            config = options.steering_config(sites, family)
            return _edits(loaded, config, batches, options.true_sparsity)
        case Trains.LORA:
            model = lora(loaded, options.rank or DEFAULT_RANK, options.seed)

            def write(folder: Path) -> None:
                write_peft(model, folder, "default", loaded.identity.name)

            return Trainee(model, model.unload, write=write)
        case Trains.JOINT:
            return _joint(loaded, options, batches)
        case Trains.WEIGHTS:
            return _weights(loaded, options.method)
        case _:
            raise InputError(f"method {options.method!r} trains nothing.")


def lora(loaded: LoadedModel, rank: int, seed: int) -> Any:
    """Put a LoRA of all linear maps of the blocks on a model, float32, with ``alpha`` equal to the rank.

    Args:
        loaded: The model.
        rank: Rank of every pair of factors.
        seed: Of the random factor; PyTorch's global generator is seeded with it.

    Returns:
        The model as PEFT wraps it.
    """
    require("train", "a LoRA")
    from peft import LoraConfig, get_peft_model  # slow to load

    maps = set(loaded.site_map.linear_maps().values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=[name for name, module in loaded.model.named_modules() if module in maps],
        fan_in_fan_out=any(map(is_transposed, maps)),
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)  # PEFT draws from the global generator
    return get_peft_model(loaded.model, config)


def _edits(
    loaded: LoadedModel, config: SteeringConfig, batches: Iterable[Mapping[str, Tensor]], sparsity: float
) -> Trainee:
    model = get_steering_model(loaded, config)
    to_scale, to_measure_on = tee(batches)
    if config.scale == "rms":
        model.measure_scales(to_scale)
    penalty = SparseScales(model, sparsity) if config.family == "lofit_scale" else None
    slopes = _start_slopes(model, to_measure_on) if config.family == "nonlinear" else {}
    measured = {"start_slopes": slopes} if slopes else {}
    return Trainee(model, model.unload, penalty=penalty, measured=lambda: measured)


@torch.no_grad()
def _start_slopes(model: SteeringModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """Return, per site of nonlinear edits, the slope and the linear part with which training starts, on real tokens.

    Returns:
        ``[slope, linear part]`` by site; nothing where no batch was given.
    """
    batch = next(iter(batches), None)
    if batch is None:
        return {}
    inputs = {name: value[:_MEASURED_ROWS] for name, value in batch.items()}
    real = inputs["attention_mask"] != 0
    found = {}
    with model.disable_adapter(keep_lora=True), reading(model.site_map, model.sites) as seen:
        model(**inputs, use_cache=False)
    for site in model.sites:
        edit = model.edit_at(site)
        assert isinstance(edit, NonlinearAdapter)
        slope = start_slope(str(model.steering_config.activation), edit.inside(seen[site][real].to(edit.D.dtype)))
        found[str(site)] = [slope.slope, slope.linear_share]
    return found


def _joint(loaded: LoadedModel, options: TrainOptions, batches: Iterable[Mapping[str, Tensor]]) -> Trainee:
    wrapped = lora(loaded, options.rank or DEFAULT_RANK, options.seed)
    given, to_measure_on = tee(batches)
    try:
        beneath = replace(loaded, model=wrapped, site_map=find_sites(wrapped, loaded.site_map.description))
        steered = _edits(beneath, options.steering_config(), given, 0.0)
        constraint = JointConstraint(steered.model, options.constraint or "none")
    except InputError:
        if (owner := steered_by(wrapped)) is not None:
            owner.unload()
        wrapped.unload()
        raise
    batch = next(to_measure_on, None)
    if batch is not None:
        batch = {name: value[:_MEASURED_ROWS] for name, value in batch.items()}
    callback = constraint.callback(batch)

    def restore() -> nn.Module:
        steered.model.unload()
        found: nn.Module = wrapped.unload()
        return found

    def measured() -> dict[str, Any]:
        by_site = [asdict(one) for one in constraint.overlaps()] if trainee.is_finite else []
        return {"joint": callback.history, "joint_at_the_end": by_site}

    trainee = Trainee(steered.model, restore, callback, measured=measured)
    return trainee


def _weights(loaded: LoadedModel, method: str) -> Trainee:
    model = WeightModel(loaded, method)
    trained, total = model.get_nb_trainable_parameters()
    notes = []
    if model.added:
        notes.append(
            f"this model has no biases: {len(model.added)} were added to the linear maps of its blocks, {trained:,} "
            "numbers that start at zero"
        )
    if method == "sft":
        size = sum(p.numel() * p.element_size() for p in model.trained().values()) / 1e9
        notes.append(
            f"the changed weights take up to {size:.2g} GB on disk, and every checkpoint {3 * size:.2g} GB "
            f"({trained:,} of {total:,} numbers are trained)"
        )
    return Trainee(model, model.restore, notes=tuple(notes))
