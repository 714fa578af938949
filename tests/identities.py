"""What made-up results say of their model."""

from __future__ import annotations

from typing import Any

from steerscope.model_identity import ModelIdentity


def identity(**changes: Any) -> ModelIdentity:
    """Return which model a made-up result is about: a small one, but for the changes."""
    told: dict[str, Any] = {
        "name": "small", "revision": None, "sha256": "0" * 64, "layers": 4, "quantised": None, "layout": "sequential",
        "d_model": 16, "n_params": 20_000, "dtype": "float32",
    }  # fmt: skip
    return ModelIdentity(**(told | changes))
