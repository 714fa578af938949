r"""P32, the gauge theorem: linear post-block steering at every layer is a change of basis that grows by layer.

Let every block be followed by :math:`h \mapsto (I + U_l D_l) h` and write :math:`h_l = G_l k_l` with

.. math:: G_0 = I, \qquad G_{l+1} = (I + U_l D_l)\, G_l .

A block adds :math:`W_w f(W_r h)` to the stream, so that
:math:`k_{l+1} = G_{l+1}^{-1} (I + U_l D_l)(G_l k_l + W_w f(W_r G_l k_l)) = k_l + G_l^{-1} W_w f(W_r G_l k_l)`: an
unsteered model with read maps :math:`W_r G_l`, write maps :math:`G_l^{-1} W_w` and unembedding :math:`W_U G_L`. The
edit's rank grows by r per steered layer, and every :math:`I + U_l D_l` must be invertible, which is
:math:`\det(I_r + D_l U_l) \ne 0`.

A norm before a read map does not move through a matrix: :math:`N(G k)` divides by the size of :math:`G k`. Edited
weights alone divide by the size of k and miss; with the statistics of :math:`G k` the form holds, for RMSNorm with gain
g with the read map :math:`W_r\,\mathrm{diag}(g)\, G\, \mathrm{diag}(g)^{-1}`. So *this construction* does not merge
steering into the weights of a model with norms on its stream. That no other one does is not shown. For the last
block, if what follows it alone may change, it is easy to see: the final norm makes :math:`N((I + U D) k)` of what
would have to be a fixed matrix times :math:`N(k)`, and the ratio of the two sizes, :math:`|(I + U D) k| / |k|`, is
the same for every token only if :math:`I + U D` is a multiple of an orthogonal matrix. A norm on what a block writes
(Gemma, OLMo-2) has its own say: there :math:`G_l^{-1}` has to follow that norm and is no edit of the write map.

The net without norms has all its maps rewritten. In the subject's own net read maps are rewritten where RMSNorm, or no
norm, stands before them; before LayerNorm, which also subtracts a mean that G moves, the norm is given :math:`G k`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from steerscope.equivalence.edit_forms import edit_form
from steerscope.equivalence.propositions.base import Evidence, Measurement, Proposition, Source
from steerscope.equivalence.propositions.norms import epsilon_of, norm_parts, norm_size
from steerscope.equivalence.propositions.parts import (
    as_stored,
    bias_of,
    output_first,
    parameter_name,
    relative_error,
)
from steerscope.equivalence.propositions.runs import input_mapped, output_mapped, post, run_at
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.subspaces import rank_excess
from steerscope.models.blocks import Block
from steerscope.models.changed_weights import with_update
from steerscope.models.hooks import Edit
from steerscope.sites import Site

GROUP = "gauge"
Weights = dict[str, Tensor]
LOW_RANK = edit_form("low_rank")

# Inverses of I + U D with condition numbers up to 1e3: rounding stays below; wrong forms are off by 1e-2 and more.
EXACT = 1e-12
# The rank of a difference of weights: singular values beyond it are rounding.
RANK_GAP = 1e-10
RANK = 2
# Gains below this are not divided by; small ones cancel without loss of digits.
SMALLEST_GAIN = 1e-9
# Steered blocks: the uppermost ones, so that few matrices of a large model are rewritten.
STEERED = 4


# --- formulas ---


def next_gauge(gauge: Tensor, write: Tensor, read: Tensor) -> Tensor:
    """Return ``G_{l+1} = (I + U D) G_l``; ``gauge`` (d d), ``write`` U (d r), ``read`` D (r d).

    Args:
        gauge: G of this layer, ``(d, d)``.
        write: U, ``(d, r)``.
        read: D, ``(r, d)``.

    Returns:
        G of the next layer, ``(d, d)``.
    """
    return gauge + write @ (read @ gauge)


def read_map(weight: Tensor, gauge: Tensor) -> Tensor:
    """Return the read map ``W G`` (out d).

    Args:
        weight: W of a map that reads the stream, ``(out, d)``.
        gauge: G, ``(d, d)``.

    Returns:
        ``(out, d)``.
    """
    return weight @ gauge


def write_map(weight: Tensor, gauge: Tensor) -> Tensor:
    """Return the write map ``G^-1 W`` (d in).

    Args:
        weight: W of a map that writes to the stream, ``(d, in)``.
        gauge: G, ``(d, d)``, invertible.

    Returns:
        ``(d, in)``.
    """
    return torch.linalg.solve(gauge, weight)


# --- a net without norms ---


class PureBlock(NamedTuple):
    """A block without norms: attention with one head, then an MLP; all maps output-first."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_write: Tensor
    first: Tensor
    mlp_write: Tensor

    def forward(self, h: Tensor) -> Tensor:
        """Return the block's output for the stream ``token d``."""
        scores = (h @ self.query.T) @ (h @ self.key.T).T
        seen = torch.ones_like(scores).tril().bool()
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        m = h + weights @ (h @ self.value.T) @ self.attn_write.T
        return m + nn.functional.gelu(m @ self.first.T) @ self.mlp_write.T

    def in_gauge(self, gauge: Tensor) -> PureBlock:
        """Return the block whose stream is ``k`` with ``h = G k``."""
        return PureBlock(
            query=read_map(self.query, gauge),
            key=read_map(self.key, gauge),
            value=read_map(self.value, gauge),
            attn_write=write_map(self.attn_write, gauge),
            first=read_map(self.first, gauge),
            mlp_write=write_map(self.mlp_write, gauge),
        )


