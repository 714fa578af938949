r"""What gates let through, and how the effect of an oracle edit grows with its strength.

Modulation: the distributions of :math:`\varphi'(a_g) * a_u` (what the gate's change is multiplied by) and of
:math:`\varphi(a_g)` (what the up projection's change is multiplied by). Only the second has a minimum: SiLU never
falls below -0.278, GELU never below -0.170. :attr:`Modulation.near_minimum_phi` and ``near_minimum_slope`` say how
many values lie at that number in magnitude, which tells the two apart whatever a figure's rows are called.

Strength: ``DKL(alpha) = KL(steered || FT) - KL(base || FT)`` with one layer's oracle shift, times alpha, added at one
site, under teacher forcing. Negative is nearer to the fine-tuned model. Source: P1, P41.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.capture.outputs import selected_positions
from steerscope.analysis.theory.common import SKIP, Rows, Update, block_tensors, flat
from steerscope.equivalence.closed_forms import activation_slope
from steerscope.models.blocks import Block
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import edited, reading
from steerscope.models.load import LoadedModel
from steerscope.models.upper_blocks import entering_block
from steerscope.sites import Site, SiteKind

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
ALPHAS = (0.1, 0.25, 0.5, 1.0)
KL_KINDS = (SiteKind.ATTN_OUT, SiteKind.MLP_OUT)
_NEAR = 0.02


@dataclass(frozen=True)
class Modulation:
    """One layer. Quantiles are at 0.01, 0.05, 0.25, 0.5, 0.75, 0.95 and 0.99, over tokens and hidden channels.

    Attributes:
        layer: Index of the block.
        slope: Quantiles of ``phi'(a_g) * a_u`` (``phi'(a)`` in a plain MLP).
        phi: Quantiles of ``phi(a_g)``.
        minimum: The activation's minimum.
        near_minimum_slope: Share of ``|phi'(a_g) * a_u|`` within 2% of ``|minimum|``.
        near_minimum_phi: Share of ``|phi(a_g)|`` there.
    """

    layer: int
    slope: tuple[float, ...]
    phi: tuple[float, ...]
    minimum: float
    near_minimum_slope: float
    near_minimum_phi: float


@dataclass(frozen=True)
class StrengthCurve:
    """One site: ``delta_kl[i]`` belongs to ``alphas[i]``; nats per token, mean over answer positions."""

    layer: int
    site: str
    alphas: tuple[float, ...]
    delta_kl: tuple[float, ...]
    base_kl: float


def modulation(loaded: LoadedModel, ids: Tensor, layers: Sequence[int]) -> tuple[Modulation, ...]:
    """Measure both factors in some layers. Cost: one forward pass.

    Args:
        loaded: The model.
        ids: Tokens ``(batch token)``, without padding.
        layers: Which blocks.

    Returns:
        Per layer the quantiles of both factors, and the shares of them near the activation's minimum.
    """
    found = []
    for layer, tensors in block_tensors(loaded, ids, layers).items():
        block = loaded.site_map.blocks[layer]
        slope, phi = factors(block, flat(tensors[SiteKind.MLP_IN], SKIP))
        low = activation_minimum(block)
        near = [float(((value.abs() - abs(low)).abs() <= _NEAR * abs(low)).double().mean()) for value in (slope, phi)]
        found.append(Modulation(layer, _quantiles(slope), _quantiles(phi), low, near[0], near[1]))
    return tuple(found)


def factors(block: Block, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``phi'(a_g) * a_u`` and ``phi(a_g)`` for what the MLP reads.

    Args:
        block: The block; its MLP may be gated or plain.
        z: What the MLP reads ``(token channel)``.

    Returns:
        The two factors ``(token hidden)``; in a plain MLP, ``phi'(a)`` and ``phi(a)``.
    """
    with torch.no_grad():
        first = [module(z) for module in block.mlp_reads]
        if not block.description.gated:
            return activation_slope(block.activation, first[0]), block.activation(first[0])
        gate, up = first if len(first) == 2 else first[0].chunk(2, dim=-1)
        return activation_slope(block.activation, gate) * up, block.activation(gate)


