"""How often a model is right: greedy generations, likelihoods of choices, intervals, and what a constant reaches."""

from __future__ import annotations

from steerscope.experiments.evaluation.evaluate import evaluate
from steerscope.experiments.runs.accuracy import Accuracy, wilson_interval
from steerscope.experiments.runs.evaluation import Evaluation, Generation

__all__ = ["Accuracy", "Evaluation", "Generation", "evaluate", "wilson_interval"]
