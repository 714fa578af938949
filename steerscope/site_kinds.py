"""The table of site kinds: what each one is, where its edits are added, and which parts of a block touch it.

Everything the package knows about a kind is in :data:`SITE_KINDS`; hooks, feature capture, merging, joint constraints,
training and reports derive what they need from it. A new kind is one entry here, its equation in
``models/blocks.py`` and ``models/selfcheck.py``, and its hook in ``models/hooks.py`` if none of those fits.

Notation of one block (docs/sites.md): ``h`` is the stream that enters, ``A`` attention, ``M`` the MLP, ``n1`` and
``n2`` the norms on what they read, ``p1`` and ``p2`` the norms on what they write (identity where a layout
has none)::

    sequential   m = h + p1 A(n1 h)    out = m + p2 M(n2 m)
    parallel     out = h + A(n1 h) + M(n2 h)
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class SiteKind(StrEnum):
    """The eight kinds of site, in the order in which a block computes them."""

    RESID_PRE = "resid_pre"
    ATTN_HEADS = "attn_heads"
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    MLP_IN = "mlp_in"
    MLP_HIDDEN = "mlp_hidden"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"

    @property
    def facts(self) -> KindFacts:
        """The kind's entry in :data:`SITE_KINDS`."""
        return SITE_KINDS[self]

    @property
    def order(self) -> int:
        """The kind's place in the order in which a block computes them, from 0."""
        return _ORDER[self]

    @property
    def adds_at(self) -> SiteKind:
        """The kind to whose tensor an edit is added: ``attn_out`` for ``resid_mid``; mostly the kind itself."""
        return self.facts.adds_at or self


class Role(StrEnum):
    """What a tensor is in its block's equation."""

    STREAM = "the residual stream"
    ADDEND = "what a branch adds to the stream"
    INNER = "what linear maps inside a branch read"


class Branch(StrEnum):
    """The two branches of a block."""

    ATTENTION = "attention"
    MLP = "mlp"


class Maps(StrEnum):
    """The linear maps of a branch: those that read its input, and the one that writes its output."""

    READS = "reads"
    WRITE = "write"


class Place(StrEnum):
    """Whether a tensor is inside its block, or what enters or leaves it."""

    ENTERS = "enters"
    INSIDE = "inside"
    LEAVES = "leaves"


@dataclass(frozen=True)
class KindFacts:
    """What one kind of site is.

    Attributes:
        meaning: In words, for people.
        role: What it is in the block's equation.
        written_by: The branches of its own block whose output is part of it, in the order in which they are added; the
            last one writes where its edits are added.
        read_by: The linear maps that read exactly this tensor, where there are any.
        adds_at: The kind to whose tensor its edits are added, if that is another one. Such kinds share the derivative
            of the output and differ only in what they read, so a fixed vector is one and the same edit at both.
        place: Whether it is inside the block, or what enters or leaves it.
        has_heads: Whether single heads of it are sites, too.
    """

    meaning: str
    role: Role
    written_by: tuple[Branch, ...] = ()
    read_by: tuple[Branch, Maps] | None = None
    adds_at: SiteKind | None = None
    place: Place = Place.INSIDE
    has_heads: bool = False

    @property
    def is_first_block_only(self) -> bool:
        """Whether it is a site of the first block alone: what enters another block leaves the one below."""
        return self.place is Place.ENTERS

    @property
    def is_sequential_only(self) -> bool:
        """Whether parallel blocks lack it: their attention and MLP read one stream, so none lies between them."""
        return self.role is Role.STREAM and self.place is Place.INSIDE


SITE_KINDS: dict[SiteKind, KindFacts] = {
    SiteKind.RESID_PRE: KindFacts(
        "the stream entering the first block (elsewhere it is resid_post of the layer below)",
        Role.STREAM,
        place=Place.ENTERS,
    ),
    SiteKind.ATTN_HEADS: KindFacts(
        "the heads' outputs, concatenated: what the attention's output projection reads",
        Role.INNER,
        read_by=(Branch.ATTENTION, Maps.WRITE),
        has_heads=True,
    ),
    SiteKind.ATTN_OUT: KindFacts(
        "what attention adds to the stream",
        Role.ADDEND,
        written_by=(Branch.ATTENTION,),
    ),
    SiteKind.RESID_MID: KindFacts(
        "the stream between attention and MLP",
        Role.STREAM,
        written_by=(Branch.ATTENTION,),
        adds_at=SiteKind.ATTN_OUT,
    ),
    SiteKind.MLP_IN: KindFacts(
        "what the MLP alone receives",
        Role.INNER,
        read_by=(Branch.MLP, Maps.READS),
    ),
    SiteKind.MLP_HIDDEN: KindFacts(
        "what the MLP's down projection reads",
        Role.INNER,
        read_by=(Branch.MLP, Maps.WRITE),
    ),
    SiteKind.MLP_OUT: KindFacts(
        "what the MLP adds to the stream",
        Role.ADDEND,
        written_by=(Branch.MLP,),
    ),
    SiteKind.RESID_POST: KindFacts(
        "the stream leaving the block",
        Role.STREAM,
        written_by=(Branch.ATTENTION, Branch.MLP),
        adds_at=SiteKind.MLP_OUT,
        place=Place.LEAVES,
    ),
}
_ORDER: dict[SiteKind, int] = {kind: place for place, kind in enumerate(SiteKind)}


def kinds_adding_at(write: SiteKind) -> tuple[SiteKind, ...]:
    """Return the kinds whose edits are added to the tensor of ``write``; none where its own are added elsewhere."""
    return tuple(kind for kind in SiteKind if kind.adds_at is write)


def kinds_written_by_branches() -> tuple[SiteKind, ...]:
    """Return the kinds in which the output of a branch of their own block is a summand."""
    return tuple(kind for kind in SiteKind if kind.facts.written_by)


def kind_read_by(branch: Branch, maps: Maps) -> SiteKind:
    """Return the kind of site that linear maps read.

    Args:
        branch: Whose maps.
        maps: Which of them.

    Returns:
        The kind of site.

    Raises:
        KeyError: No kind is read by them (the attention's input is not a site).
    """
    found = [kind for kind in SiteKind if kind.facts.read_by == (branch, maps)]
    if not found:
        raise KeyError(f"no kind of site is what the linear maps '{maps}' of the {branch} read.")
    return found[0]


def stream_behind(kind: SiteKind, kinds: Collection[SiteKind]) -> SiteKind:
    """Return the kind that an edit is added to: the stream, where it is added to the stream, else the kind itself.

    Args:
        kind: Where the edit is.
        kinds: What the layout has. A parallel block has no stream between attention and MLP: both are added to its
            output, ``resid_post``.

    Returns:
        The kind of site.
    """
    if kind.facts.role is not Role.ADDEND:
        return kind
    return next(k for k in SiteKind if k in kinds and k.facts.role is Role.STREAM and k.order > kind.order)
