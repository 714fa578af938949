"""Finished runs made of numbers, for tests that read or compare them."""

from __future__ import annotations

from pathlib import Path

from steerscope.experiments.runs.accuracy import Accuracy
from steerscope.experiments.runs.evaluation import Evaluation, Generation
from steerscope.experiments.training import RunConfig, RunFolder, RunResults
from tests.identities import identity

MODEL = identity(name="tiny", sha256="ab" * 32, layers=2, n_params=100_000)


def config(**changes) -> RunConfig:
    own = {
        "task": "listops",
        "method": "post-block",
        "sites": ("0.resid_post", "1.resid_post"),
        "rank": 8,
        "seed": 0,
        "model": MODEL,
        "settings": {"learning_rate": 1e-3, "steps": 120},
    }
    return RunConfig(**(own | changes))


def evaluation(correct: int = 61, n: int = 100, **changes) -> Evaluation:
    own = {
        "task": "listops",
        "split": "test",
        "correct": correct,
        "n": n,
        "majority": 0.124,
        "majority_answer": "0",
        "answered": 1.0,
        "ended": 1.0,
        "too_long": 0,
        "gold_cut": 0.0,
        "loss": 0.5,
        "choice_sum": Accuracy(correct, n),
        "choice_mean": Accuracy(correct, n),
        "max_new_tokens": 16,
        "batch_size": 16,
        "generated_tokens": 800,
        "seconds": 2.0,
        "test_set": "f" * 16,
    }
    return Evaluation(**(own | changes))


def results(run: RunConfig, found: Evaluation | None = None, parameters: int = 1000) -> RunResults:
    return RunResults.of(
        run,
        found or evaluation(),
        trainable_parameters=parameters,
        total_parameters=100_000 + parameters,
        tokens_per_second=123.0,
        peak_memory=2**30,
        seconds=77.0,
        versions={"torch": "2.13.0"},
        command="steerscope train",
    )


GENERATIONS = [Generation("k", "p…\n", "<answer>7</answer>", "7", "7", True, 5, True)]


def finished(path: Path, found: Evaluation | None = None, parameters: int = 1000, **changes) -> Path:
    folder = RunFolder.create(path, config(**changes))
    folder.finish(results(folder.config, found, parameters), GENERATIONS)
    return path
