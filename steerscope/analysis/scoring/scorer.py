"""Features to scores, site by site; a site's features are dropped once its kernel is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, product

import torch
from torch import Tensor

from steerscope.analysis.capture.features import Features
from steerscope.analysis.capture.outputs import Probes
from steerscope.analysis.data.encoding import Encoded
from steerscope.analysis.results import KindScore, SiteScore
from steerscope.analysis.scoring.converged import Converged
from steerscope.analysis.scoring.gauss_newton import LENGTHS, Progress, Stepper, dual_step
from steerscope.analysis.scoring.intervals import jackknife_interval
from steerscope.analysis.scoring.joint import JointScores
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import (
    DEFAULT_SCORE,
    Candidate,
    Needs,
    Place,
    compute_score,
    compute_scores,
    get_score,
    relative_length,
)
from steerscope.analysis.scoring.standing import MARGIN, standing_of
from steerscope.analysis.scoring.triangles import Triangle, Triangles, mirrored
from steerscope.equivalence.kernels import gram
from steerscope.finite import require_finite
from steerscope.models.load import LoadedModel
from steerscope.process import return_freed_memory, side_by_side
from steerscope.sites import Site, SiteKind
from steerscope.steering.config import SteeringConfig
from steerscope.steering.holding import served_as

# What a candidate stands for; a bias of a linear edit would be a vector's part.
_EDITS = {
    "linear": lambda site: SteeringConfig((site,), family="linear", bias=False),
    "vector": lambda site: SteeringConfig((site,), family="vector"),
}

# After so many sites freed memory goes back to the system: to fetch it again takes a while, too.
_TRIMMED = 40
# So many vectors of a kind are multiplied at once.
_TOGETHER = 8
# Half precision ends at 65504.
_LARGEST_HALF = 6e4


# Rounding ``n`` rows to half precision moves eigenvalues of a unit kernel by some 7e-4 sqrt(n); ten times as far.
_NOISE = 7e-3


def _kept_as(feature: Tensor, kernel: Kernel, options: RankOptions) -> torch.dtype:
    """Return the data type that a unit kernel is kept in: of sketches half precision holds far more than they know.

    Not where a ridge is as small as the rounding, nor for scores that look at small eigenvalues. No number of a
    positive kernel is larger than the largest of its diagonal.
    """
    largest = float(kernel.diagonal.max()) if feature.dtype == torch.int8 else math.inf
    rounds = largest < _LARGEST_HALF * kernel.unit and options.ridge > _NOISE * math.sqrt(len(kernel.diagonal))
    rounds = rounds and not {Needs.STEP, Needs.SPECTRUM} & set(options.needs)
    return torch.float16 if rounds else torch.float32


@dataclass(frozen=True)
class _Part:
    """Of one family at a site: its scores, and its loss kernel and squared length at unit scale."""

    scores: dict[str, Tensor]
    loss: Tensor
    length: float


@dataclass(frozen=True)
class _Scored:
    """What is kept of a site: both families, and the linear edit's scale and unit kernel."""

    site: Site
    scale: float
    linear: _Part
    vector: _Part
    unit_kernel: Triangle


