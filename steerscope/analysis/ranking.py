"""Rank every site of a model on a set of examples: capture, kernels, scores, intervals, sets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from steerscope.analysis.capture.batch_plan import planned_batches
from steerscope.analysis.capture.capture import capture
from steerscope.analysis.capture.features import Features, SketchPlan, feature_bytes
from steerscope.analysis.capture.outputs import Probes, make_probes
from steerscope.analysis.capture.way_back import rounds_back
from steerscope.analysis.data.encoding import Encoded, OutputMode, batches_of, encode_for
from steerscope.analysis.data.examples import Example, check_examples, content_order
from steerscope.analysis.evidence import drawn_from, evidence_for
from steerscope.analysis.provenance import RECIPE, content_hash
from steerscope.analysis.result_parts import DifferentiatedOutputs, KernelSummary, RankSettings
from steerscope.analysis.results import LearningCurve, Ranking, SiteScore, Stability
from steerscope.analysis.scoring.greedy import grow_set
from steerscope.analysis.scoring.kernels import Kernel, Rows
from steerscope.analysis.scoring.options import MIN_EXAMPLES, RankOptions
from steerscope.analysis.scoring.problem import Problem
from steerscope.analysis.scoring.scorer import Scorer
from steerscope.analysis.scoring.scores import EXTRA, Needs
from steerscope.analysis.scoring.sketch_error import sketch_errors
from steerscope.analysis.scoring.stability import learning_curve, stability_of_halves
from steerscope.analysis.stopwatch import StageProgress, Stopwatch
from steerscope.errors import InputError
from steerscope.installed import package_versions
from steerscope.models.blocks import linear_shape
from steerscope.models.load import LoadedModel, as_loaded
from steerscope.models.memory import Memory, memory_needed
from steerscope.models.offloaded import require_runs
from steerscope.models.virtual_tokens import require_no_virtual_tokens
from steerscope.models.wrappers import vocab_size
from steerscope.option_types import options_or_default
from steerscope.process import return_freed_memory, threads_at_once
from steerscope.sites import Site, SiteKind


def rank_sites(
    model: LoadedModel | nn.Module,
    examples: Sequence[Example],
    options: RankOptions | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    task: str = "examples",
    progress: StageProgress | None = None,
    say: Callable[[str], None] | None = None,
    capture_by: Callable[..., Features] = capture,
) -> Ranking:
    """Rank the sites of a model by what steering there can learn of fine-tuning's first-order update.

    Args:
        model: A loaded model (:func:`steerscope.load_model`), or one of transformers with ``tokenizer``, also inside
            PEFT's wrapper: what was in training or trainable is so again afterwards.
        examples: At least 24, all with choices or all without; order does not matter.
        options: See :class:`RankOptions`.
        tokenizer: Of a model of transformers; a loaded model has its own.
        task: Name of the task, for the report.
        progress: Called with stage, steps done and steps in all.
        say: Called with a sentence on the memory that it will take, before the long work begins.
        capture_by: Captures the features, as :func:`~steerscope.analysis.capture.capture.capture` does on this machine.

    Returns:
        The ranking, with intervals, baselines, kinds, greedy sets and stability.

    Raises:
        InputError: Too few or useless examples, a text longer than the context or with a token that the model does not
            have, bad options, a model whose activations or derivatives are NaN or infinite, weights without
            values, or virtual tokens of PEFT.

    Cost: one forward pass and a backward pass per probe (and one for the loss) over the examples, a quarter more
    for the projections, then a few seconds of linear algebra per hundred sites at the default size.
    """
    options = options_or_default(options, RankOptions)
    options.check()
    with as_loaded(model, tokenizer) as loaded:
        return _ranked(loaded, examples, options, task, progress, say, capture_by)


def _ranked(
    loaded: LoadedModel,
    examples: Sequence[Example],
    options: RankOptions,
    task: str,
    progress: StageProgress | None,
    say: Callable[[str], None] | None,
    capture_by: Callable[..., Features],
) -> Ranking:
    require_runs(loaded.model)
    require_no_virtual_tokens(loaded.model, "a ranking reads tokens by their place in a row")
    watch = Stopwatch(progress)
    kept, warnings = check_examples(list(examples), minimum=MIN_EXAMPLES)
    kept = [kept[i] for i in content_order(kept, options.seed)[: options.max_examples]]
    if options.num_groups > len(kept) // 2:
        raise InputError(
            f"[[num_groups]] is {options.num_groups}; expected at most half the {len(kept)} examples, so that every "
            "group of the jackknife holds some of each half."
        )
    kinds = _kinds(loaded, options)
    encoded = encode_for(loaded, kept)
    dtype = torch.float64 if loaded.identity.dtype == "float64" else torch.float32
    probes = make_probes(encoded, options.num_probes, vocab_size(loaded.model), options.seed, dtype)
    plan = _plan(loaded, encoded, probes, options)
    if say is not None:
        say(str(_memory(loaded, encoded, probes, plan, options)))

    watch.stage("capture")
    features = capture_by(
        loaded,
        encoded,
        probes,
        plan,
        seed=options.seed,
        batch_size=options.batch_size,
        padding_side=options.padding_side,
        progress=watch.tick,
    )
    return_freed_memory()  # projections, and what the capture's last batch took
    rows = Rows.of(features)
    # Content decided the order, so the first half is a random half whatever the file's order was.
    halves = (range(len(kept) // 2), range(len(kept) // 2, len(kept)))
    target = Kernel.of(features.weights, features, rows, what="the weights")
    problem = Problem.of(target, rows, halves, num_groups=options.num_groups, ridge=options.ridge)

    watch.stage("score")
    # In the model's order: that in which batches met them depends on how large the first one was.
    chosen = [site for site in loaded.site_map.sites() if site in features.linear and site.kind in kinds]
    scorer = Scorer(loaded, features, rows, target, problem, options)
    sketch_error = sketch_errors(features, rows, problem, chosen, plan) if not plan.exact else {}
    scorer.add(chosen, watch.tick)
    if Needs.STEP in options.needs:
        watch.stage("step")
        scorer.take_steps(encoded, probes, halves, watch.tick)
    watch.stage("sets")
    scored = scorer.site_scores()
    kind_scores = scorer.kind_scores()
    linear, joint = scorer.linear_kernels, scorer.joint_scores()
    greedy = grow_set(
        linear,
        problem,
        {site: scorer.num_params(site, "linear") for site in linear},
        max_sites=options.max_sites,
        budget=options.budget,
        alone=scorer.linear_scores(joint.of_sets),
        joint=joint,
        progress=watch.tick,
    )
    watch.stage("stability")
    best_sites = _curve_sites(scored)
    curves = tuple(
        LearningCurve(site.layer, site.kind.value, "linear", *learning_curve(linear[site], problem, rows))
        for site in best_sites
    )
    stability = stability_of_halves(linear, target, rows, halves, options.ridge, joint)
    watch.stage(None)
    return Ranking(
        model=loaded.identity,
        task=task,
        n_examples=len(kept),
        seed=options.seed,
        versions=package_versions(),
        score=options.score,
        sites=scored,
        kinds=kind_scores,
        greedy=greedy,
        curves=curves,
        stability=stability,
        outputs=_outputs_summary(encoded, probes, problem, features),
        kernels=KernelSummary(
            exact=plan.exact, description=plan.describe(), **sketch_error, rounding_error=features.rounding
        ),
        settings=RankSettings(
            ridge=options.ridge,
            rank=options.rank,
            num_groups=options.num_groups,
            extra=tuple(need.value for need in options.needs if need in EXTRA),
            num_training=options.num_training,
            converged_penalty=None if scorer.converged is None else scorer.converged.penalty,
            n_fit=len(halves[0]),
            max_sites=options.max_sites,
            budget=options.budget,
            batch_size=options.batch_size,
            kinds=tuple(kind.value for kind in kinds),
            # Its file's name says nothing: the order decides nothing, content does.
            data=content_hash(kept, ordered=False),
            drawn_from=drawn_from(task, kept),
            recipe=RECIPE,
        ),
        timing=watch.seconds,
        warnings=tuple(warnings + _warnings(loaded, stability)),
        evidence=evidence_for(
            options.score,
            loaded.identity,
            drawn_from(task, kept),
            [(site.name, site.score) for site in scored if site.family == "linear"],
        ),
        equal_margin=scorer.equal_margin(),
        set_score=joint.of_sets,
        kind_score=scorer.kind_score,
    )


def _kinds(loaded: LoadedModel, options: RankOptions) -> tuple[SiteKind, ...]:
    if options.kinds is None:
        return loaded.site_map.description.kinds
    return loaded.site_map.resolve_kinds(options.kinds)


def _memory(loaded: LoadedModel, encoded: Encoded, probes: Probes, plan: SketchPlan, options: RankOptions) -> Memory:
    itemsize = 8 if loaded.identity.dtype == "float64" else 4
    # What linear maps read, and of sketches what is projected, is held beside the graph.
    groups = [maps for block in loaded.site_map.blocks for _, maps in block.groups()]
    per_token, fixed = sum(linear_shape(next(iter(maps.values())))[1] for maps in groups) * itemsize, 0
    if not plan.exact:
        sites, threads = loaded.site_map.sites(), threads_at_once() if loaded.device.type == "cpu" else 1
        writes = sum(loaded.site_map.write(site) == site for site in sites)
        of_sites, of_maps = plan.blocks * plan.size, len(groups) * plan.weight_size
        per_token = (len(sites) * of_sites + of_maps + threads * (writes * of_sites + of_maps)) * itemsize
        dtype = torch.float64 if itemsize == 8 else torch.float32
        if plan.rounded_back:  # a second copy of the weights, in fewer digits
            maps = loaded.site_map.linear_maps().values()
            fixed = sum(2 * math.prod(linear_shape(one)) for one in maps if rounds_back(one, dtype, loaded.device))
    features = feature_bytes(loaded, encoded.num_examples, probes.num_backward, plan, itemsize)
    found: list[Memory] = []
    planned = planned_batches(encoded, options.batch_size)
    for batch in batches_of(encoded, planned, pad_id=0, device=torch.device("cpu")):
        (rows, length), tokens = batch.ids.shape, batch.ids.numel()
        predicted = int((length - batch.first_target).max().clamp_min(1))
        memory = memory_needed(loaded, tokens, rows * predicted, kept=features)
        found.append(replace(memory, batch=memory.batch + tokens * per_token + fixed))
    return max(found, key=lambda memory: memory.batch)


def _plan(loaded: LoadedModel, encoded: Encoded, probes: Probes, options: RankOptions) -> SketchPlan:
    exact = SketchPlan(exact=True)
    if options.exact is None:
        itemsize = 8 if loaded.identity.dtype == "float64" else 4
        need = feature_bytes(loaded, encoded.num_examples, probes.num_backward, exact, itemsize)
        return exact if need <= options.exact_bytes else replace(options.sketch, exact=False)
    return exact if options.exact else replace(options.sketch, exact=False)


def _curve_sites(scored: tuple[SiteScore, ...]) -> list[Site]:
    """The three best linear sites and the best of every kind."""
    linear = [Site(s.layer, SiteKind(s.kind)) for s in scored if s.family == "linear"]
    best_of_kind = {site.kind: site for site in reversed(linear)}
    wanted = linear[:3] + [site for site in linear if best_of_kind[site.kind] == site]
    return list(dict.fromkeys(wanted))


def _outputs_summary(encoded: Encoded, probes: Probes, problem: Problem, features: Features) -> DifferentiatedOutputs:
    return DifferentiatedOutputs(
        description={
            "choice_logits": "logits of the choices at one position, centred over the choices",
            "choice_likelihoods": "log-likelihoods of the choices, centred over the choices",
            "completion": "random projections of the supervised logits",
        }[encoded.mode.value],
        mode=encoded.mode.value,
        n_probes=probes.num_probes,
        n_backward=probes.num_backward,
        spans=probes.spans,
        mean_energy=problem.mean_energy,
        n_tokens=encoded.num_tokens,
        model_accuracy=float(features.correct.mean()),
        constant_accuracy=_constant_accuracy(encoded),
        model_loss=float(features.loss.mean()),
    )


def _constant_accuracy(encoded: Encoded) -> float:
    """Return the accuracy of always giving the most frequent answer (place among the choices), which a bias learns."""
    if encoded.mode is OutputMode.COMPLETION:
        answers = [sequence.ids[sequence.first_target :] for sequence in encoded.sequences]
    else:
        answers = [(answer,) for answer in encoded.answers]
    return Counter(answers).most_common(1)[0][1] / encoded.num_examples


def _warnings(loaded: LoadedModel, stability: Stability) -> list[str]:
    out = []
    if loaded.identity.quantised:
        out.append(f"Weights: {loaded.identity.quantised}.")
    if left_out := loaded.site_map.left_out():
        out.append(
            f"Fine-tuning here is that of the linear maps that every token goes through, without {', '.join(left_out)}."
        )
    if not stability.can_tell:
        out.append(
            f"Rankings from two disjoint halves of the prompts agree at {stability.spearman:.2f} only "
            f"(below {stability.threshold}): use more prompts before choosing a site."
        )
    return out
