"""A learning rate within a budget: the same grid, and at most so many runs, for every method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steerscope.analysis.provenance import differing, knows_data
from steerscope.errors import InputError
from steerscope.experiments.engine.rate_grid import Choice
from steerscope.experiments.runs.folder import read_results
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.experiments.tasks.task import fingerprint
from steerscope.experiments.training.data import Parts, run_settings
from steerscope.experiments.training.options import TrainOptions
from steerscope.finite import or_infinite


def read_search(options: TrainOptions, parts: Parts) -> RunResults | None:
    """Return the run whose search another run takes over, if it takes one over.

    Args:
        options: Of the run that takes it over.
        parts: Its data.

    Returns:
        The results of that run, or ``None``.

    Raises:
        InputError: There is no finished run, or it searched nothing, or it differs in more than the seed.
    """
    if options.learning_rate_of is None:
        return None
    found = read_results(options.learning_rate_of)
    if not knows_data(found.settings):
        raise InputError(
            f"the run in {options.learning_rate_of!r} does not say on which data it searched its learning rate: an "
            "earlier steerscope wrote it. Let this run search for itself."
        )
    own = {
        "task": options.task,
        "method": options.method,
        "settings": run_settings(options, parts),
        "test_set": fingerprint(parts.test),
    }
    _require_same(options.learning_rate_of, own, {name: getattr(found, name) for name in own})
    if not found.training.get("learning_rates_tried"):
        raise InputError(f"{options.learning_rate_of!r} holds no search for a learning rate. Name a run that searched.")
    return found


def require_same_subject(found: RunResults, config: RunConfig, folder: str) -> None:
    """Refuse a search on another model, at other sites or of another rank; what only the loaded model can tell.

    Args:
        found: Results of the run whose learning rate is to be taken over.
        config: What the new run is.
        folder: Where the results are from, for messages.

    Raises:
        InputError: Something differs.
    """
    own, theirs = ({"model": one.model, "sites": one.sites, "rank": one.rank} for one in (config, found))
    _require_same(folder, own, theirs)


def choice_of(found: RunResults) -> Choice:
    """Return what the search of a finished run found."""
    tried = {float(k): or_infinite(v) for k, v in found.training["learning_rates_tried"].items()}
    interior = bool(found.training["learning_rate_is_interior"])
    return Choice(float(found.training["learning_rate"]), interior, tried)


def _require_same(folder: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    if names := differing(wanted, found):
        raise InputError(
            f"the run in {folder!r} searched its learning rate with other {', '.join(names)}; only the seed may "
            "differ. Give the same options and data, or let this run search for itself."
        )
