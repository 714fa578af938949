"""The sentences of the report. The terminal and the page both print these, so both say the same.

Every function returns whole sentences as plain ASCII text (names from strangers are cleaned, not escaped: the
page escapes on its own), or an empty string where there is nothing to say.
"""

from __future__ import annotations

from steerscope.analysis.results import GreedyStep, Ranking
from steerscope.reports.ranking.candidates import (
    Candidate,
    candidates,
    kind_candidates,
    prompts_learned_from,
    ties,
)
from steerscope.reports.vocabulary import (
    clean,
    count,
    format_difference,
    format_interval,
    format_score,
    kind_meaning,
    listing,
    score_words,
)

CANNOT_TELL = "The data cannot tell the sites apart."
NOT_VALIDATED = "The score has not yet been validated by training on this model."


def edit_words(ranking: Ranking, family: str, n_params: int) -> str:
    """Say what kind of edit it is and what it costs: ``linear edit, rank 8: 9,216 parameters``."""
    rank = ranking.settings.get("rank")
    of_rank = f", rank {rank}" if family == "linear" and isinstance(rank, int) else ""
    return f"{clean(family, 24)} edit{of_rank}: {count(n_params, 'parameter')}"


def _place(ranking: Ranking, row: Candidate) -> str:
    """Say where a candidate is and what it costs."""
    words = edit_words(ranking, row.site.family, row.site.n_params)
    twins = f"; the same edit as at {listing([clean(kind, 24) for kind in row.kinds[1:]])}" if row.is_merged else ""
    return f"{clean(row.kinds[0], 24)} at layer {row.site.layer} ({words}{twins})"


def headline(ranking: Ranking) -> str:
    """Say in one sentence where to steer, or that the data does not say."""
    if not ranking.sites:
        return "This ranking holds no sites."
    if not ranking.stability.can_tell:
        return CANNOT_TELL
    best = candidates(ranking)[0]
    if best.site.score <= 0 and score_words(ranking.score).is_share:
        return "No single site can be recommended: none predicts fine-tuning's update better than no update."
    return f"Steer {_place(ranking, best)}."


def share_sentence(ranking: Ranking) -> str:
    """Say how much of fine-tuning's first-order update is learnable at the best site, and how sure that is."""
    if not ranking.sites:
        return ""
    best = candidates(ranking)[0]
    site, name = best.site, ranking.score
    value, interval = format_score(site.score, name), format_interval(site.ci_low, site.ci_high, name)
    if not score_words(name).is_share:
        words = score_words(name)
        subject = "The best site" if recommends(ranking) else f"The highest score, at {best.label},"
        return f"{subject} has a {words.label} of {value} (95% interval {interval}): {words.description}."
    n_fit = prompts_learned_from(ranking)
    n_rest = ranking.n_examples - n_fit
    learned = f"from {count(n_fit, 'prompt')}, measured on {count(n_rest, 'other prompt')}"
    if site.score <= 0:
        return (
            f"The highest score, {_place(ranking, best)}, is {value} (95% interval {interval}; {learned}): "
            "worse than predicting no update."
        )
    unsure = " The interval includes zero: the edit may learn nothing." if site.ci_low <= 0 else ""
    if not ranking.stability.can_tell:
        return (
            f"The highest share in these data is {value} (95% interval {interval}; {learned}), at "
            f"{_place(ranking, best)}; other prompts could put another site first.{unsure}"
        )
    return (
        f"An edit there learns {value} of fine-tuning's first-order update {learned} (95% interval {interval}).{unsure}"
    )


def recommends(ranking: Ranking) -> bool:
    """Say whether the report recommends a site: the data can tell, and the best beats no update."""
    if not ranking.sites or not ranking.stability.can_tell:
        return False
    return ranking.sites[0].score > 0 or not score_words(ranking.score).is_share


def best_set(ranking: Ranking) -> GreedyStep | None:
    """Return the greedy step with the highest score, or ``None`` without a greedy search."""
    return max(ranking.greedy, key=lambda step: step.score, default=None)


