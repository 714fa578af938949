"""A transformer block with its parts bound to modules, and its layout's equations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.attributes import activation_at, module_at, number_at
from steerscope.models.description import BlockDescription
from steerscope.models.packed import is_packed, packed_shape
from steerscope.models.wrappers import acting_layer
from steerscope.site_kinds import Branch, Maps, SiteKind


@dataclass(frozen=True)
class Block:
    """One block with its parts bound. ``description`` says what they mean; ``index`` counts from 0."""

    index: int
    description: BlockDescription
    module: nn.Module
    attn: nn.Module
    mlp_in: nn.Module
    attn_norm: nn.Module | None
    mlp_norm: nn.Module | None
    attn_post_norm: nn.Module | None
    mlp_post_norm: nn.Module | None
    attn_reads: tuple[nn.Module, ...]
    attn_scale: float
    mlp_scale: float
    # What an MLP or an attention that is one map lacks; the properties of the same names refuse it.
    attn_write_or_none: nn.Module | None
    mlp_write_or_none: nn.Module | None
    mlp_reads_or_none: tuple[nn.Module, ...]
    attn_map: nn.Module | None
    mlp_map: nn.Module | None
    attn_inner: tuple[nn.Module, ...]
    mlp_inner: tuple[nn.Module, ...]
    mid_norm: nn.Module | None
    end_norm: nn.Module | None
    end_inner: tuple[nn.Module, ...]
    activation: Callable[[Tensor], Tensor] = field(repr=False)

    @classmethod
    def bind(cls, module: nn.Module, description: BlockDescription, index: int) -> Block:
        """Find every part of ``description`` in ``module``.

        Args:
            module: One decoder block of a transformers model.
            description: Where the parts of such a block are.
            index: The block's number, from 0.

        Returns:
            The block with its modules, ready for hooks.

        Raises:
            UnsupportedModelError: A path of the description leads nowhere.
        """
        description = description.of_layer(index)

        def optional(path: str | None) -> nn.Module | None:
            return None if path is None else module_at(module, path)

        def several(paths: tuple[str, ...]) -> tuple[nn.Module, ...]:
            return tuple(module_at(module, path) for path in paths)

        for branch, write, whole in (
            ("attn", description.attn_write, description.attn_map),
            ("mlp", description.mlp_write, description.mlp_map),
        ):
            if (write is None) is (whole is None):
                raise UnsupportedModelError(
                    f"the BlockDescription gives {branch}_write={write!r} and {branch}_map={whole!r}; expected one of "
                    "the two: the linear map that writes, or the module whose output is written."
                )
        return cls(
            index=index,
            description=description,
            module=module,
            attn=module_at(module, description.attn),
            mlp_in=module_at(module, description.mlp_in),
            attn_norm=optional(description.attn_norm),
            mlp_norm=optional(description.mlp_norm),
            attn_post_norm=optional(description.attn_post_norm),
            mlp_post_norm=optional(description.mlp_post_norm),
            attn_reads=several(description.attn_reads),
            attn_scale=number_at(module, description.attn_scale),
            mlp_scale=number_at(module, description.mlp_scale),
            attn_write_or_none=optional(description.attn_write),
            mlp_write_or_none=optional(description.mlp_write),
            mlp_reads_or_none=several(description.mlp_reads),
            attn_map=optional(description.attn_map),
            mlp_map=optional(description.mlp_map),
            attn_inner=several(description.attn_inner),
            mlp_inner=several(description.mlp_inner),
            mid_norm=optional(description.mid_norm),
            end_norm=optional(description.end_norm),
            end_inner=several(description.end_inner),
            activation=activation_at(module, description.activation),
        )

    # --- its parts by the words of the table of site kinds ---

    @property
    def attn_write(self) -> nn.Module:
        """The attention's output projection.

        Raises:
            UnsupportedModelError: The attention is one map.
        """
        return self.attn_write_or_none or self._refuse(Branch.ATTENTION)

    @property
    def mlp_write(self) -> nn.Module:
        """The MLP's down projection.

        Raises:
            UnsupportedModelError: The MLP is one map.
        """
        return self.mlp_write_or_none or self._refuse(Branch.MLP)

    @property
    def mlp_reads(self) -> tuple[nn.Module, ...]:
        """The linear maps that read the MLP's input.

        Raises:
            UnsupportedModelError: The MLP is one map.
        """
        return self.mlp_reads_or_none or self._refuse(Branch.MLP)

    def _refuse(self, branch: Branch) -> NoReturn:
        what = "MLP" if branch is Branch.MLP else "attention"
        raise UnsupportedModelError(
            f"this needs the linear maps of the {what} of block {self.index}, which is one map here (layout "
            f"'{self.description.layout}'): there is no single map to read, change or merge into. Take sites and "
            "methods that edit activations there."
        )

    def scale(self, branch: Branch) -> float:
        """Return the number that what a branch writes is multiplied by."""
        return self.attn_scale if branch is Branch.ATTENTION else self.mlp_scale

    def maps(self, branch: Branch, maps: Maps) -> tuple[nn.Module, ...]:
        """Return the linear maps that read a branch's input, or the one that writes its output.

        Args:
            branch: Attention or MLP.
            maps: Those that read the branch's input, or the one that writes its output.

        Returns:
            One module where the maps are fused (GPT-2's ``c_attn``), else one for each map; always one for the map that
            writes.

        Raises:
            UnsupportedModelError: The branch is one map.
        """
        if branch is Branch.ATTENTION:
            return self.attn_reads if maps is Maps.READS else (self.attn_write,)
        return self.mlp_reads if maps is Maps.READS else (self.mlp_write,)

    def reader(self, branch: Branch, maps: Maps) -> nn.Module:
        """Return the one module whose input is what a branch's linear maps read.

        Args:
            branch: Attention or MLP.
            maps: The maps that read, or the map that writes.

        Returns:
            The writing map itself, or for the reading maps the module whose first input they all share.
        """
        if maps is Maps.WRITE:
            return self.maps(branch, maps)[0]
        return self.attn if branch is Branch.ATTENTION else self.mlp_in

    def post_norm(self, branch: Branch) -> nn.Module | None:
        """Return the norm on what a branch writes, or ``None``."""
        return self.attn_post_norm if branch is Branch.ATTENTION else self.mlp_post_norm

    def writer(self, branch: Branch) -> nn.Module:
        """Return the module whose output a branch adds to the stream: the norm on it where there is one.

        The block multiplies that output by :meth:`scale`.
        """
        return self.post_norm(branch) or self.whole(branch) or self.maps(branch, Maps.WRITE)[0]

    def whole(self, branch: Branch) -> nn.Module | None:
        """Return the module whose output a branch that is one map writes, ``None`` for other branches."""
        return self.attn_map if branch is Branch.ATTENTION else self.mlp_map

    def linear_maps(self) -> dict[str, nn.Module]:
        """Return the block's linear maps by path inside the block (seven in a Llama block)."""
        return {path: module for _, maps in self.groups() for path, module in maps.items()}

    def groups(self) -> list[tuple[str, dict[str, nn.Module]]]:
        """Return the block's linear maps by path, grouped by what they read: those of one group share it."""
        told = self.description

        def named(paths: Sequence[str | None], modules: Sequence[nn.Module | None]) -> dict[str, nn.Module]:
            pairs = zip(paths, modules, strict=True)
            return {path: module for path, module in pairs if path is not None and module is not None}

        found = [
            ("attn_in", named(told.attn_reads, self.attn_reads)),
            ("attn_heads", named((told.attn_write,), (self.attn_write_or_none,))),
            ("mlp_in", named(told.mlp_reads, self.mlp_reads_or_none)),
            ("mlp_hidden", named((told.mlp_write,), (self.mlp_write_or_none,))),
        ]
        inner = named(
            (*told.attn_inner, *told.mlp_inner, *told.end_inner), (*self.attn_inner, *self.mlp_inner, *self.end_inner)
        )
        found += [(path, {path: module}) for path, module in inner.items()]
        return [(group, maps) for group, maps in found if maps]

    # --- the layout's equations, recomputed from the parts (what the self-check compares with) ---

    def stream_mid(self, h: Tensor, attn_out: Tensor) -> Tensor:
        """``resid_mid`` of a sequential block.

        Args:
            h: The residual stream entering the block, ``batch token d_model``.
            attn_out: What attention adds to it, after a norm on writes; the same shape.

        Returns:
            Their sum, ``batch token d_model``, after the norm on the stream itself where there is one.
        """
        return h + attn_out if self.mid_norm is None else self.mid_norm(h + attn_out)

    def mlp_input(self, h: Tensor, mid: Tensor) -> Tensor:
        """``mlp_in`` from the residual stream before and after attention.

        Args:
            h: The residual stream entering the block, ``batch token d_model``.
            mid: The stream after attention (:meth:`stream_mid`), in the same shape; has no influence in a parallel
                block.

        Returns:
            What the MLP receives, after the norm before it where there is one; ``batch token d_model``.
        """
        stream = h if self.description.parallel else mid
        return stream if self.mlp_norm is None else self.mlp_norm(stream)

    def hidden(self, mlp_in: Tensor) -> Tensor:
        """``mlp_hidden`` from ``mlp_in``."""
        first = [read(mlp_in) for read in self.mlp_reads]
        if not self.description.gated:
            return self.activation(first[0])
        gate, up = first if len(first) == 2 else first[0].chunk(2, dim=-1)
        return self.activation(gate) * up

    def mlp_output(self, mlp_hidden: Tensor) -> Tensor:
        """``mlp_out`` from ``mlp_hidden``."""
        return self.added(Branch.MLP, self.mlp_write(mlp_hidden))

    def attn_output(self, heads: Tensor) -> Tensor:
        """``attn_out`` from ``attn_heads``."""
        return self.added(Branch.ATTENTION, self.attn_write(heads))

    def added(self, branch: Branch, written: Tensor) -> Tensor:
        """Return what a branch adds to the stream.

        Args:
            branch: Attention or MLP.
            written: What its last map writes, ``batch token d_model``.

        Returns:
            That after the norm on it and times the block's multiplier, where there are such.
        """
        norm, scale = self.post_norm(branch), self.scale(branch)
        normed = written if norm is None else norm(written)
        return normed if scale == 1.0 else normed * scale


def width_of(block: Block, kind: SiteKind, d_model: int) -> int:
    """Return the number of channels of a kind of site in ``block``.

    Args:
        block: A block of the model.
        kind: The kind of site.
        d_model: Width of the residual stream.

    Returns:
        The input width of the writing map for what that map reads (``attn_heads``, ``mlp_hidden``), else ``d_model``.
    """
    match kind.facts.read_by:
        case (branch, Maps.WRITE):  # of as many channels as the branch has inside
            return linear_shape(block.maps(branch, Maps.WRITE)[0])[1]
        case _:
            return d_model


def linear_weight(module: nn.Module) -> Tensor:
    """Return the weight of a linear map, looking inside PEFT's wrapper of it.

    Raises:
        UnsupportedModelError: It has none of two axes, or keeps it packed (quantised).
    """
    if is_packed(module):
        raise UnsupportedModelError(
            f"this needs the weights of a linear map as plain numbers, and {type(acting_layer(module)).__name__} keeps "
            "them quantised. Take the model that it was made from; ranking, steering and training edits work on this "
            "one."
        )
    weight = getattr(acting_layer(module), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UnsupportedModelError(
            f"expected a linear map with a 2-dimensional weight, got {type(module).__name__}. "
            "Expert stacks are not supported."
        )
    return weight


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored input-first (GPT-2's ``Conv1D``)."""
    return type(acting_layer(module)).__name__ == "Conv1D"


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_out, d_in)`` of a linear map, whatever way its weight is stored."""
    if is_packed(module):
        return packed_shape(module)
    rows, columns = linear_weight(module).shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def as_token_axes(tensor: Tensor, batch: int, token: int) -> Tensor:
    """View a tensor whose tokens were flattened (OPT's MLP) as ``batch token channel``.

    Args:
        tensor: ``batch token channel``, or ``batch*token channel``, or with axes of size 1 between.
        batch: Number of sequences.
        token: Tokens per sequence, padding included.

    Returns:
        A view ``batch token channel``; the tensor itself if it has three axes already.
    """
    return tensor if tensor.dim() == 3 else tensor.view(batch, token, tensor.shape[-1])
