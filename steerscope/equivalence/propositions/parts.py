"""What checks share: a block's MLP weights, the tensors it sees, runs with edits or other weights, small algebra.

Weights are given output-first whatever way the model stores them (GPT-2's ``Conv1D`` holds the transpose, phi-3
fuses gate and up); :func:`as_parameters` goes the way back. :func:`run` is one pass of the whole model with edits
at sites of one block and with some parameters replaced; :func:`mlp_alone` is that block's MLP on given inputs,
computed by the model's own modules and therefore independent of the closed forms under test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from steerscope.equivalence.closed_forms import (
    Activation,
    GatedWeights,
    PlainWeights,
    activation_curvature,
)
from steerscope.equivalence.propositions.subject import Subject
from steerscope.errors import UnsupportedModelError
from steerscope.models.blocks import Block, is_transposed, linear_weight
from steerscope.models.hooks import Edit, edited, reading
from steerscope.models.wrappers import acting_layer
from steerscope.sites import Site, SiteKind

# What a pass is asked by: a site, or a kind of site of one block.
Key = TypeVar("Key", bound=Site | SiteKind)

MLPWeights = GatedWeights | PlainWeights


# --- weights ---


@dataclass(frozen=True)
class MLPParts:
    """The MLP of one block as tensors.

    Attributes:
        weights: Gate, up and down, or first, first bias, second, second bias; output-first.
        activation: phi, elementwise.
    """

    weights: MLPWeights
    activation: Activation

    @property
    def is_gated(self) -> bool:
        """Whether the hidden layer is ``phi(gate) * up``."""
        return isinstance(self.weights, GatedWeights)

    @property
    def down(self) -> Tensor:
        """The weight that writes, ``(d, d_ff)``."""
        return down_of(self.weights)

    def activated(self, z: Tensor) -> Tensor:
        """Return what phi is applied to, ``(..., d_ff)``."""
        return preactivation(z, self.weights)


def preactivation(z: Tensor, weights: MLPWeights) -> Tensor:
    """Return what phi is applied to, or how a change of the weights moves it, ``(..., d_ff)``.

    Args:
        z: What the MLP receives, ``(..., d)``.
        weights: The MLP's, or their change.

    Returns:
        ``(..., d_ff)``.
    """
    if isinstance(weights, GatedWeights):
        return z @ weights.gate.T
    return z @ weights.first.T + weights.first_bias


def down_of(weights: MLPWeights) -> Tensor:
    """Return the weight that writes, ``(d, d_ff)``."""
    return weights.down if isinstance(weights, GatedWeights) else weights.second


def with_down(weights: MLPWeights, down: Tensor) -> MLPWeights:
    """Return weights, or changes of them, with another one that writes.

    Args:
        weights: Of an MLP.
        down: ``(d, d_ff)``.

    Returns:
        The others as they are.
    """
    return weights._replace(down=down) if isinstance(weights, GatedWeights) else weights._replace(second=down)


def output_first(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as ``(d_out, d_in)``, detached."""
    weight = linear_weight(module).detach()
    return weight.T if is_transposed(module) else weight


def bias_of(module: nn.Module) -> Tensor:
    """Return the bias of a linear map, zeros where it has none."""
    bias = getattr(module, "bias", None)
    weight = output_first(module)
    return weight.new_zeros(weight.shape[0]) if bias is None else bias.detach()


def mlp_parts(subject: Subject, block: Block | None = None) -> MLPParts:
    """Return the MLP of the subject's block (or of another of its blocks).

    Args:
        subject: Whose block, where no other is given.
        block: Another block of the same model.

    Returns:
        Weights output-first, and the activation.

    Raises:
        UnsupportedModelError: A gated MLP whose gate or up map has a bias: the closed forms have none.
    """
    block = block or subject.block
    down = output_first(block.mlp_write)
    if not block.description.gated:
        (first,) = block.mlp_reads
        plain = PlainWeights(output_first(first), bias_of(first), down, bias_of(block.mlp_write))
        return MLPParts(plain, block.activation)
    if any(bool(bias_of(module).any()) for module in block.mlp_reads):
        raise UnsupportedModelError(
            "this gated MLP has a bias on gate or up, which the closed forms do not have. Use a model without."
        )
    reads = [output_first(module) for module in block.mlp_reads]
    gate, up = reads if len(reads) == 2 else reads[0].chunk(2)
    return MLPParts(GatedWeights(gate, up, down), block.activation)


