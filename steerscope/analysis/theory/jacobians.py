"""How one block's output moves with the tensor at a site, token by token: dense, for sites after the attention.

From ``attn_heads`` on, a block computes every token by itself, so the derivative of the block's output by a site is
one matrix per token. All layouts are composed of the same factors: the norms' derivatives (by forward
differentiation), the MLP's (in closed form) and the constant maps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steerscope.equivalence.closed_forms import activation_slope
from steerscope.errors import InputError, UnsupportedModelError
from steerscope.models.blocks import Block, linear_shape
from steerscope.site_kinds import kinds_adding_at
from steerscope.sites import SiteKind

_CHUNK = 64


def effective_weight(module: nn.Module) -> Tensor:
    """Return a linear map's matrix, output-first, however it is stored and whatever adapter is on it."""
    size = linear_shape(module)[1]
    like = next(module.parameters())
    eye = torch.eye(size, dtype=like.dtype, device=like.device)
    return (module(eye) - module(torch.zeros_like(eye[:1]))).T


def norm_jacobian(norm: nn.Module | None, x: Tensor) -> Tensor | None:
    """Return ``token output input``: the derivative of a norm at every token, or ``None`` where there is no norm.

    Args:
        norm: A normalisation that works token by token, or ``None``.
        x: What it reads ``(token channel)``.

    Returns:
        Dense matrices, one per token.
    """
    if norm is None:
        return None
    jacobian: Tensor = torch.func.vmap(torch.func.jacfwd(norm), chunk_size=_CHUNK)(x)
    return jacobian.detach()


def mlp_jacobian(block: Block, z: Tensor) -> Tensor:
    r"""Return ``token output input``: the derivative of what the MLP's down projection writes by what the MLP reads.

    .. math:: A = W_d\,[\mathrm{diag}(\varphi'(a_g) * a_u)\, W_g + \mathrm{diag}(\varphi(a_g))\, W_u]

    (plain MLP: ``W_2 diag(phi'(a)) W_1``), biases and fused maps included. A norm on what the MLP writes is not part
    of it. Source: P2, P6.

    Args:
        block: The block.
        z: What the MLP reads, ``token channel``.

    Returns:
        Dense matrices, one per token.

    Cost: one ``d x d_ff x d`` product per token.
    """
    with torch.no_grad():
        reads = [effective_weight(module) for module in block.mlp_reads]
        down = effective_weight(block.mlp_write)
        first = [module(z) for module in block.mlp_reads]
        if not block.description.gated:
            inner = activation_slope(block.activation, first[0])
            return torch.stack([down @ (row[:, None] * reads[0]) for row in inner])
        gate, up = first if len(first) == 2 else first[0].chunk(2, dim=-1)
        w_gate, w_up = reads if len(reads) == 2 else reads[0].chunk(2, dim=0)
        by_gate, by_up = activation_slope(block.activation, gate) * up, block.activation(gate)
        return torch.stack(
            [down @ (g[:, None] * w_gate + u[:, None] * w_up) for g, u in zip(by_gate, by_up, strict=True)]
        )


def write_jacobian(block: Block, kind: SiteKind, tensors: dict[SiteKind, Tensor]) -> Tensor | None:
    """Return ``token d_model width``: how the block's output moves with what is added at a site.

    Args:
        block: The block.
        kind: A site at or after ``attn_heads``.
        tensors: Every site's tensor of this block, ``token channel``.

    Returns:
        One matrix per token, or ``None`` where it is the identity (``mlp_out``, ``resid_post``).

    Raises:
        InputError: The kind is ``resid_pre``, whose edits act on other tokens through attention.

    Cost: a dense matrix per token; memory ``tokens x d_model x width``.
    """
    _require_plain_sums(block)
    match kind:
        case SiteKind.RESID_PRE:
            raise InputError(
                "an edit of 'resid_pre' acts on other tokens as well; expected a site after the attention."
            )
        case SiteKind.MLP_OUT | SiteKind.RESID_POST:
            return None
        case SiteKind.MLP_HIDDEN:
            down = effective_weight(block.mlp_write).detach()
            post = _post(block.mlp_post_norm, lambda: block.mlp_write(tensors[SiteKind.MLP_HIDDEN]))
            return down.expand(len(tensors[kind]), *down.shape) if post is None else post @ down
        case SiteKind.MLP_IN:
            return _through_mlp(block, tensors)
        case SiteKind.ATTN_OUT | SiteKind.RESID_MID:
            return _from_attention(block, tensors)
        case SiteKind.ATTN_HEADS:
            write = effective_weight(block.attn_write).detach()
            post = _post(block.attn_post_norm, lambda: block.attn_write(tensors[SiteKind.ATTN_HEADS]))
            outer = _from_attention(block, tensors)
            return (outer if post is None else outer @ post) @ write


