"""A Gauss-Newton step, really taken: solved on half the prompts, put into the model, judged on the other half.

The step is the best edit of the linearised model. What a score of kernels cannot see is then in it: the rank that the
edit has, its size, and what the blocks above make of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from steerscope.analysis.capture.outputs import Probes, batch_outputs
from steerscope.analysis.capture.recorder import at_least_float32
from steerscope.analysis.data.encoding import Batch, Encoded, batches
from steerscope.analysis.scoring.converged import loss_decrease
from steerscope.analysis.scoring.kernels import Rows
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.spectrum import RIDGES
from steerscope.models.addends import Edit
from steerscope.models.hooks import edited, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.tokens import pad_token
from steerscope.models.upper_blocks import entering_block, streams_entering
from steerscope.sites import Site

LENGTHS = (0.25, 0.5, 1.0, 2.0)
"""Parts of the step that are tried."""

# A site and a family of edits.
Key = tuple[Site, str]
Progress = Callable[[int, int], None]
# From a part of a step (1 is the whole) to an edit.
EditOfLength = Callable[[float], Edit]


@dataclass(frozen=True)
class Dual:
    """A step in terms of its training rows: the edit is their weighted sum of derivatives of outputs.

    Attributes:
        weights: ``example probe``: zero outside the training half.
        ridge: The ridge it was solved with.
    """

    weights: Tensor
    ridge: float


def dual_step(kernel: Tensor, scale: float, problem: Problem, rows: Rows, curvature: Tensor) -> Dual:
    """Return the Gauss-Newton step on the first half of the prompts.

    The dual weights ``a`` solve ``(C K + ridge) a = r``, ``K`` the kernel at unit scale and ``C`` the softmax's Fisher
    matrices; of :data:`RIDGES` the one is taken with the lowest held-out loss in the linearised model.

    Args:
        kernel: ``row row``, divided by ``scale``.
        scale: The mean of its diagonal before.
        problem: The held-out problem.
        rows: What the kernel's rows are.
        curvature: ``example probe probe``.

    Returns:
        The dual weights of the training rows, with the ridge that was chosen.

    Cost: one solution of a linear system of half the rows per ridge.
    """
    way, curvature = problem.directions[0], curvature.double()
    example, probe = rows.example[way.train], rows.probe[way.train]
    fisher = curvature[example[:, None], probe[:, None], probe[None]] * (example[:, None] == example[None])
    inside, across = kernel[way.train, way.train].double(), kernel[way.test, way.train].double()
    eye = torch.eye(len(inside), dtype=torch.float64)
    best, lowest = None, float("inf")
    for ridge in RIDGES:
        dual = torch.linalg.solve(fisher @ inside + ridge * eye, way.residual[0])
        loss = -float(loss_decrease(across @ dual, way.residual[1], rows, way.test, curvature))
        if loss < lowest:
            best, lowest = (dual, ridge), loss
    assert best is not None, "kernels are finite"
    weights = torch.zeros(curvature.shape[:2], dtype=torch.float64)
    weights[example, probe] = best[0] / scale
    return Dual(weights, best[1])


class Stepper:
    """Takes the steps of many candidates: batch by batch, so that what lies below an edit is run once for all."""

    def __init__(
        self,
        loaded: LoadedModel,
        encoded: Encoded,
        probes: Probes,
        scales: Mapping[Site, Tensor],
        *,
        rank: int,
        batch_size: int,
        progress: Progress | None = None,
    ) -> None:
        self.loaded, self.encoded, self.probes, self.scales, self.rank = loaded, encoded, probes, scales, rank
        self.batch_size, self.progress = batch_size, progress

    def edits(self, duals: Mapping[Key, Dual], half: Sequence[int]) -> dict[Key, EditOfLength]:
        """Return the steps as edits, of the rank that the ranking counts parameters for.

        Args:
            duals: Per site and family the step, as weights on the rows of the kernel.
            half: The examples that the steps are made from.

        Returns:
            Per site and family what makes an edit of a part of the step: 1 is the whole.

        Cost: over the half one forward pass and a backward pass down to every site. Memory: one batch's graph, and a
        matrix per site.
        """
        return {key: self._cut(key, step) for key, step in self._summed(duals, half).items()}

    def decreases(self, steps: Mapping[Key, EditOfLength], judged: Sequence[int]) -> dict[Key, Tensor]:
        """Return how far each step lowers the loss: ``length example``, zero for examples that are not judged, in nats.

        Args:
            steps: Per site and family what makes an edit of a part of the step.
            judged: The examples that the steps are judged on.

        Returns:
            Per site and family, the decrease for each of :data:`LENGTHS`.

        Cost: over these examples one forward pass, and ``len(LENGTHS)`` from every site's block on.
        """
        found = {key: torch.zeros(len(LENGTHS), self.encoded.num_examples, dtype=torch.float64) for key in steps}
        total = len(steps) * len(list(self._batches(judged)))
        done = 0
        with torch.no_grad():
            for batch in self._batches(judged):
                with streams_entering(self.loaded.site_map) as streams:
                    examples, before = self._losses(batch)
                for (site, family), edit in steps.items():
                    for place, length in enumerate(LENGTHS):
                        with (
                            entering_block(self.loaded.site_map, site.layer, streams[site.layer]),
                            edited(self.loaded.model, self.loaded.site_map, {site: edit(length)}),
                        ):
                            found[site, family][place, examples] = before - self._losses(batch)[1]
                    done += 1
                    if self.progress is not None:
                        self.progress(done, total)
        return found

    def _batches(self, examples: Sequence[int]) -> Iterator[Batch]:
        pad = pad_token(self.loaded.tokenizer, self.loaded.model)
        return batches(
            self.encoded, batch_size=self.batch_size, pad_id=pad, device=self.loaded.device, examples=examples
        )

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = batch_outputs(self.loaded.model, batch, self.encoded, self.probes)
        return outputs.examples.cpu(), -outputs.log_likelihood.detach().double().cpu()

    def _summed(self, duals: Mapping[Key, Dual], half: Sequence[int]) -> dict[Key, Tensor]:
        """Return the sums over rows of dual weight times derivative: ``write read`` (scaled), or ``write``."""
        sites = sorted({site for site, _ in duals}, key=lambda site: (site.layer, site.kind.order))
        found: dict[Key, Tensor] = {}
        for batch in self._batches(half):
            values: dict[Site, Tensor] = {}
            reads: dict[Site, Tensor] = {}
            with torch.enable_grad(), self._graph(), tapping(self.loaded.site_map, _keeping(sites, values, reads)):
                outputs = batch_outputs(self.loaded.model, batch, self.encoded, self.probes)
            mask = batch.mask[..., None]
            for site, family in duals:
                weights = duals[site, family].weights[outputs.examples.cpu()].to(outputs.probes)
                scalar = (outputs.probes * weights).sum()
                (grad,) = torch.autograd.grad(scalar, values[site], retain_graph=True)
                grad = (grad * mask).to(at_least_float32(grad.dtype))
                if family == "vector":
                    part = grad.sum((0, 1))
                else:
                    part = torch.einsum("btw,btr->wr", grad, (reads[site] / self.scales[site]).to(grad))
                found[site, family] = found[site, family] + part if (site, family) in found else part
        return found

    def _cut(self, key: Key, step: Tensor) -> EditOfLength:
        if key[1] == "vector":
            return lambda length: lambda read: length * step
        up, down = best_of_rank(step, self.rank)
        scale = self.scales[key[0]]
        return lambda length: lambda read: length * ((read / scale).to(down) @ down.T) @ up.T

    @contextmanager
    def _graph(self) -> Iterator[None]:
        """Begin the graph at the embeddings: weights are frozen."""
        embeddings = self.loaded.model.get_input_embeddings()  # type: ignore[operator]

        def start_graph(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output.detach().requires_grad_(True).clone()  # no leaf of the graph: some models scale it in place

        hook = embeddings.register_forward_hook(start_graph)
        try:
            yield
        finally:
            hook.remove()


def _keeping(
    sites: Sequence[Site], values: dict[Site, Tensor], reads: dict[Site, Tensor]
) -> dict[Site, Callable[[Tensor, Tensor], Tensor]]:
    def tap_of(site: Site) -> Callable[[Tensor, Tensor], Tensor]:
        def tap(value: Tensor, read: Tensor) -> Tensor:
            # A node of its own, so that the derivative is of what flows on through this site alone.
            values[site], reads[site] = value.view_as(value), read.detach()
            return values[site]

        return tap

    return {site: tap_of(site) for site in sites}


def best_of_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors ``row rank`` and ``rank column`` of the nearest matrix of a rank.

    Large matrices are decomposed by a randomised method with a fixed seed, precise where singular values fall.

    Args:
        matrix: Any real matrix.
        rank: Rank of the approximation; cut to the smaller side of the matrix.

    Returns:
        The factors, the singular values in the left one.

    Example:
        >>> left, right = best_of_rank(torch.outer(torch.ones(3), torch.arange(4.0)), rank=1)
        >>> tuple(left.shape), tuple(right.shape), (left @ right)[0].round(decimals=3).abs().tolist()
        ((3, 1), (1, 4), [0.0, 1.0, 2.0, 3.0])
    """
    rank = min(rank, *matrix.shape)
    if min(matrix.shape) <= 4 * rank + 64:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, :rank] * values[:rank], right[:rank]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left, values, right = torch.svd_lowrank(matrix, q=2 * rank + 16, niter=4)
    return left[:, :rank] * values[:rank], right[:, :rank].T