def set_sentence(ranking: Ranking) -> str:
    """Say how much more the best greedy set reaches than the best single site."""
    top = best_set(ranking)
    if top is None or not ranking.sites:
        return ""
    gain = top.score - ranking.sites[0].score
    if top.step <= 1 or gain <= 0:
        return "Steering several sites at once does not raise the score: the greedy search gained nothing."
    names = [f"{step.layer}.{clean(step.kind, 24)}" for step in ranking.greedy if step.step <= top.step]
    unsure = " Its interval holds the best single site's score." if top.ci_low <= ranking.sites[0].score else ""
    if not ranking.stability.can_tell:
        unsure += " Which sites it holds is as unsure as the order of the sites."
    return (
        f"The best greedy set, {count(len(names), 'site')} ({listing(names)}; "
        f"{count(top.n_params, 'parameter')}), reaches {format_score(top.score, ranking.score)} "
        f"(95% interval {format_interval(top.ci_low, top.ci_high, ranking.score)}), "
        f"{format_difference(gain, ranking.score)} more than the best single site.{unsure}"
    )


def kinds_sentence(ranking: Ranking) -> str:
    """Say which kind does best when it is steered at every layer at once."""
    rows = kind_candidates(ranking)
    if not rows or rows[0].kind.n_layers < 2:
        return ""
    kind = rows[0].kind
    best = "does best" if recommends(ranking) else "scores highest here"
    return (
        f"Steered at all {kind.n_layers:,} layers at once, {rows[0].label} {best} "
        f"({edit_words(ranking, kind.family, kind.n_params)}): {format_score(kind.score, ranking.score)} "
        f"(95% interval {format_interval(kind.ci_low, kind.ci_high, ranking.score)})."
    )


def ties_sentence(ranking: Ranking) -> str:
    """Say which candidates the data cannot tell apart from the best, and which of them is smallest."""
    rows = candidates(ranking)
    if len(rows) < 2:
        return ""
    tied = ties(rows)
    if not tied:
        return (
            "Every other candidate is worse by more than the noise: no paired 95% interval of the difference "
            "to the best contains zero."
        )
    names = listing([f"{row.label} ({clean(row.site.family, 24)})" for row in tied])
    best = "the best" if recommends(ranking) else "the highest"
    verb = "candidate" if len(tied) == 1 else "candidates"
    text = f"{len(tied):,} of {len(rows) - 1:,} other {verb} cannot be told apart from {best}: {names}."
    smallest = min(tied, key=lambda row: row.site.n_params)
    if smallest.site.n_params < rows[0].site.n_params and smallest.site.score > 0:
        text += (
            f" The smallest of them is {smallest.label} "
            f"({edit_words(ranking, smallest.site.family, smallest.site.n_params)})."
        )
    return text


def stability_sentence(ranking: Ranking) -> str:
    """Say whether two disjoint halves of the prompts order the sites alike."""
    found = ranking.stability
    halves = f"Two disjoint halves of the prompts ({found.n_per_half:,} each)"
    relation = "above" if found.spearman > found.threshold else "at"
    if found.spearman < found.threshold:
        relation = "below"
    agree = "order the sites alike" if found.can_tell else "do not order the sites alike"
    return (
        f"{halves} {agree}: the Spearman correlation of their rankings is {found.spearman:.2f}, "
        f"{relation} the threshold of {found.threshold:.2f}, and they share "
        f"{100 * found.top_overlap:.0f}% of their ten best sites."
    )


def mean_sentence(ranking: Ranking) -> str:
    """Say how much of the target one shift common to all prompts makes, and what became of it."""
    energy = ranking.outputs.get("mean_energy")
    if not isinstance(energy, (int, float)):
        return ""
    kept = ranking.score == "learnable_share_with_mean"
    fate = "It is part of this score" if kept else "It is left out of the score, because a bias could make it"
    return f"One shift common to all prompts makes {100 * energy:.0f}% of the target's energy. {fate}."


def negative_sentence(ranking: Ranking) -> str:
    """Explain zero and negative shares where the ranking holds any."""
    if not score_words(ranking.score).is_share:
        return ""
    rows = candidates(ranking)
    below = sum(row.site.score <= 0 for row in rows)
    if not below:
        return ""
    number = "All" if below == len(rows) else f"{below:,} of"
    return (
        f"{number} {len(rows):,} candidates score zero or less, printed as measured: on prompts it has not "
        "seen, such an edit predicts worse than predicting no update."
    )