def parameter_name(subject: Subject, module: nn.Module, name: str = "weight") -> str:
    """Return the name of a module's parameter in ``model.named_parameters()``.

    Args:
        subject: The model.
        module: One of its modules; under a LoRA the layer beneath it is meant.
        name: The module's own name of the parameter.

    Returns:
        The full name.
    """
    wanted = acting_layer(module).get_parameter(name)
    return next(found for found, parameter in subject.model.named_parameters() if parameter is wanted)


def as_stored(module: nn.Module, weight: Tensor) -> Tensor:
    """Return an output-first weight the way the module stores it.

    Args:
        module: The linear map.
        weight: ``(out, in)``.

    Returns:
        ``(in, out)`` for GPT-2's ``Conv1D``, else the weight itself.
    """
    return weight.T.contiguous() if is_transposed(module) else weight


def as_parameters(subject: Subject, weights: MLPWeights, block: Block | None = None) -> dict[str, Tensor]:
    """Return MLP weights (or a change of them) by parameter name, in the model's own storage.

    Plain weights of maps without biases: the biases are left out.

    Args:
        subject: The model.
        weights: Output-first weights, or changes of them.
        block: By default the subject's.

    Returns:
        Tensors by parameter name.
    """
    block = block or subject.block
    maps: list[tuple[nn.Module, Tensor, Tensor | None]]
    if isinstance(weights, GatedWeights):
        pair = (weights.gate, weights.up)
        reads = pair if len(block.mlp_reads) == 2 else (torch.cat(pair),)
        maps = [(module, weight, None) for module, weight in zip(block.mlp_reads, reads, strict=True)]
        maps.append((block.mlp_write, weights.down, None))
    else:
        maps = [
            (block.mlp_reads[0], weights.first, weights.first_bias),
            (block.mlp_write, weights.second, weights.second_bias),
        ]
    named = {}
    for module, weight, bias in maps:
        named[parameter_name(subject, module)] = as_stored(module, weight)
        if bias is not None and getattr(module, "bias", None) is not None:
            named[parameter_name(subject, module, "bias")] = bias
    return named


def moved(weights: MLPWeights, update: MLPWeights, scale: float = 1.0) -> MLPWeights:
    """Return ``weights + scale * update``.

    Args:
        weights: The MLP's weights.
        update: Their change, in the same shapes.
        scale: What the change is multiplied by.

    Returns:
        New weights; the old ones stay as they are.
    """
    pairs = zip(weights, update, strict=True)
    return type(weights)(*(weight + scale * change for weight, change in pairs))


def drawn_update(subject: Subject, parts: MLPParts, relative: float = 1.0, salt: int = 0) -> MLPWeights:
    """Return a random change of MLP weights, each of ``relative`` times the root mean square of its weight.

    Biases that are zero stay as they are.

    Args:
        subject: Seeds the draw.
        parts: The MLP.
        relative: Size of the change relative to the weight.
        salt: Tells draws of one check apart.

    Returns:
        Changes in the shapes of the weights.
    """
    changes = []
    for index, weight in enumerate(parts.weights):
        size = weight.square().mean().sqrt()
        changes.append(relative * size * subject.draw(*weight.shape, salt=salt + index))
    return type(parts.weights)(*changes)


# --- runs ---


@dataclass(frozen=True)
class Pass(Generic[Key]):
    """One pass: ``logits`` (batch token vocabulary) and the tensors at the sites, or kinds of site, asked for."""

    logits: Tensor
    tensors: Mapping[Key, Tensor]

    def __getitem__(self, key: Key) -> Tensor:
        """Return the tensor (batch token channel) at one of them."""
        return self.tensors[key]


