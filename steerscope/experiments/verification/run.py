"""Try propositions on random blocks or on a model, and measure the theory's quantities on the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from steerscope.analysis.data.encoding import encode_for
from steerscope.analysis.stopwatch import StageProgress, Stopwatch
from steerscope.analysis.theory.common import (
    Rows,
    of_layer,
    random_like,
    relative_size,
    rows_of_one_length,
    spread,
)
from steerscope.analysis.theory.conditioning import conditioning
from steerscope.analysis.theory.modulation import modulation, strength_curves
from steerscope.analysis.theory.oracle_spectra import oracle_spectra
from steerscope.analysis.theory.radius import Radius, first_order_radius
from steerscope.analysis.theory.residual_map import check_size, residual_map
from steerscope.analysis.theory.slopes import block_slopes, remainder_slopes
from steerscope.analysis.theory.stream_shares import stream_shares
from steerscope.equivalence.propositions import catalogue
from steerscope.equivalence.propositions.base import Proposition
from steerscope.equivalence.propositions.subject import Subject, random_subjects, subject_of
from steerscope.equivalence.shifts import LOGITS
from steerscope.errors import InputError
from steerscope.experiments.finetune import mean_loss, short_finetune
from steerscope.experiments.tasks import get_task
from steerscope.experiments.verification.results import Finetune, PropositionResult, Verification, VerifySettings, plain
from steerscope.experiments.verification.texts import ENGLISH, paragraphs, task_windows, text_windows
from steerscope.finite import require_finite
from steerscope.installed import package_versions
from steerscope.models.attention import forward_differentiable_attention
from steerscope.models.changed_weights import with_update
from steerscope.models.load import LoadedModel
from steerscope.models.precision import true_float64
from steerscope.option_types import options_or_default, plain_fields, require_least
from steerscope.sites import SiteKind

# How a model is loaded in a data type: the command line adds revision and trust.
Loader = Callable[[str], LoadedModel]


@dataclass(frozen=True)
class VerifyOptions:
    """Sizes of the measurements; the defaults take minutes on two cores for a model of 135 million parameters.

    Attributes:
        seed: Seed of every random draw.
        quick: Propositions only, no measurements.
        steps: Steps of the fine-tuning.
        batch_size: Examples per step.
        learning_rate: Of AdamW.
        pool: Prompts that are tokenised to find sequences of one length.
        rows: Sequences for regressions over tokens.
        few_rows: Sequences for everything else.
        layers: Layers of the curves over depth.
        few_layers: Layers of the residual map and of single-layer radii, away from both ends.
        positions: Tokens per layer whose matrices are decomposed.
        random_updates: Random updates beside the trained one whose radius is measured.
        block_updates: Random updates beside the trained one in the slopes of single blocks.
        text: A text file instead of the English text that comes with the package, for statements about one edit for all
            tokens; paragraphs separated by empty lines.
        device: Where a model that is given by its name is loaded.
        revision: Of a Hugging Face name.
        trust_remote_code: Run code that comes with the model.
    """

    seed: int = 0
    quick: bool = False
    steps: int = 12
    batch_size: int = 8
    learning_rate: float = 5e-5
    pool: int = 1000
    rows: int = 56
    few_rows: int = 4
    layers: int = 10
    few_layers: int = 2
    positions: int = 2
    random_updates: int = 2
    block_updates: int = 3
    text: str | None = None
    device: str = "cpu"
    revision: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        plain_fields(self)

    def check(self) -> None:
        """Raise :class:`InputError` for a number out of range."""
        require_least(self, seed=0, steps=1, batch_size=1, few_rows=1, layers=1, few_layers=1, positions=1)
        if self.text is not None:
            paragraphs(self.text)
        if self.rows < 8:
            raise InputError(f"[[rows]] is {self.rows}; expected at least 8, of which a quarter is held out.")


def verify_random(
    propositions: Sequence[Proposition], options: VerifyOptions | None = None, progress: StageProgress | None = None
) -> Verification:
    """Try propositions on small random blocks of several layouts at once (:func:`random_subjects`).

    Args:
        propositions: Which.
        options: Only the seed matters here.
        progress: Called with the stage's name, steps done and steps in all.

    Returns:
        The verdict on each proposition, without measurements.
    """
    options = options_or_default(options, VerifyOptions)
    options.check()
    watch = Stopwatch(progress)
    watch.stage("propositions")
    subjects = random_subjects(options.seed)
    results = try_propositions(subjects, propositions, watch.tick)
    watch.stage(None)
    name = f"random blocks ({', '.join(subject.name for subject in subjects)})"
    return _verification(name, _tokens(subjects), None, results, {}, None, options, watch, [])


def verify_model(
    load: Loader,
    propositions: Sequence[Proposition],
    options: VerifyOptions | None = None,
    progress: StageProgress | None = None,
) -> Verification:
    """Try propositions on a model in float64, then measure the theory's quantities on it.

    Args:
        load: Returns the model in a data type (``"float32"``, ``"float64"``).
        propositions: Which.
        options: Sizes of the measurements.
        progress: Called with the stage's name, steps done and steps in all.

    Returns:
        The verdict on each proposition, and the measurements unless the model is too large or they were left out.

    Raises:
        InputError: The model cannot be loaded, has too short a context, or its numbers are NaN or infinite.
    """
    options = options_or_default(options, VerifyOptions)
    options.check()
    watch = Stopwatch(progress)
    watch.stage("load")
    exact = load("float64")
    exact.site_map.require_plain_blocks("verify")
    task = get_task("listops")
    encoded = encode_for(exact, task.split("validation", options.pool, options.seed))
    rows = rows_of_one_length(encoded, options.rows)
    watch.stage("propositions")
    # Short: some checks build dense matrices over tokens.
    subject = subject_of(
        exact.model,
        name=exact.identity.name,
        seed=options.seed,
        input_ids=rows.ids[:2, :7].contiguous(),
        more_ids=rows.ids,
    )
    english = text_windows(exact, paragraphs(options.text or ENGLISH), options.text or "English")
    subject = replace(subject, texts=(english, task_windows(exact, encoded, task.name)))
    with torch.no_grad():
        logits: Tensor = exact.model(input_ids=rows.ids, use_cache=False).logits
    require_finite("a logit of this model", logits.masked_fill(logits == -torch.inf, 0.0))
    results = try_propositions(subject, propositions, watch.tick)
    if options.quick:
        watch.stage(None)
        warnings = [*_quantised(exact), "Quick run: propositions only, nothing was measured on a fine-tuning."]
        return _verification(subject.name, _tokens([subject]), exact, results, {}, None, options, watch, warnings)
    measured, finetune, warnings = _measurements(load, exact, rows, options, watch)
    watch.stage(None)
    warnings = [*_quantised(exact), *warnings]
    return _verification(subject.name, _tokens([subject]), exact, results, measured, finetune, options, watch, warnings)


def _tokens(subjects: Sequence[Subject]) -> int:
    return sum(subject.input_ids.numel() for subject in subjects)


def try_propositions(
    subject: Subject | Sequence[Subject], propositions: Sequence[Proposition], tick: Callable[[int, int], None]
) -> tuple[PropositionResult, ...]:
    """Check propositions one after the other; a check that raises fails, with the reason as a note.

    Args:
        subject: The blocks or the model to try them on, or several of them with different names.
        propositions: Which.
        tick: Called with propositions done and propositions in all.

    Returns:
        Results in the order of the propositions' numbers.
    """
    results: list[PropositionResult] = []

    def tell(result: catalogue.Result) -> None:
        results.append(PropositionResult.of(result))
        tick(len(results), len(propositions))

    catalogue.run(subject, propositions, tell)
    return tuple(sorted(results, key=lambda result: result.number))


def _quantised(loaded: LoadedModel) -> list[str]:
    return [f"Weights: {loaded.identity.quantised}."] if loaded.identity.quantised else []


def _measurements(
    load: Loader, exact: LoadedModel, rows: Rows, options: VerifyOptions, watch: Stopwatch
) -> tuple[dict[str, Any], Finetune, list[str]]:
    """Fine-tune, then measure; what needs float64 first, so that the large model can go."""
    warnings: list[str] = []
    watch.stage("finetune")
    single = load("float32")
    losses: list[float] = []

    def tell(step: int, steps: int, loss: float) -> None:
        losses.append(loss)
        watch.tick(step, steps)

    task = get_task("listops")
    update = short_finetune(
        single,
        task.split("train", options.steps * options.batch_size, options.seed),
        steps=options.steps,
        learning_rate=options.learning_rate,
        seed=options.seed,
        batch_size=options.batch_size,
        progress=tell,
    )
    held_out = task.split("validation", min(options.pool, 64), options.seed)
    before = mean_loss(single, held_out)
    with with_update(single, update):
        after = mean_loss(single, held_out)
    finetune = Finetune(
        task="listops",
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        losses=tuple(losses),
        relative_size=relative_size(single, update),
        num_held_out=len(held_out),
        loss_before=before,
        loss_after=after,
    )
    depth = len(single.site_map.blocks)
    every = spread(depth, options.layers)
    inner = spread(depth, options.few_layers + 2)
    some = inner[1:-1] or inner[-1:]
    five = spread(depth, 5)
    few = rows.first(options.few_rows)
    found: dict[str, Any] = {}

    watch.stage("slopes")
    places = [*(f"{layer}.resid_post" for layer in five), LOGITS]
    with true_float64(exact.model), forward_differentiable_attention(exact.model), torch.no_grad():
        found["slopes"] = remainder_slopes(exact, update, rows.ids[:2], places)
        watch.stage("block_slopes")
        updates = _with_random(update, options.block_updates, options.seed)
        found["block_slopes"] = block_slopes(exact, updates, rows.ids[:2], range(depth), progress=watch.tick)
        watch.stage("conditioning")
        positions = spread(rows.ids.shape[1], options.positions + 1)[1:]
        found["conditioning"] = conditioning(exact, update, rows.ids[:1], every, positions, watch.tick)

    watch.stage("radius")
    found["radius"] = _radii(single, update, rows.ids[:2], every, some, options, watch)
    watch.stage("stream_shares")
    found["stream_shares"] = stream_shares(single, rows.first(16).ids, range(depth))
    found["modulation"] = modulation(single, rows.first(8).ids, every)
    watch.stage("strength")
    found["strength"] = strength_curves(single, update, few, every, progress=watch.tick)
    watch.stage("oracle_spectra")
    found["oracle_spectra"] = oracle_spectra(single, update, rows.ids, every)
    watch.stage("residual_map")
    try:
        check_size(single, rows.ids.numel())
    except InputError as error:
        warnings.append(f"No residual map: {error}")
    else:
        found["residual_map"] = residual_map(single, update, rows.ids, some, progress=watch.tick)
    wide = single.site_map.d_model
    if (tokens := len(rows.ids) * (rows.ids.shape[1] - 1)) < 2 * wide:
        warnings.append(
            f"Linear maps were fitted on {tokens:,} tokens for {wide:,} channels: their held-out numbers say what can "
            "be learned from so few, not what a linear map could do."
        )
    return {name: plain(value) for name, value in found.items()}, finetune, warnings


def _with_random(update: dict[str, Tensor], count: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Return the trained update and random ones of the same norm in every matrix, by name."""
    return {"trained": update} | {f"random {i}": random_like(update, seed + i) for i in range(count)}


