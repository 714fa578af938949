"""``steerscope export``: a trained adapter for other programs, as a LoRA or as a control vector."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from steerscope.cli.options import MODEL, RESULTS, SITES, Device, Dtype, Revision, TrustRemoteCode, option

FORMATS = ("lora", "gguf")


def export(
    adapter: Annotated[Path, typer.Argument(help="Folder of a steering adapter, or of a run.", metavar="ADAPTER")],
    to: Annotated[str, option("{values}: a LoRA of PEFT, or a control vector of llama.cpp.", RESULTS, values=FORMATS)],
    out: Annotated[Path, option("The LoRA's folder, or the .gguf file.", RESULTS)],
    lora_bias: Annotated[
        bool, option("The LoRA may add constants, which PEFT runs and servers do not.", RESULTS, "--lora-bias")
    ] = False,
    strength: Annotated[float | None, option("Multiply the edit by this; as saved unless given.", SITES)] = None,
    model: Annotated[str | None, option("The base model, where it is not where the adapter says.", MODEL)] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    revision: Revision = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write an adapter in a format that other programs load, where it does exactly the same there."""
    from steerscope.errors import InputError, did_you_mean
    from steerscope.folders import adapter_in
    from steerscope.models import load_model
    from steerscope.steering import SteeringModel, saving
    from steerscope.steering.adapters import checked_strength

    if (chosen := to.lower()) not in FORMATS:
        raise InputError(f"--to is {to!r}.{did_you_mean(to, list(FORMATS))} Valid: {', '.join(FORMATS)}.")
    if strength is not None:
        checked_strength(strength)
    place = adapter_in(adapter)
    saved = saving.read(place)  # what is wrong with it is said before a model is loaded
    loaded = load_model(
        model or saved.base.name,
        device=device,
        dtype=dtype,
        revision=revision or (saved.base.revision if model is None else None),
        trust_remote_code=trust_remote_code,
    )
    steering = SteeringModel.from_pretrained(loaded, place)
    if strength is not None:
        steering.set_strength(strength)
    if chosen == "lora":
        steering.export_lora(out, lora_bias=lora_bias)
        print(f"LoRA: {out}", file=sys.stderr)
    else:
        steering.export_gguf(out)
        print(f"control vector: {out}", file=sys.stderr)
