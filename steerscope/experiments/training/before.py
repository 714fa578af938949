"""What the model answers before a training: evaluated once, on the questions that the training is tested on."""

from __future__ import annotations

from pathlib import Path

from steerscope.errors import InputError
from steerscope.experiments.runs.evaluation import Evaluation
from steerscope.experiments.runs.folder import RESULTS, read_results
from steerscope.experiments.runs.records import RunConfig, RunResults
from steerscope.installed import package_versions

# Versions of these decide numbers; those of others do not.
_DECIDE = ("torch", "transformers", "steerscope")


def known_before(
    place: Path, config: RunConfig, *, max_new_tokens: int, likelihoods: bool
) -> tuple[Evaluation, Path] | None:
    """Look for an evaluation of the same untrained model on the same questions in the folders beside a run's.

    Models are told apart by their files, so this is for a model that was just read from them, and runs of models that
    were handed over in memory, whose weights may have changed since, are passed over.

    Args:
        place: The run's folder.
        config: What the run is.
        max_new_tokens: Longest generation.
        likelihoods: Whether likelihoods are wanted as well.

    Returns:
        The evaluation and the folder it is from, or ``None``. Folders that cannot be read are passed over.
    """
    try:
        beside = sorted(place.absolute().parent.iterdir())
    except OSError:
        return None
    for other in beside:
        try:
            if other.name == place.name or not (other / RESULTS).is_file():
                continue
            run = read_results(other)
            found = _untrained(run)
        except (InputError, OSError):
            continue
        if found is None or not _is_same(run, config):
            continue
        if found.max_new_tokens == max_new_tokens and (run.settings.get("likelihoods") is True or not likelihoods):
            return found, other
    return None


def _untrained(run: RunResults) -> Evaluation | None:
    return run.evaluation if run.method == "none" else run.before


def _is_same(run: RunResults, config: RunConfig) -> bool:
    versions, data = package_versions(), config.settings.get("data", {})
    return (
        run.model_from_files
        and run.task == config.task
        and run.model == config.model
        and run.settings.get("data", {}).get("test") == data.get("test")
        and all(run.versions.get(name) == versions.get(name) for name in _DECIDE)
    )
