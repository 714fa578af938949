"""What an edit that reads its input learns beyond a fixed vector at the same place."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate, is_zero
from steerscope.analysis.scoring.scores.converged_share import converged_share, share_of_converged
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score


@register_score(
    label="gain from reading",
    meaning="how much more of fine-tuning's converged update an edit that reads its input learns than a fixed vector "
    "at the same place",
    unit=Unit.SHARE,
    needs=Needs.SPECTRUM,
    cost="four eigendecompositions of half the rows",
)
def reading_gain(candidate: Candidate) -> Tensor:
    """`share(K_vector + K_s) - share(K_vector)`, the converged shares with kernels of unit scale.

    Sites whose edits are added at one point share the vector and differ in what is read alone. Zero for a vector.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    vector = candidate.vector
    if vector is None:
        return candidate.zeros()
    if is_zero(vector.kernel):
        return converged_share(candidate)
    both = (candidate.unit_kernel + vector.unit_kernel) / 2
    return share_of_converged(candidate, both) - share_of_converged(vector, vector.unit_kernel, vector.spectra)
