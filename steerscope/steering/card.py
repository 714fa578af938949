"""The model card of an adapter: a README.md that says what the folder is, for which model, and how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

from steerscope.folders import CARD_MARK
from steerscope.steering.adapter_file import AdapterFile
from steerscope.steering.families import FAMILIES

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def card_of(adapter: AdapterFile, measured: Mapping[str, object]) -> str:
    """Return the text of a model card.

    Args:
        adapter: What the folder holds.
        measured: What is known of it by name, such as a task and an accuracy; may be empty.

    Returns:
        Markdown with the hub's header.
    """
    config, base, family = adapter.config, adapter.base, FAMILIES[adapter.config.family]
    is_repository = bool(_REPOSITORY.fullmatch(base.name))
    name = base.name if is_repository else PurePath(base.name).name  # a folder of one machine says nothing elsewhere
    header = ["---", *([f"base_model: {name}"] if is_repository else []), "library_name: steerscope"]
    header += ["pipeline_tag: text-generation", "tags:", "- steerscope", "- activation-steering", "---"]
    numbers = sum(value.numel() for value in adapter.tensors.values())
    said = {
        "Base model": f"`{name}`" + (f" at revision `{base.revision}`" if base.revision else ""),
        "Edit": f"family `{config.family}`: x becomes `{family.equation}`",
        "Rank": str(config.rank) if config.rank is not None else "",
        "Tokens": config.positions,
        "Strength": f"{adapter.strength:g}" if adapter.strength != 1 else "",
        "Size": f"{numbers:,} numbers in {config.dtype}",
        "LoRA underneath": "in `lora/`, loaded along" if adapter.lora is not None else "",
        **{_plain(what): _plain(value) for what, value in measured.items()},
    }
    lines = [*header, CARD_MARK, "", f"# Steering adapter for {name}", ""]
    lines += ["An edit of activations, not of weights, trained or extracted with steerscope.", "", "| | |", "|---|---|"]
    lines += [f"| {what} | {value.replace('|', '&#124;')} |" for what, value in said.items() if value]
    lines += ["", "| site | what it is in this model |", "|---|---|"]
    lines += [f"| `{site}` | `{equation}` |" for site, equation in adapter.sites.items()]
    lines += [
        "",
        "**The files are not PEFT's**, although two have the same names: `PeftModel` and servers of LoRA cannot load "
        "them. Load them with",
        "",
        "```python",
        "from steerscope import SteeringModel, load_model",
        "",
        f'model = SteeringModel.from_pretrained(load_model("{name}"), "this folder or repository")',
        "```",
        "",
        "and make files for others of it with `model.export_lora(folder)` (PEFT, vLLM, SGLang) or "
        "`model.export_gguf(file)` (llama.cpp), which say where no such file does the same.",
    ]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split())
