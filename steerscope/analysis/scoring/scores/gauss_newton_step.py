"""How far a Gauss-Newton step, really taken, lowers the loss of unseen prompts."""

from __future__ import annotations

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.analysis.scoring.scores.score import Needs, Unit, register_score


@register_score(
    label="Gauss-Newton step",
    meaning="how far the best edit of the linearised model, made from one half of the prompts, cut to the edit's rank "
    "and put into the model, lowers the loss of the other half",
    unit=Unit.NATS,
    needs=Needs.STEP,
    cost="per site about half a backward and two forward passes over half the prompts",
)
def gauss_newton_step(candidate: Candidate) -> Tensor:
    """Mean decrease of the held-out loss with the edit `t A`, best of four `t`, by forward passes.

    ``A`` solves the linearised model's regularised problem on the first half, in the softmax's Fisher metric; its ridge
    is where the linearised loss of the second half is lowest. The judged half chooses ``t`` and the ridge, the same for
    all sites; jackknife columns leave prompts out of the mean alone. An output bias would lower the loss by as much
    whatever the site, so that taking it off would change no order.

    Returns:
        ``column``: the whole sample, then one entry per left-out group.
    """
    assert candidate.step is not None, "computed where a step was taken"
    judged = candidate.zeros().new_zeros(candidate.rows.num_examples)
    judged[candidate.rows.example[candidate.problem.directions[0].test]] = 1
    part = candidate.included * judged[:, None]
    means = candidate.step @ part / part.sum(0)
    return means[int(means[:, 0].argmax())]
