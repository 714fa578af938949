"""Train an edit at many sites, one at a time: the sweep whose outcomes a site table keeps."""

from steerscope.experiments.sweeping.options import SweepOptions
from steerscope.experiments.sweeping.sweep_sites import sweep_sites

__all__ = ["SweepOptions", "sweep_sites"]
