"""The figures of a verification: every ``plot_*`` takes a :class:`Verification` and returns a matplotlib ``Figure``.

Lines differ in marker and dash as well as colour, cells carry numbers or letters. Each figure needs the measurement
it draws; :func:`figure_entries` asks only for those that are there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steerscope.errors import InputError
from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import (
    ACCENT,
    INK,
    LINE_LOOKS,
    MUTED,
    NULL,
    PAPER,
    WIDTH,
    figure_text,
    log_scale,
    look,
    new_figure,
    styled,
)
from steerscope.reports.page_folder import PageFigure
from steerscope.reports.verification.figure_parts import finish, line, measured
from steerscope.reports.verification.slope_figures import plot_block_slopes, plot_slopes, slope_words
from steerscope.reports.vocabulary import count, ordered_kinds

# Letter, fill and ink of a verdict's cell: lightness alone tells them apart.
VERDICT_LOOKS = {
    "holds": ("H", "#dbe6f4", INK),
    "holds with correction": ("C", "#7fa6d6", INK),
    "not applicable": ("N", PAPER, MUTED),
    "fails": ("F", "#5c1010", "white"),
}


@styled
def plot_verdicts(found: Verification) -> Figure:
    """Draw one lettered cell per proposition.

    Returns:
        The figure.
    """
    columns = 7
    rows = -(-len(found.propositions) // columns)
    figure, ax = new_figure(0.5 * rows + 1.5)
    for index, one in enumerate(found.propositions):
        row, column = divmod(index, columns)
        letter, fill, ink = VERDICT_LOOKS[one.verdict]
        ax.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1], facecolor=fill, edgecolor=PAPER)
        if one.verdict == "not applicable":
            ax.fill(
                [column + 0.02, column + 0.98, column + 0.98, column + 0.02],
                [row + 0.03, row + 0.03, row + 0.97, row + 0.97],
                facecolor="none",
                edgecolor="#b9c0ca",
                hatch="////",
            )
        box = {"facecolor": fill, "edgecolor": "none", "pad": 1.5}
        ax.text(column + 0.5, row + 0.5, f"{one.name} {letter}", color=ink, ha="center", va="center", bbox=box)
    ax.set_xlim(0, columns)
    ax.set_ylim(rows, 0)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    counts = found.counts()
    handles = [
        Patch(facecolor=fill, edgecolor=MUTED, label=f"{letter}: {verdict} ({counts[verdict]})")
        for verdict, (letter, fill, _) in VERDICT_LOOKS.items()
    ]
    finish(figure, found, f"Verdicts on {count(len(found.propositions), 'proposition')}", handles, 2)
    return figure


# Points of one curve in a small panel.
MOST_POINTS = 24


@styled
def plot_curves(found: Verification) -> Figure:
    """Draw the curves that checks of propositions recorded, one small panel per curve.

    Returns:
        The figure.
    """
    curves = [(one.name, name, data) for one in found.propositions for name, data in one.series.items()]
    curves = [entry for entry in curves if len(entry[2]["x"]) > 1][:15]
    if not curves:
        raise InputError("no proposition of this verification recorded a curve. Verify more of them.")
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(WIDTH, 1.45 * rows + 0.9), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, 3)).flatten()
    for ax in panels[len(curves) :]:
        ax.set_visible(False)
    for ax, (proposition, name, data) in zip(panels, curves, strict=False):
        pairs = [(x, y) for x, y in zip(data["x"], data["y"], strict=True) if x is not None and y is not None]
        if len(pairs) > MOST_POINTS:  # a spectrum has one per direction: more than a small panel shows
            pairs = [pairs[i] for i in np.unique(np.linspace(0, len(pairs) - 1, MOST_POINTS).round().astype(int))]
        x, y = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
        line(ax, x, y, 0, name)
        if len(x) and (x > 0).all() and x.max() > 9.9 * x.min():
            log_scale(ax, "x")
        if len(y) and (y > 0).all() and y.max() > 9.9 * y.min():
            log_scale(ax, "y")
        ax.set_title(figure_text(f"{proposition} {name}", 18), fontsize=8, loc="left")
        ax.set_xlabel(figure_text(data["x_name"], 24), fontsize=7)
        ax.set_ylabel(figure_text(data["y_name"], 22), fontsize=7)
        ax.tick_params(labelsize=6.5)
        ax.minorticks_off()
    finish(figure, found, "Curves behind the verdicts")
    return figure


@styled
def plot_radius(found: Verification) -> Figure:
    """Draw the radius per layer for the trained and the random updates.

    Returns:
        The figure.
    """
    figure, ax = new_figure(3.6)
    entries = [one for one in measured(found, "radius") if one["scope"] == "all layers"]
    handles = []
    for place, name in enumerate(dict.fromkeys(one["update"] for one in entries)):
        mine = [one for one in entries if one["update"] == name]
        layers = [(int(one["at"].split(".")[0]), one["radius"]) for one in mine if one["at"] != "logits"]
        handles.append(line(ax, [x for x, _ in layers], [y for _, y in layers], place, f"{name}: resid_post"))
        for one in mine:
            if one["at"] == "logits":
                colour, marker, _ = LINE_LOOKS[place]
                end = max(layer for layer, _ in layers) + 1.5
                ax.plot(end, one["radius"], marker, color=colour, markerfacecolor=PAPER, markersize=8)
    handles.append(Line2D([], [], marker="o", color=MUTED, markerfacecolor=PAPER, linestyle="", label="hollow: logits"))
    size = found.finetune.get("relative_size")
    if size:
        ax.axhline(size, color=NULL, linestyle="--", linewidth=1.2)
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="size of the fine-tuning itself"))
    log_scale(ax, "y")
    ax.set_xlabel("layer")
    ax.set_ylabel("largest |t dW| / |W| with\n90% of the shift explained")
    ax.grid(axis="y")
    finish(figure, found, "Where the first-order map ends", handles, 2)
    return figure


@styled
def plot_conditioning(found: Verification) -> Figure:
    """Draw condition numbers and needed edits over the layers.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH, 5.6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    entries = measured(found, "conditioning")
    layers = [one["layer"] for one in entries]

    def middle(values: list[float | None]) -> float:
        return float(np.median([np.inf if value is None else value for value in values])) if values else np.nan

    handles = [
        line(top, layers, [middle([one["down"]["condition"]]) for one in entries], 0, "W_d"),
        line(top, layers, [middle([s["condition"] for s in one["jacobian"]]) for one in entries], 1, "A(z), median"),
        line(bottom, layers, [middle([e["edit"] for e in one["mlp_in"]]) for one in entries], 2, "edit of mlp_in"),
        line(bottom, layers, [middle([e["edit"] for e in one["attn_out"]]) for one in entries], 3, "edit of attn_out"),
        line(bottom, layers, [middle([e["target"] for e in one["attn_out"]]) for one in entries], 4, "target (block)"),
    ]
    top.set_ylabel("condition number")
    bottom.set_ylabel("norm, relative to what\nit is added to")
    bottom.set_xlabel("layer")
    for ax in (top, bottom):
        log_scale(ax, "y")
        ax.grid(axis="y")
    finish(figure, found, "Reachable, but at what cost?", handles, 3)
    return figure