def _radii(
    loaded: LoadedModel,
    update: dict[str, Tensor],
    ids: Tensor,
    every: Sequence[int],
    some: Sequence[int],
    options: VerifyOptions,
    watch: Stopwatch,
) -> list[Radius]:
    """Radii of the whole update at every layer and the logits, then of single layers' parts of it."""
    updates = _with_random(update, options.random_updates, options.seed)
    places = (*(f"{layer}.{SiteKind.RESID_POST}" for layer in every), LOGITS)
    jobs: list[tuple[str, str, dict[str, Tensor], tuple[str, ...]]] = [
        (name, "all layers", change, places) for name, change in updates.items()
    ]
    for layer in some:
        own = (f"{layer}.{SiteKind.RESID_POST}", LOGITS)
        jobs.append(("trained", f"layer {layer}", of_layer(loaded, update, layer), own))
    found: list[Radius] = []
    for done, (name, scope, change, at) in enumerate(jobs):
        found += first_order_radius(loaded, change, ids, at, name=name, scope=scope)
        watch.tick(done + 1, len(jobs))
    return found


def _verification(
    subject: str,
    tokens: int,
    loaded: LoadedModel | None,
    results: tuple[PropositionResult, ...],
    measurements: dict[str, Any],
    finetune: Finetune | None,
    options: VerifyOptions,
    watch: Stopwatch,
    warnings: list[str],
) -> Verification:
    return Verification(
        subject=subject,
        model=loaded.identity if loaded else None,
        seed=options.seed,
        tokens=tokens,
        propositions=results,
        measurements=measurements,
        finetune=finetune,
        settings=VerifySettings() if loaded is None else _settings(options),
        versions=package_versions(),
        timing=watch.seconds,
        warnings=tuple(warnings),
    )


def _settings(options: VerifyOptions) -> VerifySettings:
    told = {name: value for name, value in asdict(options).items() if name not in ("revision", "trust_remote_code")}
    return VerifySettings(**told)  # which model it is says its identity
