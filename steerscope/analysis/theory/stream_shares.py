"""What a block's output is made of: the entering stream, the attention's part and the MLP's part.

The published figure of norms is ``|MLP| / (|MLP| + |Attn|)``. It leaves out the stream that enters the block, to
which both are added; with it the three parts sum to the output exactly, and ``part . output / |output|^2`` are three
shares that sum to one (single shares may be negative). Source: the authors' post
'Activation Steering vs. Finetuning' (2025-11-26); the three shares are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steerscope.analysis.theory.common import block_tensors, flat
from steerscope.models.load import LoadedModel
from steerscope.sites import SiteKind


@dataclass(frozen=True)
class StreamShare:
    """One layer; every number is a median over tokens.

    Attributes:
        layer: Index of the block.
        stream_norm: Norm of the stream that enters.
        attn_norm: Norm of what attention adds.
        mlp_norm: Norm of what the MLP adds.
        published: ``|MLP| / (|MLP| + |Attn|)``.
        norm_share: ``|MLP| / (|stream| + |MLP| + |Attn|)``.
        stream_share: Share of the entering stream in the output, ``stream . out / |out|^2``.
        attn_share: Share of the attention.
        mlp_share: Share of the MLP.
    """

    layer: int
    stream_norm: float
    attn_norm: float
    mlp_norm: float
    published: float
    norm_share: float
    stream_share: float
    attn_share: float
    mlp_share: float


def stream_shares(loaded: LoadedModel, ids: Tensor, layers: Sequence[int], skip: int = 1) -> tuple[StreamShare, ...]:
    """Measure the parts of the block outputs.

    Args:
        loaded: The model.
        ids: ``batch token``, without padding.
        layers: Which layers.
        skip: Positions left out at the start: there the stream is tens of times longer in many models.

    Returns:
        Per layer, medians over tokens of the lengths of stream, attention and MLP, and of their shares in the output.

    Cost: one forward pass.
    """
    found = []
    for layer, tensors in block_tensors(loaded, ids, layers).items():
        h, attn, mlp, out = (
            flat(tensors[kind], skip).double()
            for kind in (SiteKind.RESID_PRE, SiteKind.ATTN_OUT, SiteKind.MLP_OUT, SiteKind.RESID_POST)
        )
        norms = [part.norm(dim=-1) for part in (h, attn, mlp)]
        shares = [(part * out).sum(-1) / out.square().sum(-1) for part in (h, attn, mlp)]
        ratios = [norms[2] / (norms[2] + norms[1]), norms[2] / sum(norms)]
        found.append(StreamShare(layer, *(float(value.median()) for value in (*norms, *ratios, *shares))))
    return tuple(found)
