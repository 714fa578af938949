"""Draw the picture of README: what a ranking says of every site, beside what training there came to.

    python -m studies.readme_picture docs/images/ranking.svg

From a site table, so that nothing is computed but the picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from steerscope import SiteTable, parse_site
from steerscope.analysis.evidence import EVIDENCE
from steerscope.reports.figure_style import figure_bytes, styled
from steerscope.reports.vocabulary import ordered_kinds

TABLE = Path(__file__).parent / "site_tables" / "small-gpt2-compare_next.json"
SCORE = "learnable_share"  # the default


@styled
def draw(table: SiteTable) -> Figure:
    """Return two maps of the same sites, layers from left to right: the score, and minus the trained loss."""
    outcomes = table.outcomes()
    kinds = ordered_kinds(one.site.kind.value for one in outcomes)[::-1]
    layers = 1 + max(one.site.layer for one in outcomes)
    scores = {parse_site(name): value for name, value in table.scores[SCORE].items()}
    predicted, trained = np.full((2, len(kinds), layers), np.nan)
    for one in outcomes:
        place = kinds.index(one.site.kind.value), one.site.layer
        predicted[place] = scores[one.site]
        trained[place] = float(np.mean(one.losses))
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    kept = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    (rho,) = [one["spearman"] for one in kept if one["score"] == SCORE and one["task"] == table.task]
    for ax, values, title, colours in (
        (axes[0], predicted, "before training: the learnable share\nof each site", "cividis"),
        (axes[1], trained, f"after training an edit at each site: loss\n(rank correlation {rho:.2f})", "cividis_r"),
    ):
        mesh = ax.pcolormesh(np.ma.masked_invalid(values), cmap=colours, edgecolors="white", linewidth=0.8)
        figure.colorbar(mesh, ax=ax, shrink=0.9, pad=0.01).outline.set_visible(False)
        ax.set_title(title, fontsize=9, loc="left")
        ax.set_xticks(np.arange(layers) + 0.5, [str(layer) for layer in range(layers)])
        ax.set_yticks(np.arange(len(kinds)) + 0.5, kinds)
        ax.tick_params(length=0, labelsize=8)
        ax.set_xlabel("layer", fontsize=8)
        ax.spines[:].set_visible(False)
    return figure


def main(target: str) -> None:
    """Draw the picture into a file, ``.svg`` or ``.png``."""
    path = Path(target)
    path.write_bytes(figure_bytes(draw(SiteTable.load(TABLE)), path.suffix[1:]))


if __name__ == "__main__":
    main(sys.argv[1])
