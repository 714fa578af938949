r"""How well conditioned the maps of an MLP are, and how large an edit before it would have to be.

With more hidden channels than width, every target is reachable per token (P8: the condition of P7 then says nothing);
what is left of the obstruction is conditioning. For a trained update of a block's weights this measures, token by
token, two oracle edits that would imitate it at that block:

- ``mlp_in``: the solution of ``A dh = target``, target the first-order shift of what the MLP adds under the update
  of the MLP's own weights; relative to what the MLP reads. ``linear_error`` is how far the block then really is from
  that target: where the edit is large, the linear solution is fiction.
- ``attn_out``: Newton's method on the whole block (derivative ``I + A D_N``), target the block's real output with all
  its weights updated and its input fixed; relative to the stream after the attention.

Source: P7 to P10; the measurement is this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerscope.analysis.theory.block_call import BlockCall, block_calls
from steerscope.analysis.theory.common import Update, of_layer
from steerscope.analysis.theory.jacobians import effective_weight, mlp_jacobian, write_jacobian
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.blocks import Block, linear_weight
from steerscope.models.load import LoadedModel
from steerscope.sites import SiteKind

_ITERATIONS = 20
_HALVINGS = 12
_SOLVED = 1e-10
# Singular values listed per matrix: enough for a curve.
_QUANTILES = (1.0, 0.99, 0.9, 0.5, 0.1, 0.01, 0.0)


@dataclass(frozen=True)
class Spectrum:
    """Singular values of one matrix.

    Attributes:
        largest: The largest.
        smallest: The smallest.
        condition: Their ratio; infinite for a singular matrix.
        quantiles: Values at the quantiles 1, 0.99, 0.9, 0.5, 0.1, 0.01 and 0.
    """

    largest: float
    smallest: float
    condition: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, matrix: Tensor) -> Spectrum:
        """Return the spectrum of a matrix."""
        values = torch.linalg.svdvals(matrix.double())
        high, low = float(values[0]), float(values[-1])
        at = torch.quantile(values, torch.tensor(_QUANTILES, dtype=values.dtype, device=values.device))
        return cls(high, low, high / low if low > 0 else float("inf"), tuple(at.tolist()))


@dataclass(frozen=True)
class OracleEdit:
    """The edit that one site needs at one token to imitate the update.

    Attributes:
        target: Norm of the target over the norm of the block's output.
        edit: Norm of the edit over the norm of the tensor it is added to.
        error: Norm of what is left of the target once the edit is made, over the target's norm (for ``mlp_in`` the
            real MLP at the linear solution, for ``attn_out`` after Newton's last step).
        steps: Steps of Newton's method; 1 for the linear solution.
    """

    target: float
    edit: float
    error: float
    steps: int


@dataclass(frozen=True)
class LayerConditioning:
    """One layer: ``down`` is W_d, ``jacobian`` A(z) per token, then the edits per token."""

    layer: int
    down: Spectrum
    jacobian: tuple[Spectrum, ...]
    mlp_in: tuple[OracleEdit, ...]
    attn_out: tuple[OracleEdit, ...]


def conditioning(
    loaded: LoadedModel,
    update: Update,
    ids: Tensor,
    layers: Sequence[int],
    positions: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> tuple[LayerConditioning, ...]:
    """Measure spectra and needed edits at some layers and positions of the first sequence.

    Args:
        loaded: The model, best in float64.
        update: Change per parameter name.
        ids: ``batch token``, without padding.
        layers: Which layers.
        positions: Which tokens of the first sequence.
        progress: Called with layers done and layers in all.

    Returns:
        Per layer the spectra of its maps, and the edits needed at each position.

    Cost: a forward pass, and per layer and token a few dense ``d_model`` matrices and their decompositions.
    """
    calls = block_calls(loaded, ids, layers)
    found: list[LayerConditioning] = []
    with forward_differentiable_attention(loaded.model):
        for layer in layers:
            call = calls[layer]
            tensors = call.tensors(loaded.site_map, layer)
            chosen = {kind: value[0, list(positions)].detach() for kind, value in tensors.items()}
            mine = of_layer(loaded, update, layer)
            jacobian = mlp_jacobian(call.block, chosen[SiteKind.MLP_IN])
            found.append(
                LayerConditioning(
                    layer,
                    Spectrum.of(effective_weight(call.block.mlp_write).detach()),
                    tuple(Spectrum.of(matrix) for matrix in jacobian),
                    _before_mlp(call, mine, chosen, positions),
                    _after_attention(call, mine, chosen, positions),
                )
            )
            if progress is not None:
                progress(len(found), len(layers))
    return tuple(found)


def _before_mlp(
    call: BlockCall, update: Update, tensors: dict[SiteKind, Tensor], positions: Sequence[int]
) -> tuple[OracleEdit, ...]:
    """Solve ``A dh = target`` at ``mlp_in``.

    Returns:
        One edit per position; none where the update changes no weight of the MLP.
    """
    block = call.block
    named = {id(p): name for name, p in block.module.named_parameters()}
    own = {named[id(linear_weight(module))] for module in (*block.mlp_reads, block.mlp_write)}
    part = {name: change for name, change in update.items() if call.inner_names[name] in own}
    if not part:
        return ()
    target = call.shift(part)[0, list(positions)]
    map_ = write_jacobian(block, SiteKind.MLP_IN, tensors)
    assert map_ is not None
    edit = torch.linalg.lstsq(map_, target[..., None]).solution[..., 0]
    with torch.no_grad():
        z = tensors[SiteKind.MLP_IN]
        moved = block.mlp_output(block.hidden(z + edit)) - tensors[SiteKind.MLP_OUT]
    size, out = target.norm(dim=-1), tensors[SiteKind.RESID_POST].norm(dim=-1)
    relative, error = edit.norm(dim=-1) / z.norm(dim=-1), (moved - target).norm(dim=-1) / size
    rows = zip((size / out).tolist(), relative.tolist(), error.tolist(), strict=True)
    return tuple(OracleEdit(*row, 1) for row in rows)


def _after_attention(
    call: BlockCall, update: Update, tensors: dict[SiteKind, Tensor], positions: Sequence[int]
) -> tuple[OracleEdit, ...]:
    """Solve for the edit of ``attn_out`` that gives the updated block's output."""
    block = call.block
    base = tensors[SiteKind.RESID_POST]
    target = call.output_with(update)[0, list(positions)]
    edit, steps = newton(block, tensors, target)
    left = after_attention(block, tensors, edit)[SiteKind.RESID_POST] - target
    size = (target - base).norm(dim=-1)
    stream = tensors.get(SiteKind.RESID_MID, tensors[SiteKind.RESID_PRE]).norm(dim=-1)
    rows = zip(
        (size / base.norm(dim=-1)).tolist(),
        (edit.norm(dim=-1) / stream).tolist(),
        (left.norm(dim=-1) / size).tolist(),
        steps,
        strict=True,
    )
    return tuple(OracleEdit(*row) for row in rows)


