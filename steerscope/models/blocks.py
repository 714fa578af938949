"""What a transformer block is made of, as data: a description by attribute paths, and its bound modules.

A layout file (``layouts/``) holds one :class:`BlockDescription` per family. Users describe a new block with
the same dataclass; the self-check on load says whether the description is true.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from steerscope.errors import UnsupportedModelError
from steerscope.models.wrappers import acting_layer
from steerscope.site_kinds import Branch, Maps, SiteKind


@dataclass(frozen=True)
class BlockDescription:
    """Where the parts of one family's block are, as attribute paths inside the block.

    Attributes:
        layout: Name of the layout, for people.
        attn: The attention module.
        attn_reads: The linear maps that read the attention's input (q, k, v or one fused map).
        attn_write: The output projection: its input is ``attn_heads``.
        mlp_in: The module whose input is ``mlp_in`` (the MLP, or its first map where there is no MLP module).
        mlp_reads: The linear maps that read ``mlp_in``: ``(gate, up)``, one fused gate-and-up, or ``(first,)``.
        mlp_write: The down projection: its input is ``mlp_hidden``.
        activation: The activation function's attribute.
        gated: Whether the hidden layer is ``phi(gate) * up`` (then a fused map holds gate first).
        attn_norm: Norm on what attention reads, or ``None``.
        mlp_norm: Norm on what the MLP reads, or ``None``. The same path as ``attn_norm`` where one norm
            feeds both.
        attn_post_norm: Norm on what attention writes, or ``None``.
        mlp_post_norm: Norm on what the MLP writes, or ``None``.
        parallel: Whether attention and MLP read the same stream ``h``.
        layers: Path from the decoder to the list of blocks.
    """

    layout: str
    attn: str
    attn_reads: tuple[str, ...]
    attn_write: str
    mlp_in: str
    mlp_reads: tuple[str, ...]
    mlp_write: str
    activation: str
    gated: bool
    attn_norm: str | None = None
    mlp_norm: str | None = None
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    parallel: bool = False
    layers: str = "layers"

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site such a block has."""
        return tuple(k for k in SiteKind if not (self.parallel and k.facts.is_sequential_only))

    def equations(self) -> dict[SiteKind, str]:
        """Return the equation that defines every kind of site in this layout."""
        n1 = "n1 h" if self.attn_norm else "h"
        attn = f"A({n1})"
        attn_out = f"p1 {attn}" if self.attn_post_norm else attn
        stream = "h" if self.parallel else "resid_mid"
        shared = self.parallel and self.mlp_norm == self.attn_norm
        mlp_in = f"{'n1' if shared else 'n2'} {stream}" if self.mlp_norm else stream
        hidden = "phi(W_gate mlp_in) * W_up mlp_in" if self.gated else "phi(W_in mlp_in)"
        down = "W_down mlp_hidden"
        lines = {
            SiteKind.RESID_PRE: "h",
            SiteKind.ATTN_HEADS: f"heads of {attn}, before the output projection",
            SiteKind.ATTN_OUT: attn_out,
            SiteKind.RESID_MID: "h + attn_out",
            SiteKind.MLP_IN: mlp_in + (", as the MLP alone receives it" if shared else ""),
            SiteKind.MLP_HIDDEN: hidden,
            SiteKind.MLP_OUT: f"p2 ({down})" if self.mlp_post_norm else down,
            SiteKind.RESID_POST: "h + attn_out + mlp_out" if self.parallel else "resid_mid + mlp_out",
        }
        return {kind: lines[kind] for kind in self.kinds}

    def describe(self) -> str:
        """Return the layout's sites with equation and meaning, one line each."""
        rows = [f"layout: {self.layout}"]
        rows += [
            f"  {kind.value:<11} = {equation:<52} {kind.facts.meaning}" for kind, equation in self.equations().items()
        ]
        return "\n".join(rows)


