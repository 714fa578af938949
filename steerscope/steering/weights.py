"""Training a model's own weights: all of them, or its biases; and a folder with what changed.

The folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` like an adapter's: the new values of every
tensor that differs from the base model, which is named with a fingerprint. After full fine-tuning this is nearly the
whole model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys

from steerscope.errors import InputError
from steerscope.files import read_object, written_aside
from steerscope.folders import WEIGHTS_FORMAT, Kind, require_folder_for
from steerscope.installed import own_version
from steerscope.models.blocks import linear_weight
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.packed import require_plain_weights
from steerscope.steering.identity import BaseIdentity, identify, require_same
from steerscope.steering.saving import CONFIG_NAME, WEIGHTS_NAME, require_tensors

FORMAT, VERSION = WEIGHTS_FORMAT, 2
_FIELDS = {"format", "format_version", "steerscope_version", "method", "base_model", "added", "changed", "numbers"}


class WeightModel(nn.Module):
    """A model whose own weights are trained, with a ``state_dict`` of these alone, so that checkpoints hold no more.

    Args:
        loaded: The model; it is changed in place until :meth:`restore`.
        method: ``sft``, all parameters, or ``bitfit``, all biases. A model without any gets zero biases at the linear
            maps of its blocks, which leave its logits as they are.

    Attributes:
        base_model: The model.
        added: Names of the biases that were added.

    Cost: a copy of what is trained, and reads every weight once.
    """

    # Asked for by transformers' Trainer when keys are missing from a checkpoint.
    _keys_to_ignore_on_save: list[str] | None = None

    def __init__(self, loaded: LoadedModel, method: str) -> None:
        super().__init__()
        require_weights_in_memory(loaded.model, f"training the model's own weights ([[method]] {method!r})")
        require_plain_weights(loaded.model, f"training the model's own weights ([[method]] {method!r})")
        self.base_model, self.method = loaded.model, method
        self._identity = identify(loaded.model, loaded.site_map, loaded)
        names = [name for name, _ in loaded.model.named_parameters() if method == "sft" or _is_bias(name)]
        self.added: tuple[str, ...] = ()
        if not names:
            self.added = _linear_biases(loaded)
            add_biases(loaded.model, self.added)
            names = list(self.added)
        self._trained = tuple(names)
        own = dict(loaded.model.named_parameters())
        self._before = {name: own[name].detach().clone() for name in names}
        for name in names:
            own[name].requires_grad_(True)

    def forward(self, **given: Any) -> Any:
        """Run the model."""
        return self.base_model(**given)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters by the names they have in the model."""
        own = dict(self.base_model.named_parameters())
        return {name: own[name] for name in self._trained}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return how many numbers are trained, and how many there are."""
        return sum(p.numel() for p in self.trained().values()), sum(p.numel() for p in self.base_model.parameters())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return what training changes, each tied tensor once.

        Args:
            args: As those of ``nn.Module.state_dict``.
            kwargs: Likewise; ``prefix`` stands before every name.

        Returns:
            Tensors by parameter name.
        """
        prefix = str(kwargs.get("prefix", args[1] if len(args) > 1 else ""))
        return {f"{prefix}{name}": parameter.detach() for name, parameter in self.trained().items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what :meth:`state_dict` returned; strict whatever ``strict`` says.

        Args:
            state_dict: Tensors by parameter name.
            strict: Taken for the interface of ``nn.Module``; has no effect.
            assign: Taken for the same reason; values are copied.

        Returns:
            Empty lists of missing and unexpected names, as ``nn.Module`` returns them.

        Raises:
            InputError: Tensors are missing, unknown or of another shape.
        """
        require_tensors(dict(state_dict), self.state_dict(), "the checkpoint")
        for name, parameter in self.trained().items():
            parameter.copy_(state_dict[name])
        return _IncompatibleKeys([], [])

    def changed(self) -> dict[str, Tensor]:
        """Return the trained tensors that changed, and the biases that were added."""
        found = {name: parameter.detach() for name, parameter in self.trained().items()}
        return {name: v for name, v in found.items() if name in self.added or not torch.equal(v, self._before[name])}

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the changed tensors to a folder; ``with_changed_weights`` reads it.

        Args:
            folder: Where to write; created where it does not exist.
            _: Further options of the Trainer; no effect.

        Raises:
            InputError: The folder holds something else than changed weights, or cannot be written to.
        """
        require_folder_for(folder, Kind.WEIGHTS)
        with written_aside(Path(folder), "the changed weights", last=(CONFIG_NAME,)) as aside:
            self._write(aside)

    def _write(self, place: Path) -> None:
        tensors = {name: value.cpu().contiguous().clone() for name, value in self.changed().items()}
        save_file(tensors, place / WEIGHTS_NAME, metadata={"format": "pt"})
        told = {
            "format": FORMAT,
            "format_version": VERSION,
            "steerscope_version": own_version(),
            "method": self.method,
            "base_model": self._identity.as_dict(),
            "added": list(self.added),
            "changed": sorted(tensors),
            "numbers": self.get_nb_trainable_parameters()[0],
        }
        text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (place / CONFIG_NAME).write_text(text, encoding="utf-8")

    @torch.no_grad()
    def restore(self) -> nn.Module:
        """Give the model its own weights back, bit for bit and frozen, and return it."""
        for name, parameter in self.trained().items():
            parameter.copy_(self._before[name])
            parameter.requires_grad_(False)
            parameter.grad = None
        remove_biases(self.base_model, self.added)
        return self.base_model

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)


