"""The sentences of the report. The terminal and the page both print these, so both say the same.

Every function returns whole sentences as plain ASCII text (names from strangers are cleaned, not escaped: the
page escapes on its own), or an empty string where there is nothing to say.
"""

from __future__ import annotations

from steerscope.analysis.results import GreedyStep, Ranking
from steerscope.reports.ranking.candidates import (
    candidates,
    kind_candidates,
    prompts_learned_from,
    score_of_kinds,
    tells_the_best,
)
from steerscope.reports.ranking.evidence import NOT_VALIDATED, evidence_sentence
from steerscope.reports.ranking.verdict import edit_words, is_baseline, recommends
from steerscope.reports.vocabulary import (
    clean,
    count,
    format_difference,
    format_interval,
    format_score,
    listing,
    score_words,
)


def best_set(ranking: Ranking) -> GreedyStep | None:
    """Return the greedy step with the highest score, or ``None`` without a greedy search."""
    return max(ranking.greedy, key=lambda step: step.score, default=None)


def _in_its_own_score(ranking: Ranking, score: str) -> str:
    """Say by which score a number is, where it is not the ranking's."""
    return "" if score == ranking.score else f" (by the {score_words(score).label}, not by the score of the sites)"


def set_sentence(ranking: Ranking) -> str:
    """Say how much more the greedy set reaches than the best single site."""
    top = best_set(ranking)
    if top is None or not ranking.sites or is_baseline(ranking):
        return ""
    name, own = ranking.set_score, _in_its_own_score(ranking, ranking.set_score)
    # The search begins at the best single site, so the first step is what a set is compared with, in the set's unit.
    single = ranking.greedy[0]
    gain = top.score - single.score
    if top.step <= 1 or gain <= 0:
        return f"Steering several sites at once does not raise the score{own}: the greedy search gained nothing."
    names = [f"{step.layer}.{clean(step.kind, 24)}" for step in ranking.greedy if step.step <= top.step]
    unsure = " Its interval holds the best single site's score." if top.ci_low <= single.score else ""
    if not ranking.stability.can_tell:
        unsure += " Which sites it holds is as unsure as the order of the sites."
    return (
        f"The greedy set, {count(len(names), 'site')} ({listing(names)}; "
        f"{count(top.n_params, 'parameter')}), reaches {format_score(top.score, name)} "
        f"(95% interval {format_interval(top.ci_low, top.ci_high, name)}), "
        f"{format_difference(gain, name)} more than the best single site{own}.{unsure}"
    )


def kinds_sentence(ranking: Ranking) -> str:
    """Say which kind does best when it is steered at every layer at once."""
    rows = kind_candidates(ranking)
    if not rows or rows[0].kind.n_layers < 2 or is_baseline(ranking):
        return ""
    kind, name = rows[0].kind, score_of_kinds(ranking)
    best = "does best" if recommends(ranking) else "scores highest here"
    return (
        f"Steered at all {kind.n_layers:,} layers at once, {rows[0].label} {best} "
        f"({edit_words(ranking, kind.family, kind.n_params)}): {format_score(kind.score, name)} "
        f"(95% interval {format_interval(kind.ci_low, kind.ci_high, name)}){_in_its_own_score(ranking, name)}."
    )


def stability_sentence(ranking: Ranking) -> str:
    """Say whether two disjoint halves of the prompts order the sites alike, and whether they agree on the best."""
    found = ranking.stability
    halves = f"Two disjoint halves of the prompts ({found.n_per_half:,} each)"
    relation = "above" if found.spearman > found.threshold else "at"
    if found.spearman < found.threshold:
        relation = "below"
    agree = "order the sites alike" if found.can_tell else "do not order the sites alike"
    return (
        f"{halves} {agree}{_in_its_own_score(ranking, found.score)}: the Spearman correlation of their rankings is "
        f"{found.spearman:.2f}, {relation} the threshold of {found.threshold:.2f}."
    )


def top_sentence(ranking: Ranking) -> str:
    """Say whether the halves agree on which sites are best."""
    found = ranking.stability
    overlap = f"They share {100 * found.top_overlap:.0f}% of their ten best sites"
    if found.top_agreement is None:
        return f"{overlap}."
    said = (
        f"{overlap}, and a site that is among the best by one half beats another in {100 * found.top_agreement:.0f}% "
        "of comparisons by the other half (50% is chance)"
    )
    if tells_the_best(ranking):
        return f"{said}."
    return f"{said}: they agree on which sites are bad rather than on which are best."


def mean_sentence(ranking: Ranking) -> str:
    """Say how much of the target one shift common to all prompts makes, and what became of it."""
    kept = ranking.score == "learnable_share_with_mean"
    fate = "It is part of this score" if kept else "It is left out of the score, because a bias could make it"
    energy = f"{100 * ranking.outputs.mean_energy:.0f}%"
    return f"One shift common to all prompts makes {energy} of the target's energy. {fate}."


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


def warning_sentences(ranking: Ranking) -> list[str]:
    """Return what a reader must know before believing the ranking, quantised weights included."""
    found = [clean(warning) for warning in ranking.warnings]
    if ranking.model.quantised:
        sentence = clean(ranking.model.quantised)
        # The warnings may carry the model's own sentence already.
        if not any(sentence.rstrip(".").lower() in warning.lower() for warning in found):
            found.insert(0, sentence)
    return found


def kernel_sentence(ranking: Ranking) -> str:
    """Say whether kernels are exact, and how far a sketch is off."""
    kernels = ranking.kernels
    if kernels.exact:
        return "Kernels are exact: no sketch stands between the model and the score."
    parts = []
    if (error := kernels.sketch_error) is not None:
        parts.append(f"the measured relative error of the kernels is {100 * error:.1f}%")
    if (error := kernels.score_error) is not None:
        parts.append(
            "scores from two independent half-size sketches differ by "
            f"{format_difference(error, ranking.score)} (root mean square)"
        )
    told = f"Kernels are sketched: {'; '.join(parts) or 'the error was not measured'}."
    if (error := kernels.rounding_error) is not None:
        told += (
            " Derivatives went back through the model's linear maps in bfloat16, which moved them by "
            f"{100 * error:.1f}% of their length."
        )
    return told


def probe_sentence(ranking: Ranking) -> str:
    """Say how many output directions were differentiated and whether they see everything."""
    outputs = ranking.outputs
    cost = f" (backward passes: {outputs.n_backward:,})"
    seen = (
        "they span the whole output space"
        if outputs.spans
        else "they do not span the output space, so what lies outside them is not seen"
    )
    return f"Outputs are differentiated along {count(outputs.n_probes, 'probe')}{cost}; {seen}."


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


def counts_sentence(ranking: Ranking) -> str:
    """Say how sites, edits and rows of the file are counted."""
    places = len({(site.layer, site.kind) for site in ranking.sites})
    rows = len(candidates(ranking))
    merged = "" if rows == len(ranking.sites) else ", because a vector that several kinds share is one candidate"
    return (
        f"{count(places, 'site')} make {count(rows, 'candidate')} (edits at a site), which are what is counted here; "
        f"ranking.json has {count(len(ranking.sites), 'row')}{merged}."
    )


def certainty_sentences(ranking: Ranking) -> list[str]:
    """Return how sure the answer is, stability first."""
    sentences = [
        stability_sentence(ranking),
        top_sentence(ranking),
        evidence_sentence(ranking),
        set_sentence(ranking),
        kinds_sentence(ranking),
        negative_sentence(ranking),
        mean_sentence(ranking),
        probe_sentence(ranking),
    ]
    return [sentence for sentence in sentences if sentence]