def module_at(root: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path.

    Args:
        root: Where the path starts.
        path: Attribute names and indices joined by dots, such as ``"mlp.down_proj"``.

    Returns:
        The module itself, not a copy.

    Raises:
        UnsupportedModelError: There is nothing, or no module, at that path.
    """
    found = root
    for part in path.split("."):
        child = getattr(found, part, None)
        if not isinstance(child, nn.Module):
            names = [name for name, _ in found.named_children()]
            raise UnsupportedModelError(
                f"{type(root).__name__} has no module {path!r}: {part!r} is missing in "
                f"{type(found).__name__}, which has {names}. Correct the BlockDescription."
            )
        found = child
    return found


@dataclass(frozen=True)
class Block:
    """One block with its parts bound. ``description`` says what they mean; ``index`` counts from 0."""

    index: int
    description: BlockDescription
    module: nn.Module
    attn: nn.Module
    attn_write: nn.Module
    mlp_in: nn.Module
    mlp_write: nn.Module
    attn_norm: nn.Module | None
    mlp_norm: nn.Module | None
    attn_post_norm: nn.Module | None
    mlp_post_norm: nn.Module | None
    attn_reads: tuple[nn.Module, ...]
    mlp_reads: tuple[nn.Module, ...]
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
        owner, _, name = description.activation.rpartition(".")
        activation = getattr(module_at(module, owner) if owner else module, name, None)
        if not callable(activation):
            raise UnsupportedModelError(
                f"{type(module).__name__} has no activation function at {description.activation!r}. "
                "Correct the BlockDescription."
            )

        def optional(path: str | None) -> nn.Module | None:
            return None if path is None else module_at(module, path)

        return cls(
            index=index,
            description=description,
            module=module,
            attn=module_at(module, description.attn),
            attn_write=module_at(module, description.attn_write),
            mlp_in=module_at(module, description.mlp_in),
            mlp_write=module_at(module, description.mlp_write),
            attn_norm=optional(description.attn_norm),
            mlp_norm=optional(description.mlp_norm),
            attn_post_norm=optional(description.attn_post_norm),
            mlp_post_norm=optional(description.mlp_post_norm),
            attn_reads=tuple(module_at(module, path) for path in description.attn_reads),
            mlp_reads=tuple(module_at(module, path) for path in description.mlp_reads),
            activation=activation,
        )

    # --- its parts by the words of the table of site kinds ---

    def maps(self, branch: Branch, maps: Maps) -> tuple[nn.Module, ...]:
        """Return the linear maps that read a branch's input, or the one that writes its output.

        Args:
            branch: Attention or MLP.
            maps: Those that read the branch's input, or the one that writes its output.

        Returns:
            One module where the maps are fused (GPT-2's ``c_attn``), else one for each map; always one for the map that
            writes.
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
        """Return the module whose output a branch adds to the stream: the norm on it where there is one."""
        return self.post_norm(branch) or self.maps(branch, Maps.WRITE)[0]

    def linear_maps(self) -> dict[str, nn.Module]:
        """Return the block's linear maps by path inside the block (seven in a Llama block)."""
        paths = (
            *self.description.attn_reads,
            self.description.attn_write,
            *self.description.mlp_reads,
            self.description.mlp_write,
        )
        modules = (*self.attn_reads, self.attn_write, *self.mlp_reads, self.mlp_write)
        return dict(zip(paths, modules, strict=True))

    # --- the layout's equations, recomputed from the parts (what the self-check compares with) ---

    def stream_mid(self, h: Tensor, attn_out: Tensor) -> Tensor:
        """``resid_mid`` of a sequential block.

        Args:
            h: The residual stream entering the block, ``batch token d_model``.
            attn_out: What attention adds to it, after a norm on writes; the same shape.

        Returns:
            Their sum, ``batch token d_model``.
        """
        return h + attn_out

    def mlp_input(self, h: Tensor, attn_out: Tensor) -> Tensor:
        """``mlp_in`` from the residual stream and what attention added.

        Args:
            h: The residual stream entering the block, ``batch token d_model``.
            attn_out: What attention adds to it, in the same shape; has no influence in a parallel block.

        Returns:
            What the MLP receives, after the norm before it where there is one; ``batch token d_model``.
        """
        stream = h if self.description.parallel else self.stream_mid(h, attn_out)
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
        written = self.mlp_write(mlp_hidden)
        return written if self.mlp_post_norm is None else self.mlp_post_norm(written)

    def attn_output(self, heads: Tensor) -> Tensor:
        """``attn_out`` from ``attn_heads``."""
        written = self.attn_write(heads)
        return written if self.attn_post_norm is None else self.attn_post_norm(written)


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
    """Return the weight of a linear map, looking inside PEFT's wrapper of it."""
    weight = getattr(acting_layer(module), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UnsupportedModelError(
            f"expected a linear map with a 2-dimensional weight, got {type(module).__name__}. "
            "Expert stacks and quantised layers are not supported."
        )
    return weight


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored input-first (GPT-2's ``Conv1D``)."""
    return type(acting_layer(module)).__name__ == "Conv1D"


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Return ``(d_out, d_in)`` of a linear map, whatever way its weight is stored."""
    rows, columns = linear_weight(module).shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def as_token_axes(tensor: Tensor, batch: int, token: int) -> Tensor:
    """View a tensor whose tokens were flattened (OPT's MLP) as ``batch token channel``.

    Args:
        tensor: ``batch token channel``, or ``batch*token channel``.
        batch: Number of sequences.
        token: Tokens per sequence, padding included.

    Returns:
        A view ``batch token channel``; the tensor itself if it has three axes already.
    """
    return tensor.view(batch, token, tensor.shape[-1]) if tensor.dim() == 2 else tensor
