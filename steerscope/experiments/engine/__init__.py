"""A training loop for many runs: those that share a frozen model train together as rows of one batch.

``spec`` says what a run is, ``edits`` holds the trained edits of many runs, ``frozen`` computes once what lies below
them, ``pack`` joins the two, ``loop`` trains, ``judge`` tests.
"""

from steerscope.experiments.engine.loop import TrainedRun, train_pack
from steerscope.experiments.engine.pack import EditPack
from steerscope.experiments.engine.spec import RunSpec

__all__ = ["EditPack", "RunSpec", "TrainedRun", "train_pack"]
