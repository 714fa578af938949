r"""Which weight matrix's part of a fine-tuning can an edit at which site of the same block not imitate?

For one block and one of its matrices, the target is the first-order shift of the block's output under that matrix's
part of the update, the block's input fixed: :math:`\delta_t = J_W[\Delta W]` at every token. An edit at a site adds
something to the site's tensor, which moves the output by :math:`M_t` times the edit (:math:`M_t` is one matrix per
token, see :mod:`.jacobians`). Two residuals are measured and must not be confused:

- **token-shared** (:attr:`Cell.linear`, :attr:`Cell.vector`): what is left, as a fraction of :math:`\sum|\delta_t|^2`,
  after the best edit of one form for all tokens, a linear map of what the site reads, :math:`M_t A x_t`, or a fixed
  vector, :math:`M_t v`. Fitted by least squares with a small ridge on some sequences, measured on others.
- **token-wise** (:attr:`Cell.oracle`): what is left after the best free edit of every token by itself, the distance
  of :math:`\delta_t` to the column space of :math:`M_t`. It is zero wherever :math:`M_t` has full row rank, which is
  why statements about oracles do not separate sites; :attr:`Cell.oracle_edit` is what that edit costs.

Edits of the stream that enters the block are not in the map: they act on other tokens through attention. Source:
open points 3 and 4 (this project).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.theory.block_call import block_calls
from steerscope.analysis.theory.common import Update, block_tensors, flat, of_layer
from steerscope.analysis.theory.jacobians import write_jacobians
from steerscope.errors import InputError
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.load import LoadedModel
from steerscope.sites import SiteKind

RIDGE = 1e-2
ITERATIONS = 15
_CONVERGED = 1e-2
# Numbers in one site's matrices of all tokens (2 GiB of float32).
MAX_NUMBERS = 2**29
_ORACLE_TOKENS = 4


@dataclass(frozen=True)
class Cell:
    """One site of one block against one of its weight matrices. Fractions are of the shift's squared norm.

    Attributes:
        layer: Index of the block.
        site: Kind of site.
        weight: The matrix, by its path inside the block.
        linear: Left over on held-out sequences by the best token-shared linear edit.
        linear_fitted: The same on the sequences it was fitted on.
        vector: Left over on held-out sequences by the best fixed vector.
        oracle: Left over by free edits, token by token (median over some tokens).
        oracle_edit: Norm of that free edit over the norm of the site's tensor (median).
    """

    layer: int
    site: str
    weight: str
    linear: float
    linear_fitted: float
    vector: float
    oracle: float
    oracle_edit: float


def residual_map(
    loaded: LoadedModel,
    update: Update,
    ids: Tensor,
    layers: Sequence[int],
    *,
    skip: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Cell, ...]:
    """Measure the map for some layers.

    Args:
        loaded: The model.
        update: The fine-tuning, by parameter name.
        ids: ``batch token``, without padding; the last fifth of the sequences is held out.
        layers: Which layers.
        skip: Positions left out at the start (their stream is an outlier in many models).
        progress: Told sites done and sites in all.

    Raises:
        InputError: Fewer than five sequences, or matrices too large to hold (:func:`check_size`).

    Cost: per layer one tangent pass of the block per matrix, and per site a dense matrix per token with some tens
    of products.
    """
    if len(ids) < 5:
        raise InputError(f"got {len(ids)} sequences; expected at least 5, of which a fifth is held out. Add prompts.")
    check_size(loaded, (ids.shape[1] - skip) * len(ids))
    kinds = [kind for kind in loaded.site_map.description.kinds if kind is not SiteKind.RESID_PRE]
    calls = block_calls(loaded, ids, layers)
    tensors = block_tensors(loaded, ids, layers)
    split = (len(ids) - max(len(ids) // 5, 1)) * (ids.shape[1] - skip)
    cells = []
    for place, layer in enumerate(layers):
        with forward_differentiable_attention(loaded.model):
            shifts = {
                name: flat(calls[layer].shift({name: change}), skip)
                for name, change in of_layer(loaded, update, layer).items()
            }
        read = {kind: flat(value, skip).detach() for kind, value in tensors[layer].items()}
        target = torch.stack(list(shifts.values()), dim=-1)  # token channel weight
        paths = [calls[layer].inner_names[name].removesuffix(".weight") for name in shifts]
        done = 0
        for same, maps in write_jacobians(calls[layer].block, read):
            for kind in same:
                cells += _cells(layer, kind, maps, read[kind], target, paths, split)
                done += 1
                if progress is not None:
                    progress(place * len(kinds) + done, len(layers) * len(kinds))
    order = {kind.value: index for index, kind in enumerate(SiteKind)}
    return tuple(sorted(cells, key=lambda cell: (layers.index(cell.layer), order[cell.site])))


def check_size(loaded: LoadedModel, tokens: int) -> None:
    """Refuse a model whose matrices per token would not fit.

    Raises:
        InputError: More than 2^29 numbers.
    """
    numbers = tokens * loaded.site_map.d_model**2
    if numbers > MAX_NUMBERS:
        raise InputError(
            f"the residual map would hold {tokens} matrices of {loaded.site_map.d_model} x {loaded.site_map.d_model}; "
            f"at most {MAX_NUMBERS} numbers are held. Use fewer tokens or a narrower model."
        )


def _cells(
    layer: int, kind: SiteKind, maps: Tensor | None, read: Tensor, target: Tensor, paths: list[str], split: int
) -> list[Cell]:
    fit, test = slice(0, split), slice(split, None)

    def part(tokens: slice) -> Tensor | None:
        return None if maps is None else maps[tokens]

    left = {}
    for form, x in (("linear", read), ("vector", torch.ones_like(read[:, :1]))):
        edit = shared_edit(part(fit), x[fit], target[fit], RIDGE if form == "linear" else 0.0)
        left[form] = [_left(edit(part(tokens), x[tokens]), target[tokens]) for tokens in (fit, test)]
    oracle, size = token_wise(maps, read, target)
    return [
        Cell(
            layer=layer,
            site=kind.value,
            weight=path,
            linear=left["linear"][1][i],
            linear_fitted=left["linear"][0][i],
            vector=left["vector"][1][i],
            oracle=oracle[i],
            oracle_edit=size[i],
        )
        for i, path in enumerate(paths)
    ]


def _left(found: Tensor, target: Tensor) -> list[float]:
    """Return what is left of every target (last axis), as a fraction of its squared norm."""
    rest = (target - found).double().square().sum((0, 1))
    whole = target.double().square().sum((0, 1))
    return [float(r / w) if w > 0 else 0.0 for r, w in zip(rest, whole, strict=True)]


def apply_maps(maps: Tensor | None, edit: Tensor) -> Tensor:
    """Return ``M_t`` times every token's edit (``token width weight``)."""
    if maps is None:
        return edit
    return torch.bmm(maps, edit)


