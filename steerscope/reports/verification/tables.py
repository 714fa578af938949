"""The tables of a verification, for a terminal, the page and the document."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, TextIO

from steerscope.experiments.verification.results import Measured, PropositionResult, Verification
from steerscope.reports.tables import TextTable, print_tables
from steerscope.reports.vocabulary import clean, count


def number(value: float | None) -> str:
    """Write a number with three significant digits, four between 0.1 and 1000; ``none`` where there is none.

    Returns:
        The digits.

    Example:
        >>> number(0.123456), number(12345.6), number(None)
        ('0.1235', '1.23e+04', 'none')
    """
    if value is None:
        return "none"
    text = f"{value:.4g}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"
    return "0" if text == "-0" else text


def short(one: Measured | None) -> tuple[str, str]:
    """Return a measurement's value and what was expected."""
    return ("", "") if one is None else (number(one.value), one.expected)


def headline(found: Verification) -> str:
    """Return the verdicts in one sentence."""
    parts = [f"{verdict} {number_}" for verdict, number_ in found.counts().items() if number_]
    return f"{count(len(found.propositions), 'proposition')} on {clean(found.subject, 60)}: {', '.join(parts)}."


def proposition_table(found: Verification) -> TextTable:
    """Return one row per proposition: name, claim, the decisive measurement, what was expected, verdict."""
    limits = " ".join(f"{one.name}: {clean(one.limit)}." for one in found.propositions if one.limit)
    return TextTable(
        title="Propositions",
        columns=("no.", "claim", "measured", "expected", "verdict"),
        right=frozenset({"measured"}),
        rows=tuple((p.name, clean(p.title, 60), *short(p.decisive()), p.verdict) for p in found.propositions),
        note="measured: of a claim's measurements the one nearest to the end of its interval, or one that fails."
        + (f" Limits. {limits}" if limits else ""),
    )


# Measurements of a proposition in one role that a page has room for.
MOST = 12


def details_table(one: PropositionResult) -> TextTable:
    """Return the measurements of a proposition: in which role, what was expected, and whether it is.

    Of a role with very many, those that are against the proposition come first, and the last are left to the file.
    """
    rows: list[tuple[str, ...]] = []
    left = 0
    for role, entries in _roles(one):
        wanted = entries is one.claims  # a claim's lie inside, a control's outside
        order = sorted(entries, key=lambda entry, wanted=wanted: entry.inside == wanted)  # type: ignore[misc]
        left += max(len(order) - MOST, 0)
        rows += [
            (role, clean(_named(entry)), number(entry.value), entry.expected, "inside" if entry.inside else "outside")
            for entry in order[:MOST]
        ]
    columns = ("role", "quantity", "measured", "expected", "is")
    note = f"{left:,} more are in verify.json." if left else ""
    return TextTable(f"Measurements of {one.name}", columns, frozenset({"measured"}), tuple(rows), note)


def _named(entry: Measured) -> str:
    """Return a measurement's name, with a word where the subject has no part in it."""
    return entry.name if entry.of_subject else f"{entry.name} (the same on any subject)"


def _roles(one: PropositionResult) -> list[tuple[str, Sequence[Measured]]]:
    return [("claim", one.claims), ("control (must be outside)", one.controls), ("public form", one.published_form)]


def measurement_tables(found: Verification) -> list[TextTable]:
    """Return one table per measurement that was made."""
    made = {
        "slopes": _slopes,
        "block_slopes": _block_slopes,
        "radius": _radius,
        "conditioning": _conditioning,
        "stream_shares": _stream_shares,
        "oracle_spectra": _oracle_spectra,
        "residual_map": _residual_map,
        "modulation": _modulation,
        "strength": _strength,
    }
    return [make(found.measurements[name]) for name, make in made.items() if found.measurements.get(name)]


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> TextTable:
    text = tuple(tuple(cell if isinstance(cell, str) else number(cell) for cell in row) for row in rows)
    # The first two columns of words align left, numbers right.
    words = {column for i, column in enumerate(columns) if any(isinstance(row[i], str) for row in rows)}
    return TextTable(title, tuple(columns), frozenset(set(columns) - words), text, note)


def _middle(values: Sequence[float | None]) -> float | None:
    kept = [value for value in values if value is not None]
    return median(kept) if kept else None