def evidence_sentence(ranking: Ranking) -> str:
    """Say what training says about the score on this model."""
    if ranking.evidence is None:
        return f"{NOT_VALIDATED} It is a prediction."
    return clean(ranking.evidence.get("summary") or "Validation by training left no summary.")


def warning_sentences(ranking: Ranking) -> list[str]:
    """Return what a reader must know before believing the ranking, quantised weights included."""
    found = [clean(warning) for warning in ranking.warnings]
    quantised = ranking.model.get("quantised")
    if quantised:
        sentence = clean(quantised) if isinstance(quantised, str) else "The model's weights are quantised."
        # The warnings may carry the model's own sentence already.
        if not any(sentence.rstrip(".").lower() in warning.lower() for warning in found):
            found.insert(0, sentence)
    return found


def best_meaning(ranking: Ranking) -> str:
    """Say in plain words what the best site is."""
    if not recommends(ranking):
        return ""
    kind = candidates(ranking)[0].kinds[0]
    meaning = kind_meaning(kind)
    return f"{clean(kind)} is {meaning}; layers count from 0." if meaning else ""


def kernel_sentence(ranking: Ranking) -> str:
    """Say whether kernels are exact, and how far a sketch is off."""
    kernels = ranking.kernels
    if kernels.get("exact"):
        return "Kernels are exact: no sketch stands between the model and the score."
    parts = []
    if isinstance(error := kernels.get("sketch_error"), (int, float)):
        parts.append(f"the measured relative error of the kernels is {100 * error:.1f}%")
    if isinstance(error := kernels.get("score_error"), (int, float)):
        parts.append(
            "scores from two independent half-size sketches differ by "
            f"{format_difference(error, ranking.score)} (root mean square)"
        )
    return f"Kernels are sketched: {'; '.join(parts) or 'the error was not measured'}."


def probe_sentence(ranking: Ranking) -> str:
    """Say how many output directions were differentiated and whether they see everything."""
    outputs = ranking.outputs
    if not isinstance(n_probes := outputs.get("n_probes"), int):
        return ""
    backward = outputs.get("n_backward")
    cost = f" (backward passes: {backward:,})" if isinstance(backward, int) else ""
    seen = (
        "they span the whole output space"
        if outputs.get("spans")
        else "they do not span the output space, so what lies outside them is not seen"
    )
    return f"Outputs are differentiated along {count(n_probes, 'probe')}{cost}; {seen}."


def caveats(ranking: Ranking) -> list[str]:
    """Return what the report does not tell."""
    n_fit = count(prompts_learned_from(ranking), "prompt")
    found = [
        f"The share is what gradient training finds from {n_fit}, not what the edit could reach in principle: "
        "with more prompts it can grow, and an edit with a low share may still be able to express the update.",
        "It is about fine-tuning's first-order update, not about accuracy after training: long training, large "
        "steps and the choice of optimizer are not in it.",
        f"It speaks of {clean(ranking.task, 60)} alone; other prompts may put other sites first.",
        "Intervals are those of each candidate by itself. The best of many was picked after looking, "
        "so its own score is a little too good.",
    ]
    if not score_words(ranking.score).is_share:
        found = found[2:]
    if ranking.evidence is None:
        found.append(NOT_VALIDATED)
    return found


def answer_sentences(ranking: Ranking) -> list[str]:
    """Return the answer after the headline: how much, how much more, at what cost."""
    sentences = [share_sentence(ranking), set_sentence(ranking), kinds_sentence(ranking)]
    return [sentence for sentence in sentences if sentence]


def certainty_sentences(ranking: Ranking) -> list[str]:
    """Return how sure the answer is, stability first."""
    sentences = [
        stability_sentence(ranking),
        ties_sentence(ranking),
        evidence_sentence(ranking),
        negative_sentence(ranking),
        mean_sentence(ranking),
    ]
    return [sentence for sentence in sentences if sentence]