def shared_edit(
    maps: Tensor | None, read: Tensor, target: Tensor, ridge: float
) -> Callable[[Tensor | None, Tensor], Tensor]:
    r"""Fit :math:`\min_A \sum_t |M_t A x_t - \delta_t|^2` for every target and return the fitted edit's effect.

    Conjugate gradients on the normal equations, in coordinates in which channels are standardised, ``x`` is white and
    the mean of ``M^T M`` is the identity: a few tens of steps then suffice. The ridge acts on ``G^{1/2} A`` with ``G``
    that mean, so that edits are weighed by what they do, not by their own size.

    Args:
        maps: ``token d_model width``, or ``None`` for the identity.
        read: What the site reads, ``token channel``.
        target: ``token d_model weight``.
        ridge: Relative to standardised channels.

    Returns:
        A function of maps and reads (of other tokens) that returns the effect, ``token d_model weight``.
    """
    count = len(read)
    scale = read.square().mean(0).sqrt()
    scale = scale.clamp_min(1e-6 * float(scale.max()) + 1e-30)
    x = read / scale
    values, basis = torch.linalg.eigh(x.T @ x / count)
    floor = max(ridge, 1e-6)
    values = values.clamp_min(0)
    white = basis / (values + floor).sqrt()
    penalty = ridge / (values + floor)
    root = _inverse_root(maps, target)

    def forward(maps: Tensor | None, x: Tensor, a: Tensor) -> Tensor:
        inner = torch.einsum("np,krp->nrk", x, a)
        return apply_maps(maps, inner if root is None else torch.einsum("wr,nrk->nwk", root, inner))

    def adjoint(rest: Tensor) -> Tensor:
        back = rest if maps is None else torch.bmm(maps.mT, rest)
        inner = back if root is None else torch.einsum("wr,nwk->nrk", root, back)
        return torch.einsum("nrk,np->krp", inner, seen) / count

    seen = x @ white
    goal = adjoint(target)
    a, rest = torch.zeros_like(goal), goal.clone()
    direction, size = rest.clone(), rest.square().sum((1, 2))
    start = size.clone().clamp_min(1e-300)
    for _ in range(ITERATIONS):
        if bool((size <= _CONVERGED**2 * start).all()):
            break
        image = adjoint(forward(maps, seen, direction)) + direction * penalty
        step = size / (direction * image).sum((1, 2)).clamp_min(1e-300)
        a += step[:, None, None] * direction
        rest -= step[:, None, None] * image
        new = rest.square().sum((1, 2))
        direction = rest + (new / size.clamp_min(1e-300))[:, None, None] * direction
        size = new
    return lambda maps, read: forward(maps, (read / scale) @ white, a)


def _inverse_root(maps: Tensor | None, target: Tensor) -> Tensor | None:
    """Return ``G^{-1/2}`` on the range of ``G``, the mean of ``M^T M`` over some tokens."""
    if maps is None:
        return None
    some = maps[:: max(len(maps) // 32, 1)]
    mean = torch.einsum("ndw,ndv->wv", some, some) / len(some)
    values, basis = torch.linalg.eigh(mean.double())
    kept = values > 1e-8 * values[-1]
    return (basis[:, kept] / values[kept].sqrt()).to(target.dtype)


def token_wise(maps: Tensor | None, read: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Return the median over some tokens of what free edits leave over, and of their relative size, per target."""
    chosen = range(0, len(target), max(len(target) // _ORACLE_TOKENS, 1))
    left, sizes = [], []
    for token in chosen:
        goal = target[token].double()
        if maps is None:
            edit, rest = goal, torch.zeros_like(goal)
        else:
            map_ = maps[token].double()
            edit = torch.linalg.lstsq(map_, goal, rcond=1e-9, driver="gelsy").solution
            rest = goal - map_ @ edit
        whole = goal.square().sum(0)
        left.append(torch.where(whole > 0, rest.square().sum(0) / whole.clamp_min(1e-300), 0.0))
        sizes.append(edit.norm(dim=0) / read[token].double().norm())
    return torch.stack(left).median(0).values.tolist(), torch.stack(sizes).median(0).values.tolist()
