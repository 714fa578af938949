r"""An adapter as a LoRA of PEFT: the same outputs from a folder that anything that serves LoRA can load.

Of a linear map W, b that holds edits (:mod:`steerscope.steering.holding`), ``x -> x + U D x + c`` before it and
``y -> y + U' D' y + c'`` behind it become the LoRA

.. math:: B = (W U \;\; U'), \qquad A = \binom{D}{D' W (I + U D)},

and the constant ``W c + U' D' (b + W c) + c'``. All maps get the same rank, the smaller ones rows of zeros, and
``lora_alpha`` equals it: servers read one rank and one scale for all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.files import write_text, written_aside
from steerscope.folders import Kind, require_folder_for
from steerscope.models.blocks import is_transposed
from steerscope.models.offloaded import weights_in_memory
from steerscope.models.wrappers import is_peft, language_model
from steerscope.steering.holding import lacks_bias, weight_of
from steerscope.steering.merging import Step, steps_of
from steerscope.steering.peft_files import CONFIG_NAME, WEIGHTS_NAME

if TYPE_CHECKING:
    from steerscope.steering.model import SteeringModel


@dataclass
class _Delta:
    """What a linear map is to add, in float64: ``up (down x) + constant``."""

    up: Tensor
    down: Tensor
    constant: Tensor


def export_lora(steering: SteeringModel, folder: Path, *, lora_bias: bool) -> None:
    """Write the adapter that acts as a LoRA; see :meth:`SteeringModel.export_lora`.

    Args:
        steering: The model; nothing is changed in it.
        folder: Where to write.
        lora_bias: Whether the LoRA may add constants.

    Raises:
        InputError: No LoRA is exactly this adapter, it needs a bias and may not have one, or the folder holds
            something else.
    """
    if is_peft(steering.base_model):
        raise InputError(
            "this adapter stands on an adapter of PEFT, whose folder would be another one than the edits', and servers "
            "load one. Merge both (merge_and_unload()) and serve the model."
        )
    deltas: dict[nn.Module, _Delta] = {}
    for step in steps_of(steering):
        for module in step.held.maps:
            with weights_in_memory(module):
                _add(deltas.setdefault(module, _nothing(module)), step, module)
    names = {module: name for name, module in language_model(steering.base_model).named_modules() if module in deltas}
    with_constant = [names[module] for module, delta in deltas.items() if bool(delta.constant.any())]
    if with_constant and not lora_bias:
        raise InputError(
            f"this edit adds a constant behind {with_constant[0]!r}, and a LoRA has none. Train with bias=False "
            "at a site that linear maps without a bias hold, or pass [[lora_bias=True]]: then PEFT runs the file, but "
            "vLLM and SGLang do not."
        )
    rank = max(1, *(len(delta.down) for delta in deltas.values()))
    tensors = {}
    for module, delta in deltas.items():
        place, missing = f"base_model.model.{names[module]}", rank - len(delta.down)
        tensors[f"{place}.lora_A.weight"] = nn.functional.pad(delta.down, (0, 0, 0, missing))
        tensors[f"{place}.lora_B.weight"] = nn.functional.pad(delta.up, (0, missing))
        if with_constant:
            tensors[f"{place}.lora_B.bias"] = delta.constant
    base = steering.identity(weights=False)
    told = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "lora_bias": bool(with_constant),
        "fan_in_fan_out": any(map(is_transposed, deltas)),
        "target_modules": sorted(names.values()),
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }
    require_folder_for(folder, Kind.PEFT)
    with written_aside(folder, "the LoRA", last=(CONFIG_NAME,)) as aside:
        whole = {name: value.to("cpu", torch.float32).contiguous() for name, value in tensors.items()}
        save_file(whole, aside / WEIGHTS_NAME, metadata={"format": "pt"})
        write_text(aside / CONFIG_NAME, json.dumps(told, indent=2, allow_nan=False) + "\n")


def _nothing(module: nn.Module) -> _Delta:
    weight = weight_of(module)
    rows, columns = weight.shape
    return _Delta(
        *(torch.zeros(shape, dtype=torch.float64, device=weight.device) for shape in ((rows, 0), (0, columns), (rows,)))
    )


def _add(delta: _Delta, step: Step, module: nn.Module) -> None:
    """Add an edit; those before the map come first, as they do when it runs."""
    weight, edit = weight_of(module).detach().double(), step.edit
    up, down, vector = (None if p is None else p.detach().to(weight) for p in (edit.up, edit.down, edit.vector))
    if step.held.reads:
        # Edits of one map's input are those of different heads, or one alone: they do not see each other.
        if up is not None and down is not None:
            delta.up, delta.down = torch.cat([delta.up, weight @ up], dim=1), torch.cat([delta.down, down])
        if vector is not None:
            delta.constant = delta.constant + weight @ vector
        return
    if up is not None and down is not None:
        bias = getattr(module, "bias", None)
        written = delta.constant if lacks_bias(module) or bias is None else delta.constant + bias.detach().to(weight)
        seen = down @ weight + (down @ delta.up) @ delta.down
        delta.up, delta.down = torch.cat([delta.up, up], dim=1), torch.cat([delta.down, seen])
        delta.constant = delta.constant + up @ (down @ written)
    if vector is not None:
        delta.constant = delta.constant + vector
