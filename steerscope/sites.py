"""What a site is: a kind of tensor at a layer (``site_kinds.py``). Names and aliases; no computation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steerscope.errors import InputError, did_you_mean
from steerscope.site_kinds import Place, SiteKind

__all__ = ["ALIASES", "REFUSED", "Site", "SiteKind", "parse_kind", "parse_site"]

# Other people's names. TransformerLens names are accepted with and without their ``blocks.N.`` prefix.
ALIASES: dict[str, SiteKind] = {
    "hook_resid_pre": SiteKind.RESID_PRE,
    "block_input": SiteKind.RESID_PRE,
    "hook_z": SiteKind.ATTN_HEADS,
    "attn.hook_z": SiteKind.ATTN_HEADS,
    "attention_value_output": SiteKind.ATTN_HEADS,
    "hook_attn_out": SiteKind.ATTN_OUT,
    "attention_output": SiteKind.ATTN_OUT,
    "hook_resid_mid": SiteKind.RESID_MID,
    "mlp.hook_post": SiteKind.MLP_HIDDEN,
    "hook_mlp_out": SiteKind.MLP_OUT,
    "mlp_output": SiteKind.MLP_OUT,
    "post-mlp": SiteKind.MLP_OUT,
    "hook_resid_post": SiteKind.RESID_POST,
    "block_output": SiteKind.RESID_POST,
    "post-block": SiteKind.RESID_POST,
}

# Names that point at two different tensors, or at one that is not a site here: refused with the way out.
REFUSED: dict[str, str] = {
    "pre-mlp": (
        "is ambiguous: an edit of 'attn_out' moves the stream and the MLP's input, "
        "an edit of 'mlp_in' moves the MLP's input alone. Name one of the two"
    ),
    "mlp_activation": (
        "in pyvene is the activation of the gate alone; steerscope has 'mlp_hidden', the tensor "
        "that the down projection reads. Use 'mlp_hidden' if that is what you mean"
    ),
    "attn": "could be 'attn_heads', 'attn_out' or (in some tools) 'mlp_in'. Name one of them",
    "mlp": "could be 'mlp_in', 'mlp_hidden' or 'mlp_out'. Name one of them",
    "residual": "could be 'resid_pre', 'resid_mid' or 'resid_post'. Name one of them",
}
_SPELLINGS = {"pre_mlp": "pre-mlp", "post_mlp": "post-mlp", "post_block": "post-block"}


def parse_kind(name: str) -> SiteKind:
    """Return the site kind that ``name`` (own name or a known alias) stands for.

    Raises:
        InputError: The name is unknown, or names more than one tensor (``pre-MLP``).
    """
    key = name.strip()
    key = _SPELLINGS.get(key.lower(), key.lower())
    if key in REFUSED:
        raise InputError(f"site kind {name!r} {REFUSED[key]}.")
    if key in ALIASES:
        return ALIASES[key]
    try:
        return SiteKind(key)
    except ValueError:
        own = [kind.value for kind in SiteKind]
        hint = did_you_mean(key, own + list(ALIASES))
        raise InputError(f"unknown site kind {name!r}.{hint} Kinds: {', '.join(own)}.") from None


@dataclass(frozen=True)
class Site:
    """One place where activations can be read and edited.

    Attributes:
        layer: Index of the block, from 0.
        kind: Which tensor of that block.
        head: For ``attn_heads`` only: one head; ``None`` means all heads, concatenated.
    """

    layer: int
    kind: SiteKind
    head: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", SiteKind(self.kind))
        if self.layer < 0:
            raise InputError(f"layer {self.layer} is negative; layers count from 0.")
        if self.head is not None and not self.kind.facts.has_heads:
            headed = ", ".join(f"'{kind}'" for kind in SiteKind if kind.facts.has_heads)
            raise InputError(f"only {headed} has heads; got head {self.head} with kind '{self.kind}'.")

    def __str__(self) -> str:
        return f"{self.layer}.{self.kind}" + ("" if self.head is None else f".{self.head}")

    @property
    def write(self) -> Site:
        """The site whose vector edit is the same edit (``attn_out`` for ``resid_mid``; often itself).

        In blocks that do nothing to the stream but add to it; ``site_map.write(site)`` knows the others as well.
        """
        return Site(self.layer, self.kind.adds_at, self.head)

    @property
    def first_block(self) -> int:
        """Index of the first block that computes something else for an edit here: of what leaves a block, the next."""
        return self.layer + (self.kind.facts.place is Place.LEAVES)

    @property
    def order(self) -> tuple[int, int, int]:
        """A key that sorts sites by the order in which a model computes them; all heads come before single ones."""
        return self.layer, self.kind.order, -1 if self.head is None else self.head


_SITE = re.compile(r"^(?:blocks\.)?(\d+)\.([A-Za-z_.-]+?)(?:\.(\d+))?$")


def parse_site(text: str) -> Site:
    """Read a site from ``'12.resid_post'``, ``'3.attn_heads.5'`` or ``'blocks.12.hook_resid_post'``.

    ``resid_pre`` above layer 0 is returned as ``resid_post`` of the layer below: it is that tensor.

    Returns:
        The site.

    Raises:
        InputError: The text is not ``layer.kind``, or the kind is unknown or ambiguous.

    Example:
        >>> str(parse_site("blocks.12.hook_resid_post")), str(parse_site("4.resid_pre"))
        ('12.resid_post', '3.resid_post')
        >>> parse_site("3.attn_heads.5").head
        5
    """
    match = _SITE.match(text.strip())
    if match is None:
        raise InputError(f"cannot read the site {text!r}; expected 'layer.kind', for example '12.resid_post'.")
    layer, kind, head = int(match[1]), parse_kind(match[2]), match[3]
    if kind.facts.is_first_block_only and layer > 0:
        return Site(layer - 1, SiteKind.RESID_POST)
    return Site(layer, kind, None if head is None else int(head))


def one_or_several(sites: Any) -> tuple[Any, ...]:
    """Return sites or kinds as a tuple, also where one alone was given instead of several.

    Raises:
        InputError: They are neither.
    """
    if isinstance(sites, str | Site):
        return (sites,)
    if not isinstance(sites, Iterable):
        raise InputError(
            f"got {sites!r} for sites; expected a site ('12.resid_post'), a kind ('resid_post'), or several of them."
        )
    return tuple(sites)