def one_pass(
    subject: Subject,
    places: Mapping[Key, Site],
    edits: Mapping[Site, Edit],
    weights: Mapping[str, Tensor] | None = None,
    position_ids: Tensor | None = None,
) -> Pass[Key]:
    """Run the model once on the subject's tokens.

    Args:
        subject: What to run, inside ``subject.ready()``.
        places: What to read after edits, by what it is called in the result.
        edits: What to add, by site.
        weights: Parameters replaced in this pass, by name.
        position_ids: ``(1, token)``, or the model's own.

    Returns:
        What was read, and the logits.
    """
    arguments: dict[str, Any] = {"input_ids": subject.input_ids, "use_cache": False}
    if position_ids is not None:
        arguments["position_ids"] = position_ids
    with edited(subject.model, subject.site_map, edits), reading(subject.site_map, places.values()) as found:
        logits = functional_call(subject.model, dict(weights or {}), kwargs=arguments).logits
    return Pass(logits, {key: found[site] for key, site in places.items()})


def run(
    subject: Subject,
    kinds: Iterable[SiteKind] = (),
    *,
    edits: Mapping[SiteKind, Edit] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> Pass[SiteKind]:
    """Run the model once on the subject's tokens.

    Args:
        subject: What to run; inside ``subject.ready()``.
        kinds: What to read in the block, after edits. ``resid_pre`` is the stream entering it.
        edits: What to add, by kind of site of that block.
        weights: Parameters replaced in this pass, by name.

    Returns:
        What was read, by kind, and the logits.
    """
    chosen = {Site(subject.layer, kind): edit for kind, edit in (edits or {}).items()}
    return one_pass(subject, {kind: Site(subject.layer, kind) for kind in kinds}, chosen, weights)


def tensors_at(subject: Subject, kinds: Sequence[SiteKind]) -> tuple[Tensor, ...]:
    """Return the tensors (batch token channel) at kinds of site of one block, in their order, unedited.

    Args:
        subject: What to run, inside ``subject.ready()``.
        kinds: Kinds of site.

    Returns:
        One tensor ``(batch, token, channel)`` per kind.
    """
    clean = run(subject, kinds)
    return tuple(clean[kind] for kind in kinds)


def stream_before_mlp(subject: Subject) -> Tensor:
    """Return the stream that the MLP, or the norm before it, reads, ``batch token d_model``."""
    kind = SiteKind.RESID_PRE if subject.block.description.parallel else SiteKind.RESID_MID
    return tensors_at(subject, (kind,))[0]


def skip_and_mlp(subject: Subject) -> tuple[Tensor, Tensor]:
    """Return the two summands of the block's output: everything that skips the MLP, and ``mlp_out``."""
    written, after = tensors_at(subject, (SiteKind.MLP_OUT, SiteKind.RESID_POST))
    return after - written, written


class _MLPAlone(nn.Module):
    """A block's MLP as a module of its own, so that its parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, block: Block) -> None:
        super().__init__()
        self.model = model
        self._block = block

    def forward(self, z: Tensor) -> Tensor:
        return self._block.mlp_write(self._block.hidden(z))


def mlp_alone(
    subject: Subject, z: Tensor, weights: Mapping[str, Tensor] | None = None, block: Block | None = None
) -> Tensor:
    """Return what the block's MLP makes of ``z`` (..., d), before any post-norm, by the model's own modules.

    Args:
        subject: The model.
        z: What the MLP receives.
        weights: Parameters replaced for this call, by the model's names.
        block: By default the subject's.

    Returns:
        ``(..., d)``.
    """
    alone = _MLPAlone(subject.model, block or subject.block)
    return functional_call(alone, {f"model.{name}": value for name, value in (weights or {}).items()}, (z,))


# --- small algebra ---


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``|found - expected| / |expected|`` over all entries.

    Args:
        found: A tensor.
        expected: What it should be, in the same shape.

    Returns:
        A number without unit, by Frobenius norms.
    """
    return float((found - expected).norm() / expected.norm().clamp_min(1e-300))


def orthonormal_rows(subject: Subject, rows: int, width: int, salt: int = 0) -> Tensor:
    """Return a random ``rows width`` matrix with orthonormal rows.

    Args:
        subject: Seeds the draw.
        rows: How many rows, at most ``width``.
        width: Their length.
        salt: Tells draws of one check apart.

    Returns:
        ``(rows, width)``.
    """
    return torch.linalg.qr(subject.draw(width, rows, salt=salt)).Q.T


def is_piecewise_linear(activation: Activation) -> bool:
    """Whether phi is linear between kinks (ReLU and its like): its curvature vanishes where it is asked."""
    grid = torch.linspace(-3.03, 2.97, 24, dtype=torch.float64)
    return not bool(activation_curvature(activation, grid).any())
