r"""Does a kernel made again, half a Gauss-Newton step on, order sites better? The two-step ("velocity") share.

    python -m studies.velocity_share studies/site_tables/small-*.json --prompts 96
    python -m studies.velocity_share studies/site_tables/smollm2-135m-recall.json --prompts 64 \
        --layers 10,19,0,29,5,24,14
    python -m studies.velocity_share studies/site_tables/small-*.json --bounded \
        --out studies/results/velocity_share_bounded.json

The plan, written before a number was computed, is docs/validation_plan_4.md. At every site the Gauss-Newton step is
solved on one half of the prompts, half of it is put into the model, and the site's kernel is made again there: ``K'``,
with the scales and sketches of ``K`` (``--bounded``: half of the step, or as much of it as moves a typical token by a
quarter of the length of what it is added to). Sites are scored by ``K + K'``, and beside it by ``K`` alone, on
the other half. Every site is kept as it ends, and a second call goes on with what is missing. What is kept is judged by
``studies/velocity_verdict.py``.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steerscope import SiteTable, get_task, load_model
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.exact import ExactParts
from steerscope.analysis.capture.features import Features
from steerscope.analysis.capture.outputs import Probes, batch_outputs, make_probes
from steerscope.analysis.capture.recorder import at_least_float32
from steerscope.analysis.capture.sketched import SketchedParts
from steerscope.analysis.capture.stored import BatchRows
from steerscope.analysis.data.encoding import Encoded, batches, encode_for
from steerscope.analysis.data.examples import Example, check_examples, content_order
from steerscope.analysis.scoring.converged import Converged
from steerscope.analysis.scoring.gauss_newton import EditOfLength, Stepper, dual_step
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import MIN_EXAMPLES, RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scores import Candidate, compute_score, get_score, relative_length
from steerscope.analysis.scoring.scores.predicted_loss_bounded import LONGEST_EDIT
from steerscope.errors import InputError
from steerscope.experiments.groundwork.splits import splits_of_task
from steerscope.experiments.site_tables import sites_of
from steerscope.files import json_of, json_text, write_text
from steerscope.installed import package_versions
from steerscope.models.addends import Edit, checked
from steerscope.models.hooks import Tap, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.packed import compute_dtype
from steerscope.models.tokens import pad_token
from steerscope.models.upper_blocks import entering_block, streams_entering
from steerscope.models.wrappers import vocab_size
from steerscope.sites import Site, parse_site
from steerscope.steering.config import DEFAULT_RANK
from studies.programs import parser_of, program

HALF = 0.5
"""How much of the step is put into the model before the kernel is made again."""
BOUND = LONGEST_EDIT / 2
"""With ``--bounded``, the edit that is put in is at most so long, relative to what it is added to."""
FACTS = ("seconds", "relative_length", "part", "size")
"""Kept of a site beside its scores: seconds of the second look alone, relative length of the whole step, the part of it
that was put in, and the size of the second kernel as a part of the first one's."""
RESULT = Path("studies/results/velocity_share.json")


