"""How a ranking was made: what was differentiated, how kernels were computed, with which settings; what supports it.

Fields with a default of ``None`` are those that files of before may lack.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DifferentiatedOutputs:
    """What of the model's outputs was differentiated, and how well the model does on the ranked prompts as it is.

    Attributes:
        description: What the outputs are, in words.
        mode: ``choice_logits``, ``choice_likelihoods`` or ``completion``.
        n_probes: Output directions per prompt.
        n_backward: Backward passes per prompt, that of the loss included.
        spans: Whether the probes span the whole output space.
        mean_energy: Fraction, 0 to 1, of the target's squared size that one shift common to all prompts makes; it is
            removed before scoring.
        n_tokens: Tokens of all prompts together.
        model_accuracy: Share of the prompts that the model answers right as it is, 0 to 1.
        model_loss: Its loss on them, nats, mean.
        constant_accuracy: Share that always giving the most frequent answer makes right, 0 to 1; ``None`` in files of
            before.
    """

    description: str
    mode: str
    n_probes: int
    n_backward: int
    spans: bool
    mean_energy: float
    n_tokens: int
    model_accuracy: float
    model_loss: float
    constant_accuracy: float | None = None


@dataclass(frozen=True)
class KernelSummary:
    """How kernels were computed, and how far from exact they are.

    Attributes:
        exact: Whether no sketch was taken; the errors of sketches are ``None`` then.
        description: How features were kept, in words.
        sketch_error: Relative error of sketched kernels, mean over ``num_sites_measured`` sites.
        score_error: Root mean square, over those sites, of half the difference of the score between two independent
            half-size sketches, in the score's unit.
        rank_agreement: Spearman correlation, over those sites, of the scores of the two.
        num_sites_measured: Sites that these three were measured at.
        rounding_error: How far rounding on the way back moved derivatives, relative to their length; ``None`` where
            nothing was rounded, and in files of before.
    """

    exact: bool
    description: str
    sketch_error: float | None = None
    score_error: float | None = None
    rank_agreement: float | None = None
    num_sites_measured: int | None = None
    rounding_error: float | None = None


@dataclass(frozen=True)
class RankSettings:
    """What a ranking was told, and what its data were.

    Attributes:
        ridge: Ridge of the kernel regression, in units of the kernel's mean diagonal.
        rank: Rank of the low-rank edit that parameter counts are for.
        num_groups: Groups that the jackknife leaves out one at a time.
        n_fit: Prompts that shares were learned from; the others measured them.
        max_sites: Most sites in the greedy set.
        budget: Most parameters in the greedy set, or ``None`` without a limit.
        batch_size: Sequences of median length per batch.
        kinds: Kinds of site that were ranked.
        extra: What the costly scores that were asked for need: ``spectrum``, ``step``.
        num_training: Examples that training is taken to see, for ``learned_at_n``; ``None`` in files of before.
        converged_penalty: Penalty of the converged edit's scores; ``None`` where they were not computed.
        data: Hash of the prompts, whatever their order; ``None`` in files of before.
        drawn_from: The registered task that drew the prompts, if one did.
        recipe: Version of what decides results in this package's code; ``None`` in files of before.
        command: What the user typed; ``None`` for a ranking from Python.
        asked_examples: Prompts that a sweep, search or validation asked for, where one did; the ranking may have had to
            leave some out.
        asked_data: Hash of them.
    """

    ridge: float
    rank: int
    num_groups: int
    n_fit: int
    max_sites: int
    budget: int | None
    batch_size: int
    kinds: tuple[str, ...]
    extra: tuple[str, ...] = ()
    num_training: int | None = None
    converged_penalty: float | None = None
    data: str | None = None
    drawn_from: str | None = None
    recipe: int | None = None
    command: str | None = None
    asked_examples: int | None = None
    asked_data: str | None = None


@dataclass(frozen=True)
class TrainedPoint:
    """A site that was trained at.

    Attributes:
        site: The hook point, ``12.resid_post``.
        score: The ranking's score of it.
        loss: Mean held-out loss over seeds, nats; ``None`` where a run diverged.
        low: Lowest of the seeds' losses, nats; ``None`` where all diverged.
        high: Highest of them.
    """

    site: str
    score: float
    loss: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ReferenceLoss:
    """What another method, or no training, came to on the same examples: its held-out loss in nats."""

    name: str
    loss: float


@dataclass(frozen=True)
class Evidence:
    """What training says about a ranking's default score: on site tables, or, where it was validated, on its own model.

    Attributes:
        summary: In sentences.
        studies: A line per site table and number of output directions that the score was compared with, as
            :func:`~steerscope.analysis.evidence.known_evidence` has them; lines of before have fewer entries.
        points: Sites of this model that were trained at on this task.
        references: What else was trained there, and the untrained model.
        task: Of a validation: its task.
        score: The score that was compared.
        n_sites: Sites trained at.
        n_seeds: Training seeds.
        spearman: Correlation of the score with minus the trained loss.
        low: Lower end of its 95% interval.
        high: Upper end.
        partial: The correlation given depth.
        attainable: The correlation that training noise leaves attainable, where it is known.
        agreements: Every score's agreement with training, best first: the entries of an ``Agreement``, and
            ``is_baseline``; lines of before have fewer.
    """

    summary: str = ""
    studies: tuple[dict[str, Any], ...] = ()
    points: tuple[TrainedPoint, ...] = ()
    references: tuple[ReferenceLoss, ...] = ()
    task: str | None = None
    score: str | None = None
    n_sites: int | None = None
    n_seeds: int | None = None
    spearman: float | None = None
    low: float | None = None
    high: float | None = None
    partial: float | None = None
    attainable: float | None = None
    agreements: tuple[dict[str, Any], ...] = ()
