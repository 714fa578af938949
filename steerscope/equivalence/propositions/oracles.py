r"""Oracle steering: adding what fine-tuning would have changed, and what is left of it when it must be linear.

The oracle at a site is :math:`\Delta = h_{FT} - h_{base}` per token; adding it gives :math:`h_{FT}` at that site by
construction (P21). At every layer at once that is no longer true: behind a steered layer the stream is already
:math:`h_{FT}`, the block's own output is :math:`F(h_{FT})` and not :math:`F(h_{base})`, and the static oracle counts
what was gained below a second time. Exact are (P22)

.. math:: \Delta_l = h_{FT,l} - h_{current,l} \quad\text{(lockstep)}, \qquad
    \Delta_l = F_l^{FT}(h_{FT,l-1}) - F_l(h_{FT,l-1}) \quad\text{(one step)}.

The oracles of many tokens form a matrix ``token d_model``. A LoRA on the down projection alone makes its rank at most
that of the LoRA, since :math:`\Delta = B A m` (P26). Few directions do not make :math:`\Delta` a linear function of
the state (P27); the best function that is linear and of rank r is reduced-rank regression (P28): with fitted values
:math:`\hat Y = X \hat B` of ordinary least squares and :math:`V_r` their first right singular vectors it is
:math:`\hat B V_r V_r^\top`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.parts import curve, relative_error
from steerscope.equivalence.propositions.runs import (
    RANK,
    Pass,
    as_update,
    fine_tuning,
    low_rank_change,
    output_mapped,
    post,
    run_at,
    spread,
    unit,
    weights_changed,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.models.hooks import Edit
from steerscope.sites import Site

GROUP = "oracles"

# h + (h' - h) is h' up to the last bit of h; the norms behind it divide by streams of order one.
EXACT = 1e-12
# A run through all layers amplifies rounding; wrong forms are off by 1e-2 and more.
EXACT_RUN = 1e-10
# Anything above it is no rounding: what must differ, differs by at least this much.
DIFFERENT = 1e-6
# SVD of a few tokens in float64.
SVD = 1e-12
# P27: with 2e5 samples in 8 dimensions chance alone explains about 8 / 2e5 = 4e-5 of the variance.
CHANCE = 1e-3
# P28: differences of squared errors relative to the total.
REGRESSION = 1e-10


# --- formulas ---


def oracle_shift(tuned: Tensor, base: Tensor) -> Tensor:
    """Return the oracle ``h_FT - h_base``, any shape. Source: T12."""
    return tuned - base


def lockstep_shift(tuned: Tensor, current: Tensor) -> Tensor:
    """Return ``h_FT - h_current`` for the stream as it arrives in the steered run. Source: P22."""
    return tuned - current


def one_step_shift(tuned_output: Tensor, base_output_on_tuned: Tensor) -> Tensor:
    """Return ``F_FT(h_FT) - F_base(h_FT)``, both blocks on the fine-tuned stream. Source: P22."""
    return tuned_output - base_output_on_tuned


def outside_columns(rows: Tensor, basis: Tensor) -> float:
    """Return the share (norm) of ``rows`` (token d) outside the columns of ``basis`` (d r). Source: P26."""
    columns = torch.linalg.qr(basis).Q
    return float((rows - rows @ columns @ columns.T).norm() / rows.norm())


def rank_excess(rows: Tensor, rank: int) -> float:
    """Return the first singular value beyond ``rank``, relative to the largest; 0 for a matrix too small to have it."""
    values = torch.linalg.svdvals(rows)
    return float(values[rank] / values[0]) if len(values) > rank else 0.0


def principal_error(rows: Tensor, rank: int) -> Tensor:
    """Return the squared error of projecting ``rows`` (token d) on their first ``rank`` principal directions.

    The directions are eigenvectors of the covariance. Source: P26.
    """
    centred = rows - rows.mean(0)
    directions = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -rank:]
    return (centred - centred @ directions @ directions.T).square().sum()


def spectrum_tail(rows: Tensor, rank: int) -> Tensor:
    """Return ``sum_{i > rank} sigma_i^2`` of the centred rows: what Eckart and Young say the error is."""
    return torch.linalg.svdvals(rows - rows.mean(0))[rank:].square().sum()


def curved_oracle(states: Tensor, reader: Tensor, writer: Tensor) -> Tensor:
    """Return ``((v . h)^2 - 1) u`` for states (token d): one direction, no linear part. Source: T13."""
    return ((states @ reader).square() - 1).unsqueeze(-1) * writer


def affine_share(states: Tensor, targets: Tensor) -> float:
    """Return R^2 of the best affine map from states (token p) to targets (token q), by the normal equations."""
    x, y = states - states.mean(0), targets - targets.mean(0)
    slopes = torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ y)
    return float(1 - (y - x @ slopes).square().sum() / y.square().sum())


def reduced_rank_map(states: Tensor, targets: Tensor, rank: int) -> Tensor:
    r"""Return the linear map (p q) of at most that rank with the least squared error on centred data.

    .. math:: \hat B V_r V_r^\top, \qquad \hat B = X^+ Y, \quad V_r \text{ of the fitted values } X \hat B

    Cost: one pseudo-inverse and one SVD. Source: P28.
    """
    least_squares = torch.linalg.pinv(states) @ targets
    directions = torch.linalg.svd(states @ least_squares, full_matrices=False).Vh[:rank]
    return least_squares @ directions.T @ directions


# --- checks ---


def _tuned(subject: Subject, layers: tuple[int, ...], update: dict[str, Tensor]) -> tuple[Pass, Pass]:
    """Return the base run and the fine-tuned run, both read at the outputs of ``layers``."""
    sites = [post(layer) for layer in layers]
    return run_at(subject, sites), run_at(subject, sites, update=update)


def _last_token(shift: Tensor) -> Tensor:
    kept = torch.zeros_like(shift)
    kept[:, -1] = shift[:, -1]
    return kept


def _check_single_layer(subject: Subject) -> Evidence:
    top = len(subject.site_map.blocks) - 1
    layer = min(subject.layer, top - 1) if top else 0  # the last layer is its own case
    base, tuned = _tuned(subject, (layer, top), fine_tuning(subject))
    at, end = post(layer), post(top)
    shift = oracle_shift(tuned[at], base[at])
    steered = run_at(subject, (at,), edits={at: lambda h: shift})
    last = run_at(subject, (at,), edits={at: lambda h: _last_token(shift)})
    final = oracle_shift(tuned[end], base[end])
    at_top = run_at(subject, edits={end: lambda h: final})
    name = f"state at layer {layer}, distance to the fine-tuned one"
    claim = [
        Measurement(name, relative_error(steered[at], tuned[at]), high=EXACT),
        Measurement(
            "logits, the oracle at the last layer", relative_error(at_top.logits, tuned.logits), high=EXACT_RUN
        ),
    ]
    if layer < top:
        off = relative_error(steered.logits, tuned.logits)
        claim.append(Measurement("logits, blocks above fine-tuned too (must differ)", off, low=DIFFERENT))
    controls = (Measurement(f"{name}, last token alone patched", relative_error(last[at], tuned[at]), high=EXACT),)
    return Evidence(tuple(claim), controls)


def _check_every_layer(subject: Subject) -> Evidence:
    layers = spread(subject)
    if len(layers) < 2:
        return Evidence(inapplicable="one block has no layer below it whose gain could be counted twice")
    base, tuned = _tuned(subject, layers, fine_tuning(subject, layers))
    sites = [post(layer) for layer in layers]
    all_layers = len(layers) == len(subject.site_map.blocks)

    arriving: dict[Site, Tensor] = {}

    def lockstep(site: Site) -> Edit:
        def edit(h: Tensor) -> Tensor:
            arriving[site] = h  # below it every state is the fine-tuned one, so this is F_base(h_FT)
            return lockstep_shift(tuned[site], h)

        return edit

    exact = run_at(subject, sites, edits={site: lockstep(site) for site in sites})
    steps = {site: one_step_shift(tuned[site], arriving[site]) for site in sites}
    one_step = run_at(subject, sites, edits=_fixed(steps))
    static = run_at(subject, sites, edits=_fixed({site: oracle_shift(tuned[site], base[site]) for site in sites}))
    last = run_at(subject, sites, edits=_fixed({site: _last_token(step) for site, step in steps.items()}))
    overshoot = [relative_error(static[site], tuned[site]) for site in sites]
    moved = relative_error(base.logits, tuned.logits)
    where = "every layer" if all_layers else f"every fine-tuned layer ({', '.join(map(str, layers))})"
    return Evidence(
        claim=(
            Measurement("logits, lockstep oracle", relative_error(exact.logits, tuned.logits), high=EXACT_RUN),
            Measurement("logits, one-step oracle", relative_error(one_step.logits, tuned.logits), high=EXACT_RUN),
        ),
        controls=(
            Measurement(
                "logits of the last token, one-step oracle at the last token alone",
                relative_error(last.logits[:, -1], tuned.logits[:, -1]),
                high=EXACT_RUN,
            ),
        ),
        published=(
            Measurement(
                "logits, static oracle at every layer", relative_error(static.logits, tuned.logits), high=1e-10
            ),
        ),
        notes=(f"oracles added at {where}; without any, the logits are off by {moved:.3g}",),
        series={"overshoot": curve("layer", layers, "static oracles: distance to the fine-tuned state", overshoot)},
    )


def _fixed(shifts: dict[Site, Tensor]) -> dict[Site, Edit]:
    def constant(value: Tensor) -> Edit:
        return lambda h: value

    return {site: constant(value) for site, value in shifts.items()}


def _written(subject: Subject, update: dict[str, Tensor]) -> Tensor:
    """Return what the block's down projection writes, before any norm, ``(token d)``."""
    found: list[Tensor] = []

    def keep(output: Tensor) -> Tensor:
        found.append(output)
        return output

    with weights_changed(subject.model, update), output_mapped(subject.block.mlp_write, keep):
        run_at(subject)
    return found[0].reshape(-1, found[0].shape[-1])


