"""Figures of where the map is first-order: remainder slopes of the model and of single blocks, and the radius."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from steerscope.experiments.verification.results import Verification
from steerscope.reports.figure_style import LINE_LOOKS, MUTED, NULL, PALE, PAPER, log_scale, new_figure, styled
from steerscope.reports.verification.figure_parts import finish, line, measured

BAND = (1.95, 2.05)


@styled
def plot_slopes(found: Verification) -> Figure:
    """Draw the remainder against the size of the update, with a line of slope two."""
    figure, ax = new_figure(3.9)
    entries = measured(found, "slopes")
    handles = []
    for place, one in enumerate(entries):
        left = [r * s for r, s in zip(one["relative"], one["sizes"], strict=True)]
        handles.append(line(ax, one["sizes"], left, place, f"{_place(one)}: {slope_words(one)}"))
    sizes = np.array(entries[0]["sizes"])
    middle = len(sizes) // 2
    start = entries[0]["relative"][middle] * sizes[middle]
    (guide,) = ax.plot(sizes, start * (sizes / sizes[middle]) ** 2, color=NULL, linewidth=1, label="slope 2")
    log_scale(ax, "x")
    log_scale(ax, "y")
    ax.set_xlabel("size of the update, |t dW| / |W|")
    ax.set_ylabel("|measured - predicted|,\nper unit of shift")
    ax.grid()
    finish(figure, found, "Is the map first-order? Slopes", [*handles, guide], 2)
    return figure


def _place(one: dict[str, Any]) -> str:
    layer, _, kind = one["at"].partition(".")
    return f"layer {layer}" if kind else layer


def slope_words(one: dict[str, Any]) -> str:
    """Return the slope over all sizes and, in brackets, over small errors alone."""
    small = one["small_slope"]
    return f"{one['slope']:.3f}" + (f" ({small:.3f})" if small is not None else "")


@styled
def plot_block_slopes(found: Verification) -> Figure:
    """Draw the slope of every single block, one line per update, with the band it must lie in."""
    figure, ax = new_figure(3.3)
    entries = measured(found, "block_slopes")
    ax.axhspan(*BAND, color=PALE, zorder=0)
    handles: list[Any] = []
    for place, name in enumerate(dict.fromkeys(one["update"] for one in entries)):
        mine = [one for one in entries if one["update"] == name]
        layers = [int(one["at"].split(".")[0]) for one in mine]
        handles.append(line(ax, layers, [one["slope"] for one in mine], place, name))
    handles.append(Patch(facecolor=PALE, label="2.00 +- 0.05"))
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, BAND[0] - 0.02), max(high, BAND[1] + 0.02))
    ax.set_xlabel("block")
    ax.set_ylabel("slope of the remainder")
    ax.grid(axis="y")
    finish(figure, found, "Slopes of single blocks", handles, 3)
    return figure


@styled
def plot_radius(found: Verification) -> Figure:
    """Draw the radius per layer for the trained and the random updates."""
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
    size = None if found.finetune is None else found.finetune.relative_size
    if size:
        ax.axhline(size, color=NULL, linestyle="--", linewidth=1.2)
        handles.append(Line2D([], [], color=NULL, linestyle="--", label="size of the fine-tuning itself"))
    log_scale(ax, "y")
    ax.set_xlabel("layer")
    ax.set_ylabel("largest |t dW| / |W| with\n90% of the shift explained")
    ax.grid(axis="y")
    finish(figure, found, "Where the first-order map ends", handles, 2)
    return figure
