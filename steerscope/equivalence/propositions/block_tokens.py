"""One block on the tokens of a data set: what it reads and writes there, and its output under other weights.

Statements about one edit for all tokens need hundreds of tokens and many updates of one block. The blocks below run
once; the block itself is then called by its own modules, on what entered it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from steerscope.equivalence.propositions.base import Evidence, together
from steerscope.equivalence.propositions.parts import parameter_name
from steerscope.equivalence.propositions.runs import output_mapped
from steerscope.equivalence.propositions.shared_edit import SharedEdit
from steerscope.equivalence.propositions.subject import Subject
from steerscope.equivalence.propositions.texts import Texts, new_contexts
from steerscope.models.blocks import is_transposed, linear_weight
from steerscope.models.calls import calls_of, hooked
from steerscope.models.hooks import reading
from steerscope.models.upper_blocks import with_forward
from steerscope.models.wrappers import decoder_of, vocab_size
from steerscope.sites import Site, SiteKind

# Of random tokens: short sequences, and enough of them to fit maps of twice the stream's width well.
LENGTH = 12
COUNT = 40
TOKENS_PER_CHANNEL = 4
# Of a share, in float64 least squares over thousands of tokens.
ROUNDING = 1e-9
# A few tokens have streams tens of times longer than the others'; they alone would decide every sum over tokens.
OUTLIER = 4.0
# The first token sees nothing but itself.
SKIP = 1


@dataclass(frozen=True)
class BlockTokens:
    """A block of a model on a data set.

    Attributes:
        name: Of the data set.
        subject: The model, with the sequences as its tokens: fitted ones first.
        stream: What enters the block, ``batch token d``.
        tensors: What stands at the block's sites, ``batch token channel``.
        num_fitted: How many sequences are fitted on.
        kept: ``batch token``: tokens that count.
        dropped: Tokens left out for their long stream.
        arguments: Of the block's call, beside the stream.
        made: What was computed of all this for one proposition and serves the next.
    """

    name: str
    subject: Subject
    stream: Tensor
    tensors: Mapping[SiteKind, Tensor] = field(repr=False)
    num_fitted: int
    kept: Tensor
    dropped: int
    arguments: tuple[tuple[Any, ...], dict[str, Any]] = field(repr=False)
    made: dict[str, Any] = field(default_factory=dict, repr=False)

    def halved(self) -> BlockTokens:
        """Return the block on every second sequence of either part, for checks whose cost grows with tokens squared."""
        every = torch.arange(len(self.kept))
        keep = torch.cat((every[: self.num_fitted : 2], every[self.num_fitted :: 2]))

        def cut(value: Any) -> Any:
            if isinstance(value, Tensor) and value.dim() and len(value) == len(self.kept):
                return value[keep]
            return tuple(map(cut, value)) if isinstance(value, tuple) else value

        args, kwargs = self.arguments
        return replace(
            self,
            subject=replace(self.subject, input_ids=self.subject.input_ids[keep]),
            stream=self.stream[keep],
            tensors={kind: tensor[keep] for kind, tensor in self.tensors.items()},
            num_fitted=len(every[: self.num_fitted : 2]),
            kept=self.kept[keep],
            arguments=(cut(args), {name: cut(value) for name, value in kwargs.items()}),
            made={},
        )

    def rows(self, tensor: Tensor) -> Tensor:
        """Return the tokens that count, fitted ones first: ``(batch token channel)`` to ``(row channel)``."""
        return tensor[self.kept]

    @property
    def fitted(self) -> int:
        """How many of :meth:`rows` are fitted on."""
        return int(self.kept[: self.num_fitted].sum())

    def reads(self, name: str) -> Tensor:
        """Return what an edit reads, ``row channel``: a name of :data:`READS`."""
        written = self.rows(self.tensors[SiteKind.MLP_OUT])
        after = self.rows(self.tensors[SiteKind.RESID_POST])
        made = {"h'": (after,), "y": (written,), "[I', y]": (after - written, written)}
        return torch.cat(made[name], dim=1)

    def edit(self, name: str) -> SharedEdit:
        """Return the edits that read a name of :data:`READS`; their ridge is the best to predict what W_d reads."""
        key = f"edit {name}"
        if key not in self.made:
            hidden = self.rows(self.tensors[SiteKind.MLP_HIDDEN])
            self.made[key] = SharedEdit(self.reads(name), self.fitted, hidden)
        found: SharedEdit = self.made[key]
        return found

    def run(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the block's output (``batch token d``) with some weights, by the model's names, replaced.

        What linear maps before the first changed one give is not computed again.
        """
        module = self.subject.block.module
        inner = {id(parameter): name for name, parameter in module.named_parameters()}
        named = dict(self.subject.model.named_parameters())
        args, kwargs = self.arguments
        replaced = {inner[id(named[name])]: value for name, value in weights.items()}
        with self._recalled({id(named[name]) for name in weights}):
            output = functional_call(module, replaced, (self.stream, *args), kwargs)
        return output[0] if isinstance(output, tuple) else output

    def _recalled(self, changed: set[int]) -> AbstractContextManager[None]:
        """Return a context in which maps called before any with a changed parameter give what they gave before.

        Of identities of parameters; where there are none, or one is no linear map's, all maps are computed.
        """
        called = self._called if changed else []
        places = [
            place for place, one in enumerate(called) if changed & {id(parameter) for parameter in one.map.parameters()}
        ]
        of_maps = {id(parameter) for one in called for parameter in one.map.parameters()}
        early = called[: min(places)] if places and changed <= of_maps else []
        return with_forward({one.map: lambda *args, written=one.written, **kwargs: written for one in early})

    def identifies(self, name: str) -> bool:
        """Whether there are more tokens to fit on than channels that an edit reads, else it fits any shift."""
        return self.reads(name).shape[1] + 1 < self.fitted

    def shifts(self, module: nn.Module, changes: Tensor) -> Tensor:
        """Return how far changes of one linear map really move the block's output, each alone.

        Args:
            module: A linear map of the block.
            changes: ``(draw, out, in)``.

        Returns:
            ``(draw, row, d)`` for the tokens that count.

        Cost: of what follows the map in the block, once per draw.
        """
        name, stored, weight = self._stored(module, changes)
        moved = vmap(lambda change: self.run({name: weight + change}))(stored)
        return (moved - self.tensors[SiteKind.RESID_POST])[:, self.kept]

    def linear_shifts(self, module: nn.Module, changes: Tensor) -> Tensor:
        """Return the first-order shifts of the block's output under changes of one linear map (jvp), each alone.

        Args:
            module: A linear map of the block.
            changes: ``(draw, out, in)``.

        Returns:
            ``(draw, row, d)`` for the tokens that count.
        """
        name, stored, weight = self._stored(module, changes)
        found: Tensor = vmap(lambda change: jvp(self.run, ({name: weight},), ({name: change},))[1])(stored)
        return found[:, self.kept]

    def _stored(self, module: nn.Module, changes: Tensor) -> tuple[str, Tensor, Tensor]:
        weight = linear_weight(module).detach()
        return parameter_name(self.subject, module), changes.mT if is_transposed(module) else changes, weight

    def pullbacks(self, modules: Sequence[nn.Module], cotangents: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """Yield ``J^T g`` of linear maps, by what they write, for one field of cotangents after another.

        Args:
            modules: Linear maps of the block.
            cotangents: g at the block's output, each ``(batch, token, d)``.

        Yields:
            Per module ``(batch, token, out)``.

        Cost: one pass, and a backward pass per field.
        """
        called = {id(one.map): one for one in self._called}
        batch, token = self.stream.shape[:2]

        def output(*added: Tensor) -> Tensor:
            with ExitStack() as stack:
                for module, change in zip(modules, added, strict=True):
                    stack.enter_context(output_mapped(module, partial(torch.add, change)))
                return self.run({})

        with torch.enable_grad():
            back = vjp(output, *(torch.zeros_like(called[id(module)].written) for module in modules))[1]
        for one in cotangents:
            yield [found.reshape(batch, token, -1).detach() for found in back(one)]

    def read_by(self, module: nn.Module) -> Tensor:
        """Return what a linear map of the block reads, ``batch token in``."""
        (seen,) = (one.read for one in self._called if one.map is module)
        return seen.reshape(*self.stream.shape[:2], -1)

    @property
    def _called(self) -> list[_Call]:
        """The block's linear maps in the order in which they are called, each with what it reads and writes."""
        if "calls" not in self.made:
            found: list[_Call] = []

            def catch(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
                found.append(_Call(module, args[0].detach(), output.detach()))

            with hooked(module.register_forward_hook(catch) for module in self.subject.block.linear_maps().values()):
                self.run({})
            self.made["calls"] = found
        calls: list[_Call] = self.made["calls"]
        return calls


class _Call(NamedTuple):
    """One call of a linear map: what it read and wrote, as the map has them."""

    map: nn.Module
    read: Tensor
    written: Tensor


READS = ("h'", "y", "[I', y]")


_KEPT: WeakKeyDictionary[nn.Module, dict[Any, BlockTokens]] = WeakKeyDictionary()
_MOST = 4


def data_sets(subject: Subject) -> tuple[BlockTokens, ...]:
    """Return the subject's block on each of its data sets, or on random tokens.

    Args:
        subject: Inside ``subject.ready()``.

    Returns:
        One per data set, in their order.

    Cost: a pass of the blocks below per data set, kept for the next proposition on the same model.
    """
    return tuple(_on(subject, texts) for texts in subject.texts or (_random(subject),))


def _random(subject: Subject) -> Texts:
    wanted = TOKENS_PER_CHANNEL * 2 * subject.site_map.d_model
    count = max(COUNT, -(-wanted // (LENGTH - SKIP)))
    # The first three tokens of a vocabulary are often special ones.
    drawn = torch.randint(3, vocab_size(subject.model), (2 * count, LENGTH), generator=subject.generator(4300))
    return Texts("random tokens", drawn[:count], drawn[count:])


def _on(subject: Subject, texts: Texts) -> BlockTokens:
    # Numbers of other weights must not be given back, however they were changed.
    state = tuple(float(parameter.detach().sum()) for parameter in subject.model.parameters())
    key = (subject.layer, texts.name, tuple(texts.ids.flatten().tolist()), texts.ids.shape, len(texts.fitted), state)
    kept = _KEPT.setdefault(subject.model, {})
    if key not in kept:
        while len(kept) >= _MOST:
            del kept[next(iter(kept))]
        kept[key] = _captured(replace(subject, input_ids=texts.ids), texts)
    return replace(kept[key], subject=replace(subject, input_ids=texts.ids))


def _captured(subject: Subject, texts: Texts) -> BlockTokens:
    block = subject.block
    stream, args, kwargs = _entering(subject)
    kinds = [k for k in subject.site_map.description.kinds if k is not SiteKind.RESID_PRE]
    sites = {kind: Site(subject.layer, kind) for kind in kinds}
    with reading(subject.site_map, sites.values()) as found:
        block.module(stream, *args, **kwargs)
    tensors = {kind: found[site].detach() for kind, site in sites.items()} | {SiteKind.RESID_PRE: stream}
    size = tensors[SiteKind.RESID_POST].norm(dim=-1)
    kept = torch.cat((torch.ones_like(texts.fitted, dtype=torch.bool), new_contexts(texts.fitted, texts.held_out)))
    kept[:, :SKIP] = False
    long = kept & (size > OUTLIER * size[:, SKIP:].median())
    return BlockTokens(
        texts.name, subject, stream, tensors, len(texts.fitted), kept & ~long, int(long.sum()), (args, kwargs)
    )


def _entering(subject: Subject) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Return what enters the block, and the other arguments of its call."""
    block = subject.block.module
    with calls_of([block], stop=True) as calls:
        decoder_of(subject.model)(input_ids=subject.input_ids, use_cache=False)
    args, kwargs = calls[block].args, calls[block].kwargs
    stream = args[0] if args else kwargs.pop("hidden_states")
    return stream.detach(), args[1:], kwargs


def mean_and_error(errors: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Return ``sum(errors) / sum(sizes)`` over independent draws and its standard error.

    Args:
        errors: One number per draw.
        sizes: As many.

    Returns:
        The ratio, and its standard error to first order (the delta method).
    """
    ratio = errors.sum() / sizes.sum()
    spread = (errors - ratio * sizes).std() / sizes.mean() / len(sizes) ** 0.5
    return float(ratio), float(spread)


def z_score(found: tuple[float, float], expected: float) -> float:
    """Return how many standard errors a measured ratio lies from what is expected.

    Args:
        found: The ratio and its standard error.
        expected: The formula's value.

    Returns:
        A signed number without unit. Where an edit reads as many directions as there are different tokens, nothing is
        left in any draw: the standard error is taken to be :data:`ROUNDING` at least.
    """
    return (found[0] - expected) / max(found[1], ROUNDING)


def over_data_sets(data: Sequence[BlockTokens], try_on: Callable[[BlockTokens], Evidence]) -> Evidence:
    """Try a statement on every data set, and put together what came out.

    Args:
        data: The data sets.
        try_on: The check on one; without a claim where the data set has too few tokens.

    Returns:
        All claims, controls, notes and curves; not applicable where no data set could be used.
    """
    parts = [try_on(one) for one in data]
    if not any(part.claim for part in parts):
        return Evidence(inapplicable="no data set has more tokens than an edit has channels to read")
    return together([Evidence(notes=token_counts(data)), *parts])


def without_norm_behind(subject: Subject, try_on: Callable[[Subject, BlockTokens], Evidence]) -> Evidence:
    """Try a statement about the map that writes on every data set, where no norm stands behind it.

    Args:
        subject: The model.
        try_on: The check on one of its data sets.

    Returns:
        As :func:`over_data_sets`; not applicable behind a norm.
    """
    if subject.block.mlp_post_norm is not None:
        return Evidence(inapplicable="a norm follows what the MLP writes: token by token another matrix (P45)")
    return over_data_sets(data_sets(subject), partial(try_on, subject))


def side_by_side(shifts: Tensor) -> Tensor:
    """Return the shifts of several updates ``(update, token, d)`` as one: ``(token, update d)``."""
    return shifts.transpose(0, 1).flatten(1)


def token_counts(blocks: Sequence[BlockTokens]) -> tuple[str, ...]:
    """Return one note per data set: how many tokens it has, and how many were left out."""
    return tuple(
        f"{one.name}: {one.fitted} tokens fitted on, {int(one.kept.sum()) - one.fitted} held out; "
        f"{one.dropped} left out for a stream over {OUTLIER:g} times the median length"
        for one in blocks
    )
