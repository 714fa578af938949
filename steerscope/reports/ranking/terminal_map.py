"""The map of all sites in a terminal that has colours: one block per site, layers from left to right."""

from __future__ import annotations

from rich.text import Text

from steerscope.analysis.results import Ranking
from steerscope.analysis.scoring.standing import Standing
from steerscope.reports.ranking.candidates import main_family, num_layers, sites_of_family, standing
from steerscope.reports.vocabulary import clean, ordered_kinds

# From the best to a fifth of its score and less: light is good, on dark terminals and on light ones.
_COLOURS = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e")
# The shape says what the colour cannot: whether the prompts can tell.
_BLOCKS = {Standing.EQUAL: "█", Standing.UNDETERMINED: "▒", Standing.WORSE: "▄"}
_LABEL = 12


def map_lines(ranking: Ranking, width: int) -> list[Text]:
    """Return the map of one family's sites, a line per kind and a legend; nothing where it is too wide or says nothing.

    Args:
        ranking: The ranking.
        width: Columns of the terminal.

    Returns:
        Lines of coloured blocks; the family is that of the report's map.
    """
    layers, family = num_layers(ranking), main_family(ranking)
    sites = sites_of_family(ranking, family)
    if not sites or _LABEL + layers > width or ranking.sites[0].score <= 0:
        return []
    best, by_place = ranking.sites[0].score, {(site.layer, site.kind): site for site in sites}
    lines = [Text(f"{clean(family, 24)} edits, layers 0 to {layers - 1} from left to right")]
    for kind in ordered_kinds(site.kind for site in sites):
        line = Text(f"{clean(kind, _LABEL - 1):<{_LABEL}}")
        for layer in range(layers):
            site = by_place.get((layer, kind))
            if site is None:
                line.append(" ")
                continue
            line.append(_BLOCKS[standing(ranking, site)], style=_colour(site.score / best))
        lines.append(line)
    legend = Text(" " * _LABEL)
    for mark, meaning in ((Standing.EQUAL, "equal to the best"), (Standing.UNDETERMINED, "cannot be told")):
        legend.append(f"{_BLOCKS[mark]} {meaning}   ")
    legend.append(f"{_BLOCKS[Standing.WORSE]} worse; light is high, dark is low")
    return [*lines, legend]


def _colour(part: float) -> str:
    """Return the colour of a score, given as its part of the best."""
    place = (1 - min(max(part, 0.2), 1.0)) / 0.8
    return _COLOURS[round(place * (len(_COLOURS) - 1))]
