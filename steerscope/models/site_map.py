"""The sites of one model: its blocks found and bound, its site names resolved."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

from torch import nn

from steerscope.errors import InputError, UnsupportedModelError, did_you_mean
from steerscope.models.attributes import module_at
from steerscope.models.blocks import Block, linear_shape, width_of
from steerscope.models.description import BlockDescription
from steerscope.models.layouts import known_description
from steerscope.models.packed import measure, require_plain_weights
from steerscope.models.recognition import reads_below, recognised
from steerscope.models.wrappers import decoder_of
from steerscope.sites import Site, SiteKind, one_or_several, parse_kind, parse_site


@dataclass(frozen=True, repr=False)
class SiteMap:
    """Where the sites of a model are.

    Attributes:
        description: The layout of its blocks.
        blocks: The blocks with their parts bound, lowest first.
        d_model: Width of the residual stream.
        n_heads: Attention heads per block.
    """

    description: BlockDescription
    blocks: tuple[Block, ...]
    d_model: int
    n_heads: int

    def __repr__(self) -> str:
        return f"<SiteMap of {len(self.blocks)} {self.description.layout} blocks of width {self.d_model}>"

    def sites(self, kinds: tuple[SiteKind, ...] | None = None) -> tuple[Site, ...]:
        """Return every site, by layer and then in the order a block computes them.

        ``resid_pre`` stands only at layer 0; elsewhere it is ``resid_post`` of the layer below.
        """
        chosen = self.description.kinds if kinds is None else kinds
        for kind in chosen:
            self._require_kind(kind)
        return tuple(
            Site(layer, kind)
            for layer in range(len(self.blocks))
            for kind in SiteKind
            if kind in chosen and not (kind.facts.is_first_block_only and layer > 0)
        )

    def resolve(self, site: Site | str) -> Site:
        """Return the site if this model has it; accepts ``'12.resid_post'`` and known aliases.

        Raises:
            InputError: Bad name, a layer or head out of range, or a kind this layout lacks.
        """
        found = parse_site(str(site))  # also maps resid_pre above layer 0 to the site it is
        if found.layer >= len(self.blocks):
            raise InputError(
                f"site '{found}' names layer {found.layer}; this model has layers 0 to {len(self.blocks) - 1}."
            )
        self._require_kind(found.kind)
        if found.head is not None and not self.n_heads:
            raise InputError(
                f"site '{found}' names a head; the outputs of heads cannot be told apart in this model. Take "
                f"'{found.layer}.{found.kind}'."
            )
        if found.head is not None and found.head >= self.n_heads:
            raise InputError(f"site '{found}' names head {found.head}; this model has heads 0 to {self.n_heads - 1}.")
        return found

    def resolve_each(self, names: Iterable[Site | str]) -> tuple[Site, ...]:
        """Return several sites in the order in which the model computes them.

        Raises:
            InputError: An unknown site, or the same one twice.
        """
        named = [self.resolve(name) for name in names]
        if doubled := sorted({str(site) for site in named if named.count(site) > 1}):
            raise InputError(f"site {', '.join(doubled)} is named twice; name every site once.")
        return tuple(sorted(named, key=lambda site: (site.layer, site.kind.order)))

    def resolve_kinds(self, names: Iterable[str] | str) -> tuple[SiteKind, ...]:
        """Return the kinds for user-given names, checked against this layout."""
        kinds = tuple(parse_kind(name) for name in one_or_several(names))
        for kind in kinds:
            self._require_kind(kind)
        return kinds

    def write(self, site: Site) -> Site:
        """Return the site whose vector edit is the same edit (``attn_out`` for ``resid_mid``; often itself)."""
        return Site(site.layer, self.blocks[site.layer].description.adds_at(site.kind), site.head)

    def written_at(self, write: Site) -> list[Site]:
        """Return the sites whose edits are added to the tensor of ``write``, itself among them."""
        told = self.blocks[write.layer].description
        return [Site(write.layer, kind) for kind in self.description.kinds if told.adds_at(kind) is write.kind]

    def width(self, site: Site) -> int:
        """Return the number of channels of a site."""
        width = width_of(self.blocks[site.layer], site.kind, self.d_model)
        return width if site.head is None else width // self.n_heads

    def linear_maps(self) -> dict[tuple[int, str], nn.Module]:
        """Return every block's linear maps by ``(layer, path inside the block)``."""
        return {(b.index, path): module for b in self.blocks for path, module in b.linear_maps().items()}

    def left_out(self) -> tuple[str, ...]:
        """Return the names of weights of two axes or more, inside blocks, that are in none of the linear maps."""
        return tuple(sorted({name for block in self.blocks for name in block.description.left_out}))

    def require_plain_blocks(self, what: str) -> None:
        """Refuse blocks whose parts formulas of the theory cannot be written down for.

        Args:
            what: What needs them, for the message.

        Raises:
            UnsupportedModelError: A branch is one map or is multiplied by a number, or weights are in no linear map.
            InputError: Weights are quantised.
        """
        for block in self.blocks:
            require_plain_weights(block.module, what)
            told = block.description
            if told.attn_write is None or told.mlp_write is None:
                why = "a branch of it is one map"
            elif (block.attn_scale, block.mlp_scale) != (1.0, 1.0):
                why = "its branches are multiplied by numbers"
            elif told.changes_the_stream:
                why = "the stream itself is changed after it is added to"
            elif told.attn_inner or told.left_out:
                why = f"it has weights besides its usual maps ({', '.join((*told.attn_inner, *told.left_out)[:3])})"
            else:
                continue
            raise UnsupportedModelError(
                f"{what} needs blocks of attention and an MLP that add to the stream as they are; of block "
                f"{block.index} (layout '{told.layout}'), {why}. Use another model for this; ranking, editing and "
                "training work."
            )

    def describe(self) -> str:
        """Return the layout's sites with equations, and the model's size."""
        return f"{self.description.describe()}\n  {len(self.blocks)} layers, d_model {self.d_model}"

    def _require_kind(self, kind: SiteKind) -> None:
        if kind not in self.description.kinds:
            has = ", ".join(self.description.kinds)
            reason = self.description.why_not(kind)
            why = f" ({reason})" if reason else ""
            raise InputError(f"a block of layout '{self.description.layout}' has no site '{kind}'{why}. It has: {has}.")


