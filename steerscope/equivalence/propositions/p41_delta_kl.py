r"""P41, delta-KL: by how much steering with strength alpha moves the outputs towards the fine-tuned model.

.. math:: \Delta KL(\alpha) = KL(p_\alpha \,\|\, q) - KL(p_0 \,\|\, q)

with q the fine-tuned model's next-token probabilities and :math:`p_\alpha` the steered ones on the same tokens
(teacher forcing). Since the first term is never negative, :math:`-KL(p_0 \| q)` is its lower bound, which the oracle
at the last layer reaches at alpha = 1. With logits z and :math:`dp = p\,(\dot z - E_p \dot z)`,

.. math:: \frac{d}{d\alpha} KL(p \| q) = \sum_v p_v (\dot z_v - E_p \dot z)(\log p_v - \log q_v),

because the derivative of :math:`\log p` averages to zero under p.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steerscope.equivalence.divergence import divergence, divergence_slope
from steerscope.equivalence.oracles import oracle_shift
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source, curve
from steerscope.equivalence.propositions.runs import fine_tuning, post, run_at, shortened
from steerscope.equivalence.propositions.subject import Subject
from steerscope.sites import Site

GROUP = "delta-KL"

# KL of equal logits: rounding of sums of a few nats.
EXACT = 1e-12
# Central differences with step 1e-4: error of order step^2 = 1e-8, rounding 1e-15 / step = 1e-11.
STEP = 1e-4
DIFFERENCE = 1e-6
# Strengths of the published figures, with the ends.
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)


# --- formulas ---


def delta_kl(steered: Tensor, base: Tensor, tuned: Tensor) -> Tensor:
    """Return ``KL(steered || tuned) - KL(base || tuned)``; negative when steering helps. Source: P41.

    Args:
        steered: Logits of the steered model, ``(batch, token, vocabulary)``.
        base: Logits of the base model, on the same tokens.
        tuned: Logits of the fine-tuned model.

    Returns:
        A scalar in nats per token.
    """
    return divergence(steered, tuned) - divergence(base, tuned)


def reversed_slope(logits: Tensor, logits_shift: Tensor, reference: Tensor) -> Tensor:
    """Return the derivative of ``KL(q || p)``, the other direction: ``sum_v (p_v - q_v) z'_v``.

    Args:
        logits: Logits of p, ``(batch, token, vocabulary)``.
        logits_shift: z', their change per unit of the step, in the same shape.
        reference: Logits of q, in the same shape.

    Returns:
        A scalar in nats per token and unit of the step.
    """
    return ((logits.softmax(-1) - reference.softmax(-1)) * logits_shift).sum(-1).mean()


# --- check ---


def _check(subject: Subject) -> Evidence:
    subject = shortened(subject, 6)
    top = len(subject.site_map.blocks) - 1
    sites = (post(subject.layer), post(top))
    base = run_at(subject, sites)
    tuned = run_at(subject, sites, update=fine_tuning(subject))
    shifts = {site: oracle_shift(tuned[site], base[site]) for site in sites}
    at, end = sites

    def steered(site: Site, strength: float | Tensor) -> Tensor:
        return run_at(subject, edits={site: lambda h: strength * shifts[site]}).logits

    def change(site: Site, strength: float) -> float:
        return float(delta_kl(steered(site, strength), base.logits, tuned.logits))

    gap = float(divergence(base.logits, tuned.logits))
    middle = [change(at, strength) for strength in STRENGTHS]
    last = [change(end, strength) for strength in STRENGTHS]
    one = torch.ones((), dtype=torch.float64)
    logits_shift = torch.func.jvp(lambda strength: steered(at, strength), (0 * one,), (one,))[1]
    measured = (change(at, STEP) - change(at, -STEP)) / (2 * STEP)
    slope = float(divergence_slope(base.logits, logits_shift, tuned.logits))
    other = float(reversed_slope(base.logits, logits_shift, tuned.logits))
    claim = [
        Measurement("delta-KL at strength 0", abs(change(at, 0.0)), high=EXACT),
        Measurement("slope at 0 over central differences, minus 1", abs(slope / measured - 1), high=DIFFERENCE),
        Measurement("last layer, strength 1: delta-KL + KL(base || tuned)", abs(last[-1] + gap), high=EXACT),
        Measurement("smallest delta-KL + KL(base || tuned)", min(*middle, *last) + gap, low=-EXACT),
        Measurement("KL(base || tuned), must not be zero", gap, low=1e-6),
    ]
    controls = [
        Measurement(
            "slope of the other direction over central differences, minus 1", abs(other / measured - 1), high=DIFFERENCE
        ),
        Measurement("last layer, strength 0.5: delta-KL + KL(base || tuned)", abs(change(end, 0.5) + gap), high=EXACT),
    ]
    return Evidence(
        tuple(claim),
        tuple(controls),
        notes=(f"KL(base || tuned) = {gap:.3g} nats per token; steering one layer with the static oracle",),
        series={
            f"layer {subject.layer}": curve("strength alpha", STRENGTHS, "delta-KL (nats per token)", middle),
            f"layer {top}": curve("strength alpha", STRENGTHS, "delta-KL (nats per token)", last),
        },
    )


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        41,
        GROUP,
        "delta-KL against strength",
        "Delta-KL(alpha) = KL(steered || tuned) - KL(base || tuned) is 0 at 0, has the slope "
        "sum_v p_v (z'_v - E z')(log p_v - log q_v), and is at least -KL(base || tuned), reached by the oracle at the "
        "last layer with alpha = 1.",
        "Teacher forcing; final norm and unembedding are not fine-tuned; this direction of KL.",
        Source.PRE_MLP_POST,
        _check,
    ),
)