def _check_rank(subject: Subject) -> Evidence:
    block = subject.block
    base = _written(subject, {})
    write, read = low_rank_change(subject, block.mlp_write)
    down = oracle_shift(_written(subject, as_update(subject, block.mlp_write, write @ read)), base)
    first = block.mlp_reads[0]
    inner_write, inner_read = low_rank_change(subject, first, salt=1)
    inner = oracle_shift(_written(subject, as_update(subject, first, inner_write @ inner_read)), base)
    ranks = range(1, min(len(inner) - 1, inner.shape[1]))
    total = spectrum_tail(inner, 0)
    gap = max(float((principal_error(inner, k) - spectrum_tail(inner, k)).abs() / total) for k in ranks)
    # Random directions instead of principal ones, measured as the principal ones are.
    centred = inner - inner.mean(0)
    random = torch.linalg.qr(subject.draw(inner.shape[1], 2, salt=5)).Q
    worse = (centred - centred @ random @ random.T).square().sum() - spectrum_tail(inner, 2)
    values = torch.linalg.svdvals(inner)
    return Evidence(
        claim=(
            Measurement("share of the oracle outside the columns of B", outside_columns(down, write), high=SVD),
            Measurement(f"singular value {RANK + 1} over the first", rank_excess(down, RANK), high=SVD),
            Measurement("error of k principal directions minus the spectrum's tail", gap, high=SVD),
        ),
        controls=(
            Measurement(
                f"singular value {RANK + 1} over the first, same rank of update but in the map that reads",
                rank_excess(inner, RANK),
                high=SVD,
            ),
            Measurement("error of 2 random directions minus the tail", float(worse / total), high=SVD),
        ),
        notes=(
            ("read before the norm on what the MLP writes; behind it the oracle is not in the columns of B",)
            if block.mlp_post_norm is not None
            else ()
        ),
        series={
            "spectrum": curve(
                "index", range(1, len(values) + 1), "singular value over the first", (values / values[0]).tolist()
            )
        },
    )


