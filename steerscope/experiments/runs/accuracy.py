"""Shares of right answers with their uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass

from steerscope.errors import InputError

# Two-sided 95% of a normal distribution.
_Z = 1.959963984540054


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    r"""Return Wilson's 95% interval of a share of ``n`` independent trials.

    .. math:: \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Unlike the usual p plus or minus z standard errors it stays inside [0, 1], and does not shrink to a point at 0
    or 1. It covers which questions were drawn, not which seed a model was trained with.

    Args:
        share: Share of successes, from 0 to 1.
        n: Number of trials, at least 1.

    Returns:
        The ends of the interval, within 0 and 1.

    Raises:
        InputError: No trials, or a share outside [0, 1].

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Example:
        >>> low, high = wilson_interval(0.5, 100)
        >>> round(low, 3), round(high, 3)
        (0.404, 0.596)
        >>> wilson_interval(1.0, 10)[1]
        1.0
    """
    if n < 1 or not 0 <= share <= 1:
        raise InputError(f"got share {share} of {n}; expected a share from 0 to 1 of at least one trial.")
    spread = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
    middle, scale = share + _Z**2 / (2 * n), 1 + _Z**2 / n
    # At the ends rounding could step over by 1e-17, and exclude the share itself.
    return min(max((middle - spread) / scale, 0.0), share), max(min((middle + spread) / scale, 1.0), share)


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``n``, with Wilson's 95% interval.

    Example:
        >>> print(Accuracy(80, 100))
        80.0% [71.1%, 86.7%] n=100
    """

    correct: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.n or self.n < 1:
            raise InputError(f"got {self.correct} right of {self.n}; expected 0 to n of at least 1.")

    @property
    def share(self) -> float:
        """Share of right answers."""
        return self.correct / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval."""
        return wilson_interval(self.share, self.n)

    def as_dict(self) -> dict[str, float | int]:
        """Return value, interval and counts."""
        low, high = self.interval
        return {"accuracy": self.share, "low": low, "high": high, "correct": self.correct, "n": self.n}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} [{low:.1%}, {high:.1%}] n={self.n}"
