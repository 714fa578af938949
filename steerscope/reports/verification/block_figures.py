"""Figures of what single blocks do: conditioning, the parts of their output, and what their gate lets through."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import ACCENT, NULL, WIDTH, log_scale, new_figure, styled
from steerscope.reports.verification.figure_parts import finish, line, measured


@styled
def plot_conditioning(found: Verification) -> Figure:
    """Draw condition numbers and needed edits over the layers."""
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
    """Draw the three parts of the output, and the published ratio that leaves one out."""
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
def plot_modulation(found: Verification) -> Figure:
    """Draw both modulation factors over the layers as bands of quantiles."""
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
