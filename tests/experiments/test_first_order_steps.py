"""Steps of training within first order: the same fine-tuning, compared step by step, the model left as it was."""

from __future__ import annotations

import pytest
import torch

from steerscope.analysis.theory.common import explained_per_token, relative_size
from steerscope.equivalence.shifts import first_order_shift
from steerscope.experiments.finetune import short_finetune
from steerscope.models.changed_weights import with_update
from studies.steps_explained import FirstOrderSteps, first_order_steps
from tests.analysis.theory.cases import assert_same_bits, bits, loaded
from tests.experiments.test_finetune import ONE_TOKEN

IDS = torch.randint(3, 60, (3, 8), generator=torch.Generator().manual_seed(1))
OPTIONS = {"learning_rate": 2e-2, "batch_size": 5, "seed": 3}


def test_the_curve_is_that_of_fine_tunings_of_as_many_steps():
    model = loaded(dtype=torch.float32)
    before = bits(model)
    found = first_order_steps(model, ONE_TOKEN, IDS, most=3, until=-1e9, **OPTIONS)
    assert_same_bits(model, before)
    assert len(found.explained) == len(found.losses) == 3
    update = short_finetune(model, ONE_TOKEN, steps=2, **OPTIONS)
    with torch.no_grad():
        clean = model.model(input_ids=IDS).logits
        with with_update(model, update):
            moved = model.model(input_ids=IDS).logits - clean
    predicted = first_order_shift(model, update, {"input_ids": IDS})["logits"]
    assert found.explained[1] == pytest.approx(explained_per_token(moved[:, 1:], predicted[:, 1:]), abs=1e-3)
    assert found.relative_size[1] == pytest.approx(relative_size(model, update), rel=1e-5)
    assert list(found.relative_size) == sorted(found.relative_size)


def test_it_ends_once_too_little_is_explained_and_the_model_stays():
    model = loaded(dtype=torch.float32)
    before = bits(model)
    found = first_order_steps(model, ONE_TOKEN, IDS, most=40, until=0.99, **OPTIONS)
    assert_same_bits(model, before)
    assert len(found.explained) < 40
    assert found.explained[-1] < 0.99 <= min(found.explained[:-1], default=1.0)


@pytest.mark.parametrize(
    ("explained", "steps"), [((0.99, 0.95, 0.8, 0.91), 2), ((0.5,), 0), ((0.9, 0.9), 2), ((0.95, float("nan")), 1)]
)
def test_steps_within(explained, steps):
    assert FirstOrderSteps(1e-5, 8, 0, explained, explained, explained).steps_within == steps