def _slopes(entries: list[dict[str, Any]]) -> TextTable:
    rows = [
        (
            one["at"],
            f"{one['slope']:.3f}",
            "inside" if one["within"] else "outside",
            _up_to(one),
            "none" if one["small_slope"] is None else f"{one['small_slope']:.4f}",
            "inside" if one["small_within"] else "outside",
            one["num_small"],
            one["relative"][0],
            one["relative"][-1],
        )
        for one in entries
    ]
    sizes = entries[0]["sizes"]
    return _table(
        f"Slope of the remainder, whole model up to a place, float64, sizes {sizes[0]:g} to {sizes[-1]:g}",
        (
            "at", "slope", "2.00 +- 0.05", "inside from", "small sizes", "2.00 +- 0.05 ", "sizes",
            f"error at {sizes[0]:g}", f"error at {sizes[-1]:g}",
        ),
        rows,
        "The weights of all blocks change at once. error: norm of measured minus predicted over the norm of the "
        f"prediction. inside from: the largest size from which the slope down to {sizes[-1]:g} is inside. small sizes: "
        "the slope over the sizes with an error below 0.1 alone, beyond which the update is not small.",
    )  # fmt: skip


def _up_to(one: dict[str, Any]) -> str:
    size = one.get("within_up_to")
    return "none" if size is None else f"{size:g}"


def _block_slopes(entries: list[dict[str, Any]]) -> TextTable:
    names = list(dict.fromkeys(one["update"] for one in entries))
    blocks: dict[str, dict[str, dict[str, Any]]] = {}
    for one in entries:
        blocks.setdefault(one["at"], {})[one["update"]] = one
    sizes = entries[0]["sizes"]
    rows: list[tuple[Any, ...]] = []
    for at, mine in blocks.items():
        ordered = [mine[name] for name in names if name in mine]
        outside = [f"{one['update']} from {_up_to(one)}" for one in ordered if not one["within"]]
        rows.append(
            (
                at.split(".")[0],
                *(f"{mine[name]['slope']:.3f}" if name in mine else "" for name in names),
                "; ".join(outside) if outside else "all inside",
                ordered[0]["relative"][0],
                max(one["relative"][0] for one in ordered[1:]) if ordered[1:] else None,
                max(one["relative"][-1] for one in ordered),
            )
        )
    within = sum(one["within"] for one in entries)
    return _table(
        f"Slope of the remainder, one block alone, float64, sizes {sizes[0]:g} to {sizes[-1]:g}",
        (
            "block", *names, "2.00 +- 0.05", f"{names[0]}: error at {sizes[0]:g}", f"others: error at {sizes[0]:g}",
            f"error at {sizes[-1]:g}",
        ),
        rows,
        f"{within} of {len(entries)} slopes are 2.00 +- 0.05. A block's own weights change, what enters it is held "
        "fixed, sizes are relative to the norm of its changed weights, random updates have the trained one's norm in "
        "every matrix. error: as above, the largest of the updates named. Where a slope is outside: the largest size "
        f"from which it is inside down to {sizes[-1]:g}.",
    )  # fmt: skip


def _radius(entries: list[dict[str, Any]]) -> TextTable:
    places: dict[tuple[str, str], dict[str, str]] = {}
    sign = {"above": "> ", "below": "< ", "": ""}
    for one in entries:
        value = sign[one["bound"]] + number(one["radius"])
        places.setdefault((one["at"], one["scope"]), {})[one["update"]] = value
    names = list(dict.fromkeys(one["update"] for one in entries))
    rows = [(at, scope, *(values.get(name, "") for name in names)) for (at, scope), values in places.items()]
    return _table(
        "Radius: largest |t dW| / |W| at which 90% of the shift is first-order",
        ("shift of", "weights changed", *names),
        rows,
        "explained: 1 - e^2, e the relative error of the prediction, median over tokens; random updates have the "
        "same norm in each matrix.",
    )


def _conditioning(entries: list[dict[str, Any]]) -> TextTable:
    rows = [
        (
            one["layer"],
            one["down"]["condition"],
            one["down"]["smallest"],
            _middle([s["condition"] for s in one["jacobian"]]),
            _middle([s["smallest"] for s in one["jacobian"]]),
            _middle([e["edit"] for e in one["mlp_in"]]),
            _middle([e["error"] for e in one["mlp_in"]]),
            _middle([e["target"] for e in one["attn_out"]]),
            _middle([e["edit"] for e in one["attn_out"]]),
            _middle([e["error"] for e in one["attn_out"]]),
        )
        for one in entries
    ]
    return _table(
        "Conditioning, and the edits that oracles before the MLP need",
        (
            "layer", "cond W_d", "s_min W_d", "cond A", "s_min A", "mlp_in edit", "its real error",
            "block target", "attn_out edit", "Newton error",
        ),
        rows,
        "Medians over tokens. Edits are relative to the tensor they are added to (mlp_in; the stream after attention), "
        "the target to the block's output. Real error: what the MLP really misses of its target there.",
    )  # fmt: skip


