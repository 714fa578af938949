r"""How low-rank the oracle shifts of fine-tuning are, and how much of them a linear map of the stream predicts.

The oracle of a layer is :math:`\Delta = h_{FT} - h_{base}` at ``resid_post``. Two questions that are often taken for
one: how concentrated is the spectrum of its covariance over tokens, and how well does the best linear map of what
the site reads (the base stream), of every rank, predict it on sequences it was not fitted on (reduced-rank
regression)? Low rank does not imply linear. Source: P26 to P28; the measurement is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from steerscope.analysis.theory.common import SKIP, Update, flat, ordinary, streams
from steerscope.errors import InputError
from steerscope.models.changed_weights import with_update
from steerscope.models.load import LoadedModel

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class OracleSpectrum:
    """One layer.

    Attributes:
        layer: Index of the block.
        relative_norm: Root mean square of the shift over that of the stream.
        mean_share: Share of the shift's energy in its mean over tokens (what a fixed vector gives).
        rank_50: Directions that hold half of the centred shift's energy.
        rank_90: Directions that hold 90%.
        rank_99: Directions that hold 99%.
        participation: Participation ratio of the spectrum, ``(sum s)^2 / sum s^2`` over variances.
        cumulative: Share of the energy in the first ``RANKS`` directions.
        ranks: Ranks of the linear maps.
        fitted: Explained part on the tokens fitted, per rank (R squared: the mean alone explains 0).
        held_out: Explained part on held-out sequences, per rank.
        ridge: The ridge, chosen on a third part of the sequences, relative to standardised channels.
        left_out: Share of tokens left out because their stream is more than four times the median length: squares
            of a few of them would be all of the energy.
    """

    layer: int
    relative_norm: float
    mean_share: float
    rank_50: int
    rank_90: int
    rank_99: int
    participation: float
    cumulative: tuple[float, ...]
    ranks: tuple[int, ...]
    fitted: tuple[float, ...]
    held_out: tuple[float, ...]
    ridge: float
    left_out: float = 0.0


def oracle_spectra(
    loaded: LoadedModel, update: Update, ids: Tensor, layers: Sequence[int], *, batch_size: int = 16
) -> tuple[OracleSpectrum, ...]:
    """Measure spectra and linear predictability of the oracle shifts.

    Args:
        loaded: The model.
        update: The fine-tuning, by parameter name.
        ids: ``batch token``, without padding; the last quarter of the sequences is held out, the quarter before
            chooses the ridge.
        layers: Which layers.
        batch_size: Sequences per pass.

    Returns:
        Per layer how many directions hold the shifts, and how much of them a linear map of the stream predicts.

    Raises:
        InputError: Fewer than eight sequences.

    Cost: two forward passes; memory of two streams per layer.
    """
    if len(ids) < 8:
        raise InputError(f"got {len(ids)} sequences; expected at least 8, of which a quarter is held out. Add prompts.")
    base = _collect(loaded, ids, layers, batch_size)
    with with_update(loaded, update):
        tuned = _collect(loaded, ids, layers, batch_size)
    per_row = ids.shape[1] - SKIP
    bounds = [len(ids) // 2 * per_row, (3 * len(ids)) // 4 * per_row]
    found = []
    for layer in layers:
        kept = ordinary(base[layer])
        ends = [int(kept[:bound].sum()) for bound in bounds]
        spectrum = spectrum_of(layer, base[layer][kept], (tuned[layer] - base[layer])[kept], *ends)
        found.append(replace(spectrum, left_out=float((~kept).double().mean())))
    return tuple(found)


def _collect(loaded: LoadedModel, ids: Tensor, layers: Sequence[int], batch_size: int) -> dict[int, Tensor]:
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in ids.split(batch_size):
        for layer, value in streams(loaded, batch, layers).items():
            parts[layer].append(flat(value, SKIP))
    return {layer: torch.cat(values) for layer, values in parts.items()}


def spectrum_of(layer: int, read: Tensor, shift: Tensor, fit_end: int, choose_end: int) -> OracleSpectrum:
    """Return the spectrum of ``shift`` and the linear maps from ``read``, both ``token channel``.

    Tokens before ``fit_end`` are fitted, those up to ``choose_end`` choose the ridge, the rest is held out.

    Args:
        layer: Index of the block, for the result.
        read: What the linear map reads ``(token channel)``.
        shift: What it should predict ``(token channel)``.
        fit_end: Number of tokens, from the first on, that the map is fitted to.
        choose_end: Where the tokens that choose the ridge end; those after it are held out.

    Returns:
        Ranks that hold 50, 90 and 99 % of the variance, and explained parts by rank of the map.
    """
    read, shift = read.double(), shift.double()
    centre = shift.mean(0)
    variances = torch.linalg.eigvalsh((shift - centre).T @ (shift - centre)).flip(0).clamp_min(0)
    share = variances.cumsum(0) / variances.sum()
    widths = [int((share < level).sum()) + 1 for level in (0.5, 0.9, 0.99)]
    ranks = tuple(r for r in RANKS if r < shift.shape[-1]) + (shift.shape[-1],)
    fit, choose, test = slice(0, fit_end), slice(fit_end, choose_end), slice(choose_end, None)
    model = _Ridge(read[fit], shift[fit])
    chosen = max(RIDGES, key=lambda ridge: _r2(shift[choose], model.predict(read[choose], ridge), model.target_mean))
    fitted, held_out = (
        [_r2(shift[part], cut, model.target_mean) for cut in model.by_rank(read[part], chosen, ranks)]
        for part in (fit, test)
    )
    return OracleSpectrum(
        layer=layer,
        relative_norm=float(shift.norm() / read.norm()),
        mean_share=float(len(shift) * centre.square().sum() / shift.square().sum()),
        rank_50=widths[0],
        rank_90=widths[1],
        rank_99=widths[2],
        participation=float(variances.sum() ** 2 / variances.square().sum()),
        cumulative=tuple(float(share[r - 1]) for r in ranks),
        ranks=ranks,
        fitted=tuple(fitted),
        held_out=tuple(held_out),
        ridge=chosen,
    )


class _Ridge:
    """Ridge regression on standardised channels, and its reduced-rank versions."""

    def __init__(self, read: Tensor, target: Tensor) -> None:
        self._mean, self.target_mean = read.mean(0), target.mean(0)
        self._scale = read.std(0).clamp_min(1e-12 * float(read.abs().max()) + 1e-300)
        x = (read - self._mean) / self._scale
        self._values, self._basis = torch.linalg.eigh(x.T @ x / len(x))
        self._cross = self._basis.T @ (x.T @ (target - self.target_mean)) / len(x)

    def _weights(self, ridge: float) -> Tensor:
        return self._cross / (self._values.clamp_min(0) + ridge)[:, None]

    def predict(self, read: Tensor, ridge: float) -> Tensor:
        return ((read - self._mean) / self._scale) @ (self._basis @ self._weights(ridge)) + self.target_mean

    def by_rank(self, read: Tensor, ridge: float, ranks: Sequence[int]) -> list[Tensor]:
        """Return the prediction of the best map of every rank.

        It projects the fit onto the first principal directions of the fit, in the norm in which ridge regression is
        least squares: fitted energy plus penalty.
        """
        weights = self._weights(ridge)
        energy = weights.T @ ((self._values.clamp_min(0) + ridge)[:, None] * weights)
        directions = torch.linalg.eigh(energy)[1].flip(-1)
        along = (self.predict(read, ridge) - self.target_mean) @ directions
        return [along[:, :rank] @ directions[:, :rank].T + self.target_mean for rank in ranks]


def _r2(target: Tensor, predicted: Tensor, mean: Tensor) -> float:
    whole = float((target - mean).square().sum())
    return 1 - float((target - predicted).square().sum()) / whole if whole > 0 else float("nan")
