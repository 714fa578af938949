"""How much memory a run took."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """Return the most bytes used so far: allocated by torch on a GPU, else resident in the whole process.

    The two are not comparable, and neither falls: on a GPU call ``torch.cuda.reset_peak_memory_stats`` before a run;
    on a CPU a run has a figure of its own only in a process of its own.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
