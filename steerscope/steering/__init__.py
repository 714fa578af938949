"""Steering adapters: edits of activations that are trained, saved, shared and generated with."""

from __future__ import annotations

from steerscope.steering.config import SteeringConfig
from steerscope.steering.contrast import ContrastVectors, contrast_vectors
from steerscope.steering.families import FAMILIES, SteeringEdit, start_slope
from steerscope.steering.holding import Servability, servable_as_lora
from steerscope.steering.model import SteeringModel, get_steering_model, steered_by

__all__ = [
    "FAMILIES",
    "ContrastVectors",
    "Servability",
    "SteeringConfig",
    "SteeringEdit",
    "SteeringModel",
    "contrast_vectors",
    "get_steering_model",
    "servable_as_lora",
    "start_slope",
    "steered_by",
]
