"""Compare finished runs: one row per configuration, seeds together, intervals and what a constant reaches."""

from __future__ import annotations

from steerscope.experiments.comparison.groups import Comparison, Entry, compare

__all__ = ["Comparison", "Entry", "compare"]
