"""Training runs: what each leaves behind, one folder per run."""

from __future__ import annotations

from steerscope.experiments.training.records import RunConfig, RunResults
from steerscope.experiments.training.run_folder import RunFolder, read_results

__all__ = ["RunConfig", "RunFolder", "RunResults", "read_results"]