@styled
def plot_stream_shares(found: Verification) -> Figure:
    """Draw the three parts of the output, and the published ratio that leaves one out.

    Returns:
        The figure.
    """
    figure, ax = new_figure(3.7)
    entries = measured(found, "stream_shares")
    layers = [one["layer"] for one in entries]
    names = {
        "stream_share": "entering stream",
        "mlp_share": "MLP",
        "attn_share": "attention",
        "published": "|MLP| / (|MLP| + |Attn|), as published",
    }
    handles = [
        line(ax, layers, [one[key] for one in entries], i, label) for i, (key, label) in enumerate(names.items())
    ]
    ax.axhline(0, color=NULL, linewidth=1, linestyle="--")
    ax.set_xlabel("layer")
    ax.set_ylabel("share of the block's output")
    ax.grid(axis="y")
    finish(figure, found, "What a block's output is made of", handles, 2)
    return figure


@styled
def plot_oracle_spectra(found: Verification) -> Figure:
    """Draw concentration of the shifts' spectra and the part that linear maps predict, against rank.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH, 5.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    entries = measured(found, "oracle_spectra")
    chosen = [entries[i] for i in sorted({round(k * (len(entries) - 1) / 4) for k in range(5)})]
    handles = []
    for place, one in enumerate(chosen):
        handles.append(line(top, one["ranks"], one["cumulative"], place, f"layer {one['layer']}"))
        line(bottom, one["ranks"], one["held_out"], place, "")
    bottom.axhline(0, color=NULL, linewidth=1, linestyle="--")
    top.set_ylabel("share of the shift's energy\nin so many directions")
    bottom.set_ylabel("predicted on held-out prompts\n(R squared)")
    bottom.set_xlabel("rank")
    for ax in (top, bottom):
        log_scale(ax, "x", 2)
        ax.grid(axis="y")
    finish(figure, found, "Low rank is one thing, linear another", handles, 3)
    return figure


@styled
def plot_residual_map(found: Verification) -> Figure:
    """Draw what token-shared linear edits leave over, sites against weight matrices, one panel per layer.

    Returns:
        The figure.
    """
    entries = measured(found, "residual_map")
    layers = list(dict.fromkeys(one["layer"] for one in entries))
    sites = ordered_kinds(one["site"] for one in entries)
    weights = list(dict.fromkeys(one["weight"] for one in entries))
    figure = Figure(figsize=(WIDTH, (0.27 * len(sites) + 0.5) * len(layers) + 1.7), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(layers), 1, sharex=True))
    for ax, layer in zip(panels, layers, strict=True):
        values = np.full((len(sites), len(weights)), np.nan)
        for one in entries:
            if one["layer"] == layer and one["linear"] is not None:
                values[sites.index(one["site"]), weights.index(one["weight"])] = 100 * one["linear"]
        ax.pcolormesh(np.ma.masked_invalid(values), cmap="cividis", vmin=0, vmax=100, edgecolors=PAPER, linewidth=0.8)
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "white" if value < 55 else "black"
                ax.text(column + 0.5, row + 0.5, f"{value:.0f}", color=ink, fontsize=8.5, ha="center", va="center")
        ax.set_yticks(np.arange(len(sites)) + 0.5, [figure_text(site, 16) for site in sites], fontsize=8.5)
        ax.invert_yaxis()
        ax.set_ylabel(f"layer {layer}", fontsize=9.5)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    names = [figure_text(weight.split(".")[-1], 14) for weight in weights]
    panels[-1].set_xticks(np.arange(len(weights)) + 0.5, names, rotation=30, ha="right", fontsize=8.5)
    panels[-1].set_xlabel("trained weight matrix")
    finish(figure, found, "% of each matrix's shift a linear edit misses")
    return figure


@styled
def plot_modulation(found: Verification) -> Figure:
    """Draw both modulation factors over the layers as bands of quantiles.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    entries = measured(found, "modulation")
    layers = [one["layer"] for one in entries]
    for ax, key, label in zip(panels, ("slope", "phi"), ("phi'(a_g) * a_u", "phi(a_g)"), strict=True):
        values = np.array([one[key] for one in entries])
        ax.fill_between(layers, values[:, 1], values[:, 5], color="#dbe6f4", label="5% to 95%")
        ax.fill_between(layers, values[:, 2], values[:, 4], color="#7fa6d6", label="25% to 75%")
        ax.plot(layers, values[:, 3], color=ACCENT, marker="o", markersize=4, label="median")
        for at in (-abs(entries[0]["minimum"]), abs(entries[0]["minimum"])):
            ax.axhline(at, color=NULL, linestyle="--", linewidth=1)
        ax.set_ylabel(label)
        ax.grid(axis="y")
    panels[1].set_xlabel("layer")
    handles = [
        *panels[0].get_legend_handles_labels()[0],
        Line2D([], [], color=NULL, linestyle="--", label="+- the activation's minimum"),
    ]
    finish(figure, found, "What the gate lets through", handles, 2)
    return figure


