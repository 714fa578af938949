"""From captured features to kernels over rows (example, probe) and over examples along the loss direction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from steerscope.analysis.capture.features import Features
from steerscope.analysis.capture.rounded import gram_of, wide_feature
from steerscope.equivalence.kernels import gram
from steerscope.finite import require_finite


@dataclass(frozen=True)
class Rows:
    """What the rows of a kernel are.

    Attributes:
        example: ``row``: the example of each row.
        probe: ``row``: its probe.
        group: ``row``: rows whose mean update is one number: the same probe of as many choices.
        residual: ``row``: (one-hot minus softmax) along the row's probe.
        num_examples: Number of examples.
    """

    example: Tensor
    probe: Tensor
    group: Tensor
    residual: Tensor
    num_examples: int

    @classmethod
    def of(cls, features: Features) -> Rows:
        """Return the rows of captured features: the probes each example has."""
        example, probe = features.valid.nonzero(as_tuple=True)
        have = features.valid.sum(1)[example]
        return cls(example, probe, have * 1000 + probe, features.residual[example, probe], features.valid.shape[0])

    def along_loss(self, products: Tensor) -> Tensor:
        """Return inner products with the loss directions ``other example``, of such with rows ``row other``.

        Args:
            products: Inner products of anything with the rows.

        Returns:
            The sums over an example's rows, each times its residual.
        """
        residual, per_example = self.residual.to(products), len(self.example) // max(1, self.num_examples)
        counted = torch.arange(self.num_examples).repeat_interleave(per_example)
        if torch.equal(self.example.cpu(), counted):  # all have as many, side by side: one product for each
            split = products.unflatten(0, (-1, per_example))
            return (residual.view(-1, 1, per_example) @ split)[:, 0].T
        weighted = products * residual[:, None]
        sums = products.new_zeros(self.num_examples, products.shape[1])
        return sums.index_add_(0, self.example.to(products.device), weighted).T

    def examples_of(self, rows: slice) -> range:
        """Return the examples of consecutive rows."""
        return range(int(self.example[rows.start]), int(self.example[rows.stop - 1]) + 1)

    def part(self, of: Sequence[slice], examples: Sequence[range]) -> Rows:
        """Return the rows of some examples, side by side; the examples are counted from 0 again.

        Args:
            of: The rows of each run of examples.
            examples: The runs.

        Returns:
            What these rows are.
        """
        numbers = torch.empty(self.num_examples, dtype=self.example.dtype)
        chosen = picked(torch.arange(self.num_examples), examples)
        numbers[chosen] = torch.arange(len(chosen))
        example, probe, group, residual = (
            picked(part, of) for part in (numbers[self.example], self.probe, self.group, self.residual)
        )
        return Rows(example, probe, group, residual, len(chosen))

    def of_examples(self, examples: range) -> slice:
        """Return the rows of consecutive examples."""
        inside = (self.example >= examples.start) & (self.example < examples.stop)
        found = inside.nonzero()[:, 0]
        return slice(int(found[0]), int(found[-1]) + 1)


def picked(tensor: Tensor, ranges: Sequence[slice] | Sequence[range]) -> Tensor:
    """Return the entries of some ranges, side by side.

    Args:
        tensor: ``entry ...``.
        ranges: Which entries.

    Returns:
        A copy ``picked ...``.
    """
    return torch.cat([tensor[some.start : some.stop] for some in ranges])


def picked_square(matrix: Tensor, ranges: Sequence[slice] | Sequence[range]) -> Tensor:
    """Return the rows and columns of some ranges, side by side.

    Args:
        matrix: ``entry entry``.
        ranges: Which entries.

    Returns:
        A copy ``picked picked``.
    """
    return picked(picked(matrix, ranges).T, ranges).T


class Kernel:
    """One tangent kernel. ``row``: (example, probe) pairs; ``example``: the loss direction of each example.

    Attributes:
        cross: ``row example``; ``row 0`` where it was not asked for.
        loss: ``example example``.
        factor: ``row feature``, where features are few: the kernel between rows is ``factor @ factor.T``.
    """

    def __init__(
        self,
        probe: Tensor | None,
        cross: Tensor,
        loss: Tensor,
        factor: Tensor | None = None,
        make_probe: Callable[[], Tensor] | None = None,
    ) -> None:
        """Hold the parts; where ``probe`` is not given, ``make_probe`` makes it when it is asked for."""
        self.cross, self.loss, self.factor = cross, loss, factor
        self._probe, self._make_probe = probe, make_probe
        # Of a target that every candidate is compared with, once.
        self._own_sums: tuple[Tensor, Tensor] | None = None

    @property
    def probe(self) -> Tensor:
        """The kernel between rows ``row row``."""
        if self._probe is None:
            assert self._make_probe is not None  # kept: another thread may be here too
            self._probe = self._make_probe()
        return self._probe

    @cached_property
    def diagonal(self) -> Tensor:
        """Its diagonal ``row``."""
        return self.probe.diagonal() if self.factor is None else self.factor.pow(2).sum(1)

    @classmethod
    def of(
        cls,
        feature_sets: Iterable[Tensor],
        features: Features,
        rows: Rows,
        *,
        cross: bool = True,
        what: str = "what is changed",
    ) -> Kernel:
        """Return the kernel of one or several feature tensors ``example slot feature`` (their kernels add).

        Args:
            feature_sets: The features.
            features: What was captured with them.
            rows: What the kernel's rows are.
            cross: Without it that part stays empty: fine-tuning's kernel needs it, a candidate's does not.
            what: Whose kernel, for a message.

        Returns:
            The kernel between rows, and between examples along the loss direction.

        Raises:
            InputError: A derivative is NaN or infinite.
        """
        total: Kernel | None = None
        for one in feature_sets:
            part = _kernel_of(one, features, rows, cross)
            total = part if total is None else total + part
        assert total is not None
        # Sums of squares: a number that is not finite, anywhere in the features, shows there.
        require_finite(f"a derivative of the outputs by {what}", total.diagonal, total.loss.diagonal())
        return total

    def __add__(self, other: Kernel) -> Kernel:
        """Return the kernel of both parameters together."""
        return Kernel(self.probe + other.probe, self.cross + other.cross, self.loss + other.loss)

    def part(self, of: Sequence[slice], examples: Sequence[range]) -> Kernel:
        """Return the kernel on some of the rows and examples.

        Args:
            of: The ranges of rows.
            examples: The ranges of examples.

        Returns:
            A copy.
        """
        cross = picked(picked(self.cross, of).T, examples).T
        return Kernel(picked_square(self.probe, of), cross, picked_square(self.loss, examples))

    @cached_property
    def scale(self) -> float:
        """The mean of the diagonal over rows; not finite where a number of it is not."""
        return float(self.diagonal.mean())

    @property
    def unit(self) -> float:
        """What a kernel is divided by to have unit scale: 1 for one of zero, which stays zero."""
        return self.scale or 1.0

    def pair_sums(self, other: Kernel, included: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sum_ij k_ij l_ij`` and ``sum_ij k_ij k_ij`` over the rows that take part, per column.

        Args:
            other: A kernel ``l`` over the same rows.
            included: ``row column``: 1 where a row takes part, else 0.

        Returns:
            Sums ``(column)`` of both, in float64.

        Cost: one pass over both kernels.
        """
        between, own = _sums_of_products(self.probe, (other.probe, self.probe), included)
        return between, own

    def own_sums(self, included: Tensor) -> Tensor:
        """Return the second part of :meth:`pair_sums`, kept for the next time it is asked for."""
        kept = self._own_sums
        if kept is None or not torch.equal(kept[0], included):
            kept = self._own_sums = included, _sums_of_products(self.probe, (self.probe,), included)[0]
        return kept[1]


