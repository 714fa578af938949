"""Runs kept on disk: one JSON file per training run, named by the hash of everything that decides its result.

A run that was interrupted leaves nothing, so asking again computes it; a run that is there is never computed
twice, in whatever order and by however many processes the sweep is worked through.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from steerscope.files import json_text, read_object, replace_file, told, write_text

# Raised when a change of code makes old runs incomparable.
RECIPE = 2


def key_of(config: Mapping[str, Any]) -> str:
    """Return the hash that names a run of this configuration (keys in any order)."""
    text = json.dumps({**config, "recipe": RECIPE}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:20]


class RunStore:
    """A folder of finished runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the stored record of a configuration, or ``None``.

        Raises:
            InputError: The file is damaged.
        """
        path = self._path(config, "json")
        if not path.exists():
            return None
        found = read_object(path, "the stored run", "Delete that file; it will be made again.")
        return {name: _number(value) for name, value in found.items()}

    def put(self, config: Mapping[str, Any], record: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Keep a record (with its configuration) and the trained parameters of an edit, all or nothing.

        Args:
            config: Everything that the run depends on; its hash names the files.
            record: What the run came to; an infinite loss is written as a word, because JSON has none.
            weights: The trained tensors by name; without any, only the record is written.
        """
        with told(f"keep a run in {str(self.folder)!r}"):
            self.folder.mkdir(parents=True, exist_ok=True)
        if weights:
            kept = {name: value.cpu().contiguous() for name, value in weights.items()}
            replace_file(self._path(config, "safetensors"), lambda aside: save_file(kept, aside))
        plain = {**{k: _plain(v) for k, v in record.items()}, "config": dict(config)}
        write_text(self._path(config, "json"), json_text(plain))

    def weights(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the trained parameters of a stored edit (none for methods that keep none)."""
        path = self._path(config, "safetensors")
        return dict(load_file(path)) if path.exists() else {}

    def _path(self, config: Mapping[str, Any], ending: str) -> Path:
        return self.folder / f"{key_of(config)}.{ending}"


def _plain(value: Any) -> Any:
    """JSON has no infinity: a diverged loss is written as a word."""
    return "infinite" if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> Any:
    return math.inf if value == "infinite" else value
