r"""Which of a model's linear maps can hold an edit exactly, and why none can: for merging and for export as a LoRA.

An edit that is affine, ``x -> x + M x + c``, is held by the linear map W, b next to its site:

* at what a map reads (``attn_heads``, ``mlp_hidden``, ``mlp_in``): ``W (I + M)`` and ``b + W c``;
* at what a map writes (``attn_out``, ``mlp_out``), if no norm follows it: ``(I + M) W`` and ``(I + M) b + c``;
* at the stream (``resid_mid``, ``resid_post``) a vector alone, added where the branch below writes: ``b + c``. A
  matrix would have to act on the skip connection too, and no weight of a block does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from steerscope.errors import InputError
from steerscope.models.blocks import is_transposed, linear_weight
from steerscope.models.packed import is_packed, matrix_of
from steerscope.models.site_map import SiteMap
from steerscope.models.wrappers import acting_layer
from steerscope.site_kinds import Maps, Role
from steerscope.sites import Site
from steerscope.steering.config import SteeringConfig
from steerscope.steering.families import FAMILIES


@dataclass(frozen=True)
class Holder:
    """The linear maps next to a site.

    Attributes:
        maps: The maps that hold an edit, each of them its own part.
        reads: Whether they read the site; else the one map writes it.
        scale: The number that the block multiplies what it writes by.
    """

    maps: tuple[nn.Module, ...]
    reads: bool
    scale: float = 1.0


def held_by(site: Site, site_map: SiteMap, *, has_matrix: bool) -> Holder:
    """Return the linear maps that hold an edit of every token at a site.

    Args:
        site: Where.
        site_map: The model's sites.
        has_matrix: Whether what the edit adds depends on what it reads.

    Returns:
        The maps, and on which side of them the edit is.

    Raises:
        InputError: None can; the message says why.
    """
    block, facts = site_map.blocks[site.layer], site.kind.facts
    if facts.read_by is not None:
        return Holder(block.maps(*facts.read_by), reads=True)
    if not facts.written_by:
        raise InputError(
            f"the edit at '{site}' adds to the embeddings, which many models also use to make logits; no weight "
            "holds it alone. Keep it as an adapter."
        )
    if facts.role is Role.STREAM and has_matrix:
        added = site.kind.adds_at
        raise InputError(
            f"the edit at '{site}' acts on the whole stream, M x with x = (skip) + {added}; the skip connection "
            f"carries its part past every weight of the block. Only a vector, or an edit of '{site.layer}.{added}', "
            "can be merged or exported as a LoRA."
        )
    if facts.role is Role.STREAM and block.description.adds_at(site.kind) is site.kind:
        raise InputError(
            f"the edit at '{site}' is added to the stream after the block changed it (layout "
            f"'{block.description.layout}'), behind every weight that writes there. Keep it as an adapter."
        )
    branch = facts.written_by[-1]
    if block.post_norm(branch) is not None:
        raise InputError(
            f"the edit at '{site}' is added behind a norm (layout '{block.description.layout}'), which has no bias and "
            "rescales what the weights before it write; they cannot hold it. Keep it as an adapter."
        )
    return Holder(block.maps(branch, Maps.WRITE), reads=False, scale=block.scale(branch))


def why_not_everywhere(positions: str) -> str:
    """Return why weights cannot hold an edit of some tokens alone."""
    return (
        f"this adapter edits the positions {positions!r}; weights act on every token, so they cannot hold it. Keep it "
        "as an adapter, or train with positions='all'."
    )


@dataclass(frozen=True)
class Servability:
    """Whether a LoRA is exactly the edit, and whether servers of LoRA take it.

    Attributes:
        why_not: Why no LoRA is; empty if one is.
        needs_bias: Whether that LoRA adds a constant (PEFT's ``lora_bias=True``), which PEFT runs and vLLM and SGLang
            do not.
    """

    why_not: str = ""
    needs_bias: bool = False

    @property
    def everywhere(self) -> bool:
        """Whether whatever serves a LoRA serves the edit."""
        return not self.why_not and not self.needs_bias

    @property
    def word(self) -> str:
        """``lora`` for what any server runs, ``lora_with_bias`` for PEFT alone, ``adapter`` for what no LoRA is."""
        return "adapter" if self.why_not else "lora_with_bias" if self.needs_bias else "lora"

    def __str__(self) -> str:
        if self.why_not:
            return f"no LoRA: {self.why_not}"
        return "a LoRA with a bias: PEFT alone" if self.needs_bias else "a LoRA: PEFT, vLLM, SGLang and others"


def servable_as_lora(site: Site | str, site_map: SiteMap, config: SteeringConfig) -> Servability:
    """Return whether an edit at a site is exactly a LoRA, before anything is trained.

    Args:
        site: Where, ``"12.mlp_out"``.
        site_map: The model's sites.
        config: Which edit; its own sites are not looked at.

    Returns:
        Whether it is, and what it takes.

    Raises:
        InputError: The model lacks the site.
    """
    found, family = site_map.resolve(site), FAMILIES[config.family]
    if config.positions != "all":
        return Servability(why_not_everywhere(config.positions))
    if not family.is_affine:
        return Servability(f"family {family.name!r} is no affine map of x; train family='linear'.")
    try:
        held = held_by(found, site_map, has_matrix=family.has_matrix)
    except InputError as error:
        return Servability(str(error))
    turns_bias = family.has_matrix and not held.reads and not all(map(lacks_bias, held.maps))
    return Servability(needs_bias=turns_bias or family.adds_vector(config.bias))


def served_as(config: SteeringConfig, site_map: SiteMap) -> str:
    """Return what serves an adapter, as :attr:`Servability.word` says it of one site.

    Args:
        config: Which edits, and where.
        site_map: The model's sites.

    Returns:
        The word for the site that asks for most.
    """
    found = {servable_as_lora(site, site_map, config).word for site in config.resolve(site_map)}
    return next(word for word in ("adapter", "lora_with_bias", "lora") if word in found)


def lacks_bias(module: nn.Module) -> bool:
    """Whether a linear map has no bias, looking inside PEFT's wrapper of it."""
    return getattr(acting_layer(module), "bias", None) is None


def weight_of(module: nn.Module) -> Tensor:
    """Return the weight of a linear map as ``(out in)``: a view, or what a packed one computes."""
    if is_packed(module):
        return matrix_of(module)
    weight = linear_weight(module)
    return weight.T if is_transposed(module) else weight