class SecondLook:
    """Looks at single sites of a model again with an edit there: each costs what lies above the site, and no more.

    Attributes:
        first: What was captured of the model as it is: scales, rows, residuals.
        rows: What kernels' rows are.
        problem: Learning on the first half, judging on the second: one direction.
        target: Fine-tuning's kernel in the model as it is.
        converged: Its converged update.
    """

    def __init__(
        self, loaded: LoadedModel, examples: Sequence[Example], options: RankOptions, *, exact: bool = False
    ) -> None:
        """Capture the model as it is.

        Args:
            loaded: The model.
            examples: In the order of a ranking: the first half learns, the second judges.
            options: Of a ranking; seed, batch size, rank and ridge are taken from it.
            exact: Whole features instead of sketches.

        Raises:
            InputError: The output directions do not span the outputs, so that the loss has a direction of its own.
        """
        self.loaded, self.options = loaded, options
        self.encoded: Encoded = encode_for(loaded, examples)
        dtype = torch.float64 if loaded.identity.dtype == "float64" else torch.float32
        self.probes: Probes = make_probes(
            self.encoded, options.num_probes, vocab_size(loaded.model), options.seed, dtype
        )
        if not self.probes.spans:
            raise InputError(
                f"{self.probes.num_probes} output directions do not span the outputs of these examples; expected "
                "examples with choices, and as many directions as one fewer than there are choices."
            )
        # Both looks go back through the weights as they are.
        self.plan = replace(options.sketch, exact=exact, rounded_back=False)
        self.first: Features = capture(
            loaded, self.encoded, self.probes, self.plan, seed=options.seed, batch_size=options.batch_size
        )
        self.rows = Rows.of(self.first)
        middle = self.encoded.num_examples // 2
        self.halves = range(middle), range(middle, self.encoded.num_examples)
        self.target = Kernel.of(self.first.weights, self.first, self.rows, what="the weights")
        self.both_ways = Problem.of(self.target, self.rows, self.halves, num_groups=0, ridge=options.ridge)
        self.problem = replace(self.both_ways, directions=self.both_ways.directions[:1])
        self.converged, self.converged_both_ways = (
            Converged.of(self.target, one, self.rows, self.first.curvature) for one in (self.problem, self.both_ways)
        )
        self.stepper = Stepper(
            loaded, self.encoded, self.probes, self.first.scales, rank=options.rank, batch_size=options.batch_size
        )
        self.streams: list[list[Tensor]] = []
        with torch.no_grad():
            for batch in self._batches():
                with streams_entering(loaded.site_map) as streams:
                    batch_outputs(loaded.model, batch, self.encoded, self.probes)
                self.streams.append(list(streams))

    def _batches(self) -> list[Any]:
        pad = pad_token(self.loaded.tokenizer, self.loaded.model)
        return list(batches(self.encoded, batch_size=self.options.batch_size, pad_id=pad, device=self.loaded.device))

    def kernel(self, site: Site) -> Kernel:
        """Return the kernel of a linear edit at a site in the model as it is."""
        return self._kernel(self.first.linear[site], site)

    def kernel_behind(self, site: Site, edit: Edit) -> Kernel:
        """Return the kernel of a linear edit at a site where another one is in place already.

        Derivatives are by what is added to the edit's matrix, so what the site reads is the same; what is derived is of
        the edited model.

        Args:
            site: The site.
            edit: From what the site reads to what is added there.

        Returns:
            The kernel, from features made with the scales and sketches of the first look.

        Cost: a forward pass and a backward pass per output direction, from the site's block on.
        """
        site_map, write = self.loaded.site_map, self.loaded.site_map.write(site)
        parts = self._parts(write, site)
        for batch, streams in zip(self._batches(), self.streams, strict=True):
            parts.start(BatchRows.of(batch))
            leaves: list[Tensor] = []
            tap = _changed(checked(site, edit), partial(parts.read_site, site), leaves)
            with (
                torch.enable_grad(),
                entering_block(site_map, site.layer, streams[site.layer]),
                tapping(site_map, {site: tap}),
            ):
                outputs = batch_outputs(self.loaded.model, batch, self.encoded, self.probes)
            for slot in range(self.probes.num_probes):
                parts.start_slot(slot)
                (grad,) = torch.autograd.grad(outputs.probes[:, slot].sum(), leaves[-1], retain_graph=True)
                parts.grad_of_site(write, grad)
                parts.finish_slot()
            parts.finish()
        return self._kernel(parts.linear[site], site)

    def _parts(self, write: Site, site: Site) -> ExactParts | SketchedParts:
        written_at, scales, device = {write: [site]}, self.first.scales, self.loaded.device
        shape = self.encoded.num_examples, self.probes.num_probes
        dtype = at_least_float32(compute_dtype(self.loaded.model))
        if self.plan.exact:
            return ExactParts(written_at, scales, shape, dtype, device)
        return SketchedParts([], written_at, scales, self.plan, shape, dtype, device, self.options.seed)

    def _kernel(self, feature: Tensor, site: Site) -> Kernel:
        return Kernel.of([feature], self.first, self.rows, cross=False, what=f"an edit of '{site}'")

    def step(self, site: Site, kernel: Kernel) -> tuple[EditOfLength, float]:
        """Return the Gauss-Newton step at a site, made from the first half, and how long it is.

        Args:
            site: The site.
            kernel: Its kernel in the model as it is.

        Returns:
            From a part of the step to an edit; and the most by which the whole step, before it is cut to the rank,
            moves a typical token, relative to what it is added to (by its Frobenius norm).
        """
        dual = dual_step(kernel.probe / kernel.unit, kernel.unit, self.problem, self.rows, self.first.curvature)
        key, way = (site, "linear"), self.problem.directions[0]
        weights = dual.weights[self.rows.example[way.train], self.rows.probe[way.train]] * kernel.unit
        held = self.first.held_length[self.loaded.site_map.write(site)]
        candidate = self._candidate(kernel, relative_length(kernel, self.first.read_length[site], held))
        squares = candidate.squares_of_edit(weights[:, None], way)
        return self.stepper.edits({key: dual}, self.halves[0])[key], float(squares.sqrt())

    def _candidate(
        self, kernel: Kernel, squared_length: float = 0.0, *, both_ways: bool = False, step: Tensor | None = None
    ) -> Candidate:
        return Candidate(
            family="linear",
            place=None,
            kernel=kernel,
            target=self.target,
            problem=self.both_ways if both_ways else self.problem,
            rows=self.rows,
            curvature=self.first.curvature,
            squared_length=squared_length,
            converged=self.converged_both_ways if both_ways else self.converged,
            step=step,
        )

    def score(self, name: str, kernel: Kernel, *, both_ways: bool = False, step: Tensor | None = None) -> float:
        """Return a score of the package of some kernel.

        Args:
            name: Its name.
            kernel: The kernel.
            both_ways: Let both halves learn and judge in turn.
            step: ``length example``: how far a step lowers the loss, for the score of one.
        """
        candidate = self._candidate(kernel, both_ways=both_ways, step=step)
        return float(compute_score(candidate, get_score(name))[0])

    def scores(self, site: Site, length: float = HALF, *, longest: float = math.inf) -> dict[str, float]:
        """Return everything that the plan asks of one site.

        Args:
            site: The site.
            length: The part of the step that is put into the model.
            longest: Less of it is put in where it would be longer than this, relative to what it is added to.

        Returns:
            Scores by name, higher for a better site; and :data:`FACTS`.
        """
        before = self.kernel(site)
        own = {name: self.score(name, before) for name in ("learnable_share", "converged_share", "predicted_loss")}
        own |= {
            f"{name}_both_ways": self.score(name, before, both_ways=True)
            for name in ("learnable_share", "converged_share")
        }
        if before.scale <= 0:  # an edit that moves nothing moves nothing later
            names = ("gauss_newton_step", "velocity_share", "velocity_converged", "after_step_share", "kernel_change")
            return own | dict.fromkeys((*names, *FACTS), 0.0)
        (edit, relative), key = self.step(site, before), (site, "linear")
        decreases = self.stepper.decreases({key: edit}, self.halves[1])[key]
        # Judged on the second half whatever the problem, which has to know all prompts.
        own["gauss_newton_step"] = self.score("gauss_newton_step", before, both_ways=True, step=decreases)
        started = time.perf_counter()
        part = min(length, longest / max(relative, 1e-30))
        after = self.kernel_behind(site, edit(part))
        seconds = time.perf_counter() - started
        together = before + after
        own["velocity_share"] = self.score("learnable_share", together)
        own["velocity_converged"] = self.score("converged_share", together)
        own["after_step_share"] = self.score("learnable_share", after)
        own["kernel_change"] = -float((after.probe - before.probe).norm() / before.probe.norm())
        shrunk = float(after.probe.norm() / before.probe.norm())
        return own | dict(zip(FACTS, (seconds, relative, part, shrunk), strict=True))


