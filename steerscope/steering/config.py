"""What an adapter is, in one frozen dataclass; everything checked that can be checked without a model."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from steerscope.errors import InputError, did_you_mean, same_name
from steerscope.files import json_of, told, write_text
from steerscope.folders import as_folder
from steerscope.models.load import DTYPES
from steerscope.models.site_map import SiteMap
from steerscope.option_types import dtype_name, plain_values
from steerscope.sites import Site, SiteKind, one_or_several, parse_kind, parse_site
from steerscope.steering import hub
from steerscope.steering.families import ACTIVATIONS, FAMILIES, EditOptions, SteeringEdit
from steerscope.steering.peft_files import CONFIG_NAME
from steerscope.steering.positions import Positions

SCALES = ("none", "rms")
STARTS = ("no-op", "published")
DEFAULT_RANK = 8
CONFIG_ALONE = "steering_config.json"  # another name than an adapter's, which it is not


@dataclass(frozen=True)
class SteeringConfig:
    """A steering adapter: which edits, where, at which tokens.

    Attributes:
        sites: Names such as ``12.resid_post`` or ``3.attn_heads.5``, or a kind alone (``resid_post``) for every layer;
            one or several, also as :class:`Site`.
        family: ``vector``, ``linear``, ``nonlinear``, ``loreft``, ``direft``, ``noreft``, ``lofit_scale`` or
            ``lofit_offset``.
        rank: Inner width; 8 unless given, None for families without one.
        positions: ``all``, ``prompt``, ``completion``, ``last`` (of the prompt), ``first:n``, ``last:n``, or ``mask``.
        activation: ``silu`` (unless given), ``gelu`` or ``tanh``, for ``nonlinear``.
        bias: Whether ``linear`` and ``nonlinear`` add a vector to what they write; True unless given.
        scale: ``rms`` divides what is read by the site's root mean square
            (:meth:`SteeringModel.measure_scales`); ``none`` does not.
        start: ``no-op`` starts with an edit of exactly zero; ``published`` as the family's authors do, where that
            differs.
        dtype: Data type of the adapter, whatever the model's is.
        seed: Seed of what is drawn at the start.

    Example:
        >>> config = SteeringConfig(sites=("3.mlp_out", "7.resid_post"), family="linear", rank=4)
        >>> config.rank, config.bias, SteeringConfig.from_dict(config.to_dict()) == config
        (4, True, True)
    """

    sites: tuple[str, ...] | str
    family: str = "linear"
    rank: int | None = None
    positions: str = "all"
    activation: str | None = None
    bias: bool | None = None
    scale: str = "none"
    start: str = "no-op"
    dtype: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in one_or_several(self.sites))
        object.__setattr__(self, "sites", names)
        if not names:
            raise InputError("a steering adapter needs a site, got none; for example sites='resid_post'.")
        for name in names:
            _read_name(name)
        for field, valid in (("family", FAMILIES), ("scale", SCALES), ("start", STARTS), ("activation", ACTIVATIONS)):
            object.__setattr__(self, field, same_name(getattr(self, field), valid))
        family = self._family()
        self._check_rank(family)
        Positions.parse(self.positions)
        self._check_activation()
        if family.has_bias_choice:
            if self.bias is not None and type(self.bias) is not bool:
                raise InputError(f"[[bias]] is {self.bias!r}; expected True or False.")
            object.__setattr__(self, "bias", True if self.bias is None else self.bias)
        elif self.bias is not None:
            raise InputError(
                f"family {self.family!r} ({family.equation}) leaves no choice of bias; leave out [[bias]]."
            )
        _one_of("scale", self.scale, SCALES)
        if self.scale != "none" and not family.can_scale:
            can = [name for name, other in FAMILIES.items() if other.can_scale]
            raise InputError(
                f"family {self.family!r} ({family.equation}) is not defined with a scale on what it reads; got "
                f"[[scale={self.scale!r}]]. Leave it out, or use one of {', '.join(can)}."
            )
        object.__setattr__(self, "seed", _as_int(self.seed))
        if type(self.seed) is not int:
            raise InputError(f"[[seed]] is {self.seed!r}; expected a whole number.")
        _one_of("start", self.start, STARTS)
        if self.start == "published" and not family.has_published_start:
            raise InputError(
                f"family {self.family!r} has one start, as no edit, here and elsewhere; leave out [[start]]."
            )
        if isinstance(self.dtype, torch.dtype):
            object.__setattr__(self, "dtype", str(self.dtype))
        object.__setattr__(self, "dtype", dtype_name(self.dtype))
        _one_of("dtype", self.dtype, tuple(DTYPES))
        if family.is_orthonormal and self.dtype not in ("float32", "float64"):
            raise InputError(
                f"family {self.family!r} keeps rows orthonormal, which {self.dtype} cannot hold; use "
                "[[dtype='float32']]. The model may be in any data type."
            )

    def _family(self) -> type[SteeringEdit]:
        _one_of("family", self.family, tuple(FAMILIES))
        return FAMILIES[self.family]

    def _check_rank(self, family: type[SteeringEdit]) -> None:
        if not family.has_rank:
            if self.rank is not None:
                raise InputError(
                    f"family {self.family!r} ({family.equation}) has no rank; got [[rank={self.rank}]]. Leave it out."
                )
            return
        rank = DEFAULT_RANK if self.rank is None else _as_int(self.rank)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise InputError(
                f"[[rank]] must be a whole number of at least 1, got {self.rank!r}; for example [[rank=8]]."
            )
        object.__setattr__(self, "rank", rank)

    def _check_activation(self) -> None:
        if self.family != "nonlinear":
            if self.activation is not None:
                raise InputError(
                    f"family {self.family!r} has no activation; got {self.activation!r}. Use [[family='nonlinear']]."
                )
            return
        object.__setattr__(self, "activation", self.activation or "silu")
        _one_of("activation", str(self.activation), tuple(ACTIVATIONS))

    @property
    def torch_dtype(self) -> torch.dtype:
        """``dtype`` as torch knows it."""
        return DTYPES[self.dtype]

    def resolve(self, site_map: SiteMap) -> tuple[Site, ...]:
        """Return the sites in one model, in the order in which it computes them.

        Raises:
            InputError: The model lacks a site, a site is named twice, all heads and one of them, or a kind that the
                family is not defined at.
        """
        kinds = FAMILIES[self.family].kinds
        found: list[Site] = []
        for name in self.sites:
            found += _sites_of(name, site_map)
        for site in found:
            if found.count(site) > 1:
                raise InputError(f"site '{site}' is named twice in {list(self.sites)}; name it once.")
            if site.head is not None and Site(site.layer, site.kind) in found:
                raise InputError(f"'{site}' is one of the heads of '{site.layer}.{site.kind}', named too; name one.")
            if kinds is not None and site.kind not in kinds:
                raise InputError(
                    f"family {self.family!r} edits {', '.join(kinds)} alone, got the site '{site}'; "
                    "use [[sites='attn_heads']], or [[family='vector']]."
                )
        return tuple(sorted(found, key=lambda site: site.order))

    def options(self, width: int) -> EditOptions:
        """Return how one edit of ``width`` channels is built."""
        return EditOptions(
            width=width,
            rank=self.rank,
            activation=self.activation,
            bias=bool(self.bias),
            scaled=self.scale == "rms",
            start=self.start,
            dtype=self.torch_dtype,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return {**asdict(self), "sites": list(self.sites)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SteeringConfig:
        """Read what :meth:`to_dict` wrote.

        Returns:
            The configuration.

        Raises:
            InputError: A field is missing, unknown or has no valid value.
        """
        known = {f.name for f in fields(cls)}
        if set(values) != known:
            raise InputError(
                f"the adapter's configuration lacks {sorted(known - set(values))} and has unknown "
                f"{sorted(set(values) - known)}; it was written by another version or changed by hand. Save it again."
            )
        sites = values["sites"]
        return cls(**{**values, "sites": tuple(sites) if isinstance(sites, list) else sites})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the configuration alone, as ``steering_config.json``; :meth:`from_pretrained` reads it again."""
        place = as_folder(folder)
        with told(f"write to {str(folder)!r}"):
            place.mkdir(parents=True, exist_ok=True)
        write_text(place / CONFIG_ALONE, json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> SteeringConfig:
        """Read the configuration of a saved adapter, or one that was saved alone; no model is needed.

        Args:
            folder: Of an adapter, or the name of a repository that holds one.
            revision: Branch, tag or commit of the repository.
            token: Of the account, for a repository that is not public.

        Returns:
            The configuration.

        Raises:
            InputError: There is none, or it is damaged.
        """
        place = hub.local_folder(folder, revision, token)
        alone = place / CONFIG_ALONE
        path = alone if alone.is_file() else place / CONFIG_NAME
        try:
            found = json_of(path)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{str(path)!r} cannot be read ({error}); expected the folder of a steering adapter, or one that "
                "SteeringConfig.save_pretrained() wrote."
            ) from error
        values = found.get("steering") if isinstance(found, dict) and path != alone else found
        if not isinstance(values, dict):
            raise InputError(f"{str(path)!r} is not of a steering adapter of steerscope. Give a folder that holds one.")
        return cls.from_dict({**values, **plain_values(cls, values, f"{str(path)!r}: ")})


def _as_int(value: Any) -> Any:
    """Return numpy's and torch's whole numbers as Python's; anything else as it is."""
    if isinstance(value, bool):
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def _one_of(field: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InputError(
            f"unknown {field} {value!r}.{did_you_mean(str(value), list(valid))} Valid: {', '.join(valid)}."
        )


def _read_name(name: str) -> Site | SiteKind:
    """Return a site for ``3.mlp_out``, a kind for ``mlp_out``."""
    return parse_site(name) if re.match(r"\s*(blocks\.)?\d", name) else parse_kind(name)


def _sites_of(name: str, site_map: SiteMap) -> list[Site]:
    read = _read_name(name)
    if isinstance(read, Site):
        return [site_map.resolve(read)]
    if read.facts.is_first_block_only and len(site_map.blocks) > 1:
        raise InputError(
            "'resid_pre' over all layers is '0.resid_pre' and 'resid_post' of all layers but the last; name these."
        )
    return list(site_map.sites((read,)))
