"""Which model an adapter was trained for, and whether another one is that model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.load import LoadedModel
from steerscope.models.offloaded import require_weights_in_memory
from steerscope.models.site_map import SiteMap
from steerscope.models.wrappers import language_model, original_layer


@dataclass(frozen=True)
class BaseIdentity:
    """The base model of an adapter.

    Attributes:
        name: As its configuration or its loader names it.
        revision: Commit on the hub, where known.
        family: The configuration's ``model_type``.
        layout: Name of the block layout.
        layers: Number of blocks.
        d_model: Width of the residual stream.
        fingerprint: SHA-256 over names and values of all weights, rounded to bfloat16, so that it is the same in
            every data type the model can be loaded in (float32 weights loaded in float16 apart).
    """

    name: str
    revision: str | None
    family: str
    layout: str
    layers: int
    d_model: int
    fingerprint: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BaseIdentity:
        """Read what :meth:`as_dict` wrote.

        Raises:
            InputError: Fields are missing or unknown.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise InputError(
                f"the adapter's file names its base model with {sorted(values)}; expected {sorted(known)}. It was "
                "written by another version or changed by hand: save it again."
            )
        return cls(**values)


def own_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of the language model itself by the names they have without PEFT, in its own order."""
    seen: set[int] = set()

    def below(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
        own = original_layer(module)
        if own is None or id(own) in seen:
            return
        seen.add(id(own))
        for name, parameter in own._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield prefix + name, parameter
        for name, child in own.named_children():
            yield from below(child, f"{prefix}{name}.")

    yield from below(language_model(model), "")


@torch.no_grad()
def fingerprint_of(model: nn.Module, without: frozenset[str] = frozenset()) -> str:
    """Return the fingerprint of a model's own weights.

    Changes of single weights below bfloat16's resolution (one part in 256) are not seen; a fine-tuned copy, in which
    millions of weights move a little, is.

    Args:
        model: The model; what PEFT added to it is left out.
        without: Names of weights to leave out: those that an adapter brings along.

    Returns:
        The SHA-256 in hexadecimal.

    Raises:
        InputError: Weights are offloaded.

    Cost: reads every weight once, about a second per gigabyte.
    """
    require_weights_in_memory(model, "the fingerprint that an adapter is saved and loaded with")
    digest = hashlib.sha256()
    for name, parameter in own_weights(model):
        if name in without:
            continue
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        rounded = parameter.detach().to(torch.bfloat16).cpu().contiguous()
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def identify(
    model: nn.Module,
    site_map: SiteMap,
    loaded: LoadedModel | None = None,
    *,
    weights: bool = True,
    without: frozenset[str] = frozenset(),
) -> BaseIdentity:
    """Say which model this is; names and revisions of its loader come first.

    Args:
        model: The model, with PEFT's adapter or without.
        site_map: Its sites.
        loaded: What its loader says of it.
        weights: Whether they are read for the fingerprint.
        without: Names of weights that the fingerprint leaves out.

    Returns:
        The identity.

    Cost: :func:`fingerprint_of`, unless ``weights`` are left out.
    """
    config: Any = language_model(model).config
    name = getattr(config, "_name_or_path", "") or type(language_model(model)).__name__
    revision = getattr(config, "_commit_hash", None)
    if loaded is not None:
        name, revision = loaded.identity.name, loaded.identity.revision or revision
    return BaseIdentity(
        name=str(name),
        revision=revision,
        family=str(config.model_type),
        layout=site_map.description.layout,
        layers=len(site_map.blocks),
        d_model=site_map.d_model,
        fingerprint=fingerprint_of(model, without) if weights else "",
    )


def require_same(trained_for: BaseIdentity, found: BaseIdentity, *, weights: bool = True) -> None:
    """Refuse an adapter that was trained for another model.

    Raises:
        InputError: Family, size, revision (where both are known) or weights differ; the message names the first.
    """
    for what in ("family", "layout", "layers", "d_model", "revision", "fingerprint"):
        expected, got = getattr(trained_for, what), getattr(found, what)
        if (what == "revision" and None in (expected, got)) or (what == "fingerprint" and not weights):
            continue
        if expected != got:
            shown = (expected, got) if what != "fingerprint" else (f"{expected[:12]}...", f"{got[:12]}...")
            raise InputError(
                f"this adapter was trained for {trained_for.name!r} with {what} {shown[0]!r}, but the model given, "
                f"{found.name!r}, has {what} {shown[1]!r}. Load {trained_for.name!r}"
                + (f" at revision {trained_for.revision}" if trained_for.revision else "")
                + ", without other adapters merged into it"
                + (", and not in float16, which rounds float32 weights otherwise." if what == "fingerprint" else ".")
            )
