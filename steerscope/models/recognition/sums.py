"""Of which sum a block's output is made: who writes attention's part and the MLP's, and what is done to the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from steerscope.models.packed import has_maps
from steerscope.models.recognition.maps import Reader
from steerscope.models.recognition.trace import Traced, is_same


@dataclass(frozen=True)
class Sum:
    """What was found of a block's sum.

    Attributes:
        wrote: The part whose output attention adds.
        added: The part whose output the MLP adds.
        scales: The number before each.
        mid: The stream after attention, float64, as long as the stream.
        mid_norm: The norm that the stream itself goes through after attention.
        end_norm: The norm that the stream itself goes through after the MLP, whose output leaves the block.
        own_end: Whether the block does something else to the stream after the MLP.
    """

    wrote: Traced
    added: Traced
    scales: tuple[float, float]
    mid: Tensor
    mid_norm: Traced | None = None
    end_norm: Traced | None = None
    own_end: bool = False

    @property
    def changes_the_stream(self) -> bool:
        """Whether the block does more to the stream than adding to it."""
        return self.mid_norm is not None or self.end_norm is not None or self.own_end


class BlockCalls(Reader, Protocol):
    """What this file needs of the reader of a block, beside what :class:`Reader` names."""

    h: Tensor
    out: Tensor

    def within(self, one: Traced) -> list[Traced]:
        """Return the calls that a call made."""
        ...

    def refuse(self, what: str) -> Exception:
        """Return the error that says which part of a block's equation failed."""
        ...


def sum_of(reader: BlockCalls, attn: Traced) -> Sum:
    """Return whose outputs make up what leaves a block.

    Tried in this order: the sum itself leaves the block; the norm of a sum does (post-norm: there may be a norm on the
    stream after attention as well); some part after the MLP reads the sum, or it is multiplied by a number.

    Args:
        reader: The block.
        attn: Its attention.

    Returns:
        The first that holds.

    Raises:
        UnsupportedModelError: None does; the message says why.
    """
    parts = _Parts(reader, attn)
    h = flat(reader.h)
    for end, after in _ends(reader):
        plain = parts.both(flat(after) - h)
        if plain is not None:
            wrote, added, scales = plain
            mid = h + scales[0] * flat(wrote.value)
            own = not is_same(after, reader.out) and end is None
            return Sum(wrote, added, scales, mid, end_norm=end, own_end=own)
        for norm in parts.norms:
            if norm is not end and (found := parts.around(norm, h, flat(after))) is not None:
                own = not is_same(after, reader.out) and end is None
                return replace(found, end_norm=end, own_end=own)
    scaled = parts.scaled(flat(reader.out), h)
    if scaled is not None:
        return scaled
    raise reader.refuse(parts.why_not(flat(reader.out) - h))


def _ends(reader: BlockCalls) -> Iterator[tuple[Traced | None, Tensor]]:
    """Yield what could be the stream after the MLP, with the norm that makes what leaves the block of it."""
    yield None, reader.out
    seen = [reader.out, reader.h]
    for one in reversed(reader.inside):
        if one.given is None or one.given.numel() != reader.h.numel() or any(is_same(one.given, old) for old in seen):
            continue
        if is_same(one.gave, reader.out) and is_norm(one.module):
            seen.append(one.given)
            yield one, one.given
    for one in reversed(reader.direct):
        if one.given is None or one.given.numel() != reader.h.numel() or any(is_same(one.given, old) for old in seen):
            continue
        seen.append(one.given)
        yield None, one.given