def _changed(edit: Edit, read_site: Any, leaves: list[Tensor]) -> Tap:
    """Return a tap that adds an edit and begins the graph there: nothing below depends on what is added."""

    def tap(value: Tensor, read: Tensor) -> Tensor:
        read_site(read.detach())
        leaves.append((value + edit(read)).detach().requires_grad_(True))
        return leaves[-1].clone()  # no leaf goes on: some blocks change what they get in place

    return tap


def examples_of(table: SiteTable, count: int) -> list[Example]:
    """Return the first so many prompts, by content, of the table's own draw for rankings, in a ranking's order.

    Args:
        table: The table.
        count: How many, at least 24.

    Raises:
        InputError: There are fewer.
    """
    seed, drawn_count = table.ranking.draw()
    drawn = splits_of_task(get_task(table.task)).ranking(drawn_count, seed)
    kept, _ = check_examples(list(drawn), minimum=MIN_EXAMPLES)
    if not MIN_EXAMPLES <= count <= len(kept):
        raise InputError(
            f"--prompts is {count}; expected {MIN_EXAMPLES} to {len(kept)}, what {table.name} was ranked with."
        )
    return [kept[i] for i in content_order(kept, seed)[:count]]


def sites_wanted(table: SiteTable, layers: Sequence[int] | None) -> list[str]:
    """Return a table's sites in the order in which they are looked at.

    Args:
        table: The table.
        layers: Only these, in this order; None: all.

    Raises:
        InputError: The table has none at a layer.
    """
    sites = list(sites_of(table))
    if layers is None:
        return sites
    if missing := [layer for layer in layers if layer not in {parse_site(site).layer for site in sites}]:
        raise InputError(f"the table of {table.name} has no site at layer {missing[0]}.")
    return [site for layer in layers for site in sites if parse_site(site).layer == layer]


