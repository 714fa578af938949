"""steerscope: where to steer a language model, how much of fine-tuning that would recover, and is it true?

The names below are loaded when first used, so that ``import steerscope`` and the command line start at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerscope.analysis.data.examples import Example, read_jsonl
    from steerscope.analysis.ranking import rank_sites
    from steerscope.analysis.results import Ranking
    from steerscope.analysis.scoring.options import RankOptions
    from steerscope.analysis.scoring.scores import register_score
    from steerscope.equivalence.remainder import remainder_slope
    from steerscope.equivalence.shifts import first_order_shift
    from steerscope.errors import InputError, SteerscopeError, UnsupportedModelError
    from steerscope.experiments.site_tables import SiteTable, judge
    from steerscope.experiments.tasks import get_task
    from steerscope.models.blocks import BlockDescription
    from steerscope.models.hooks import edited, reading
    from steerscope.models.load import LoadedModel, load_model, wrap_model
    from steerscope.models.precision import true_float64
    from steerscope.models.site_map import find_sites
    from steerscope.reports.ranking import write_report
    from steerscope.sites import Site, parse_site
    from steerscope.steering.config import SteeringConfig
    from steerscope.steering.model import SteeringModel, get_steering_model

__version__ = "0.1.0"

_HOMES = {
    # Models and their sites
    "load_model": "models.load",
    "wrap_model": "models.load",
    "LoadedModel": "models.load",
    "find_sites": "models.site_map",
    "BlockDescription": "models.blocks",
    "Site": "sites",
    "parse_site": "sites",
    # Reading, editing, precision
    "reading": "models.hooks",
    "edited": "models.hooks",
    "true_float64": "models.precision",
    # First-order maps
    "first_order_shift": "equivalence.shifts",
    "remainder_slope": "equivalence.remainder",
    # Examples and rankings
    "Example": "analysis.data.examples",
    "read_jsonl": "analysis.data.examples",
    "get_task": "experiments.tasks",
    "RankOptions": "analysis.scoring.options",
    "rank_sites": "analysis.ranking",
    "Ranking": "analysis.results",
    "register_score": "analysis.scoring.scores",
    "write_report": "reports.ranking",
    # Trained outcomes, and what they say of scores
    "SiteTable": "experiments.site_tables",
    "judge": "experiments.site_tables",
    # Steering adapters
    "SteeringConfig": "steering.config",
    "SteeringModel": "steering.model",
    "get_steering_model": "steering.model",
    # Errors
    "SteerscopeError": "errors",
    "InputError": "errors",
    "UnsupportedModelError": "errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'steerscope' has no attribute {name!r}")
    return getattr(import_module(f"steerscope.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])


__all__ = [
    "BlockDescription",
    "Example",
    "InputError",
    "LoadedModel",
    "RankOptions",
    "Ranking",
    "Site",
    "SiteTable",
    "SteeringConfig",
    "SteeringModel",
    "SteerscopeError",
    "UnsupportedModelError",
    "edited",
    "find_sites",
    "first_order_shift",
    "get_steering_model",
    "get_task",
    "judge",
    "load_model",
    "parse_site",
    "rank_sites",
    "read_jsonl",
    "reading",
    "register_score",
    "remainder_slope",
    "true_float64",
    "wrap_model",
    "write_report",
]
