"""One pass over the examples that records what every empirical neural tangent kernel needs, for all sites and weights.

A site is a hook point: a tensor inside a decoder block, most often the residual stream or what a branch adds to it.

Forward hooks project what is read (by sites and by weight matrices), gradient hooks project what is derived,
and the two meet in the features of each probe at once, so that neither activations nor gradients outlive a
batch. Memory: ``examples x backward passes x feature length`` numbers per site (of eight bits when sketched), the
same for the sum over weights, and one batch's graph. The exact bound is :func:`feature_bytes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from steerscope.analysis.capture.batch_plan import planned_batches
from steerscope.analysis.capture.features import Features, SketchPlan, feature_bytes
from steerscope.analysis.capture.outputs import Probes, batch_outputs, selected_positions
from steerscope.analysis.capture.places import PlaceWatch
from steerscope.analysis.capture.recorder import Recorder, at_least_float32
from steerscope.analysis.capture.way_back import LARGEST_ERROR
from steerscope.analysis.data.encoding import Batch, Encoded, batches, batches_of
from steerscope.finite import require_finite
from steerscope.models.hooks import Tap, tapping
from steerscope.models.load import LoadedModel
from steerscope.models.packed import compute_dtype
from steerscope.models.tokens import pad_token
from steerscope.process import return_freed_memory, side_by_side, threads_at_once
from steerscope.sites import Site

# Called with (passes done, passes in all) as work goes on.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReadStats:
    """What sites read, before anything is projected.

    Attributes:
        scales: Per site ``channel``: root mean square over tokens of every channel it reads.
        lengths: Per site the typical length of what it reads, and of the same divided by ``scales``: medians over
            the tokens in the middle and at the end of sequences. Medians, because a few tokens (the first of a text,
            mostly) have streams a hundred times longer.
    """

    scales: dict[Site, Tensor]
    lengths: dict[Site, tuple[float, float]]


def read_stats(
    loaded: LoadedModel, encoded: Encoded, *, batch_size: int, max_examples: int, watch: PlaceWatch | None = None
) -> ReadStats:
    """Measure what every site reads on the first ``max_examples`` examples, in one forward pass.

    What ``watch`` wants to see of the pass is shown to it.

    Channel by channel, because edits of a ranking are scaled so; one number over all channels, as trained edits are
    scaled, is what :func:`steerscope.steering.scales.measure_scales` returns.

    Channels that never vary from zero get the smallest positive scale, so that dividing by it is safe. Memory: two
    tokens of every sequence at every site, until the pass ends.

    Args:
        loaded: The model.
        encoded: The examples as tokens.
        batch_size: Sequences per forward pass.
        max_examples: How many examples, from the first on, are read.
        watch: What else looks at the pass: the numbers of a place, if a score needs them.

    Returns:
        Per site the scale of every channel and the typical length of what it reads.

    Raises:
        InputError: What a site reads is NaN or infinite.
    """
    sums: dict[Site, Tensor] = {}
    samples: dict[Site, list[Tensor]] = {}
    count, real, columns = 0, torch.zeros(0), torch.zeros(0)

    def measure(site: Site) -> Tap:
        def tap(value: Tensor, read: Tensor) -> None:
            read = read.to(real)
            squares = real @ read.pow(2).flatten(0, 1)
            sums[site] = sums[site] + squares if site in sums else squares
            rows = torch.arange(len(read), device=read.device)[:, None]
            samples.setdefault(site, []).append(read[rows, columns].flatten(0, 1))

        return tap

    dtype = at_least_float32(compute_dtype(loaded.model))
    chosen = range(min(max_examples, encoded.num_examples))
    with (
        torch.no_grad(),
        tapping(loaded.site_map, {site: measure(site) for site in loaded.site_map.sites()}),
        nullcontext() if watch is None else watch.attached(),
    ):
        for batch in batches(
            encoded,
            batch_size=batch_size,
            pad_id=pad_token(loaded.tokenizer, loaded.model),
            device=loaded.device,
            examples=chosen,
        ):
            real = batch.mask.flatten().to(dtype)
            columns = batch.offset[:, None] + torch.stack([batch.length // 2, batch.length - 1], dim=1)
            count += int(batch.mask.sum())
            if watch is not None:
                watch.start(batch)
            nowhere = torch.zeros(1, dtype=torch.long, device=loaded.device)
            with selected_positions(loaded.model, nowhere, nowhere):  # no logits are needed
                loaded.model(
                    input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.position_ids, use_cache=False
                )
    scales, lengths = {}, {}
    for site, total in sums.items():
        rms = (total / count).sqrt()
        require_finite(f"what the site '{site}' reads", rms)
        scales[site] = rms.clamp_min(max(1e-6 * float(rms.max()), 1e-30))
        sample = torch.cat(samples.pop(site))
        lengths[site] = (_median_length(sample), _median_length(sample / scales[site]))
    return ReadStats(scales, lengths)


def _median_length(vectors: Tensor) -> float:
    return float(vectors.norm(dim=1).median())


def capture(
    loaded: LoadedModel,
    encoded: Encoded,
    probes: Probes,
    plan: SketchPlan,
    *,
    seed: int,
    batch_size: int,
    padding_side: str = "right",
    scale_examples: int = 64,
    progress: Progress | None = None,
    part_of: tuple[Encoded, Sequence[int]] | None = None,
) -> Features:
    """Record the features of all sites and weights in one pass over the examples.

    Args:
        loaded: Model, tokenizer and sites.
        encoded: Tokenised examples.
        probes: Which outputs are differentiated.
        plan: Exact features or sketches.
        seed: Seed of the sketches.
        batch_size: Sequences of median length per batch, more at first and fewer at the end
            (:func:`~steerscope.analysis.capture.batch_plan.planned_batches`); changes no number beyond rounding.
        padding_side: ``left`` or ``right``; changes no number beyond rounding.
        scale_examples: Examples on which the channels' scales are measured first (one forward pass).
        progress: Called after every forward or backward pass.
        part_of: Where these are a slice: all examples, and which of them these are. Scales are measured on the first
            of all, and batches are those of the whole.

    Returns:
        The features, rows in the order of ``encoded``'s examples.

    Raises:
        InputError: What a site reads, or a loss, is NaN or infinite.

    Cost: one forward pass and ``probes.num_backward`` backward passes to activations, plus the projections
    (a third of that on a 135M model), plus the forward pass for the scales, and two of both on four examples where
    derivatives are rounded.
    """
    whole, rows = part_of or (encoded, range(encoded.num_examples))
    watch = PlaceWatch(loaded, whole)
    stats = read_stats(loaded, whole, batch_size=batch_size, max_examples=scale_examples, watch=watch)
    places = watch.stats()
    return_freed_memory()
    recorder = Recorder(loaded, encoded, probes, plan, stats.scales, seed)
    place = {example: number for number, example in enumerate(rows)}
    groups = [group for group in planned_batches(whole, batch_size) if group[0] in place]
    planned = list(
        batches_of(
            encoded,
            [[place[example] for example in group] for group in groups],
            pad_id=pad_token(loaded.tokenizer, loaded.model),
            device=loaded.device,
            padding_side=padding_side,
        )
    )
    passes, done = len(planned) * (1 + probes.num_backward), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, passes)

    def record(batch: Batch) -> None:
        """Fill the rows of a batch; what its graph holds is freed with the call."""
        recorder.start(batch)
        outputs = batch_outputs(loaded.model, batch, encoded, probes)
        return_freed_memory()  # what stood between the tensors that the graph keeps, before backward passes add theirs
        tick()
        index = outputs.examples.cpu()
        require_finite("the loss of an example", outputs.log_likelihood.detach(), outputs.residual)
        recorder.residual[index] = outputs.residual.to(recorder.residual)
        recorder.curvature[index] = outputs.curvature.to(recorder.curvature)
        recorder.loss[index] = -outputs.log_likelihood.detach().to(recorder.loss)
        recorder.correct[index] = outputs.correct.to(recorder.correct)
        scalars = [outputs.probes[:, p].sum() for p in range(probes.num_probes)]
        if not probes.spans:
            scalars.append(outputs.log_likelihood.sum())

        def go_back(slot: int) -> None:
            recorder.start_slot(slot)
            torch.autograd.grad(scalars[slot], recorder.source, retain_graph=True)  # others are on their way
            recorder.finish_slot()

        # A batch's derivatives are too small for threads to share: each makes whole passes, as many as the others.
        shared = len(scalars) % min(threads_at_once(), len(scalars)) if recorder.side_by_side else len(scalars)
        for _ in chain(map(go_back, range(shared)), side_by_side(go_back, range(shared, len(scalars)))):
            tick()
        recorder.finish()

    with recorder.attached(), torch.enable_grad():
        rounding = _error_of_rounding(recorder, whole, batch_size)
        for batch in planned:
            record(batch)
            return_freed_memory()
    return replace(recorder.features(probes.valid(encoded), stats.lengths), places=places, rounding=rounding)


# Examples on which rounded derivatives are compared with unrounded ones: a hundredth of a ranking's passes.
_COMPARED = 4


def _error_of_rounding(recorder: Recorder, whole: Encoded, batch_size: int) -> float | None:
    """Measure what rounding does to the derivative by the embeddings, and do without where that is too much.

    Args:
        recorder: With its hooks set.
        whole: The examples; those of middle length are taken.
        batch_size: Sequences per batch.

    Returns:
        The relative error, in the first output direction; ``None`` where nothing is rounded.
    """
    if not recorder.weights_back:
        return None
    loaded, longest = recorder.loaded, {sequence.example: len(sequence.ids) for sequence in whole.sequences}
    by_length = sorted(longest, key=lambda example: (longest[example], example))
    middle = max(0, (len(by_length) - _COMPARED) // 2)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for recorder.rounds, derivatives in found.items():
        for batch in batches(
            whole,
            batch_size=batch_size,
            pad_id=pad_token(loaded.tokenizer, loaded.model),
            device=loaded.device,
            examples=by_length[middle : middle + _COMPARED],
        ):
            recorder.start(batch)
            recorder.start_slot(0)
            outputs = batch_outputs(loaded.model, batch, whole, recorder.probes)
            derivatives += torch.autograd.grad(outputs.probes[:, 0].sum(), recorder.source)
            recorder.finish()
    rounded, plain = (torch.cat([one.flatten() for one in derivatives]).double() for derivatives in found.values())
    error = float((rounded - plain).norm() / plain.norm().clamp_min(1e-300))
    recorder.rounds = error <= LARGEST_ERROR  # not so either where it is no number
    if recorder.rounds:
        return error
    recorder.weights_back.clear()
    return None


__all__ = ["Features", "Progress", "ReadStats", "SketchPlan", "capture", "feature_bytes", "read_stats"]
