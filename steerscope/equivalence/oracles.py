"""Oracle shifts: what fine-tuning changed in a stream, read in three ways, and the best linear map to it."""

from __future__ import annotations

import torch
from torch import Tensor


def oracle_shift(tuned: Tensor, base: Tensor) -> Tensor:
    """Return the oracle ``h_FT - h_base``, any shape. Source: P21.

    Args:
        tuned: The stream in the fine-tuned model.
        base: The stream in the base model, on the same tokens.

    Returns:
        What to add to the base model's stream, in the same shape.
    """
    return tuned - base


def lockstep_shift(tuned: Tensor, current: Tensor) -> Tensor:
    """Return ``h_FT - h_current`` for the stream as it arrives in the steered run. Source: P22.

    Args:
        tuned: The stream in the fine-tuned model.
        current: The stream in the steered run, after the edits below.

    Returns:
        What to add to the current stream, in the same shape.
    """
    return tuned - current


def one_step_shift(tuned_output: Tensor, base_output_on_tuned: Tensor) -> Tensor:
    """Return ``F_FT(h_FT) - F_base(h_FT)``, both blocks on the fine-tuned stream. Source: P22.

    Args:
        tuned_output: Output of the fine-tuned block on the fine-tuned stream.
        base_output_on_tuned: Output of the base block on the same stream.

    Returns:
        What to add after the base block, in the same shape.
    """
    return tuned_output - base_output_on_tuned


def reduced_rank_map(states: Tensor, targets: Tensor, rank: int) -> Tensor:
    r"""Return the linear map (p q) of at most that rank with the least squared error on centred data.

    .. math:: \hat B V_r V_r^\top, \qquad \hat B = X^+ Y, \quad V_r \text{ of the fitted values } X \hat B

    Args:
        states: ``(token, p)``, centred over tokens.
        targets: ``(token, q)``, centred over tokens.
        rank: The largest rank of the map.

    Returns:
        ``(p, q)``: ``states @ map`` predicts the targets.

    Cost: one pseudo-inverse and one SVD. Source: P28.
    """
    least_squares = torch.linalg.pinv(states) @ targets
    directions = torch.linalg.svd(states @ least_squares, full_matrices=False).Vh[:rank]
    return least_squares @ directions.T @ directions