def activation_minimum(block: Block) -> float:
    """Return the smallest value the activation takes between -10 and 10."""
    with torch.no_grad():
        return float(block.activation(torch.linspace(-10, 10, 200_001, dtype=torch.float64)).min())


def _quantiles(value: Tensor) -> tuple[float, ...]:
    ordered = value.double().flatten().sort().values
    return tuple(float(ordered[min(int(q * len(ordered)), len(ordered) - 1)]) for q in QUANTILES)


def mean_kl(logits: Tensor, reference: Tensor) -> float:
    """Return ``KL(softmax(logits) || softmax(reference))``, mean over all leading axes, in nats.

    Args:
        logits: Logits of one distribution ``(... vocab)``.
        reference: Logits of the other ``(... vocab)``.

    Returns:
        A divergence in nats, at least 0 up to rounding.

    Example:
        >>> mean_kl(torch.zeros(2, 5), torch.ones(2, 5))
        0.0
    """
    first, second = logits.double().log_softmax(-1), reference.double().log_softmax(-1)
    return float((first.exp() * (first - second)).sum(-1).mean())


def strength_curves(
    loaded: LoadedModel,
    update: Update,
    rows: Rows,
    layers: Sequence[int],
    *,
    kinds: Sequence[SiteKind] = KL_KINDS,
    alphas: Sequence[float] = ALPHAS,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[StrengthCurve, ...]:
    """Measure delta-KL curves of oracle edits, one layer and site at a time.

    The oracle of a site is its tensor in the fine-tuned model minus its tensor in the base model, at every position,
    both run undisturbed on the same tokens.

    Args:
        loaded: The model.
        update: The fine-tuning.
        rows: Tokens, and the positions whose distributions are compared.
        layers: Which layers.
        kinds: Which sites.
        alphas: Strengths.
        progress: Called with curves done and curves in all.

    Returns:
        One curve per layer and site: the change of the divergence from the fine-tuned model, by strength.

    Cost: two forward passes, and per layer and site the blocks from there on, on all strengths as one batch.
    """
    sites = [Site(layer, kind) for layer in layers for kind in kinds]
    entering = {layer: loaded.site_map.resolve(f"{layer}.{SiteKind.RESID_PRE}") for layer in layers}

    def run(ids: Tensor) -> Tensor:
        """Return the logits at the answer positions, ``batch position vocab``."""
        positions = torch.arange(ids.shape[1], device=ids.device)[rows.answer]
        row = torch.arange(len(ids), device=ids.device).repeat_interleave(len(positions))
        with torch.no_grad(), selected_positions(loaded.model, row, positions.repeat(len(ids))):
            logits: Tensor = loaded.model(input_ids=ids, use_cache=False).logits
        return logits[0].unflatten(0, (len(ids), len(positions)))

    with reading(loaded.site_map, dict.fromkeys([*sites, *entering.values()])) as before:
        base = run(rows.ids)
    with with_update(loaded, update), reading(loaded.site_map, sites) as after:
        tuned = run(rows.ids)
    base_kl = mean_kl(base, tuned)
    many, strength = len(alphas), torch.tensor(alphas, dtype=base.dtype, device=base.device)
    factor = strength.repeat_interleave(len(rows.ids))[:, None, None]
    curves = []
    for done, site in enumerate(sites):
        oracle = factor * (after[site] - before[site]).repeat(many, 1, 1)
        stream = before[entering[site.layer]].repeat(many, 1, 1)
        with (
            entering_block(loaded.site_map, site.layer, stream),
            edited(loaded.model, loaded.site_map, {site: lambda _, added=oracle: added}),
        ):
            steered = run(rows.ids.repeat(many, 1)).unflatten(0, (many, len(rows.ids)))
        changes = tuple(mean_kl(one, tuned) - base_kl for one in steered)
        curves.append(StrengthCurve(site.layer, site.kind.value, tuple(alphas), changes, base_kl))
        if progress is not None:
            progress(done + 1, len(sites))
    return tuple(curves)
