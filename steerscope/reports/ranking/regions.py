"""Sites in the words of a person: kinds that belong together, over a range of layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from steerscope.reports.vocabulary import clean, listing, ordered_kinds

Cell = tuple[int, str]

# What several kinds are together; the first of which all that the model has are meant names them.
_TOGETHER: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"resid_pre", "resid_mid", "resid_post"}), "the residual stream"),
    (frozenset({"attn_heads", "attn_out"}), "what attention writes"),
    (frozenset({"mlp_in", "mlp_hidden", "mlp_out"}), "the MLP"),
)
_ALONE = {
    "resid_pre": "the embeddings",
    "resid_mid": "the stream between attention and MLP",
    "resid_post": "the stream after the block",
    "attn_heads": "the outputs of the heads",
    "attn_out": "what attention adds",
    "mlp_in": "what the MLP reads",
    "mlp_hidden": "inside the MLP",
    "mlp_out": "what the MLP adds",
}
# A window may hold sites that do not belong: twice as many that do must pay for each.
_PAYS, _COSTS = 1, -2


@dataclass(frozen=True)
class Region:
    """Kinds over a range of layers (``first`` to ``last``, both in it), and how many of its sites were meant."""

    first: int
    last: int
    kinds: tuple[str, ...]
    n_meant: int
    n_sites: int


def find_region(cells: Mapping[Cell, bool]) -> Region | None:
    """Return the region that best says which sites are meant: it holds most of them and few others.

    Args:
        cells: Every site (layer and kind), and whether it is meant.

    Cost: layers squared times kinds.
    """
    kinds = ordered_kinds(kind for _, kind in cells)
    layers = sorted({layer for layer, _ in cells})
    best: tuple[int, int, int, tuple[str, ...]] | None = None
    for first in layers:
        totals = dict.fromkeys(kinds, 0)
        for last in (layer for layer in layers if layer >= first):
            for kind in kinds:
                if (last, kind) in cells:
                    totals[kind] += _PAYS if cells[last, kind] else _COSTS
            chosen = tuple(kind for kind in kinds if totals[kind] > 0)
            value = sum(totals[kind] for kind in chosen)
            # Of equally good windows the narrower one.
            if chosen and (best is None or (value, first - last) > (best[0], best[1] - best[2])):
                best = value, first, last, chosen
    if best is None:
        return None
    _, first, last, chosen = best
    inside = [meant for (layer, kind), meant in cells.items() if first <= layer <= last and kind in chosen]
    return Region(first, last, chosen, sum(inside), len(inside))


def kinds_words(chosen: Collection[str], every: Collection[str]) -> str:
    """Return several kinds in words.

    Args:
        chosen: The kinds that are meant.
        every: All kinds that there are.

    Returns:
        A few words.
    """
    # The embeddings are one site of the first block: with the stream they need no words of their own.
    rest = [kind for kind in ordered_kinds(every) if kind not in chosen and kind != "resid_pre"]
    if not rest:
        return "every kind of site"
    if len(rest) <= 2 <= len(chosen) // 2:
        return f"every kind of site but {listing([clean(kind, 24) for kind in rest])}"
    left, words = ordered_kinds(chosen), []
    for kinds, name in _TOGETHER:
        there = kinds & set(every) - {"resid_pre"}
        if len(there) > 1 and there <= set(left):
            words.append(name)
            left = [kind for kind in left if kind not in kinds]
    words += [f"{_ALONE[kind]} ({kind})" if kind in _ALONE else clean(kind, 24) for kind in left]
    return listing(words)


def layers_words(first: int, last: int, num_layers: int) -> str:
    """Return a range of layers in words; layers count from 0.

    Args:
        first: Index of the first layer.
        last: Index of the last layer, which belongs to the range.
        num_layers: Number of blocks of the model.

    Returns:
        A few words.

    Example:
        >>> layers_words(4, 15, 30), layers_words(3, 3, 30), layers_words(0, 29, 30)
        ('layers 4 to 15', 'layer 3', 'all layers')
    """
    if first == last:
        return f"layer {first}"
    if first == 0 and last == num_layers - 1:
        return "all layers"
    return f"layers {first} to {last}"


def edge_runs(bad: Sequence[bool]) -> tuple[int, int]:
    """Return how many entries at the beginning, and at the end, are bad without a break."""
    front = next((i for i, one in enumerate(bad) if not one), len(bad))
    back = next((i for i, one in enumerate(reversed(bad)) if not one), len(bad))
    return front, back


_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def number_words(number: int) -> str:
    """Write a small number as a word, as in running text."""
    return _NUMBERS[number] if number < len(_NUMBERS) else f"{number:,}"
