"""Options of every sort are checked and made plain in one way, before any work."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from steerscope.analysis.capture.features import SketchPlan
from steerscope.analysis.ranking import rank_sites
from steerscope.analysis.scoring.options import RankOptions
from steerscope.errors import InputError
from steerscope.experiments.engine.spec import RunSpec, Schedule
from steerscope.experiments.evaluation.command import EvaluateOptions
from steerscope.experiments.training.options import TrainOptions
from steerscope.experiments.validation.options import ValidateOptions
from steerscope.experiments.verification.run import VerifyOptions, verify_random
from steerscope.models import load_model
from steerscope.sites import Site, SiteKind
from steerscope.steering import SteeringConfig

CONFIG = SteeringConfig("resid_post")
# A class, what it cannot do without, one of its whole numbers.
CLASSES = [
    (RankOptions, {}, "max_sites"),
    (TrainOptions, {"task": "listops", "method": "lora"}, "steps"),
    (EvaluateOptions, {}, "batch_size"),
    (ValidateOptions, {}, "seeds"),
    (VerifyOptions, {}, "rows"),
    (Schedule, {}, "batch_size"),
    (RunSpec, {"config": CONFIG, "learning_rate": 1e-3}, "seed"),
    (SketchPlan, {"exact": False}, "blocks"),
]


@pytest.mark.parametrize(("kind", "given", "name"), CLASSES)
@pytest.mark.parametrize("value", [True, 2.0, "8", None, math.nan, np.float32(2), [2], torch.tensor(2.0)])
def test_what_is_no_whole_number_is_refused(kind, given, name, value):
    with pytest.raises(InputError, match=f"^{name} is .*; expected a whole number"):
        kind(**given, **{name: value})


@pytest.mark.parametrize(("kind", "given", "name"), CLASSES)
def test_whole_numbers_of_numpy_are_written_as_json(kind, given, name):
    options = kind(**given, **{name: np.int64(2)})
    assert type(getattr(options, name)) is int
    assert json.loads(json.dumps(asdict(options)))[name] == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("ridge", "1"), ("ridge", math.nan), ("ridge", True), ("budget", math.nan), ("budget", True), ("max_sites", 2.5),
     ("exact", 1), ("kinds", 3), ("kinds", {"resid_post": 1}), ("kinds", [1]), ("score", 3), ("sketch", None)],
)  # fmt: skip
def test_fields_of_other_types(field, value):
    with pytest.raises(InputError, match=f"^{field} is .*; expected "):
        RankOptions(**{field: value})


def test_what_can_be_understood_is_made_plain():
    assert RankOptions(kinds="resid_post").kinds == ("resid_post",)
    assert RankOptions(kinds=["resid_post", SiteKind.MLP_OUT]).kinds == ("resid_post", "mlp_out")
    assert TrainOptions("listops", "lora", sites=Site(3, SiteKind.MLP_OUT)).sites == ("3.mlp_out",)
    assert ValidateOptions(sites=np.int32(7)).sites == 7
    assert TrainOptions(learning_rate_of=Path("M")).learning_rate_of == "M"
    assert type(Schedule(warmup=np.float32(0.5)).warmup) is float
    assert RankOptions(exact=np.bool_(True)).exact is True


def test_refused_before_work():
    with pytest.raises(InputError, match="kinds is empty"):
        RankOptions(kinds=[]).check()
    with pytest.raises(InputError, match=r"expected a loaded model, got a str\. Pass load_model"):
        rank_sites("M", [])
    with pytest.raises(InputError, match=r"options is a dict; expected VerifyOptions"):
        verify_random([], {"seed": 1})


@pytest.mark.parametrize("name", [None, 5, b"M", ["M"], "", " ", "/dev/null"])
def test_names_of_models_that_are_none(name):
    with pytest.raises(InputError, match=r"expected a name or a path|name is empty|is no folder and no file"):
        load_model(name)
