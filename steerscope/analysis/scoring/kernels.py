"""From captured features to kernels over rows (example, probe) and over examples along the loss direction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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
        weighted = products * self.residual.to(products)[:, None]
        sums = products.new_zeros(self.num_examples, products.shape[1])
        return sums.index_add_(0, self.example.to(products.device), weighted).T

    def of_examples(self, examples: range) -> slice:
        """Return the rows of consecutive examples."""
        inside = (self.example >= examples.start) & (self.example < examples.stop)
        found = inside.nonzero()[:, 0]
        return slice(int(found[0]), int(found[-1]) + 1)


@dataclass(frozen=True)
class Kernel:
    """One tangent kernel. ``row``: (example, probe) pairs; ``example``: the loss direction of each example.

    Attributes:
        probe: ``row row``.
        cross: ``row example``; ``row 0`` where it was not asked for.
        loss: ``example example``.
    """

    probe: Tensor
    cross: Tensor
    loss: Tensor

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
            k = features.valid.shape[1]
            # Rows are picked before they are widened: a float copy of all features would be made in vain.
            picked = one[rows.example, rows.probe]
            probe = gram_of(picked)
            if features.spans:
                # An example's loss direction is the sum of its rows times their residuals, and so are its products.
                between = rows.along_loss(probe)
                part = cls(probe.cpu(), (between if cross else between[:, :0]).cpu(), rows.along_loss(between).cpu())
            else:
                loss = wide_feature(one[:, k])
                between = wide_feature(picked) @ loss.T if cross else loss.new_empty(len(picked), 0)
                part = cls(probe.cpu(), between.cpu(), gram(loss).cpu())
            total = part if total is None else total + part
        assert total is not None
        # Sums of squares: a number that is not finite, anywhere in the features, shows there.
        require_finite(f"a derivative of the outputs by {what}", total.probe.diagonal(), total.loss.diagonal())
        return total

    def __add__(self, other: Kernel) -> Kernel:
        """Return the kernel of both parameters together."""
        return Kernel(self.probe + other.probe, self.cross + other.cross, self.loss + other.loss)

    @property
    def scale(self) -> float:
        """The mean of the diagonal over rows."""
        return float(self.probe.diagonal().mean())

    @property
    def unit(self) -> float:
        """What a kernel is divided by to have unit scale: 1 for one of zero, which stays zero."""
        return self.scale or 1.0