def _stream_shares(entries: list[dict[str, Any]]) -> TextTable:
    keys = (
        "layer",
        "stream_norm",
        "attn_norm",
        "mlp_norm",
        "published",
        "norm_share",
        "stream_share",
        "attn_share",
        "mlp_share",
    )
    return _table(
        "Parts of the block's output (medians over tokens)",
        (
            "layer", "|stream|", "|attn|", "|mlp|", "mlp/(mlp+attn)", "mlp/(all three)", "stream share", "attn share",
            "mlp share",
        ),
        [tuple(one[key] for key in keys) for one in entries],
        "mlp/(mlp+attn) is the published ratio; shares are part . output / |output|^2 and sum to one for every token.",
    )  # fmt: skip


def _oracle_spectra(entries: list[dict[str, Any]]) -> TextTable:
    rows = []
    for one in entries:
        at = dict(zip(one["ranks"], one["held_out"], strict=True))
        best = max(one["held_out"], key=lambda value: -1.0 if value is None else value)
        rows.append(
            (
                one["layer"], one["relative_norm"], one["mean_share"], one["rank_50"], one["rank_90"], one["rank_99"],
                at.get(1), at.get(8), at.get(64), one["held_out"][-1], best, one["fitted"][-1],
                f"{100 * one['left_out']:.1f}%",
            )
        )  # fmt: skip
    return _table(
        "Oracle shifts h_FT - h_base at resid_post: spectrum, and what linear maps of the base stream predict",
        (
            "layer",
            "|shift|/|h|",
            "mean's share",
            "r50",
            "r90",
            "r99",
            "R2 r1",
            "R2 r8",
            "R2 r64",
            "R2 full",
            "best",
            "fitted",
            "left out",
        ),
        rows,
        "r50, r90, r99: directions with that part of the centred energy. R2: held-out prompts, by rank of the map; "
        "fitted: full rank on the prompts it was fitted on; left out: tokens whose stream is over four "
        "times the median length.",
    )


def _residual_map(entries: list[dict[str, Any]]) -> TextTable:
    weights = list(dict.fromkeys(one["weight"] for one in entries))
    cells = {(one["layer"], one["site"], one["weight"]): one for one in entries}
    rows: list[tuple[Any, ...]] = []
    for layer, site in dict.fromkeys((one["layer"], one["site"]) for one in entries):
        mine = [cells[layer, site, weight] for weight in weights]
        shared = [f"{100 * one['linear']:.0f}%" for one in mine]
        rows.append(
            (str(layer), site, *shared, max(one["oracle"] for one in mine), max(one["oracle_edit"] for one in mine))
        )
    names = [weight.split(".")[-1].removesuffix("_proj") for weight in weights]
    return _table(
        "First-order shift that edits cannot imitate, by site and weight matrix",
        ("layer", "site", *names, "oracle", "oracle edit"),
        rows,
        "Columns of matrices: part of the block's first-order shift left over by the best token-shared linear edit, on "
        "held-out prompts. oracle: left over by free edits per token (largest of the matrices); oracle edit: their "
        "norm relative to the site's tensor.",
    )


def _modulation(entries: list[dict[str, Any]]) -> TextTable:
    rows = [
        (
            one["layer"], *(one[key][i] for key in ("slope", "phi") for i in (1, 3, 5)),
            one["near_minimum_slope"], one["near_minimum_phi"],
        )
        for one in entries
    ]  # fmt: skip
    low = number(abs(entries[0]["minimum"]))
    return _table(
        "Modulation: phi'(a_g) * a_u and phi(a_g)",
        ("layer", "slope 5%", "slope 50%", "slope 95%", "phi 5%", "phi 50%", "phi 95%", "slope near", "phi near"),
        rows,
        f"near: share of magnitudes within 2% of {low}, the depth of the activation's minimum.",
    )


def _strength(entries: list[dict[str, Any]]) -> TextTable:
    rows = [(str(one["layer"]), one["site"], *one["delta_kl"]) for one in entries]
    return _table(
        "Delta KL of oracle edits of one layer, nats per answer token",
        ("layer", "site", *(f"alpha {alpha:g}" for alpha in entries[0]["alphas"])),
        rows,
        f"KL(steered || FT) - KL(base || FT); KL(base || FT) is {number(entries[0]['base_kl'])}, so nothing "
        "falls below its negative.",
    )


def print_verification(found: Verification, file: TextIO | None = None) -> None:
    """Print headline and table of propositions: rich where ``file`` is a terminal, plain text in a pipe.

    Args:
        found: The verification.
        file: Where it is printed; standard output unless given.
    """
    failing = [f"Fails: {', '.join(found.failed)}."] if found.failed else []
    print_tables([headline(found), *failing], [proposition_table(found)], file, style="bold")
