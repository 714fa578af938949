r"""Oracles: how near edits of activations can come to a fine-tuned model, if they may look at it.

An oracle patches in activations of the fine-tuned model: activation patching, as an added edit. For a site with
residual stream h, and the fine-tuned model's :math:`h_{FT}` on the same tokens:

* ``static`` adds :math:`h_{FT} - h_{base}`;
* ``lockstep`` adds :math:`h_{FT} - h_{current}`, whatever edits below have done: the stream is then the fine-tuned one;
* ``one_step`` adds :math:`F_{FT}(h_{FT}) - F_{base}(h_{FT})`, what the block itself would have changed;
* ``linear`` adds the affine map of rank r of the stream that fits best (reduced-rank regression), with no look at the
  fine-tuned model once it is fitted: what a linear adapter could do at most, in least squares.

Formulas: :mod:`steerscope.equivalence.oracles` (P21, P22, P28). What fine-tuning changed behind the last
site (a final norm, the output matrix) is out of reach, and stays in the divergence; what it changed in the embeddings
is part of ``static`` and ``lockstep`` and of no block's own ``one_step``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.equivalence.divergence import divergence
from steerscope.equivalence.oracles import (
    lockstep_shift,
    one_step_shift,
    oracle_shift,
    reduced_rank_map,
)
from steerscope.errors import InputError, did_you_mean
from steerscope.finite import require_finite
from steerscope.models.description import BlockDescription
from steerscope.models.hooks import Edit, edited, reading
from steerscope.models.site_map import find_sites
from steerscope.models.wrappers import is_peft
from steerscope.site_kinds import Place
from steerscope.sites import Site, SiteKind
from steerscope.steering.families import LinearAdapter
from steerscope.steering.model import SteeringModel
from steerscope.steering.prompt_end import IGNORED

Batch = Mapping[str, Tensor]
KINDS = ("none", "static", "lockstep", "one_step")


@dataclass(frozen=True)
class OracleKL:
    """How far a steered model is from the fine-tuned one.

    Attributes:
        kind: Which edits: ``none``, ``static``, ``lockstep``, ``one_step`` or ``linear``.
        sites: Where.
        kl: ``KL(steered || fine-tuned)`` in nats per token.
        tokens: How many tokens it is the mean of.
    """

    kind: str
    sites: tuple[str, ...]
    kl: float
    tokens: int


@dataclass(frozen=True)
class LinearMap:
    """``x -> U D x + b``: ``up`` is U ``(width rank)``, ``down`` D ``(rank width)``, ``vector`` b ``(width)``.

    ``fitted`` is the part of the shift's energy around its mean that it explains, on the tokens it was fitted on;
    ``None`` where the shift has none.
    """

    up: Tensor
    down: Tensor
    vector: Tensor
    fitted: float | None


class Oracles:
    """A base model and a fine-tuned one, side by side.

    Args:
        model: The base model; or a PEFT model, whose LoRA is the fine-tuning, taken off for the base.
        tuned: The fine-tuned model, where ``model`` is a base model.
        description: How the models' blocks are built, for a family steerscope does not know.

    Raises:
        InputError: Both a LoRA and a fine-tuned model, or neither; or the two differ in their layout.
    """

    def __init__(
        self, model: nn.Module, tuned: nn.Module | None = None, *, description: BlockDescription | None = None
    ) -> None:
        if is_peft(model) == (tuned is not None):
            raise InputError(
                "oracles compare a base model with a fine-tuned one; give a plain model and tuned=, or a PEFT model "
                f"alone; got {type(model).__name__} and {type(tuned).__name__}."
            )
        self.model, self.tuned = model, model if tuned is None else tuned
        self.site_map = find_sites(model, description)
        self._tuned_map = find_sites(self.tuned, description)
        sizes = [(m.description.layout, len(m.blocks), m.d_model) for m in (self.site_map, self._tuned_map)]
        if sizes[0] != sizes[1]:
            raise InputError(
                f"the base model has {sizes[0]} and the fine-tuned one {sizes[1]}; give a model's own copy."
            )
        self._is_lora = tuned is None

    # --- divergences ---

    @torch.no_grad()
    def kl(self, batches: Sequence[Batch], sites: Sequence[Site | str], kind: str) -> OracleKL:
        """Return the divergence from the fine-tuned model with one kind of oracle at some sites.

        Args:
            batches: What the models are called with. With ``labels``, tokens whose successor is supervised count;
                otherwise all that are not padding.
            sites: Where to edit; for ``one_step`` outputs of blocks (``resid_post``).
            kind: ``none``, ``static``, ``lockstep`` or ``one_step``.

        Returns:
            The divergence in nats per token, and how many tokens it is over.

        Raises:
            InputError: An unknown kind or site, a site that the kind is not defined at, or no token.

        Cost: two forward passes per batch, three for ``static`` and ``one_step``.
        """
        if kind not in KINDS:
            raise InputError(f"unknown oracle {kind!r}.{did_you_mean(kind, list(KINDS))} Valid: {', '.join(KINDS)}.")
        found = tuple(self.site_map.resolve(site) for site in sites)
        wrong = [site for site in found if kind == "one_step" and site.kind is not SiteKind.RESID_POST]
        if wrong:
            raise InputError(f"the one-step oracle is the change of a whole block; got '{wrong[0]}', use resid_post.")

        def edits(batch: Batch, tuned: Mapping[Site, Tensor]) -> dict[Site, Edit]:
            if kind == "none":
                return {}
            if kind == "lockstep":
                return {site: _lockstep(tuned[site]) for site in found}
            shifts = self._static(batch, tuned, found) if kind == "static" else self._one_step(batch, tuned, found)
            return {site: _fixed(shift) for site, shift in shifts.items()}

        return self._divergence(batches, found, kind, edits)

    @torch.no_grad()
    def kl_of(self, batches: Sequence[Batch], maps: Mapping[Site, LinearMap]) -> OracleKL:
        """Return the divergence with fitted linear maps (:meth:`fit_linear`); errors as in :meth:`kl`.

        Args:
            batches: What the models are called with, as in :meth:`kl`.
            maps: One fitted map per site (:meth:`fit_linear`).

        Returns:
            The divergence in nats per token, and how many tokens it is over.
        """
        edits = {site: _linear(found) for site, found in maps.items()}
        return self._divergence(batches, tuple(maps), "linear", lambda batch, tuned: edits)

    def _divergence(self, batches: Sequence[Batch], sites: tuple[Site, ...], kind: str, edits: Any) -> OracleKL:
        total, tokens = 0.0, 0
        for batch in batches:
            inputs, counted = _inputs(batch), _counted(batch)
            streams = [Site(block.index, SiteKind.RESID_POST) for block in self.site_map.blocks]
            with reading(self._tuned_map, dict.fromkeys([Site(0, SiteKind.RESID_PRE), *streams, *sites])) as tuned:
                target = self.tuned(**inputs).logits
            with self._base(), edited(self.model, self.site_map, edits(batch, tuned)):
                logits = self.model(**inputs).logits
            number = int(counted.sum())
            total += float(divergence(logits[counted].double(), target[counted].double())) * number if number else 0.0
            tokens += number
            require_finite(f"the divergence from the fine-tuned model ({kind})", total)
        if tokens == 0:
            raise InputError("got no token to compare; give batches with tokens that are not padding.")
        return OracleKL(kind, tuple(map(str, sites)), total / tokens, tokens)

    @contextmanager
    def _base(self) -> Iterator[None]:
        with self.model.disable_adapter() if self._is_lora else nullcontext():  # type: ignore[operator]
            yield

    def _static(self, batch: Batch, tuned: Mapping[Site, Tensor], sites: Sequence[Site]) -> dict[Site, Tensor]:
        with self._base(), reading(self.site_map, sites) as base:
            self.model(**_inputs(batch))
        return {site: oracle_shift(tuned[site], base[site]) for site in sites}

    def _one_step(self, batch: Batch, tuned: Mapping[Site, Tensor], sites: Sequence[Site]) -> dict[Site, Tensor]:
        # With lockstep at every block and at the entry, each block of the base gets the fine-tuned stream.
        arriving: dict[Site, Tensor] = {}

        def recording(site: Site) -> Edit:
            def edit(read: Tensor) -> Tensor:
                arriving[site] = read
                return lockstep_shift(tuned[site], read)

            return edit

        places = [site for site in tuned if site.kind.facts.place is not Place.INSIDE]
        with self._base(), edited(self.model, self.site_map, {site: recording(site) for site in places}):
            self.model(**_inputs(batch))
        return {site: one_step_shift(tuned[site], arriving[site]) for site in sites}

    # --- the best linear map ---

    @torch.no_grad()
    def fit_linear(
        self, batches: Sequence[Batch], sites: Sequence[Site | str], rank: int, *, ridge: float = 1e-3
    ) -> dict[Site, LinearMap]:
        """Fit the affine map of rank r at every site, from the lowest up, each with those below in place.

        The map at a site is fitted to ``h_FT - h_current``: shifts that edits below have made already are not made
        again.

        Args:
            batches: Fitted on all tokens that are not padding.
            sites: Where.
            rank: Largest rank of every map; the vector ``b`` comes on top.
            ridge: Penalty on the map, relative to the mean square of the centred stream.

        Returns:
            Per site, the map; :meth:`kl_of` measures them, :func:`install` puts them into a steering adapter.

        Raises:
            InputError: A rank that is not positive, or no batch.

        Cost: two forward passes per batch and site; memory of one stream and its shift for all tokens; a
            decomposition of ``(tokens + width) x width``.
        """
        if rank < 1 or not batches:
            raise InputError(f"got rank {rank} and {len(batches)} batches; expected at least 1 of each.")
        chosen = sorted(map(self.site_map.resolve, sites), key=lambda s: (s.layer, s.kind.order))
        maps: dict[Site, LinearMap] = {}
        for site in chosen:
            reads, shifts = [], []
            for batch in batches:
                real = _real(batch)
                with reading(self._tuned_map, [site]) as tuned:
                    self.tuned(**_inputs(batch))
                done = {other: _linear(found) for other, found in maps.items()}
                with self._base(), edited(self.model, self.site_map, done), reading(self.site_map, [site]) as current:
                    self.model(**_inputs(batch))
                reads.append(current[site][real].double())
                shifts.append(lockstep_shift(tuned[site], current[site])[real].double())
            maps[site] = fitted_map(torch.cat(reads), torch.cat(shifts), rank, ridge)
        return maps


def fitted_map(read: Tensor, shift: Tensor, rank: int, ridge: float) -> LinearMap:
    """Return the affine map of at most that rank from ``read`` to ``shift`` (``token width``), in float64.

    Least squares on centred data, with ``ridge`` times the mean square per channel as penalty: it enters as rows of
    data that say "no shift", so that the reduced rank is the best one for the penalised error too.

    Args:
        read: What the site reads, ``token width``.
        shift: The oracle at the same tokens, ``token width``.
        rank: The largest rank of the linear part.
        ridge: Penalty relative to the mean square of a channel of ``read``.

    Returns:
        The map's factors and vector in float64.
    """
    require_finite("what a map is to be fitted on", read, shift)
    centre, mean = read.mean(0), shift.mean(0)
    x, y = read - centre, shift - mean
    width = x.shape[1]
    weight = (ridge * x.square().sum() / width).sqrt()
    rows = torch.cat([x, weight * torch.eye(width, dtype=x.dtype, device=x.device)])
    wanted = torch.cat([y, y.new_zeros(width, y.shape[1])])
    whole = reduced_rank_map(rows, wanted, rank).T  # (write read)
    left, values, right = torch.linalg.svd(whole, full_matrices=False)
    up, down = left[:, :rank] * values[:rank], right[:rank]
    energy = float(y.square().sum())
    missed = float((y - x @ down.T @ up.T).square().sum())
    return LinearMap(up, down, mean - up @ (down @ centre), 1 - missed / energy if energy else None)


@torch.no_grad()
def install(maps: Mapping[Site, LinearMap], steering: SteeringModel) -> None:
    """Put fitted maps into a steering model of family ``linear``, to be saved, generated with or trained on.

    Args:
        maps: One fitted map per site of the adapter.
        steering: A steering model with these sites, of that rank, with bias; its parameters are overwritten.

    Raises:
        InputError: The adapter has other sites or another rank, no bias, or a scale.
    """
    if set(maps) != set(steering.sites):
        raise InputError(
            f"the maps are of {sorted(map(str, maps))} and the adapter edits {sorted(map(str, steering.sites))}; "
            "make the adapter with the same sites."
        )
    for site, found in maps.items():
        edit = steering.edit_at(site)
        fits = type(edit) is LinearAdapter and edit.b is not None and edit.scale is None
        if not fits or edit.U.shape != found.up.shape:
            raise InputError(
                f"a map of rank {found.up.shape[1]} needs a linear adapter of that rank with bias=True and "
                f"scale='none'; got {steering.steering_config}. Make one."
            )
    for site, found in maps.items():
        edit = steering.edit_at(site)
        assert isinstance(edit, LinearAdapter)
        assert edit.b is not None
        edit.U.copy_(found.up)
        edit.D.copy_(found.down)
        edit.b.copy_(found.vector)


def _lockstep(wanted: Tensor) -> Edit:
    return lambda read: lockstep_shift(wanted, read)


def _fixed(shift: Tensor) -> Edit:
    return lambda read: shift


def _linear(found: LinearMap) -> Edit:
    def edit(read: Tensor) -> Tensor:
        value = read.to(found.up.dtype) @ found.down.T @ found.up.T + found.vector
        return value.to(read.dtype)

    return edit


def _inputs(batch: Batch) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}


def _real(batch: Batch) -> Tensor:
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask != 0


def _counted(batch: Batch) -> Tensor:
    """Return which tokens' predictions are compared, ``(batch token)``."""
    labels = batch.get("labels")
    if labels is None:
        return _real(batch)
    supervised = torch.zeros_like(labels, dtype=torch.bool)
    supervised[:, :-1] = labels[:, 1:] != IGNORED
    return supervised