def _check_low_rank_is_not_linear(subject: Subject) -> Evidence:
    states = run_at(subject, (post(subject.layer),))[post(subject.layer)].flatten(0, 1)
    centred = states - states.mean(0)
    # Every state and its mirror image: an even function has then no linear part, however few states there are.
    mirrored = torch.cat([centred, -centred])
    width = mirrored.shape[1]
    reader, writer = subject.draw(width, salt=1), unit(subject.draw(width, salt=2))
    reader = reader / (mirrored @ reader).square().mean().sqrt()
    own = curved_oracle(mirrored, reader, writer)

    sample = subject.draw(200_000, 8, salt=3)  # the population of theory.md, h ~ N(0, I)
    small_reader, small_writer = unit(subject.draw(8, salt=4)), unit(subject.draw(8, salt=5))
    drawn = curved_oracle(sample, small_reader, small_writer)
    straight = (sample @ small_reader).unsqueeze(-1) * small_writer
    share = affine_share(sample, drawn)
    return Evidence(
        claim=(
            Measurement("second singular value over the first, the subject's states", rank_excess(own, 1), high=SVD),
            Measurement(
                "R^2 of the best affine map, the subject's states and their mirror images",
                affine_share(mirrored, own),
                high=CHANCE,
            ),
            Measurement("R^2 of the best affine map, 200,000 normal states", share, high=CHANCE),
        ),
        controls=(Measurement("R^2 for the oracle (v . h) u", affine_share(sample, straight), high=CHANCE),),
        published=(Measurement("R^2 of the best affine map to an oracle of rank 1", share, low=0.99),),
    )


def _alternating_error(states: Tensor, targets: Tensor, start: Tensor, rounds: int = 400) -> float:
    """Return the least squared error of ``X C U^T`` found by alternating least squares: shares no formula with RRR."""
    read, inverse = start, torch.linalg.pinv(states)
    error = torch.tensor(0.0)
    for _ in range(rounds):
        write = torch.linalg.lstsq(states @ read, targets).solution  # rank q
        read = inverse @ targets @ torch.linalg.pinv(write)
        error = (targets - states @ read @ write).square().sum()
    return float(error)


