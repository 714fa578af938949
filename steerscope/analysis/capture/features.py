"""What one capture pass records, how long its features are, and what they cost in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from steerscope.analysis.capture.places import PlaceStats
from steerscope.errors import InputError
from steerscope.models.blocks import linear_shape
from steerscope.models.load import LoadedModel
from steerscope.option_types import plain_fields
from steerscope.sites import Site


@dataclass(frozen=True)
class Features:
    """What one capture pass recorded. ``row`` is the axis of examples, ``slot`` of probes and loss direction.

    Attributes:
        linear: Per site ``row slot feature``: tangent features of the linear edit; sketched, they are rounded to eight
            bits (:func:`~steerscope.analysis.capture.rounded.rounded`), as those of ``vector`` are.
        vector: Per write point ``row slot feature``: those of the fixed vector.
        weights: ``row slot feature``: features of all linear maps of all blocks together (their inner
            products are K_FT); a list of one entry per map when exact.
        residual: ``row probe``: (one-hot minus softmax) along each probe.
        curvature: ``row probe probe``: the softmax's Fisher matrix.
        valid: ``row probe``: which probes an example has.
        loss: ``row``: loss in nats.
        correct: ``row``: whether the model was right.
        read_rms: Per site the root mean square of what it reads.
        read_length: Per site the typical length of what it reads, every channel divided by its scale.
        held_length: Per write point the typical length of what an edit there is added to.
        spans: Whether the probes span the outputs: then the loss direction is a combination of them and
            has no slot of its own.
        scales: Per site ``channel``: what its reads are divided by.
        places: Per site what is known of it without a derivative.
        rounding: How far rounding on the way back moved derivatives, relative to their length; ``None`` where nothing
            was rounded.
    """

    linear: dict[Site, Tensor]
    vector: dict[Site, Tensor]
    weights: list[Tensor]
    residual: Tensor
    curvature: Tensor
    valid: Tensor
    loss: Tensor
    correct: Tensor
    read_rms: dict[Site, float]
    read_length: dict[Site, float]
    held_length: dict[Site, float]
    spans: bool
    scales: dict[Site, Tensor] = field(default_factory=dict)
    places: dict[Site, PlaceStats] = field(default_factory=dict)
    rounding: float | None = None


@dataclass(frozen=True)
class SketchPlan:
    """How long features are.

    ``exact`` keeps the full matrices. Otherwise a site's feature is ``blocks`` blocks of ``size x size``, and
    that of all weight matrices together one block of ``weight_size x weight_size``. With ``rounded_back`` the
    derivatives that are sketched go back through frozen linear maps in bfloat16, where the device multiplies it faster
    (:mod:`steerscope.analysis.capture.way_back`).
    """

    exact: bool
    blocks: int = 8
    size: int = 16
    weight_size: int = 80
    rounded_back: bool = True

    def __post_init__(self) -> None:
        plain_fields(self)
        for name in ("blocks", "size", "weight_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a sketch is {getattr(self, name)}; expected at least 1.")

    def describe(self) -> str:
        """Return the plan in words."""
        if self.exact:
            return "exact"
        return (
            f"sketched: sites {self.blocks} blocks of {self.size} x {self.size}, "
            f"weights {self.weight_size} x {self.weight_size} summed over all maps"
        )


def feature_bytes(loaded: LoadedModel, rows: int, slots: int, plan: SketchPlan, itemsize: int) -> int:
    """Return the memory that features of ``rows`` examples need, in bytes (the capture's stated bound).

    Args:
        loaded: The model.
        rows: Number of examples.
        slots: Output directions per example.
        plan: Whether features are exact or sketched, and how large sketches are.
        itemsize: Bytes per number of an exact feature; a number of a sketch takes one.

    Returns:
        A number of bytes, proportional to ``rows * slots``.
    """
    site_map = loaded.site_map
    numbers = features = 0
    for site in site_map.sites():
        width = site_map.width(site)
        numbers += width * width if plan.exact else plan.blocks * plan.size**2
        writes = site_map.write(site) == site
        features += 1 + writes  # one unit each
        if writes:
            numbers += width if plan.exact else plan.blocks * plan.size
    if plan.exact:
        for module in site_map.linear_maps().values():
            d_out, d_in = linear_shape(module)
            numbers += d_out * d_in
        return numbers * rows * slots * itemsize
    return (numbers + plan.weight_size**2 + (features + 1) * 4) * rows * slots
