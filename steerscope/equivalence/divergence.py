"""The Kullback-Leibler divergence of next-token distributions, and its derivative (P41)."""

from __future__ import annotations

from torch import Tensor


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    """Return ``KL(p || q)`` in nats, the mean over tokens, from logits ``(batch token vocabulary)``.

    Args:
        logits: Logits of p, ``(batch, token, vocabulary)``.
        reference: Logits of q, in the same shape.

    Returns:
        A scalar in nats per token, differentiable.
    """
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def divergence_slope(logits: Tensor, logits_shift: Tensor, reference: Tensor) -> Tensor:
    """Return the derivative of ``KL(p || q)`` when the logits of p move along ``logits_shift``. Source: P41.

    Args:
        logits: Logits of p, ``(batch, token, vocabulary)``.
        logits_shift: Their change per unit of the step, in the same shape.
        reference: Logits of q, in the same shape.

    Returns:
        A scalar in nats per token and unit of the step.
    """
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    p = log_p.exp()
    centred = logits_shift - (p * logits_shift).sum(-1, keepdim=True)
    return (p * centred * (log_p - log_q)).sum(-1).mean()