def find_sites(model: nn.Module, description: BlockDescription | None = None) -> SiteMap:
    """Find the sites of a causal language model; nothing is changed in it.

    Args:
        model: A transformers causal language model, plain or wrapped by PEFT.
        description: How its blocks are built; by default looked up by the model's family, or recognised by what they
            compute.

    Returns:
        The model's blocks with their modules, and the sites they have.

    Raises:
        UnsupportedModelError: The description's paths lead nowhere, the blocks of an unknown family have no equation
            that steerscope knows, or a quantised map is not linear or has not its gradient.
    """
    decoder = decoder_of(model)
    config = getattr(decoder, "config", None)
    if config is None:
        raise UnsupportedModelError(f"{type(decoder).__name__} has no config; expected a transformers model.")
    known = description or known_description(config)
    chosen = known or recognised(model)
    stack = module_at(decoder, chosen.layers)
    blocks = tuple(Block.bind(module, chosen, index) for index, module in enumerate(stack.children()))
    if not blocks:
        raise UnsupportedModelError(f"{type(decoder).__name__}.{chosen.layers} holds no blocks.")
    measure(model, [module for block in blocks for module in block.linear_maps().values()])
    found = SiteMap(chosen, blocks, _width(blocks[0], config), _heads(blocks, config))
    return found if known is not None else told_what_is_below(model, found)


class HasSites(Protocol):
    """What knows its own sites: a loaded model, or a steered one."""

    @property
    def site_map(self) -> SiteMap:
        """The sites."""
        ...


def model_and_sites(model: nn.Module | HasSites) -> tuple[nn.Module, SiteMap]:
    """Return the model that runs, and its sites; those of a model of transformers are found anew.

    Args:
        model: A loaded or a steered model, or one of transformers, plain or wrapped by PEFT.

    Returns:
        What is called as usual, and its sites.

    Raises:
        InputError: It is none of these.
        UnsupportedModelError: As :func:`find_sites`.
    """
    inner = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(inner, nn.Module):
        raise InputError(
            f"expected a loaded or steered model, or one of transformers; got {type(model).__name__}. Pass what "
            "load_model() returned."
        )
    known = getattr(model, "site_map", None)
    return inner, known if isinstance(known, SiteMap) else find_sites(inner)


def told_what_is_below(model: nn.Module, found: SiteMap) -> SiteMap:
    """Try out whether blocks read more of those below than the stream, where their description does not say so.

    Args:
        model: The model, without hooks that change it.
        found: Its sites, by a description that nobody tried yet: recognised, or a user's own.

    Returns:
        The same sites, with a description that says so.
    """
    chosen, config = found.description, cast(Any, decoder_of(model)).config
    if chosen.reads_below or chosen == known_description(config) or not reads_below(model, found):
        return found
    return replace(found, description=replace(chosen, reads_below=True))


def _width(block: Block, config: Any) -> int:
    """Return the width of the residual stream."""
    write = block.attn_write_or_none or block.mlp_write_or_none
    return int(_text(config).hidden_size) if write is None else linear_shape(write)[0]


def _heads(blocks: tuple[Block, ...], config: Any) -> int:
    """Return the number of heads in what every block's output projection reads, 0 where there are none to tell."""
    try:
        heads = _text(config).num_attention_heads
    except AttributeError:  # also where configurations tell it per layer alone
        return 0
    if not isinstance(heads, int) or any(block.attn_write_or_none is None for block in blocks):
        return 0
    return heads if all(linear_shape(block.attn_write)[1] % heads == 0 for block in blocks) else 0


def _text(config: Any) -> Any:
    """Return the part of a configuration that is about the language model."""
    inner = getattr(config, "get_text_config", None)
    return config if inner is None else inner(decoder=True)


def unknown_name(value: str, valid: list[str], what: str) -> InputError:
    """Return the error for a name that is none of ``valid``.

    Args:
        value: What the user wrote.
        valid: The names there are.
        what: What sort of name it is, for the message (``"site"``).

    Returns:
        An error that lists the valid names and the nearest one; it is not raised.
    """
    return InputError(f"unknown {what} {value!r}.{did_you_mean(value, valid)} Valid: {', '.join(valid)}.")
