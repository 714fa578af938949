"""The families of edits, one class each, by the name a configuration uses."""

from __future__ import annotations

from steerscope.steering.families.base import Affine, EditOptions, SteeringEdit
from steerscope.steering.families.fixed import FixedVector
from steerscope.steering.families.lofit import LofitOffset, LofitScale
from steerscope.steering.families.low_rank import ACTIVATIONS, LinearAdapter, NonlinearAdapter, StartSlope, start_slope
from steerscope.steering.families.reft import DiReft, LoReft, NoReft, Rotation

FAMILIES: dict[str, type[SteeringEdit]] = {
    found.name: found
    for found in (FixedVector, LinearAdapter, NonlinearAdapter, LoReft, DiReft, NoReft, LofitScale, LofitOffset)
}

__all__ = [
    "ACTIVATIONS",
    "FAMILIES",
    "Affine",
    "DiReft",
    "EditOptions",
    "FixedVector",
    "LinearAdapter",
    "LoReft",
    "LofitOffset",
    "LofitScale",
    "NoReft",
    "NonlinearAdapter",
    "Rotation",
    "StartSlope",
    "SteeringEdit",
    "start_slope",
]