def _pure_net(subject: Subject) -> tuple[list[PureBlock], list[dict[str, Tensor]]]:
    width, layers = 12, 4

    def matrix(rows: int, columns: int, salt: int) -> Tensor:
        return subject.draw(rows, columns, salt=salt) / columns**0.5

    shapes = [(width, width)] * 4 + [(20, width), (width, 20)]
    blocks = [
        PureBlock._make(matrix(*shape, 400 + 10 * layer + k) for k, shape in enumerate(shapes))
        for layer in range(layers)
    ]
    return blocks, [_adapter(subject, width, 500 + layer) for layer in range(layers)]


def _adapter(subject: Subject, width: int, salt: int) -> dict[str, Tensor]:
    """Return a rank-2 adapter whose ``U D`` has a spectral norm near 1."""
    write = torch.linalg.qr(subject.draw(width, RANK, salt=2 * salt)).Q
    return {"U": write, "D": subject.draw(RANK, width, salt=2 * salt + 1) / width**0.5}


def _gauges(width: int, adapters: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """Return ``G_0`` to ``G_L``."""
    gauges = [torch.eye(width, dtype=torch.float64)]
    for adapter in adapters:
        gauges.append(next_gauge(gauges[-1], adapter["U"], adapter["D"]))
    return gauges


def _pure_errors(subject: Subject) -> tuple[float, float]:
    """Return the error of the edited net at its outputs, and the same with the factors of G in the wrong order."""
    blocks, adapters = _pure_net(subject)
    width = blocks[0].query.shape[1]
    unembed = subject.draw(9, width, salt=600)
    embedded = subject.draw(5, width, salt=601)
    stream = embedded
    for block, adapter in zip(blocks, adapters, strict=True):
        stream = block.forward(stream)
        stream = stream + LOW_RANK.delta(adapter, stream)
    steered = stream @ unembed.T

    def edited_net(gauges: list[Tensor]) -> Tensor:
        k = embedded
        for block, gauge in zip(blocks, gauges[:-1], strict=True):
            k = block.in_gauge(gauge).forward(k)
        return k @ read_map(unembed, gauges[-1]).T

    identity = torch.eye(width, dtype=torch.float64)
    turned = [identity]
    for adapter in adapters:
        turned.append(turned[-1] @ (identity + adapter["U"] @ adapter["D"]))
    right = relative_error(edited_net(_gauges(width, adapters)), steered)
    return right, relative_error(edited_net(turned), steered)


# --- the subject's own net ---


def _read_norms(block: Block) -> list[nn.Module]:
    """Return the norms on what the block reads; one where attention and MLP share it."""
    norms = [norm for norm in (block.attn_norm, block.mlp_norm) if norm is not None]
    return list({id(norm): norm for norm in norms}.values())


@contextmanager
def _plain_statistics(norm: nn.Module, gauge: Tensor) -> Iterator[None]:
    """Let a norm read ``G k`` but divide by the size of k, which is what edited weights alone can do."""
    is_centred = isinstance(norm, nn.LayerNorm)
    eps = epsilon_of(norm)
    bias: Any = norm.bias if is_centred else 0.0
    ratio: list[Tensor] = []

    def read(k: Tensor) -> Tensor:
        h = k @ gauge.T
        ratio[:] = [norm_size(h, eps, is_centred) / norm_size(k, eps, is_centred)]
        return h

    with input_mapped(norm, read), output_mapped(norm, lambda out: (out - bias) * ratio[0] + bias):
        yield


@contextmanager
def _gauged_statistics(norm: nn.Module, gauge: Tensor) -> Iterator[None]:
    """Let an RMSNorm read k but divide by the size of ``G k``: what rewritten read maps need of it."""
    eps = epsilon_of(norm)
    ratio: list[Tensor] = []

    def read(k: Tensor) -> Tensor:
        ratio[:] = [norm_size(k, eps, False) / norm_size(k @ gauge.T, eps, False)]
        return k

    with input_mapped(norm, read), output_mapped(norm, lambda out: out * ratio[0]):
        yield


def _rewritten_reads(subject: Subject, norm: nn.Module | None, reads: Sequence[nn.Module], gauge: Tensor) -> Weights:
    """Return the change of read maps from ``W`` to ``W diag(g) G diag(g)^-1``, g the gain of the norm before them."""
    width = len(gauge)
    gain = gauge.new_ones(width) if norm is None else norm_parts(norm, width).gain
    turned = gain[:, None] * gauge / gain
    update = {}
    for module in reads:
        weight = output_first(module)
        update[parameter_name(subject, module)] = as_stored(module, read_map(weight, turned) - weight)
    return update


def _can_rewrite_reads(block: Block, width: int) -> bool:
    """Whether no LayerNorm, and no gain of zero, stands before the block's read maps."""
    norms = _read_norms(block)
    if any(isinstance(norm, nn.LayerNorm) for norm in norms):
        return False
    return all(float(norm_parts(norm, width).gain.abs().min()) > SMALLEST_GAIN for norm in norms)


def _times(gauge: Tensor) -> Edit:
    return lambda k: k @ gauge.T


def _divided(gauge: Tensor) -> Edit:
    return lambda out: write_map(out.mT, gauge).mT


def _rewritten(subject: Subject, module: nn.Module, gauge: Tensor) -> dict[str, Tensor]:
    """Return the change of a write map (weight and bias) from ``W`` to ``G^-1 W``."""
    weight, bias = output_first(module), bias_of(module)
    update = {parameter_name(subject, module): as_stored(module, write_map(weight, gauge) - weight)}
    if getattr(module, "bias", None) is not None:
        update[parameter_name(subject, module, "bias")] = write_map(bias[:, None], gauge)[:, 0] - bias
    return update


def _edited_logits(
    subject: Subject,
    layers: Sequence[int],
    gauges: Sequence[Tensor],
    *,
    plain: bool = False,
    writes: bool = True,
    reads: bool = False,
) -> Tensor:
    """Return the logits of the unsteered model with read and write maps of ``layers`` in their gauges.

    Args:
        subject: The model.
        layers: The blocks, the last ones.
        gauges: One per block, and one more for what follows.
        plain: Statistics of k instead of ``G k`` in norms on reads.
        writes: Whether write maps are rewritten.
        reads: Whether read maps are rewritten too; else their norms are given ``G k``.
    """
    update: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for layer, gauge in zip(layers, gauges[:-1], strict=True):
            block = subject.site_map.blocks[layer]
            norms = _read_norms(block)
            if plain:
                for norm in norms:
                    stack.enter_context(_plain_statistics(norm, gauge))
            elif reads:
                for norm in norms:
                    stack.enter_context(_gauged_statistics(norm, gauge))
                update |= _rewritten_reads(subject, block.attn_norm, block.attn_reads, gauge)
                update |= _rewritten_reads(subject, block.mlp_norm, block.mlp_reads, gauge)
            else:
                for module in norms or [block.attn, block.mlp_in]:
                    stack.enter_context(input_mapped(module, _times(gauge)))
            if not writes:
                continue
            for write, norm_after in ((block.attn_write, block.attn_post_norm), (block.mlp_write, block.mlp_post_norm)):
                if norm_after is None:
                    update |= _rewritten(subject, write, gauge)
                else:
                    stack.enter_context(output_mapped(norm_after, _divided(gauge)))
        stack.enter_context(with_update(subject.model, update))
        back = gauges[-1]
        return run_at(subject, edits={post(layers[-1]): lambda k: k @ back.T - k}).logits


def _check(subject: Subject) -> Evidence:
    right, turned = _pure_errors(subject)
    claim = [Measurement("net without norms: outputs of the edited net", right, high=EXACT, of_subject=False)]
    controls = [Measurement("net without norms: factors of G in the wrong order", turned, high=EXACT, of_subject=False)]
    notes = ["net without norms: 4 blocks of this check's own, width 12, causal attention and GELU"]
    width, count = subject.site_map.d_model, len(subject.site_map.blocks)
    layers = list(range(max(0, count - STEERED), count))
    adapters = [_adapter(subject, width, 700 + layer) for layer in layers]
    gauges = _gauges(width, adapters)

    def steer(adapter: Mapping[str, Tensor]) -> Edit:
        return lambda h: LOW_RANK.delta(adapter, h)

    edits: dict[Site, Edit] = {post(layer): steer(a) for layer, a in zip(layers, adapters, strict=True)}
    steered = run_at(subject, edits=edits).logits
    block = subject.site_map.blocks[layers[-1]]
    exact = relative_error(_edited_logits(subject, layers, gauges), steered)
    claim.append(Measurement("the model in coordinates k: norms given G k, write maps rewritten", exact, high=EXACT))
    if all(_can_rewrite_reads(subject.site_map.blocks[layer], width) for layer in layers):
        rewritten = relative_error(_edited_logits(subject, layers, gauges, reads=True), steered)
        name = "the model, read and write maps rewritten, norms dividing by the size of G k"
        claim.append(Measurement(name, rewritten, high=EXACT))
    else:
        notes.append("read maps not rewritten: LayerNorm, or a gain of zero, stands before them")
    if len(layers) > 1:
        weight = output_first(block.mlp_write)
        change = write_map(weight, gauges[-2]) - weight
        rank = RANK * (len(layers) - 1)
        claim.append(
            Measurement(
                f"last write map: singular value {rank + 1} of the edit", rank_excess(change, rank), high=RANK_GAP
            )
        )
        unwritten = relative_error(_edited_logits(subject, layers, gauges, writes=False), steered)
        controls.append(Measurement("the model, write maps left as they were", unwritten, high=EXACT))
        if _read_norms(block):
            plain = relative_error(_edited_logits(subject, layers, gauges, plain=True), steered)
            controls.append(Measurement("the model, norms with the statistics of k", plain, high=EXACT))
    if block.mlp_post_norm is None:
        notes.append("the model: write maps (and their biases) rewritten to G^-1 W")
    else:
        notes.append("the model: G^-1 follows the norms on writes; it is no edit of the write maps")
    determinants = [torch.linalg.det(torch.eye(RANK, dtype=torch.float64) + a["D"] @ a["U"]) for a in adapters]
    growth = max(float(torch.linalg.cond(later) / torch.linalg.cond(now)) for now, later in pairwise(gauges))
    notes.append(
        f"steered layers {layers[0]} to {layers[-1]}; smallest |det(I + D U)| "
        f"{min(abs(float(d)) for d in determinants):.3g}, condition number of G grows by at most {growth:.3g} a layer"
    )
    return Evidence(tuple(claim), tuple(controls), notes=tuple(notes))


PROPOSITIONS: tuple[Proposition, ...] = (
    Proposition(
        32,
        GROUP,
        "gauge theorem",
        "Linear post-block steering at every layer equals an unsteered model with read maps W G_l, write maps "
        "G_l^-1 W and unembedding W_U G_L, G_{l+1} = (I + U_l D_l) G_l; the rank of the edit grows by r per layer.",
        "I + U_l D_l invertible; norms on what is read divide by the size of G_l k, which edited weights alone do not; "
        "G_l^-1 follows norms on what is written. That nothing else merges steering into weights is not shown.",
        Source.OURS,
        _check,
    ),
)
