"""What a score is, and the list of all: ranking, command line, report and docs read it from here.

A score of your own is one function:

    from steerscope import register_score

    @register_score(label="kernel scale", meaning="how far a unit step of the edit moves the outputs", unit="number")
    def kernel_scale(candidate):
        return candidate.kernel.scale

after which ``RankOptions(score="kernel_scale")`` orders sites by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, TypeVar

from torch import Tensor

from steerscope.analysis.scoring.scores.candidate import Candidate
from steerscope.errors import InputError, did_you_mean, same_name

Compute = Callable[[Candidate], "Tensor | float"]
Function = TypeVar("Function", bound=Compute)


class Unit(StrEnum):
    """What a score is measured in; a share is printed as a percentage."""

    SHARE = "share"
    COSINE = "cosine"
    NATS = "nats"
    RATIO = "ratio"
    NUMBER = "number"


class Needs(StrEnum):
    """What a score is computed from.

    ``KERNEL``: the candidate's neural tangent kernel, so that it is defined for sets of sites too, and has intervals.
    ``PLACE``: where the site is and how large its activations are. ``SPECTRUM``: eigendecompositions of the kernel, so
    that it costs more and is computed where it is asked for (``RankOptions(extra=("spectrum",))``); else as ``KERNEL``.
    ``STEP``: an edit put into the model and run; it costs more than the rest of a ranking, is for single sites, and is
    asked for in the same way. ``STUDIES``: trainings elsewhere; never part of a ranking, only of validations.
    """

    KERNEL = "kernel"
    PLACE = "place"
    SPECTRUM = "spectrum"
    STEP = "step"
    STUDIES = "studies"

    @property
    def is_of_kernels(self) -> bool:
        """Whether it is defined for several sites together, whose kernels add."""
        return self in (Needs.KERNEL, Needs.SPECTRUM)


# What every ranking computes, and what it computes where it is asked to.
ALWAYS = (Needs.KERNEL, Needs.PLACE)
EXTRA = (Needs.SPECTRUM, Needs.STEP)


@dataclass(frozen=True)
class Score:
    """A score of sites; higher is always better.

    Attributes:
        name: As options and files name it.
        label: As reports print it.
        meaning: What it says, in one clause that goes on from "ranked by ...,".
        unit: What it is measured in.
        needs: What it is computed from.
        cost: What it costs beside the kernel.
        source: Where it comes from.
        is_baseline: Whether it is there to be beaten.
        compute: The candidate's score: a number, or a vector with the whole first and then each jackknife group of
            prompts left out (``1 + num_groups``), from which the interval is made. Its docstring has the formula.
    """

    name: str
    label: str
    meaning: str
    unit: Unit
    needs: Needs
    cost: str
    source: str
    is_baseline: bool
    compute: Compute

    @property
    def is_share(self) -> bool:
        """Whether it prints as a percentage."""
        return self.unit is Unit.SHARE

    @property
    def highest(self) -> float:
        """What it cannot exceed: 1 for a share, at which its intervals end."""
        return 1.0 if self.is_share else math.inf

    @property
    def formula(self) -> str:
        """The first paragraph of the docstring of ``compute``, in one line."""
        return " ".join((self.compute.__doc__ or "").strip().split("\n\n")[0].split())


_SCORES: dict[str, Score] = {}


def register_score(
    *,
    label: str,
    meaning: str,
    unit: Unit | Literal["share", "cosine", "nats", "ratio", "number"] = Unit.NUMBER,
    needs: Needs | Literal["kernel", "place", "spectrum", "step", "studies"] = Needs.KERNEL,
    cost: str = "",
    source: str = "this project",
    is_baseline: bool = False,
) -> Callable[[Function], Function]:
    """Make a function of a :class:`Candidate` a score under the function's name; see :class:`Score`.

    Args:
        label: As reports print it.
        meaning: What it says, in one clause.
        unit: ``share``, ``cosine``, ``nats``, ``ratio`` or ``number``.
        needs: ``kernel``, ``place``, ``spectrum`` or ``step``.
        cost: What it costs beside the kernel.
        source: Where it comes from.
        is_baseline: Whether it is there to be beaten.

    Returns:
        A decorator; the function stays as it is.

    Raises:
        InputError: There is a score of that name.
    """
    unit, needs = Unit(unit), Needs(needs)

    def register(compute: Function) -> Function:
        name = str(getattr(compute, "__name__", ""))
        if name in _SCORES:
            raise InputError(f"there is a score {name!r} already; give the function another name.")
        _SCORES[name] = Score(name, label, meaning, unit, needs, cost, source, is_baseline, compute)
        return compute

    return register


def unregister_score(name: str) -> None:
    """Take a score off the list again."""
    _SCORES.pop(name, None)


def get_score(name: str) -> Score:
    """Return the score of a name.

    Raises:
        InputError: There is none.
    """
    name = same_name(name, _SCORES)
    if name not in _SCORES:
        raise InputError(
            f"there is no score {name!r}; expected one of {', '.join(ranking_scores(*ALWAYS, *EXTRA))}."
            f"{did_you_mean(str(name), list(_SCORES))}"
        )
    return _SCORES[name]


def all_scores() -> tuple[Score, ...]:
    """Return all scores, in the order in which they were registered."""
    return tuple(_SCORES.values())


def ranking_scores(*needs: Needs) -> tuple[str, ...]:
    """Return the names of scores: those that every ranking computes, or those of some needs."""
    wanted = needs or ALWAYS
    return tuple(score.name for score in _SCORES.values() if score.needs in wanted)