class Scorer:
    """Turns features into scores site by site, dropping the features of a site once its kernel is made."""

    def __init__(
        self,
        loaded: LoadedModel,
        features: Features,
        rows: Rows,
        target: Kernel,
        problem: Problem,
        options: RankOptions,
    ) -> None:
        self.loaded, self.features, self.rows, self.target = loaded, features, rows, target
        self.problem, self.options = problem, options
        self.linear_kernels = Triangles()
        self._kept: dict[Site, _Scored] = {}
        self._vector: tuple[Site, Candidate] | None = None
        self._scores: dict[tuple[Site, str], dict[str, Tensor]] = {}
        self._kind_sites: dict[tuple[SiteKind, str], list[Site]] = {}

    def num_params(self, site: Site, family: str) -> int:
        """Parameters of one edit: a vector, or two factors of the given rank.

        Args:
            site: The edited site.
            family: ``vector`` or ``linear``.

        Returns:
            A number of trained parameters.
        """
        width = self.loaded.site_map.width(site)
        return width if family == "vector" else 2 * width * self.options.rank

    @cached_property
    def converged(self) -> Converged | None:
        """Fine-tuning's converged update, where a score of the ranking needs it."""
        if Needs.SPECTRUM not in self.options.needs:
            return None
        return Converged.of(self.target, self.problem, self.rows, self.features.curvature)

    def add(self, sites: Iterable[Site], progress: Callable[[int, int], None] | None = None) -> None:
        """Score sites, both families.

        Args:
            sites: The sites; those that write at one point are scored together.
            progress: Called with sites done and sites in all.
        """
        by_write: dict[Site, list[Site]] = {}
        for site in sites:
            by_write.setdefault(self.loaded.site_map.write(site), []).append(site)
        done, total = 0, sum(map(len, by_write.values()))
        _ = self.converged  # made once, before threads ask for it
        for found in side_by_side(self._at_write, by_write.items()):
            for one in found:
                self._keep(one)
            done += len(found)
            if done // _TRIMMED > (done - len(found)) // _TRIMMED:
                return_freed_memory()
            if progress is not None:
                progress(done, total)

    def _at_write(self, write_and_sites: tuple[Site, list[Site]]) -> list[_Scored]:
        """Score the sites that write at one point: they share their vector, whose kernel scores are computed once."""
        write, sites = write_and_sites
        vector = self._vector_candidate(write)
        vector_scores = compute_scores(vector, *self.options.needs)
        return [self._scored(site, write, vector, vector_scores) for site in sites]

    def _scored(self, site: Site, write: Site, vector: Candidate, vector_scores: dict[str, Tensor]) -> _Scored:
        feature = self.features.linear.pop(site)
        kernel = Kernel.of([feature], self.features, self.rows, cross=False, what=f"an edit of '{site}'")
        length = relative_length(kernel, self.features.read_length[site], self.features.held_length[write])
        linear = self._candidate(kernel, length, "linear", site, vector)
        assert isinstance(vector.squared_length, float), "a single site's length is a multiple of its kernel"
        at_place = compute_scores(replace(vector, place=self._place(site)), Needs.PLACE)
        return _Scored(
            site,
            kernel.scale,
            _Part(compute_scores(linear, *self.options.needs), kernel.loss / kernel.unit, length),
            _Part(vector_scores | at_place, vector.kernel.loss / vector.kernel.unit, vector.squared_length),
            Triangle(kernel.probe, _kept_as(feature, kernel, self.options), kernel.unit),
        )

    def _keep(self, one: _Scored) -> None:
        self._record(one.site, "linear", one.linear.scores)
        self._record(one.site, "vector", one.vector.scores)
        self._kept[one.site] = one
        self.linear_kernels.kept[one.site] = one.unit_kernel

    def take_steps(
        self, encoded: Encoded, probes: Probes, halves: tuple[range, range], progress: Progress | None = None
    ) -> None:
        """Take a Gauss-Newton step at every site that was added, both families, and score it.

        Args:
            encoded: The examples as tokens.
            probes: Their output directions.
            halves: Examples that steps are made from, and examples that they are judged on.
            progress: Called with the stage, batches done and batches in all.
        """
        duals = {}
        for site in self.linear_kernels:
            vector = self._vector_at(site)
            for family in ("linear", "vector"):
                scale = self._kept[site].scale if family == "linear" else vector.kernel.scale
                if scale > 0:
                    unit = self.linear_kernels[site] if family == "linear" else vector.unit_kernel
                    duals[site, family] = dual_step(unit, scale, self.problem, self.rows, self.features.curvature)
        options = self.options
        stepper = Stepper(
            self.loaded,
            encoded,
            probes,
            self.features.scales,
            rank=options.rank,
            batch_size=options.batch_size,
            progress=progress,
        )
        steps = stepper.decreases(stepper.edits(duals, halves[0]), halves[1])
        like = self._vector_at(next(iter(self.linear_kernels)))
        nowhere = torch.zeros(len(LENGTHS), self.rows.num_examples, dtype=torch.float64)
        for site, family in product(self.linear_kernels, ("linear", "vector")):
            step = steps.get((site, family), nowhere)
            require_finite(f"the loss with a step at '{site}' ({family})", step)
            candidate = replace(like, family=family, step=step)
            self._scores[site, family] |= compute_scores(candidate, Needs.STEP)

    def _vector_at(self, site: Site) -> Candidate:
        """Return the vector at a site: the latest is kept, others are made again, for less than keeping them costs."""
        write = self.loaded.site_map.write(site)
        kept = self._vector
        if kept is None or kept[0] != write:
            kept = self._vector = write, self._vector_candidate(write)
        return kept[1]

    def _vector_candidate(self, write: Site) -> Candidate:
        kernel = Kernel.of(
            [self.features.vector[write]], self.features, self.rows, cross=False, what=f"a vector at '{write}'"
        )
        length = relative_length(kernel, 1.0, self.features.held_length[write])
        return self._candidate(kernel, length, "vector", None)

    def _candidate(
        self,
        kernel: Kernel,
        length: Callable[[], Tensor] | float,
        family: str,
        site: Site | None,
        vector: Candidate | None = None,
    ) -> Candidate:
        return Candidate(
            family=family,
            place=None if site is None else self._place(site),
            kernel=kernel,
            target=self.target,
            problem=self.problem,
            rows=self.rows,
            curvature=self.features.curvature,
            squared_length=length,
            seed=self.options.seed,
            converged=self.converged,
            vector=vector,
            num_training=self.options.num_training,
        )

    def _place(self, site: Site) -> Place:
        known, site_map = self.features, self.loaded.site_map
        held = known.held_length[site_map.write(site)]
        return Place(site, len(site_map.blocks), known.read_rms[site], held, known.places[site])

    def _record(self, site: Site, family: str, scores: dict[str, Tensor]) -> None:
        self._scores[site, family] = scores
        for name, values in scores.items():
            require_finite(f"the score {name!r} of '{site}' ({family})", values)
        key = (site.kind, family)
        self._kind_sites.setdefault(key, []).append(site)

    def site_scores(self) -> tuple[SiteScore, ...]:
        """Return all candidates, best first."""
        by = self.options.score
        order = sorted(self._scores, key=lambda key: (-float(self._scores[key][by][0]), str(key[0]), key[1]))
        best = self._scores[order[0]][by]
        margin = self.equal_margin()
        out = []
        for site, family in order:
            scores = self._scores[site, family]
            value, low, high = jackknife_interval(scores[by], get_score(by).highest)
            difference = jackknife_interval(best - scores[by])
            out.append(
                SiteScore(
                    layer=site.layer,
                    kind=site.kind.value,
                    family=family,
                    score=value,
                    ci_low=low,
                    ci_high=high,
                    n_params=self.num_params(site, family),
                    ties_with_best=difference[1] <= 0,
                    scores={name: float(values[0]) for name, values in scores.items()},
                    difference=difference[0],
                    difference_low=difference[1],
                    difference_high=difference[2],
                    standing=standing_of(difference[1], difference[2], margin).value,
                    served_as=served_as(_EDITS[family](str(site)), self.loaded.site_map),
                )
            )
        return tuple(out)

    def equal_margin(self) -> float:
        """Return the largest difference to the best candidate that does not matter, in the score's unit."""
        return MARGIN * abs(max(float(scores[self.options.score][0]) for scores in self._scores.values()))

    def linear_scores(self, name: str) -> dict[Site, float]:
        """Return one score of every linear edit."""
        return {site: float(self._scores[site, "linear"][name][0]) for site in self.linear_kernels}

    def joint_scores(self) -> JointScores:
        """Return the ranking's score for sets of linear edits, and for other prompts."""
        like = self._vector_at(next(iter(self.linear_kernels)))
        return JointScores(
            self.options.score,
            like,
            self.linear_kernels,
            {site: one.linear.loss for site, one in self._kept.items()},
            {site: one.scale for site, one in self._kept.items()},
            {site: one.linear.length for site, one in self._kept.items()},
            self._vector_at,
        )

    @property
    def kind_score(self) -> str:
        """The score of kinds at all layers: the ranking's where it is defined for several sites together."""
        asked = get_score(self.options.score)
        return asked.name if asked.needs.is_of_kernels else DEFAULT_SCORE

    def kind_scores(self) -> tuple[KindScore, ...]:
        """Return each kind steered at all layers at once, best first."""
        kinds = list(dict.fromkeys(kind for kind, _ in self._kind_sites))
        found = side_by_side(self._scores_of_kind, kinds)
        return tuple(sorted(chain.from_iterable(found), key=lambda k: (-k.score, k.kind, k.family)))

    def _scores_of_kind(self, kind: SiteKind) -> list[KindScore]:
        by, out = get_score(self.kind_score), []
        vector: Candidate | None = None
        for family in ("vector", "linear"):
            sites = self._kind_sites[kind, family]
            candidate = self._of_kind(sites, family, vector)
            if family == "vector":
                vector = candidate
            scores = compute_score(candidate, by)
            require_finite(f"the score {by.name!r} of all sites of kind '{kind}' ({family})", scores)
            value, low, high = jackknife_interval(scores, by.highest)
            count = sum(self.num_params(site, family) for site in sites)
            out.append(KindScore(kind.value, family, value, low, high, count, len(sites)))
        return out

    def _of_kind(self, sites: list[Site], family: str, vector: Candidate | None) -> Candidate:
        """Return the edit of several sites at once, each kernel of unit scale."""

        def sum_of(factors: Mapping[Site, float]) -> Tensor:
            if family == "linear":
                total = self.linear_kernels.kept[sites[0]].empty()
                for site, factor in factors.items():
                    self.linear_kernels.kept[site].add_to(total, factor)
                return mirrored(total)
            kernels = {site: self._vector_at(site).kernel for site in sites}
            scales = [factor / kernels[site].unit for site, factor in factors.items()]
            total = torch.zeros(len(self.rows.example), len(self.rows.example))
            for first in range(0, len(sites), _TOGETHER):
                some = list(zip(kernels.values(), scales, strict=True))[first : first + _TOGETHER]
                narrow = [kernel.factor * scale**0.5 for kernel, scale in some if kernel.factor is not None]
                if len(narrow) == len(some):  # side by side, their inner products add
                    total = total.to(narrow[0]).add_(gram(torch.cat(narrow, dim=1)))
                    continue
                for kernel, scale in some:
                    total = total.to(kernel.probe).add_(kernel.probe, alpha=scale)
            return total

        parts = {site: getattr(self._kept[site], family) for site in sites}
        loss = torch.stack([part.loss for part in parts.values()]).sum(0)
        # Each of n sites makes the n-th part of the regression's change; its edit is that much shorter. The length of
        # the whole is the root mean square over sites.
        n = len(sites)
        kernel = Kernel(sum_of(dict.fromkeys(sites, 1.0)), loss.new_empty(len(self.rows.example), 0), loss)
        return self._candidate(
            kernel, lambda: sum_of({site: part.length for site, part in parts.items()}) / n**3, family, None, vector
        )
