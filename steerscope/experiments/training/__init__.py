"""Training runs: what each leaves behind, one folder per run."""

from __future__ import annotations

from steerscope.experiments.runs.folder import RunFolder, read_results
from steerscope.experiments.runs.records import RunConfig, RunResults

__all__ = ["RunConfig", "RunFolder", "RunResults", "read_results"]
