"""Figures of what edits can imitate of a fine-tuning: spectra of oracles, what linear edits miss, and strength."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import INK, NULL, PAPER, WIDTH, figure_text, log_scale, look, styled
from steerscope.reports.verification.figure_parts import finish, line, measured
from steerscope.reports.vocabulary import ordered_kinds


@styled
def plot_oracle_spectra(found: Verification) -> Figure:
    """Draw concentration of the shifts' spectra and the part that linear maps predict, against rank."""
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
    """Draw what token-shared linear edits leave over, sites against weight matrices, one panel per layer."""
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
def plot_strength(found: Verification) -> Figure:
    """Draw delta-KL over the layers, one line per strength, one panel per site."""
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
