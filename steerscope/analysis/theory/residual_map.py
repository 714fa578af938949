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

Edits of the stream that enters the block are not in the map: they act on other tokens through attention. Source: this
project, after P7 and P12.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.theory.block_call import block_calls
from steerscope.analysis.theory.common import SKIP, Update, flat, of_layer
from steerscope.analysis.theory.jacobians import SharedMaps, shared_maps
from steerscope.analysis.theory.shared_edit import Form, shared_edits
from steerscope.errors import InputError
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.load import LoadedModel
from steerscope.site_kinds import Place
from steerscope.sites import SiteKind

RIDGE = 1e-2
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
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Cell, ...]:
    """Measure the map for some layers.

    Args:
        loaded: The model.
        update: The fine-tuning, by parameter name.
        ids: ``batch token``, without padding; the last fifth of the sequences is held out.
        layers: Which layers.
        progress: Called with sites done and sites in all.

    Returns:
        One cell per layer, site and changed weight: how much of the weight's effect an edit there can reproduce.

    Raises:
        InputError: Fewer than five sequences, or matrices too large to hold (:func:`check_size`).

    Cost: one forward pass; per layer one tangent pass of the block per matrix, the dense matrices of all tokens (a
    product of ``d_model x d_ff x d_model`` each), and some tens of products with them per group of sites.
    """
    if len(ids) < 5:
        raise InputError(f"got {len(ids)} sequences; expected at least 5, of which a fifth is held out. Add prompts.")
    check_size(loaded, (ids.shape[1] - SKIP) * len(ids))
    kinds = [kind for kind in loaded.site_map.description.kinds if kind.facts.place is not Place.ENTERS]
    calls = block_calls(loaded, ids, layers)
    split = (len(ids) - max(len(ids) // 5, 1)) * (ids.shape[1] - SKIP)
    cells = []
    for place, layer in enumerate(layers):
        with forward_differentiable_attention(loaded.model):
            shifts = {
                name: flat(calls[layer].shift({name: change}), SKIP)
                for name, change in of_layer(loaded, update, layer).items()
            }
            tensors = calls[layer].tensors(loaded.site_map, layer)
        read = {kind: flat(value, SKIP).detach() for kind, value in tensors.items()}
        target = torch.stack(list(shifts.values()), dim=1)  # token weight channel
        paths = [calls[layer].inner_names[name].removesuffix(".weight") for name in shifts]
        done = 0
        for maps in shared_maps(calls[layer].block, read):
            cells += _cells(layer, maps, read, target, paths, split)
            done += len(maps.right)
            if progress is not None:
                progress(place * len(kinds) + done, len(layers) * len(kinds))
    order = {kind.value: index for index, kind in enumerate(SiteKind)}
    return tuple(sorted(cells, key=lambda cell: (layers.index(cell.layer), order[cell.site])))


def check_size(loaded: LoadedModel, tokens: int) -> None:
    """Refuse a model whose matrices per token would not fit.

    Args:
        loaded: The model.
        tokens: Number of tokens whose matrices are held at once.

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
    layer: int, maps: SharedMaps, read: dict[SiteKind, Tensor], target: Tensor, paths: list[str], split: int
) -> list[Cell]:
    """Fit all sites that share their matrices at once, linear edits and fixed vectors alike."""
    ones = torch.ones_like(target[:, 0, :1])
    forms = [Form(read[kind], right, RIDGE) for kind, right in maps.right.items()]
    forms += [Form(ones, right) for right in maps.right.values()]
    fit = slice(0, split)
    effects = shared_edits(
        None if maps.dense is None else maps.dense[fit], [form.of(fit) for form in forms], target[fit]
    )
    left = [
        [_left(one[tokens], target[tokens]) for tokens in (fit, slice(split, None))]
        for one in effects(maps.dense, [form.read for form in forms])
    ]
    cells = []
    for place, kind in enumerate(maps.right):
        (fitted, linear), (_, vector) = left[place], left[len(maps.right) + place]
        oracle, size = token_wise(lambda token, kind=kind: maps.at(kind, token), read[kind], target)  # type: ignore[misc]
        cells += [
            Cell(layer, kind.value, path, linear[i], fitted[i], vector[i], oracle[i], size[i])
            for i, path in enumerate(paths)
        ]
    return cells


def _left(found: Tensor, target: Tensor) -> list[float]:
    """Return what is left of every target (the middle axis), as a fraction of its squared norm."""
    rest = (target - found).double().square().sum((0, 2))
    whole = target.double().square().sum((0, 2))
    return [float(r / w) if w > 0 else 0.0 for r, w in zip(rest, whole, strict=True)]


def token_wise(map_of: Callable[[int], Tensor | None], read: Tensor, target: Tensor) -> tuple[list[float], list[float]]:
    """Return the median over some tokens of what free edits leave over, and of their relative size, per target.

    Args:
        map_of: The matrix of a token, ``d_model width``, or ``None`` for the identity.
        read: The site's tensor, ``token channel``.
        target: ``token weight d_model``.

    Returns:
        Fractions left over and relative sizes of the edits, one of each per target.
    """
    chosen = range(0, len(target), max(len(target) // _ORACLE_TOKENS, 1))
    left, sizes = [], []
    for token in chosen:
        goal, map_ = target[token].T.double(), map_of(token)
        if map_ is None:
            edit, rest = goal, torch.zeros_like(goal)
        else:
            map_ = map_.double()
            edit = torch.linalg.lstsq(map_, goal, rcond=1e-9, driver="gelsy").solution
            rest = goal - map_ @ edit
        whole = goal.square().sum(0)
        left.append(torch.where(whole > 0, rest.square().sum(0) / whole.clamp_min(1e-300), 0.0))
        sizes.append(edit.norm(dim=0) / read[token].double().norm())
    return torch.stack(left).median(0).values.tolist(), torch.stack(sizes).median(0).values.tolist()