def add_biases(model: nn.Module, names: tuple[str, ...]) -> None:
    """Give linear maps zero biases by the names the parameters will have.

    Args:
        model: The model, changed in place.
        names: Such as ``model.layers.3.mlp.down_proj.bias``.

    Raises:
        InputError: There is no such map, or it has a bias.
    """
    found: dict[str, nn.Module] = {}
    for name in names:  # all of them before any is added
        path, _, last = name.rpartition(".")
        try:
            module = model.get_submodule(path)
            linear_weight(module)
        except AttributeError as error:
            raise InputError(
                f"the model has no linear map {path!r} to add a bias to ({error}). Use its own."
            ) from error
        if last != "bias" or getattr(module, "bias", None) is not None or name in found:
            raise InputError(
                f"cannot add {name!r}: the model has it, or it names no bias. Use the model it belongs to."
            )
        found[name] = module
    for module in found.values():
        weight = linear_weight(module)
        zero = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
        module.register_parameter("bias", nn.Parameter(zero, requires_grad=False))


def remove_biases(model: nn.Module, names: tuple[str, ...]) -> None:
    """Take biases away again that :func:`add_biases` gave.

    Args:
        model: The model, changed in place.
        names: The same names.
    """
    for name in names:
        model.get_submodule(name.rpartition(".")[0]).register_parameter("bias", None)


def read_changed(folder: Path) -> tuple[dict[str, Any], BaseIdentity]:
    """Read what a folder of changed weights says of itself.

    Returns:
        What the file says, and the model that it was trained on.

    Raises:
        InputError: It is of another version or was changed by hand.
    """
    told = read_object(folder / CONFIG_NAME, "the configuration", "Copy it again.")
    lists = all(
        isinstance(told.get(name), list) and all(isinstance(one, str) for one in told[name])
        for name in ("added", "changed")
    )
    if (
        set(told) != _FIELDS
        or told["format_version"] != VERSION
        or not isinstance(told["base_model"], dict)
        or not lists
        or not isinstance(told["method"], str)
    ):
        raise InputError(
            f"{str(folder / CONFIG_NAME)!r} has fields {sorted(told)} and format {told.get('format_version')!r}; "
            f"expected {sorted(_FIELDS)} and {VERSION}. Use the steerscope that wrote it, or train again."
        )
    return told, BaseIdentity.from_dict(told["base_model"])


@torch.no_grad()
def with_changed_weights(loaded: LoadedModel, folder: Path) -> nn.Module:
    """Write changed weights into the model they belong to, in place, and return it.

    Args:
        loaded: The model the weights were trained from.
        folder: What :meth:`WeightModel.save_pretrained` wrote.

    Returns:
        ``loaded.model`` itself.

    Raises:
        InputError: The model is another one, or tensors do not fit.
    """
    told, base = read_changed(folder)
    require_same(base, identify(loaded.model, loaded.site_map, loaded))
    tensors = load_file(folder / WEIGHTS_NAME)
    if set(tensors) != set(told["changed"]):
        differ = sorted(set(tensors) ^ set(told["changed"]))
        raise InputError(
            f"{str(folder / WEIGHTS_NAME)!r} and its {CONFIG_NAME} name different tensors ({differ[0]} and "
            f"{len(differ) - 1} more). Copy the whole folder that was saved."
        )
    add_biases(loaded.model, tuple(told["added"]))
    try:
        own = dict(loaded.model.named_parameters())
        if unknown := sorted(set(tensors) - set(own)):
            raise InputError(f"{WEIGHTS_NAME} holds {unknown[0]!r}, which the model does not have. Use its own model.")
        # A model loaded in another precision gets the values in that precision, as its other weights did.
        given = {name: value.to(own[name].dtype) for name, value in tensors.items()}
        require_tensors(given, {name: own[name] for name in given}, WEIGHTS_NAME)
    except InputError:
        remove_biases(loaded.model, tuple(told["added"]))
        raise
    for name, value in given.items():
        own[name].copy_(value)
    return loaded.model


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _linear_biases(loaded: LoadedModel) -> tuple[str, ...]:
    maps = set(loaded.site_map.linear_maps().values())
    return tuple(f"{name}.bias" for name, module in loaded.model.named_modules() if module in maps)
