"""Which model an adapter was trained for, and whether another one is that model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from steerscope.errors import InputError
from steerscope.models.load import LoadedModel
from steerscope.models.site_map import SiteMap
from steerscope.models.weight_hashes import fingerprint_of
from steerscope.models.wrappers import language_model
from steerscope.option_types import plain_values


@dataclass(frozen=True)
class BaseIdentity:
    """The base model of an adapter: what must agree for the adapter to fit.

    Its hash is the same in every data type the model can be loaded in and whatever PEFT added; what a result is about,
    to the bit, is :class:`steerscope.model_identity.ModelIdentity`.

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

        Returns:
            The identity.

        Raises:
            InputError: Fields are missing, unknown or of another type.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise InputError(
                f"the adapter's file names its base model with {sorted(values)}; expected {sorted(known)}. It was "
                "written by another version or changed by hand: save it again."
            )
        return cls(**plain_values(cls, values, "the adapter's base_model: "))


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

    Args:
        trained_for: The model the adapter was trained on.
        found: The model it is to be put on.
        weights: Whether fingerprints of the weights are compared as well.

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