@styled
def plot_strength(found: Verification) -> Figure:
    """Draw delta-KL over the layers, one line per strength, one panel per site.

    Returns:
        The figure.
    """
    entries = measured(found, "strength")
    sites = list(dict.fromkeys(one["site"] for one in entries))
    figure = Figure(figsize=(WIDTH, 2.2 * len(sites) + 1.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(sites), 1, sharex=True, sharey=True))
    handles: list[Any] = []
    for ax, site in zip(panels, sites, strict=True):
        mine = [one for one in entries if one["site"] == site]
        layers = [one["layer"] for one in mine]
        handles = [
            line(ax, layers, [one["delta_kl"][i] for one in mine], i, f"alpha {alpha:g}")
            for i, alpha in enumerate(mine[0]["alphas"])
        ]
        ax.axhline(0, color=INK, linewidth=0.8)
        ax.axhline(-mine[0]["base_kl"], color=NULL, linestyle="--", linewidth=1.1)
        ax.set_title(figure_text(site, 20), fontsize=9.5, loc="left", color=look(site)[0])
        ax.set_ylabel("delta KL (nats)")
        ax.grid(axis="y")
    panels[-1].set_xlabel("layer steered")
    handles.append(Line2D([], [], color=NULL, linestyle="--", label="-KL(base || tuned)"))
    finish(figure, found, "Oracle edits of one layer, by strength", handles, 3)
    return figure