@dataclass(frozen=True)
class SharedMaps:
    """Sites whose edits reach the block's output through the same matrices.

    Attributes:
        dense: ``token d_model d_model``; ``None`` for the identity.
        right: Per kind of site the constant map before them, ``d_model width``; ``None`` for the identity.
    """

    dense: Tensor | None
    right: dict[SiteKind, Tensor | None]

    def at(self, kind: SiteKind, token: int) -> Tensor | None:
        """Return one token's matrix of a site, ``None`` for the identity.

        Args:
            kind: The kind of site.
            token: Index of the token.

        Returns:
            A matrix ``(output input)``, or ``None``.
        """
        dense, right = None if self.dense is None else self.dense[token], self.right[kind]
        return right if dense is None else dense if right is None else dense @ right


def shared_maps(block: Block, tensors: dict[SiteKind, Tensor]) -> Iterator[SharedMaps]:
    """Yield the matrices of every site of the block that has them, factored and sites with the same ones together.

    What :func:`write_jacobian` returns, with the expensive parts computed once: the matrices after the MLP's input
    become those after the attention's output and of its heads *in place*, so use each before asking for the next.

    Args:
        block: The block.
        tensors: The block's tensors at some tokens ``(token channel)`` each.

    Yields:
        The maps of a group of sites; they are overwritten when the next group is asked for.

    Cost: as :func:`write_jacobian` for one site; memory of one site and a chunk.
    """
    _require_plain_sums(block)
    parallel = block.description.parallel
    down, write = (effective_weight(module).detach() for module in (block.mlp_write, block.attn_write))
    mlp_post = _post(block.mlp_post_norm, lambda: block.mlp_write(tensors[SiteKind.MLP_HIDDEN]))
    attention: dict[SiteKind, Tensor | None] = {
        kind: None for kind in kinds_adding_at(SiteKind.ATTN_OUT) if kind in tensors
    }
    if block.attn_post_norm is None:
        attention[SiteKind.ATTN_HEADS] = write
    identity: dict[SiteKind, Tensor | None] = dict.fromkeys(kinds_adding_at(SiteKind.MLP_OUT))
    if mlp_post is None:
        identity[SiteKind.MLP_HIDDEN] = down
    yield SharedMaps(None, identity | attention if parallel else identity)
    if mlp_post is not None:
        yield SharedMaps(mlp_post, {SiteKind.MLP_HIDDEN: down})
    maps = _through_mlp(block, tensors)
    yield SharedMaps(maps, {SiteKind.MLP_IN: None})
    eye = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    chunks = torch.arange(len(maps), device=maps.device).split(_CHUNK)
    for chunk in chunks:
        if parallel:
            maps[chunk] = eye
            continue
        norm = norm_jacobian(block.mlp_norm, tensors[SiteKind.RESID_MID][chunk])
        maps[chunk] = (maps[chunk] if norm is None else torch.bmm(maps[chunk], norm)) + eye
    if not parallel:
        yield SharedMaps(maps, attention)
    if block.attn_post_norm is None:
        return
    for chunk in chunks:
        post = _post(block.attn_post_norm, lambda chunk=chunk: block.attn_write(tensors[SiteKind.ATTN_HEADS][chunk]))
        assert post is not None
        maps[chunk] = torch.bmm(maps[chunk], post)
    yield SharedMaps(maps, {SiteKind.ATTN_HEADS: write})


def _require_plain_sums(block: Block) -> None:
    scaled = (block.attn_scale, block.mlp_scale) != (1.0, 1.0)
    if scaled or block.description.changes_the_stream:
        why = "multiplies what its branches write" if scaled else "changes the stream itself after it is added to"
        raise UnsupportedModelError(
            f"block {block.index} {why}; these matrices are for blocks that add to the stream and do nothing else. Use "
            "another model for them."
        )


def _post(norm: nn.Module | None, reads: object) -> Tensor | None:
    if norm is None:
        return None
    with torch.no_grad():
        return norm_jacobian(norm, reads())  # type: ignore[operator]


def _through_mlp(block: Block, tensors: dict[SiteKind, Tensor]) -> Tensor:
    inner = mlp_jacobian(block, tensors[SiteKind.MLP_IN])
    post = _post(block.mlp_post_norm, lambda: block.mlp_write(tensors[SiteKind.MLP_HIDDEN]))
    return inner if post is None else post @ inner


def _from_attention(block: Block, tensors: dict[SiteKind, Tensor]) -> Tensor:
    """``I + p2' A n2'``: attention's output moves the stream and what the MLP reads of it.

    Returns:
        Matrices ``(token output input)``.
    """
    h = tensors[SiteKind.RESID_POST]
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    if block.description.parallel:
        return eye.expand(len(h), *eye.shape)
    inner = _through_mlp(block, tensors)
    norm = norm_jacobian(block.mlp_norm, tensors[SiteKind.RESID_MID])
    moved = inner if norm is None else torch.bmm(inner, norm)
    return moved.add_(eye)
