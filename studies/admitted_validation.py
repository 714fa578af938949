"""The rule of admission to judging scores, applied to a validation as far as it kept what the rule looks at."""

from __future__ import annotations

import math

import numpy as np

from steerscope.experiments.agreement.attainable import attainable
from steerscope.experiments.site_tables.admission import BEST, Admission, Study, admission_of
from steerscope.experiments.site_tables.admitted import over_sites
from steerscope.experiments.validation.result import Validation
from steerscope.sites import parse_site


def admitted_validation(
    validation: Validation,
    *,
    recalibrated_loss: float | None = None,
    recalibrated_accuracy: float | None = None,
    seed: int = 0,
) -> Admission:
    """Say whether a validation may judge scores; it keeps neither longer runs nor the spread over examples.

    Args:
        validation: The validation.
        recalibrated_loss: Loss of the recalibrated model on its test examples, where it is known from elsewhere, nats.
        recalibrated_accuracy: Its accuracy.
        seed: Of the bootstrap.

    Returns:
        The criteria, each with whether the validation meets it.
    """

    def selection_loss(tried: dict[str, float | None]) -> float:
        return min((loss for loss in tried.values() if loss is not None), default=math.inf)

    best = sorted(validation.sites, key=lambda one: selection_loss(one.tried))[:BEST]
    searched = [one for one in validation.sites if len(one.tried) > 1]
    layers = np.array([parse_site(one.method.partition("+")[0]).layer for one in validation.sites])
    return admission_of(
        Study(
            best=tuple(one.method for one in best),
            accuracies=over_sites([one.accuracies for one in best]),
            losses=over_sites([tuple(math.inf if v is None else v for v in one.losses) for one in best]),
            num_test=validation.before.n_test,
            base_accuracy=validation.before.accuracy,
            majority=validation.before.majority,
            recalibrated_accuracy=recalibrated_accuracy,
            recalibrated_loss=recalibrated_loss,
            loss_spread=None,
            order_kept=None,
            num_longer=0,
            num_interior=sum(one.interior for one in searched),
            num_searched=len(searched),
            attainable=attainable(validation.losses(), layers, seed=seed),
        )
    )