def after_attention(block: Block, tensors: dict[SiteKind, Tensor], edit: Tensor) -> dict[SiteKind, Tensor]:
    """Return every tensor of the block once ``edit`` is added to what attention adds to the stream.

    Args:
        block: The block.
        tensors: The block's tensors at some tokens ``(token channel)`` each.
        edit: What is added to attention's output ``(token channel)``.

    Returns:
        All tensors of the block, those behind the edit computed anew.
    """
    h, attn = tensors[SiteKind.RESID_PRE], tensors[SiteKind.ATTN_OUT] + edit
    with torch.no_grad():
        z = block.mlp_input(h, block.stream_mid(h, attn))
        hidden = block.hidden(z)
        out = block.mlp_output(hidden)
        moved = {
            SiteKind.ATTN_OUT: attn,
            SiteKind.MLP_IN: z,
            SiteKind.MLP_HIDDEN: hidden,
            SiteKind.MLP_OUT: out,
            SiteKind.RESID_POST: h + attn + out,
        }
        if SiteKind.RESID_MID in tensors:
            moved[SiteKind.RESID_MID] = block.stream_mid(h, attn)
    return {**tensors, **moved}


def newton(block: Block, tensors: dict[SiteKind, Tensor], target: Tensor) -> tuple[Tensor, list[int]]:
    """Find the edit of ``attn_out`` that makes the block's output ``target``, token by token.

    Steps that do not bring a token nearer are halved (a token that is then no nearer stays where it is).

    Args:
        block: The block.
        tensors: The block's tensors at some tokens ``(token channel)`` each.
        target: Wanted output of the block ``(token channel)``.

    Returns:
        The edit ``token channel`` and the steps each token took.
    """
    edit = torch.zeros_like(target)
    steps = [0] * len(target)
    now = tensors
    size = (target - tensors[SiteKind.RESID_POST]).norm(dim=-1).clamp_min(1e-300)
    for _ in range(_ITERATIONS):
        left = target - now[SiteKind.RESID_POST]
        open_ = left.norm(dim=-1) > _SOLVED * size
        if not bool(open_.any()):
            break
        map_ = write_jacobian(block, SiteKind.ATTN_OUT, now)
        assert map_ is not None
        step = torch.linalg.solve(map_, left[..., None])[..., 0] * open_[:, None]
        length = torch.ones_like(size)
        for _ in range(_HALVINGS):
            tried = after_attention(block, tensors, edit + length[:, None] * step)
            worse = (target - tried[SiteKind.RESID_POST]).norm(dim=-1) > left.norm(dim=-1)
            if not bool((worse & open_).any()):
                break
            length = torch.where(worse, length / 2, length)
        length = torch.where(worse & open_, 0.0, length)
        edit = edit + length[:, None] * step
        now = after_attention(block, tensors, edit)
        steps = [count + int(flag) for count, flag in zip(steps, open_.tolist(), strict=True)]
        if not bool((length[open_] > 0).any()):
            break
    return edit, steps
