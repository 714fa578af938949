"""A capture in slices: whole batches of prompts, each slice on a machine of its own, put together to the same numbers.

The rows of features are those of single examples, and a slice takes whole batches as one machine would cut them. So
what is put together is, on machines that round alike, what one machine captures, to the bit. Every slice measures the
scales of channels on the same first examples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from steerscope.analysis.capture.batch_plan import planned_batches, tokens_of
from steerscope.analysis.capture.capture import Progress, capture
from steerscope.analysis.capture.features import Features, SketchPlan
from steerscope.analysis.capture.outputs import Probes
from steerscope.analysis.capture.places import PlaceStats
from steerscope.analysis.data.encoding import Encoded
from steerscope.errors import InputError
from steerscope.files import replace_file, told
from steerscope.models.load import LoadedModel
from steerscope.sites import Site, parse_site

# Parts of features with a row per example; those with one per site are dictionaries.
_BY_ROW = ("residual", "curvature", "valid", "loss", "correct")
_BY_SITE = ("linear", "vector")
_LENGTHS = ("read_rms", "read_length", "held_length")
# Scales of channels that two machines measured on the same examples differ by rounding, or the machines differ.
_SAME = 1e-3


@dataclass(frozen=True)
class Slice:
    """What one machine captured.

    Attributes:
        rows: Which examples of the whole, in the order of the features' rows.
        features: Of these.
    """

    rows: tuple[int, ...]
    features: Features

    def save(self, path: Path) -> None:
        """Write it as one safetensors file, whole or not at all.

        Raises:
            InputError: The file cannot be written.
        """
        found, own = self.features, dict[str, Tensor]()
        for name in _BY_ROW:
            own[name] = getattr(found, name)
        for name in (*_BY_SITE, "scales"):
            own |= {f"{name}/{site}": value for site, value in getattr(found, name).items()}
        own |= {f"weights/{place}": value for place, value in enumerate(found.weights)}
        # The order of sites is that in which they were met.
        order = {name: [str(site) for site in getattr(found, name)] for name in (*_BY_SITE, "scales")}
        numbers: dict[str, Any] = {"rows": self.rows, "spans": found.spans, "rounding": found.rounding, "order": order}
        for name in _LENGTHS:
            numbers[name] = {str(site): value for site, value in getattr(found, name).items()}
        numbers["places"] = {str(site): asdict(value) for site, value in found.places.items()}
        plain = {name: value.cpu().contiguous() for name, value in own.items()}
        replace_file(path, lambda aside: save_file(plain, aside, {"slice": json.dumps(numbers, allow_nan=False)}))

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Slice:
        """Return the slice that :meth:`save` wrote.

        Args:
            path: The file.
            device: Where the features go.

        Returns:
            The slice.

        Raises:
            InputError: The file cannot be read.
        """
        with told(f"read the slice of a capture {str(path)!r}"), safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["slice"])
            own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no dictionary
        parts: dict[str, Any] = {name: own[name] for name in _BY_ROW}
        for name in (*_BY_SITE, "scales"):
            parts[name] = {parse_site(site): own[f"{name}/{site}"].to(device) for site in numbers["order"][name]}
        weights = sorted((key for key in own if key.startswith("weights/")), key=lambda key: int(key.split("/")[1]))
        for name in _LENGTHS:
            parts[name] = {parse_site(site): value for site, value in numbers[name].items()}
        places = {parse_site(site): PlaceStats(**value) for site, value in numbers["places"].items()}
        features = Features(
            **parts,
            weights=[own[key].to(device) for key in weights],
            spans=numbers["spans"],
            places=places,
            rounding=numbers.get("rounding"),
        )
        return cls(tuple(numbers["rows"]), features)


def cut(encoded: Encoded, batch_size: int, count: int) -> list[list[int]]:
    """Return the examples of every slice: runs of whole batches with about as many tokens, padding included.

    Args:
        encoded: All examples.
        batch_size: As for a capture.
        count: How many slices.

    Returns:
        Examples in ascending order, each in one slice; none is empty.

    Raises:
        InputError: There are fewer batches than slices.
    """
    found = planned_batches(encoded, batch_size)
    if not 1 <= count <= len(found):
        raise InputError(
            f"asked for {count} slices of {len(found)} batches; expected at least one batch for each. Ask for fewer, "
            "or give a smaller [[batch_size]]."
        )
    tokens = tokens_of(encoded, found)
    ends = list(accumulate(tokens))
    slices: list[list[int]] = [[] for _ in range(count)]
    at = 0
    for place, (batch, own, end) in enumerate(zip(found, tokens, ends, strict=True)):
        middle = (end - own / 2) / ends[-1]
        # As the tokens say, but every slice gets a batch, and leaves one for each of the others.
        wanted = min(int(middle * count), at + 1 if slices[at] else at)
        at = max(wanted, count - (len(found) - place))
        slices[at] += batch
    return [sorted(own) for own in slices]


def capture_slice(
    loaded: LoadedModel,
    encoded: Encoded,
    probes: Probes,
    plan: SketchPlan,
    *,
    index: int,
    count: int,
    seed: int,
    batch_size: int,
    padding_side: str = "right",
    progress: Progress | None = None,
) -> Slice:
    """Record the features of one slice of the examples; see :func:`~steerscope.analysis.capture.capture.capture`.

    Args:
        loaded: Model, tokenizer and sites.
        encoded: All examples.
        probes: Which outputs are differentiated.
        plan: Exact features or sketches.
        index: Which slice, from 0.
        count: How many slices there are.
        seed: Seed of the sketches.
        batch_size: As for a capture; the same for all slices.
        padding_side: ``left`` or ``right``.
        progress: Called after every forward or backward pass.

    Returns:
        The slice.

    Raises:
        InputError: Fewer batches than slices, or what a capture refuses.

    Cost: its part of the passes, and the forward pass for the scales, which every slice makes.
    """
    rows = cut(encoded, batch_size, count)[index]
    found = capture(
        loaded,
        taken(encoded, rows),
        probes,
        plan,
        seed=seed,
        batch_size=batch_size,
        padding_side=padding_side,
        progress=progress,
        part_of=(encoded, rows),
    )
    return Slice(tuple(rows), found)


def taken(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """Take some of the examples.

    Args:
        encoded: All of them.
        rows: Which.

    Returns:
        These, numbered anew in the order given.
    """
    place = {example: number for number, example in enumerate(rows)}
    return replace(
        encoded,
        sequences=tuple(replace(one, example=place[one.example]) for one in encoded.sequences if one.example in place),
        choice_tokens=tuple(encoded.choice_tokens[row] for row in rows) if encoded.choice_tokens else (),
        answers=tuple(encoded.answers[row] for row in rows),
        num_choices=tuple(encoded.num_choices[row] for row in rows),
    )


def joined(slices: Sequence[Slice]) -> Features:
    """Return the features of all examples, put together from those of slices.

    Args:
        slices: All of one capture, in any order.

    Returns:
        Features with rows in the order of the whole.

    Raises:
        InputError: Rows are missing or there twice, or the slices were made with different models.

    Memory: the features of all examples, and one site's a second time.
    """
    rows = [row for one in slices for row in one.rows]
    if sorted(rows) != list(range(len(rows))):
        raise InputError(
            "slices of a capture do not make a whole: examples are missing or there twice. Give all, once."
        )
    first, place = slices[0].features, torch.tensor(rows)
    for one in slices[1:]:
        _require_same(first, one.features)

    def put(parts: Sequence[Tensor]) -> Tensor:
        whole = torch.cat([part.to(parts[0].device) for part in parts])
        return torch.empty_like(whole).index_copy_(0, place.to(whole.device), whole)

    def by_site(name: str) -> dict[Site, Tensor]:
        return {site: put([getattr(one.features, name)[site] for one in slices]) for site in getattr(first, name)}

    parts: dict[str, Any] = {name: put([getattr(one.features, name) for one in slices]) for name in _BY_ROW}
    parts |= {name: by_site(name) for name in _BY_SITE}
    parts["weights"] = [put([one.features.weights[at] for one in slices]) for at in range(len(first.weights))]
    measured = [one.features.rounding for one in slices if one.features.rounding is not None]
    return replace(first, **parts, rounding=max(measured, default=None))


def _require_same(first: Features, other: Features) -> None:
    same = first.scales.keys() == other.scales.keys() and first.spans == other.spans
    same = same and all(
        torch.allclose(scale.cpu(), other.scales[site].cpu(), rtol=_SAME) for site, scale in first.scales.items()
    )
    if not same:
        raise InputError(
            "slices of a capture read other activations on the same examples. Give all machines the same model, data "
            "type and examples."
        )