def look(path: Path, asked: argparse.Namespace, found: dict[str, Any]) -> None:
    """Score the sites of one table that are not scored yet, and keep each.

    Args:
        path: The table.
        asked: The command line.
        found: What the result file holds; it is written after every site.

    Raises:
        InputError: What is kept was made with other prompts.
    """
    table = SiteTable.load(path)
    own = found["tables"].setdefault(path.stem, {"prompts": asked.prompts, "sites": {}})
    if own["prompts"] != asked.prompts:
        raise InputError(
            f"{str(asked.out)!r} holds scores of {path.stem} from {own['prompts']} prompts, and --prompts is "
            f"{asked.prompts}. Ask for as many, or name another --out."
        )
    todo = [site for site in sites_wanted(table, asked.layers) if site not in own["sites"]][: asked.limit]
    if not todo:
        return
    options = RankOptions(seed=table.ranking.draw()[0], rank=table.edit.rank or DEFAULT_RANK)
    started = time.perf_counter()
    second = SecondLook(load_model(table.model.name), examples_of(table, asked.prompts), options)
    own["seconds_of_first_look"] = time.perf_counter() - started
    own["output_directions"] = second.probes.num_probes
    for done, site in enumerate(todo):
        own["sites"][site] = second.scores(parse_site(site), longest=BOUND if asked.bounded else math.inf)
        write_text(asked.out, json_text(found))
        if not (done + 1) % 7 or done + 1 == len(todo):
            print(f"{path.stem}: {done + 1} of {len(todo)}, {time.perf_counter() - started:.0f} s", flush=True)


@program("study")
def main() -> None:
    """Run from the command line."""
    parser = parser_of(__doc__)
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--prompts", type=int, default=96, help="half learn, half judge")
    parser.add_argument(
        "--layers", type=lambda text: [int(one) for one in text.split(",")], help="only these, in order"
    )
    parser.add_argument("--bounded", action="store_true", help=f"put in an edit of relative length {BOUND} at most")
    parser.add_argument("--limit", type=int, help="at most so many sites of a table in this call")
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()

    found: dict[str, Any] = json_of(asked.out) if asked.out.exists() else {"tables": {}}
    longest = BOUND if asked.bounded else None
    if found.get("longest", longest) != longest:
        raise InputError(
            f"{str(asked.out)!r} holds steps {'bounded to' if found['longest'] else 'without a bound, not'} "
            f"{found['longest'] or longest}. Give {'' if found['longest'] else 'no '}--bounded, or another --out."
        )
    found |= {"length": HALF, "longest": longest, "versions": package_versions()}
    for path in asked.tables:
        look(path, asked, found)


if __name__ == "__main__":
    raise SystemExit(main())
