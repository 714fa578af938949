"""The dearest plain baseline: how far training has come at a site after a few real steps, read from a table's own runs.

A score that trains nothing has to beat, or at least cost less than, a few steps of training at every site. The loss is
that of the batch which the next step learns from, at the rate chosen for the site (what finding the rate costs is not
counted), with the table's first seed. Rates rise from 0, so the very first step changes nothing. Runs of one seed see
the same batches, so sites are compared on the same examples; that seed is also one of those whose mean the outcome is,
which favours this baseline a little.
"""

from __future__ import annotations

import numpy as np

from steerscope.experiments.agreement.correlations import Array, finite_losses
from steerscope.experiments.site_tables.common import Common
from steerscope.experiments.site_tables.table import SiteTable

STEPS = (1, 4, 8)


def first_steps(table: SiteTable, common: Common) -> dict[str, Array]:
    """Return minus the loss after the first steps ``site``, by the name ``loss_after_K``.

    Args:
        table: The table.
        common: Its sites that are judged.

    Returns:
        One array for each of :data:`STEPS` that is shorter than the runs; none where the table does not hold the losses
        of every step.
    """
    found = table.trajectories(common.seeds[0])
    if any(site not in found for site in common.sites):
        return {}
    return {
        f"loss_after_{steps}": -finite_losses(np.array([found[site][steps] for site in common.sites]))
        for steps in STEPS
        if steps < table.steps
    }
