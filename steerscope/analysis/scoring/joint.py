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
from steerscope.analysis.scoring.kernels import Kernel, picked, picked_square
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import DEFAULT_SCORE, Candidate, Needs, compute_score, get_score
from steerscope.analysis.scoring.scores.learnable_share import quick_shares, share_of
from steerscope.analysis.scoring.triangles import Triangles, mirrored
from steerscope.finite import require_finite
from steerscope.sites import Site


class _Search(threading.local):
    """What a search adds each candidate to, and where it adds it up: room that is used again costs no new memory."""

    members: Sequence[Site] | None = None
    base: Tensor | None = None
    room: Tensor | None = None


@dataclass(frozen=True)
class LearnableShares:
    """The learnable share of sets of sites, from their unit-scale kernels ``row row``."""

    units: Mapping[Site, Tensor]
    problem: Problem
    of_sets: ClassVar[str] = DEFAULT_SCORE
    _search: _Search = field(default_factory=_Search, repr=False, compare=False)

    def of_set(self, members: Sequence[Site]) -> Tensor:
        """Return the share of a set ``column``: the whole sample, then one entry per left-out group.

        Args:
            members: Sites that are edited at once; their kernels add up.

        Returns:
            The share, 1 where everything is learnable.
        """
        *others, last = members
        return share_of(mirrored(self._lower_sums(others, [last])[0]), self.problem)

    def with_each(self, members: Sequence[Site], candidates: Sequence[Site]) -> list[float]:
        """Return the share of a set with each candidate added, in the kernels' precision and without the jackknife.

        Args:
            members: The set; it may be empty.
            candidates: Sites that are not in it.

        Returns:
            One number per candidate.
        """
        return quick_shares(self._lower_sums(members, candidates), self.problem).tolist()

    def _lower_sums(self, members: Sequence[Site], candidates: Sequence[Site]) -> Tensor:
        """Return sums of kernels ``candidate row row``, right in the lower triangles; calls write over them."""
        if not isinstance(self.units, Triangles):
            own = [self.units[site] for site in members]
            return torch.stack([_sum([*own, self.units[site]]) for site in candidates])
        units, search = self.units, self._search
        if search.room is None or len(search.room) < len(candidates):
            one = units[candidates[0]]
            search.room = one.new_zeros(len(candidates), *one.shape)
        if search.members != list(members):
            search.members, search.base = list(members), None
            for site in members:
                base = torch.zeros_like(search.room[0])
                units.kept[site].put_lower(base, search.base, units.of)
                search.base = base
        room = search.room[: len(candidates)]
        for place, site in zip(room, candidates, strict=True):
            units.kept[site].put_lower(place, search.base, units.of)
        return room


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
        units: Triangles,
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

    @property
    def problem(self) -> Problem:
        """The held-out problem."""
        return self.like.problem

    @cached_property
    def _shares(self) -> LearnableShares:
        return LearnableShares(self.units, self.like.problem)

    @cached_property
    def _whole(self) -> Problem:
        """The problem without replicates: a search through sets needs none."""
        return self.like.problem.without_replicates()

    def of_set(self, members: Sequence[Site]) -> Tensor:
        """Return the score of a set ``column``, each kernel at unit scale.

        Args:
            members: Sites that are edited at once; their kernels add up.

        Returns:
            The score: the whole sample, then one entry per left-out group.

        Cost: two factorisations of half the rows.
        """
        if self.of_sets == DEFAULT_SCORE:
            return self._shares.of_set(members)
        return self._of_candidate(members, self.like.problem)

    def with_each(self, members: Sequence[Site], candidates: Sequence[Site]) -> list[float]:
        """Return the score of a set with each candidate added, of the whole sample alone.

        Args:
            members: The set.
            candidates: Sites that are not in it.

        Returns:
            One number per candidate.
        """
        if self.of_sets == DEFAULT_SCORE:
            return self._shares.with_each(members, candidates)
        return [float(self._of_candidate([*members, site], self._whole)[0]) for site in candidates]

    def _of_candidate(self, members: Sequence[Site], problem: Problem) -> Tensor:
        found = compute_score(self._candidate(members, problem), get_score(self.of_sets))
        require_finite(f"the score {self.of_sets!r} of a set of sites", found)
        return found

    def on_first(self, count: int) -> JointScores:
        """Return the scores on the first prompts of either half, whose order says nothing; of several sites only.

        What is to be learned stays fine-tuning's update from the whole of a half.

        Args:
            count: How many of either half.

        Returns:
            The scores on so many, at a small part of the cost.
        """
        like = self.like
        halves = [like.rows.examples_of(way.train)[:count] for way in like.problem.directions]
        halves.sort(key=lambda half: half.start)
        of = [like.rows.of_examples(half) for half in halves]
        like = replace(
            like,
            target=like.target.part(of, halves),
            problem=like.problem.on_first(of),
            rows=like.rows.part(of, halves),
            curvature=picked(like.curvature, halves),
        )
        losses = {site: picked_square(loss, halves) for site, loss in self.losses.items()}
        return JointScores(self.score, like, self.units.part(of), losses, self.scales, self.lengths, self.vectors)

    def on(self, problem: Problem) -> Callable[[Site], float]:
        """Return the score of single sites as a function, on the prompts of another problem."""
        score = get_score(self.of_halves)
        if score.name == DEFAULT_SCORE:
            shares = LearnableShares(self.units, problem)
            return lambda site: shares.with_each([], [site])[0]
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
