"""What a transformer block is made of, as data: a description by attribute paths.

A layout file (``layouts/``) holds one :class:`BlockDescription` per family, ``recognition/`` makes one for a model that
is in none. Users describe a new block with the same dataclass; the self-check on load says whether it is true.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from steerscope.errors import UnsupportedModelError
from steerscope.site_kinds import Branch, Maps, Place, Role, SiteKind, stream_behind


@dataclass(frozen=True)
class BlockDescription:
    """Where the parts of one family's block are, as attribute paths inside the block.

    Attributes:
        layout: Name of the layout, for people.
        attn: The attention module.
        attn_reads: The linear maps that read the attention's input (q, k, v or one fused map).
        attn_write: The output projection: its input is ``attn_heads``. ``None`` where attention is one map.
        mlp_in: The module whose input is ``mlp_in`` (the MLP, or its first map where there is no MLP module).
        mlp_reads: The linear maps that read ``mlp_in``: ``(gate, up)``, one fused gate-and-up, or ``(first,)``; empty
            where the MLP is one map.
        mlp_write: The down projection: its input is ``mlp_hidden``. ``None`` where the MLP is one map (experts).
        activation: The activation function's attribute, or ``torch.nn.functional.silu``, ``gelu`` or ``relu``; ``None``
            where the MLP is one map.
        gated: Whether the hidden layer is ``phi(gate) * up`` (then a fused map holds gate first).
        attn_norm: Norm on what attention reads, or ``None``.
        mlp_norm: Norm on what the MLP reads, or ``None``. The same path as ``attn_norm`` where one norm
            feeds both.
        attn_post_norm: Norm on what attention writes, or ``None``.
        mlp_post_norm: Norm on what the MLP writes, or ``None``.
        parallel: Whether attention and MLP read the same stream ``h``.
        layers: Path from the decoder to the list of blocks.
        attn_map: Of an attention that is one map, the module whose output is what it writes.
        mlp_map: Of an MLP that is one map, the module whose output is what it writes.
        attn_inner: Linear maps of the attention that read something else than its input and are not ``attn_write``.
        mlp_inner: Linear maps inside an MLP that is one map, each run once, on every token.
        attn_scale: The number that what attention writes is multiplied by, or the block's attribute that holds it.
        mlp_scale: The same of the MLP.
        left_out: Names of weights of two axes or more that are in none of the maps above (experts, convolutions):
            they are no part of what stands for fine-tuning.
        mid_norm: Norm on the stream itself once attention has added to it (post-norm): skip and MLP get what it gives.
        end_norm: Norm on the stream itself once the MLP has added to it (post-norm).
        own_end: Whether the block does something else to the stream after the MLP (a third part, a multiplier).
        end_inner: Linear maps of such an end.
        reads_below: Whether blocks read more of those below than the stream (Gemma 4's shared keys and values): then no
            block is skipped where only those above it are asked for.
        copied: Whether the block changes in place what its branches write (Falcon), so that sites there hold a copy.
        by_layer: Where blocks differ, the description of each of them; the other fields are then the first one's.
    """

    layout: str
    attn: str
    attn_reads: tuple[str, ...]
    attn_write: str | None
    mlp_in: str
    mlp_reads: tuple[str, ...] = ()
    mlp_write: str | None = None
    activation: str | None = None
    gated: bool = False
    attn_norm: str | None = None
    mlp_norm: str | None = None
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    parallel: bool = False
    layers: str = "layers"
    attn_map: str | None = None
    mlp_map: str | None = None
    attn_inner: tuple[str, ...] = ()
    mlp_inner: tuple[str, ...] = ()
    attn_scale: float | str = 1.0
    mlp_scale: float | str = 1.0
    left_out: tuple[str, ...] = ()
    mid_norm: str | None = None
    end_norm: str | None = None
    own_end: bool = False
    end_inner: tuple[str, ...] = ()
    reads_below: bool = False
    copied: bool = False
    by_layer: tuple[BlockDescription, ...] = ()

    def of_layer(self, index: int) -> BlockDescription:
        """Return the description of one block.

        Raises:
            UnsupportedModelError: There are descriptions of fewer blocks.
        """
        if not self.by_layer:
            return self
        if index >= len(self.by_layer):
            raise UnsupportedModelError(
                f"the description has {len(self.by_layer)} blocks one by one, the model has more; give one for each."
            )
        return self.by_layer[index]

    @property
    def changes_the_stream(self) -> bool:
        """Whether the block does more to the stream than adding to it."""
        return self.mid_norm is not None or self.end_norm is not None or self.own_end

    def adds_at(self, kind: SiteKind) -> SiteKind:
        """Return the kind to whose tensor an edit is added; the kind itself where the stream is changed between."""
        if kind.facts.role is Role.STREAM and kind.facts.written_by:
            changed = self.mid_norm if kind.facts.place is Place.INSIDE else self.end_norm or self.own_end
            return kind if changed else kind.adds_at
        return kind.adds_at

    def stream_behind(self, kind: SiteKind) -> SiteKind:
        """Return the kind that an edit is added to, as :func:`stream_behind`; the kind itself where that is no site."""
        found = stream_behind(kind, self.kinds)
        return kind if self.adds_at(found) is found else found

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        """The kinds of site such a block has."""
        return tuple(kind for kind in SiteKind if self.why_not(kind) is None)

    def why_not(self, kind: SiteKind) -> str | None:
        """Return why such a block has no site of a kind, ``None`` if it has."""
        if self.parallel and kind.facts.is_sequential_only:
            return "attention and MLP read the same stream"
        match kind.facts.read_by:
            case (Branch.ATTENTION, Maps.WRITE) if self.attn_write is None:
                return "its attention is one map: no single linear map writes what it adds"
            case (Branch.MLP, Maps.WRITE) if self.mlp_write is None:
                return "its MLP is one map, of experts for example: there is no hidden layer of its own"
        return None

    def with_one_map(self, branch: Branch) -> BlockDescription:
        """Return the same block with one of its branches as one map, its linear maps as inner ones.

        Args:
            branch: Attention or MLP; one that is one map already stays as it is.

        Returns:
            Another description.

        Raises:
            UnsupportedModelError: An MLP without a module of its own.
        """
        if branch is Branch.ATTENTION:
            if self.attn_write is None:
                return self
            inner = (*self.attn_inner, self.attn_write)
            words = f"{self.layout}, attention as one map"
            return replace(self, layout=words, attn_write=None, attn_map=self.attn_write, attn_inner=inner)
        if self.mlp_write is None:
            return self
        if self.mlp_in in self.mlp_reads:
            raise UnsupportedModelError("an MLP without a module of its own cannot be one map.")
        return replace(
            self,
            layout=self.layout.replace("gated MLP", "MLP").replace("plain MLP", "MLP").replace("MLP", "MLP as one map"),
            mlp_reads=(),
            mlp_write=None,
            mlp_map=self.mlp_write,
            mlp_inner=(*self.mlp_inner, *self.mlp_reads, self.mlp_write),
            activation=None,
            gated=False,
        )

    def equations(self) -> dict[SiteKind, str]:
        """Return the equation that defines every kind of site in this layout."""
        n1 = "n1 h" if self.attn_norm else "h"
        attn = f"A({n1})"
        attn_out = times(self.attn_scale, f"p1 {attn}" if self.attn_post_norm else attn)
        stream = "h" if self.parallel else "resid_mid"
        shared = self.parallel and self.mlp_norm == self.attn_norm
        mlp_in = f"{'n1' if shared else 'n2'} {stream}" if self.mlp_norm else stream
        hidden = "phi(W_gate mlp_in) * W_up mlp_in" if self.gated else "phi(W_in mlp_in)"
        down = "W_down mlp_hidden" if self.mlp_write else "M(mlp_in)"
        mlp_out = times(self.mlp_scale, f"p2 ({down})" if self.mlp_post_norm else down)
        # Routing is free: an edit of mlp_in may change which experts are chosen.
        mlp_out += "" if self.mlp_write else " as a whole; experts, if any, chosen from mlp_in"
        after = "h + attn_out + mlp_out" if self.parallel else "resid_mid + mlp_out"
        lines = {
            SiteKind.RESID_PRE: "h",
            SiteKind.ATTN_HEADS: f"heads of {attn}, before the output projection",
            SiteKind.ATTN_OUT: attn_out,
            SiteKind.RESID_MID: "s1 (h + attn_out)" if self.mid_norm else "h + attn_out",
            SiteKind.MLP_IN: mlp_in + (", as the MLP alone receives it" if shared else ""),
            SiteKind.MLP_HIDDEN: hidden,
            SiteKind.MLP_OUT: mlp_out,
            SiteKind.RESID_POST: f"s2 ({after})" if self.end_norm else f"E({after})" if self.own_end else after,
        }
        return {kind: lines[kind] for kind in self.kinds}

    def describe(self) -> str:
        """Return the layout's sites with equation and meaning, one line each."""
        rows = [f"layout: {self.layout}"]
        rows += [
            f"  {kind.value:<11} = {equation:<52} {kind.facts.meaning}" for kind, equation in self.equations().items()
        ]
        if self.left_out or any(one.left_out for one in self.by_layer):
            names = sorted({name for one in (self, *self.by_layer) for name in one.left_out})
            rows.append(f"  not in the sum that stands for fine-tuning: {', '.join(names)}")
        return "\n".join(rows)


def times(scale: float | str, what: str) -> str:
    """Return an equation's words with the multiplier before them.

    Args:
        scale: A number, or the attribute that holds it.
        what: What is multiplied.

    Returns:
        The words; of a multiplier of 1 those of what is multiplied.
    """
    return what if scale == 1.0 else f"{scale} {what}"
