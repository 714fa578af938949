"""The ranking's own score for other questions than one site on all prompts: of sets of sites, and on half the prompts.

A score of kernels is defined for both, since kernels of independent sites add. Where the score is not one of kernels (a
place, a step really taken), is a baseline, or costs too much to be asked thousands of times, the learnable share
answers in its place, and the result says so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from steerscope.analysis.scoring.converged import Converged
from steerscope.analysis.scoring.kernels import Kernel
from steerscope.analysis.scoring.problem import Direction, Problem
from steerscope.analysis.scoring.scores import DEFAULT_SCORE, Candidate, Needs, compute_score, get_score
from steerscope.analysis.scoring.scores.learnable_share import quick_share, share_of
from steerscope.analysis.scoring.triangles import Triangle, Triangles
from steerscope.finite import require_finite
from steerscope.sites import Site


class _Search(threading.local):
    """What a search adds each candidate to, and where it adds it up: room that is used again costs no new memory."""

    members: Sequence[Site] | None = None
    base: Triangle | None = None
    room: Tensor | None = None


@dataclass(frozen=True)
class LearnableShares:
    """The learnable share of sets of sites, from their unit-scale kernels ``row row``."""

    units: Mapping[Site, Tensor]
    problem: Problem
    of_sets: ClassVar[str] = DEFAULT_SCORE
    _search: _Search = field(default_factory=_Search, repr=False, compare=False)

    def of_set(self, members: Sequence[Site], *, quick: bool = False) -> Tensor:
        """Return the share of a set ``column``; ``quick``: the whole alone, entry 0, in the kernels' precision.

        Args:
            members: Sites that are edited at once; their kernels add up.
            quick: Compute the whole sample alone, without the jackknife.

        Returns:
            The share, 1 where everything is learnable: the whole sample, then one entry per left-out group.
        """
        if quick:
            return torch.tensor([quick_share(self._lower_sum(members), self.problem)])
        return share_of(_sum(self.units[site] for site in members), self.problem)

    def _lower_sum(self, members: Sequence[Site]) -> Tensor:
        """Return the sum of kernels ``row row``, right in its lower triangle; the next call writes over it."""
        if not isinstance(self.units, Triangles):
            return _sum(self.units[site] for site in members)
        *others, last = (self.units.kept[site] for site in members)
        search = self._search
        if search.room is None:
            search.room = last.empty()
        if search.members != members[:-1]:
            search.members, search.base = list(members[:-1]), None
            for other in others:
                search.base = search.base + other if search.base else other
        last.put_lower(search.room, search.base)
        return search.room


class JointScores:
    """Linear edits, several together or on some of the prompts, by the ranking's own score where that is possible.

    Args:
        score: The score that orders the ranking.
        like: A candidate of the ranking, for all that is the same for every one.
        units: Unit-scale kernels ``row row`` of the linear edits.
        losses: Their kernels of the loss directions ``example example``, at the same scale.
        scales: The scale that each had.
        lengths: By what the unit kernel is multiplied to be the candidate's ``squared_length``.
        vectors: The fixed vector at each site.
    """

    def __init__(
        self,
        score: str,
        like: Candidate,
        units: Mapping[Site, Tensor],
        losses: dict[Site, Tensor],
        scales: dict[Site, float],
        lengths: dict[Site, float],
        vectors: Callable[[Site], Candidate],
    ) -> None:
        self.score, self.like = score, like
        self.units, self.losses, self.scales, self.lengths, self.vectors = units, losses, scales, lengths, vectors

    @property
    def of_sets(self) -> str:
        """The score by which sets grow: the ranking's, or the learnable share."""
        asked = get_score(self.score)
        return self.score if asked.needs is Needs.KERNEL and not asked.is_baseline else DEFAULT_SCORE

    @property
    def of_halves(self) -> str:
        """The score whose orders on two halves of the prompts are compared: the ranking's, or the learnable share."""
        asked = get_score(self.score)
        return self.score if asked.needs.is_of_kernels and not asked.is_baseline else DEFAULT_SCORE

    @cached_property
    def _shares(self) -> LearnableShares:
        return LearnableShares(self.units, self.like.problem)

    @cached_property
    def _whole(self) -> Problem:
        """The problem without replicates: a search through sets needs none."""
        problem = self.like.problem
        return replace(problem, directions=tuple(map(_without_replicates, problem.directions)), num_groups=0)

    def of_set(self, members: Sequence[Site], *, quick: bool = False) -> Tensor:
        """Return the score of a set ``column``, each kernel at unit scale; ``quick``: the whole alone, entry 0.

        Args:
            members: Sites that are edited at once; their kernels add up.
            quick: Compute the whole sample alone, without the jackknife.

        Returns:
            The score: the whole sample, then one entry per left-out group.

        Cost: two factorisations of half the rows.
        """
        if self.of_sets == DEFAULT_SCORE:
            return self._shares.of_set(members, quick=quick)
        problem = self._whole if quick else self.like.problem
        found = compute_score(self._candidate(members, problem), get_score(self.of_sets))
        require_finite(f"the score {self.of_sets!r} of a set of sites", found)
        return found

    def on(self, problem: Problem) -> Callable[[Site], float]:
        """Return the score of single sites as a function, on the prompts of another problem."""
        score = get_score(self.of_halves)
        if score.name == DEFAULT_SCORE:
            shares = LearnableShares(self.units, problem)
            return lambda site: float(shares.of_set([site], quick=True)[0])
        like = self.like
        converged = (
            Converged.of(like.target, problem, like.rows, like.curvature) if score.needs is Needs.SPECTRUM else None
        )
        return lambda site: float(compute_score(self._candidate([site], problem, converged), score)[0])

    def _candidate(self, members: Sequence[Site], problem: Problem, converged: Converged | None = None) -> Candidate:
        # A single site keeps its scale, as in the ranking; in a set each has unit scale, and makes the n-th part of
        # the regression's change, so that its edit is that much shorter (as for a kind at all its layers).
        n = len(members)
        scale = self.scales[members[0]] if n == 1 else 1.0
        probe = _sum(self.units[site] for site in members)
        loss = _sum(self.losses[site] for site in members)
        vector = self.vectors(members[0]) if n == 1 else None
        return replace(
            self.like,
            family="linear",
            place=None,
            kernel=Kernel(probe * scale, probe.new_empty(len(probe), 0), loss * scale),
            problem=problem,
            squared_length=lambda: _sum(self.units[site] * self.lengths[site] for site in members) / n**3,
            converged=converged,
            vector=None if vector is None else replace(vector, problem=problem, converged=converged),
            step=None,
        )


def _sum(parts: Iterable[Tensor]) -> Tensor:
    first, *others = parts
    for other in others:
        first = first + other
    return first


def _without_replicates(way: Direction) -> Direction:
    return replace(
        way,
        train_in=way.train_in[:, :1],
        test_in=way.test_in[:, :1],
        groups=(),
        update=(way.update[0][:, :1], way.update[1][:, :1]),
        update_with_mean=(way.update_with_mean[0][:, :1], way.update_with_mean[1][:, :1]),
    )