def figure_entries(found: Verification) -> list[PageFigure[Verification]]:
    """Return the figures this verification has the data for, in the order of the page."""
    return list(_entries(found))


FIGURE_STEMS = (
    "verdicts",
    "curves",
    "slopes",
    "block_slopes",
    "radius",
    "conditioning",
    "stream_shares",
    "oracle_spectra",
    "residual_map",
    "modulation",
    "strength",
)


def _entries(found: Verification) -> Iterator[PageFigure[Verification]]:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in found.counts().items())
    yield PageFigure(
        "verdicts",
        "Every proposition at a glance",
        plot_verdicts,
        f"A grid of {count(len(found.propositions), 'proposition')} with a letter each: {counts}.",
        "H holds, C holds with a correction of the public statement, V says nothing on this subject, F fails. "
        "A proposition holds only if its claim is inside and every negative control outside the tolerance fixed in "
        "advance.",
    )
    if any(len(data["x"]) > 1 for one in found.propositions for data in one.series.values()):
        yield PageFigure(
            "curves",
            "Curves behind the verdicts",
            plot_curves,
            "Small panels with the curves that checks recorded, each named by its proposition.",
            "What checks recorded on the way; axes are logarithmic where values span a factor of ten or more.",
        )
    measured = found.measurements
    if measured.get("slopes"):
        slopes = ", ".join(f"{one['at']} {slope_words(one)}" for one in measured["slopes"])
        yield PageFigure(
            "slopes",
            "Is the map first-order through the whole model?",
            plot_slopes,
            f"Remainder against size of the update on logarithmic axes; slopes: {slopes}.",
            "What the first-order map leaves over must fall with the square of the update, as long as the update is "
            "small; the weights of all blocks change at once, along the direction of a real fine-tuning. In brackets: "
            "without the sizes at which the relative error exceeds 0.1, where third-order terms bend the line.",
        )
    if measured.get("block_slopes"):
        within = sum(one["within"] for one in measured["block_slopes"])
        yield PageFigure(
            "block_slopes",
            "Is the map first-order on every block?",
            plot_block_slopes,
            f"Slope of the remainder per block and update; {within} of {len(measured['block_slopes'])} are 2.00 +- "
            "0.05.",
            "One block at a time: its own weights updated, what enters it held fixed, sizes from 1e-2 to 1e-6 relative "
            "to its weights, in float64. Random updates have the trained one's norm in every matrix.",
        )
    if measured.get("radius"):
        yield PageFigure(
            "radius",
            "Where the first-order map ends",
            plot_radius,
            "Lines of the radius over the layers, for the trained and for random updates.",
            "The radius is the relative size of the update at which the explained part of the shift, 1 - e^2 with e "
            "the relative error (median over tokens), falls below 0.9. The direction is that of the whole update; "
            "random updates have the same norm in every matrix. Below the dashed line the fine-tuning itself is larger "
            "than the radius.",
        )
    if measured.get("conditioning"):
        yield PageFigure(
            "conditioning",
            "Reachable, but at what cost?",
            plot_conditioning,
            "Condition numbers of W_d and A(z), and norms of needed edits, over the layers on logarithmic axes.",
            "With more hidden channels than width every target is reachable per token; what remains is conditioning. "
            "Below: the edit an oracle needs, at mlp_in for the MLP's part of the update (linear), at attn_out for the "
            "whole block (Newton's method), relative to the tensor it is added to.",
        )
    if measured.get("stream_shares"):
        yield PageFigure(
            "stream_shares",
            "What a block's output is made of",
            plot_stream_shares,
            "Lines over the layers of the shares of the entering stream, the MLP and the attention.",
            "Shares are part . output / |output|^2 and sum to one for every token (medians over tokens are drawn). The "
            "published ratio compares MLP and attention only and leaves out the entering stream.",
        )
    if measured.get("oracle_spectra"):
        yield PageFigure(
            "oracle_spectra",
            "Low rank is one thing, linear another",
            plot_oracle_spectra,
            "Two panels against rank: energy in the leading directions, and held-out R squared of linear maps.",
            "Above: how concentrated the oracle shifts h_FT - h_base are. Below: how much of them the best linear map "
            "of that rank from the base stream predicts, on prompts it was not fitted on.",
        )
    if measured.get("residual_map"):
        yield PageFigure(
            "residual_map",
            "What a linear edit at each site cannot imitate",
            plot_residual_map,
            "Numbered cells, sites against weight matrices: percent of the first-order shift left over.",
            "For each weight matrix's part of the fine-tuning: percent of the block's first-order shift that the best "
            "token-shared linear edit at a site leaves over on held-out prompts. Free edits per token (oracles) leave "
            "nothing at most sites; their numbers are in verify.json.",
        )
    if measured.get("modulation"):
        yield PageFigure(
            "modulation",
            "What the gate lets through",
            plot_modulation,
            "Bands of quantiles of phi'(a_g) * a_u and of phi(a_g) over the layers.",
            "The gate's change is multiplied by the first, the up projection's by the second. Only phi(a_g) has a "
            "minimum: a histogram of magnitudes that piles up at that number is one of phi(a_g).",
        )
    if measured.get("strength"):
        yield PageFigure(
            "strength",
            "Oracle edits of one layer, by strength",
            plot_strength,
            "Delta KL over the layer steered, one line per strength, panels for attention and MLP output.",
            "KL(steered || fine-tuned) - KL(base || fine-tuned) at the answer, teacher forcing; negative is nearer to "
            "the fine-tuned model; the dashed line is the best possible. The oracle of a site is its shift under the "
            "fine-tuning, added at every position.",
        )