def _check_best_linear(subject: Subject) -> Evidence:
    layer = post(subject.layer)
    base, tuned = _tuned(subject, (subject.layer,), fine_tuning(subject))
    delta = oracle_shift(tuned[layer], base[layer]).flatten(0, 1)
    states = base[layer].flatten(0, 1)
    x, y = states - states.mean(0), delta - delta.mean(0)
    # So few tokens cannot determine d_model slopes: the adapter reads the leading principal coordinates.
    width = max(2, min(x.shape[1], len(x) // 3))
    x = x @ torch.linalg.svd(x, full_matrices=False).Vh[:width].T
    total = float(y.square().sum())

    def error(coefficients: Tensor) -> float:
        return float((y - x @ coefficients).square().sum()) / total

    ranks = range(width + 1)
    best = [error(reduced_rank_map(x, y, rank)) for rank in ranks]
    principal, truncated = [], []
    free = torch.linalg.pinv(x) @ y
    for rank in ranks:
        directions = torch.linalg.svd(y, full_matrices=False).Vh[:rank]
        principal.append(error(free @ directions.T @ directions))  # regress the oracle's principal coordinates
        left, values, right = torch.linalg.svd(free, full_matrices=False)
        truncated.append(error((left[:, :rank] * values[:rank]) @ right[:rank]))
    middle = width // 2
    numeric = _alternating_error(x, y, subject.draw(width, middle, salt=7)) / total
    return Evidence(
        claim=(
            Measurement("largest growth of the error from one rank to the next", _growth(best), high=REGRESSION),
            Measurement(
                "largest excess over regressing the oracle's principal coordinates",
                max(b - p for b, p in zip(best, principal, strict=True)),
                high=REGRESSION,
            ),
            Measurement(
                f"rank {middle}: closed form minus alternating least squares",
                abs(best[middle] - numeric),
                high=REGRESSION,
            ),
        ),
        controls=(
            Measurement(
                f"rank {middle}: truncated coefficients minus alternating least squares",
                abs(truncated[middle] - numeric),
                high=REGRESSION,
            ),
        ),
        notes=(f"{len(x)} tokens; the map reads {width} principal coordinates of the state",),
        series={
            "best linear fit": curve("rank", ranks, "unexplained share of the oracle", best),
            "principal directions": curve("rank", ranks, "unexplained share of the oracle", principal),
        },
    )


def _growth(errors: list[float]) -> float:
    return max(after - before for before, after in pairwise(errors))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        21,
        GROUP,
        "oracle at one layer",
        "Adding h_FT - h_base at one layer makes the state there the fine-tuned one exactly; the logits differ as long "
        "as layers above were fine-tuned too, and agree when the layer is the last.",
        "Every position is patched; final norm and unembedding are not fine-tuned.",
        Source.POST,
        _check_single_layer,
    ),
    Proposition(
        22,
        GROUP,
        "oracles at every layer",
        "At every layer at once, h_FT - h_current (lockstep) and F_FT(h_FT) - F_base(h_FT) (one step) reproduce the "
        "fine-tuned logits exactly.",
        "Every position is patched at every fine-tuned layer.",
        Source.OURS,
        _check_every_layer,
        published="The oracle h_FT - h_base, defined for one layer, added at every layer: it overshoots.",
    ),
    Proposition(
        26,
        GROUP,
        "rank of the oracle",
        "A rank-r LoRA on the down projection makes an oracle B A m at that MLP: in the columns of B, rank at most r; "
        "k principal directions leave exactly the tail of the spectrum. Updates of the maps that read have no such "
        "bound.",
        "Read before any norm on what the MLP writes.",
        Source.OURS,
        _check_rank,
    ),
    Proposition(
        27,
        GROUP,
        "low rank is not linear",
        "The oracle ((v . h)^2 - 1) u has rank 1 and no linear part: its best affine map explains nothing.",
        "States symmetric about their mean (normal, or with their mirror images).",
        Source.OURS,
        _check_low_rank_is_not_linear,
        published="The authors' post finds the spectrum of oracles concentrated; read as: so a linear map of low rank "
        "gives them.",
    ),
    Proposition(
        28,
        GROUP,
        "best linear oracle of a rank",
        "Reduced-rank regression, B_ols V_r V_r^T with V_r from the fitted values, is the best linear map of rank r to "
        "the oracle (Izenman 1975): its error does not grow with r and is at most that of regressing the oracle's "
        "principal coordinates.",
        "Centred data, squared error.",
        Source.LITERATURE,
        _check_best_linear,
    ),
)