# Rows at a time of sums over pairs of rows: fewer are no faster, and their calls keep other threads waiting.
_ROWS = 432


def _sums_of_products(one: Tensor, others: Sequence[Tensor], included: Tensor) -> Tensor:
    """Return per other symmetric matrix ``row row`` and column the sum of its products with one, in float64."""
    by_row = included.to(one)
    sums = torch.zeros(len(others), included.shape[1], dtype=torch.float64)
    for start in range(0, len(one), _ROWS):  # up to the diagonal: what is beyond is alike
        rows = slice(start, min(start + _ROWS, len(one)))
        counted = torch.cat([2 * by_row[:start], by_row[rows]])
        part = one[rows, : rows.stop]
        for place, other in enumerate(others):
            sums[place] += (by_row[rows] * ((part * other[rows, : rows.stop].to(part)) @ counted)).double().sum(0)
    return sums


# Fewer features than so many times the rows: products with features cost less than those with the kernel.
_FEW = 0.25


def _kernel_of(one: Tensor, features: Features, rows: Rows, cross: bool) -> Kernel:
    k = features.valid.shape[1]
    # Rows are picked before they are widened: a float copy of all features would be made in vain.
    every = bool(features.valid.all())
    picked = one[:, :k].flatten(0, 1) if every else one[rows.example, rows.probe]
    few = not cross and one.shape[-1] <= _FEW * len(picked)
    factor = wide_feature(picked).cpu() if few else None
    probe = None if few else gram_of(picked)
    if not features.spans:
        loss = wide_feature(one[:, k])
        between = wide_feature(picked) @ loss.T if cross else loss.new_empty(len(picked), 0)
        along = gram(loss)
    elif factor is not None:
        # An example's loss direction is the sum of its rows times their residuals.
        along, between = gram(rows.along_loss(factor).T), factor.new_empty(len(picked), 0)
    else:
        assert probe is not None
        between = rows.along_loss(probe)
        along = rows.along_loss(between)
        between = between if cross else between[:, :0]
    made = None if probe is None else probe.cpu()
    later = (lambda: gram_of(picked).cpu()) if made is None else None  # which holds the features
    return Kernel(made, between.cpu(), along.cpu(), factor, later)