class _Parts:
    """The parts of a block that may write attention's and the MLP's share of its sum."""

    def __init__(self, reader: BlockCalls, attn: Traced) -> None:
        size = reader.h.numel()
        self.reader, self.tolerance = reader, reader.tolerance

        def fits(one: Traced) -> bool:
            return (
                one.gave is not None
                and one.gave.numel() == size
                and one.gave.is_floating_point()
                and not is_same(one.gave, one.given)  # dropout and the like hand on what they get
                and not is_same(one.gave, reader.h)
            )

        behind = [
            one for one in reader.direct if one is not attn and is_same(one.given, attn.gave) and one.began > attn.ended
        ]
        within = sorted(reader.within(attn), key=lambda one: -one.ended)
        self.of_attention = [one for one in (*behind, attn, *within) if fits(one)]
        self.others = [one for one in reader.inside if one is not attn and not one.is_inside(attn) and fits(one)]
        self.others.sort(key=lambda one: (one not in reader.direct, -one.ended))
        self.norms = [
            one
            for one in reader.inside
            if fits(one) and one.given is not None and one.given.numel() == size and is_norm(one.module)
        ]

    def both(self, moved: Tensor) -> tuple[Traced, Traced, tuple[float, float]] | None:
        """Return the two parts whose outputs, times a number each, are ``moved``."""
        for wrote in self.of_attention:
            for added in self.others:
                if added is wrote or is_same(added.gave, wrote.gave):
                    continue
                if (found := self._fit(moved, wrote.value, added.value)) is not None:
                    return wrote, added, (found[0], found[1])
        return None

    def around(self, norm: Traced, h: Tensor, after: Tensor) -> Sum | None:
        """Return the sum with a norm of the stream itself between attention and MLP, if it is one."""
        mid = flat(norm.value)
        for wrote in self.of_attention:
            if wrote is norm or (first := self._fit(flat(norm.given) - h, wrote.value)) is None:
                continue
            for added in self.others:
                if added is norm or added is wrote or added.began < norm.ended:
                    continue
                if (second := self._fit(after - mid, added.value)) is not None:
                    return Sum(wrote, added, (first[0], second[0]), mid, mid_norm=norm)
        return None

    def scaled(self, out: Tensor, h: Tensor) -> Sum | None:
        """Return the sum if a number times it leaves the block."""
        for wrote in self.of_attention:
            for added in self.others:
                if added is wrote or is_same(added.gave, wrote.gave):
                    continue
                if (found := self._fit(out, h, wrote.value, added.value)) is not None:
                    scales = self._rounded(found[1] / found[0]), self._rounded(found[2] / found[0])
                    return Sum(wrote, added, scales, h + scales[0] * flat(wrote.value), own_end=True)
        return None

    def _fit(self, moved: Tensor, *parts: Tensor | None) -> list[float] | None:
        """Return the numbers before parts of which ``moved`` is the sum, ``None`` where it is none."""
        columns = torch.stack([flat(part) for part in parts], dim=1)
        found = torch.linalg.lstsq(columns, moved[:, None]).solution[:, 0]
        left = (columns @ found - moved).norm() / moved.norm().clamp_min(1e-30)
        if float(left) <= self.tolerance and float(found.abs().min()) > self.tolerance:
            return [self._rounded(float(number)) for number in found]
        return None

    def _rounded(self, number: float) -> float:
        return 1.0 if abs(number - 1) <= 10 * self.tolerance else number

    def why_not(self, moved: Tensor) -> str:
        """Return which part of the equation failed."""
        for one in self.reader.inside:
            if is_same(one.gave, self.reader.out) and self._is_called_norm(one.module):
                return (
                    f"what leaves it is the output of the norm {self.reader.path(one)!r}, and what that reads is no "
                    "sum of the stream (or its norm), a part of attention and a part of an MLP"
                )
        for one in (*self.of_attention, *self.others):
            if float((moved - flat(one.value)).norm() / moved.norm()) <= self.tolerance:
                return one_branch(self.reader.path(one))
        return (
            "what leaves it is no sum of the stream that enters, a part of attention and a part of an MLP (the skip "
            "connection may be scaled, there may be a third part, or numbers per channel before one)"
        )

    def _is_called_norm(self, module: nn.Module) -> bool:
        return is_norm(module) and "norm" in type(module).__name__.lower()


def is_norm(module: nn.Module) -> bool:
    """Whether a module has no maps: what it learns, if anything, are numbers per channel."""
    return not has_maps(module)


def one_branch(path: str) -> str:
    """Return the words for a block of one branch, the part at ``path``."""
    return f"it has one branch ({path!r}) where attention and an MLP are expected"


def flat(value: Tensor | None) -> Tensor:
    """Return a tensor of a trace as one row of float64."""
    assert value is not None
    return value.double().flatten()
