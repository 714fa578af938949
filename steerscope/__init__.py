"""steerscope: where to steer a language model, how much of fine-tuning that would recover, and is it true?

The names below are loaded when first used, so that ``import steerscope`` and the command line start at once. Figures
and tables of results are in :mod:`steerscope.reports`; what the theory is made of, for following it by hand, is in
:mod:`steerscope.theory`. Nothing else is public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from steerscope.lazy import door

if TYPE_CHECKING:
    from steerscope.analysis.data.examples import Example
    from steerscope.analysis.data.files import read_jsonl
    from steerscope.analysis.ranking import rank_sites
    from steerscope.analysis.results import Ranking
    from steerscope.analysis.scoring.options import RankOptions
    from steerscope.analysis.scoring.scores import register_score
    from steerscope.equivalence.propositions.catalogue import propositions
    from steerscope.equivalence.remainder import remainder_slope
    from steerscope.equivalence.shifts import first_order_shift
    from steerscope.errors import InputError, SteerscopeError, UnsupportedModelError
    from steerscope.experiments.commands import evaluate, search, sweep, train, validate, verify
    from steerscope.experiments.comparison.groups import Comparison, compare
    from steerscope.experiments.evaluation.command import EvaluateOptions
    from steerscope.experiments.runs.evaluation import Evaluation
    from steerscope.experiments.runs.records import RunResults
    from steerscope.experiments.searching import SearchOptions, SearchResult
    from steerscope.experiments.site_tables import SiteTable, judge
    from steerscope.experiments.sweeping import SweepOptions
    from steerscope.experiments.tasks import FileTask, chat_task, get_task
    from steerscope.experiments.training.options import TrainOptions
    from steerscope.experiments.validation.options import ValidateOptions
    from steerscope.experiments.validation.result import Validation
    from steerscope.experiments.verification.results import Verification
    from steerscope.experiments.verification.run import VerifyOptions
    from steerscope.models.description import BlockDescription
    from steerscope.models.hooks import edited, reading
    from steerscope.models.load import LoadedModel, load_model, wrap_model
    from steerscope.models.precision import true_float64
    from steerscope.models.selfcheck import check_sites
    from steerscope.models.site_map import find_sites
    from steerscope.reports.ranking.folder import write_report
    from steerscope.site_kinds import SiteKind
    from steerscope.sites import Site, parse_site
    from steerscope.steering.config import SteeringConfig
    from steerscope.steering.contrast import contrast_vectors
    from steerscope.steering.holding import servable_as_lora
    from steerscope.steering.model import SteeringModel, get_steering_model

__version__ = "0.1.0"

_HOMES = {
    # Models and their sites
    "load_model": "models.load",
    "wrap_model": "models.load",
    "LoadedModel": "models.load",
    "find_sites": "models.site_map",
    "check_sites": "models.selfcheck",
    "BlockDescription": "models.description",
    "Site": "sites",
    "SiteKind": "site_kinds",
    "parse_site": "sites",
    # Reading, editing, precision
    "reading": "models.hooks",
    "edited": "models.hooks",
    "true_float64": "models.precision",
    # First-order maps
    "first_order_shift": "equivalence.shifts",
    "remainder_slope": "equivalence.remainder",
    # Tasks and examples
    "get_task": "experiments.tasks",
    "FileTask": "experiments.tasks",
    "chat_task": "experiments.tasks",
    "Example": "analysis.data.examples",
    "read_jsonl": "analysis.data.files",
    # What each command does: a function, its options, its result
    "rank_sites": "analysis.ranking",
    "RankOptions": "analysis.scoring.options",
    "Ranking": "analysis.results",
    "register_score": "analysis.scoring.scores",
    "train": "experiments.commands",
    "TrainOptions": "experiments.training.options",
    "RunResults": "experiments.runs.records",
    "evaluate": "experiments.commands",
    "EvaluateOptions": "experiments.evaluation.command",
    "Evaluation": "experiments.runs.evaluation",
    "validate": "experiments.commands",
    "ValidateOptions": "experiments.validation.options",
    "Validation": "experiments.validation.result",
    "sweep": "experiments.commands",
    "SweepOptions": "experiments.sweeping",
    "search": "experiments.commands",
    "SearchOptions": "experiments.searching",
    "SearchResult": "experiments.searching",
    "verify": "experiments.commands",
    "VerifyOptions": "experiments.verification.run",
    "Verification": "experiments.verification.results",
    "propositions": "equivalence.propositions.catalogue",
    "compare": "experiments.comparison.groups",
    "Comparison": "experiments.comparison.groups",
    "write_report": "reports.ranking.folder",
    "SiteTable": "experiments.site_tables",
    # Trained outcomes, and what they say of scores
    "judge": "experiments.site_tables",
    # Steering adapters
    "SteeringConfig": "steering.config",
    "SteeringModel": "steering.model",
    "get_steering_model": "steering.model",
    "contrast_vectors": "steering.contrast",
    "servable_as_lora": "steering.holding",
    # Errors
    "SteerscopeError": "errors",
    "InputError": "errors",
    "UnsupportedModelError": "errors",
}

__getattr__, _names = door(__name__, _HOMES, {"write_report"})


def __dir__() -> list[str]:
    return sorted([*_names(), "__version__"])


__all__ = [
    "BlockDescription",
    "Comparison",
    "EvaluateOptions",
    "Evaluation",
    "Example",
    "FileTask",
    "InputError",
    "LoadedModel",
    "RankOptions",
    "Ranking",
    "RunResults",
    "SearchOptions",
    "SearchResult",
    "Site",
    "SiteKind",
    "SiteTable",
    "SteeringConfig",
    "SteeringModel",
    "SteerscopeError",
    "SweepOptions",
    "TrainOptions",
    "UnsupportedModelError",
    "ValidateOptions",
    "Validation",
    "Verification",
    "VerifyOptions",
    "chat_task",
    "check_sites",
    "compare",
    "contrast_vectors",
    "edited",
    "evaluate",
    "find_sites",
    "first_order_shift",
    "get_steering_model",
    "get_task",
    "judge",
    "load_model",
    "parse_site",
    "propositions",
    "rank_sites",
    "read_jsonl",
    "reading",
    "register_score",
    "remainder_slope",
    "search",
    "servable_as_lora",
    "sweep",
    "train",
    "true_float64",
    "validate",
    "verify",
    "wrap_model",
    "write_report",
]
