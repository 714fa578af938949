"""docs/families.md from trials: what is supported, how it is built, and why the rest is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from studies.families.overrides import NOT_SMALL
from studies.families.trial import Trial

TITLE = "# Families"
# What a refusal begins with, in words for a table; the first that occurs in its sentence.
REASONS = (
    ("and what that reads is no sum", "a block is no sum of stream, attention and MLP"),
    ("it has one branch", "a block has one branch, no pair of attention and MLP"),
    ("of its parts mix tokens", "several parts of a block mix tokens"),
    ("is no sum of the stream", "a block is no sum of stream, attention and MLP"),
    ("no residual stream was found", "no list of blocks that hand on one residual stream"),
    ("position of the stream per token", "the stream has other positions than the tokens"),
    ("reads is neither", "attention or MLP reads another tensor than the stream or a norm of it"),
    ("no causal language model", "not causal"),
    ("does not follow from the stream", "blocks hand on more than the stream"),
)


def page(trials: Sequence[Trial], versions: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        trials: One per family.
        versions: Versions of the packages that were tried.

    Returns:
        Markdown.
    """
    by_outcome = Counter(trial.outcome for trial in trials)
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        TITLE,
        "",
        "Made by `python -m studies.families`; do not edit. A row is a tiny random model of a family of transformers'",
        f"`MODEL_FOR_CAUSAL_LM_MAPPING` ({told}), built from its default configuration made small.",
        "It was loaded, its sites were checked (what each reads, and what an edit there moves), false descriptions",
        "were refused, an edit was trained for a step at every kind of site of a layer, saved and loaded, and its",
        "sites were ranked by 24 prompts. What blocks compute is recognised from a pass ([sites.md](sites.md)), so a",
        "released model of a family can differ: it is checked on its own weights when it is loaded.",
        "",
        f"**{by_outcome['supported']} families are supported, {by_outcome['refused']} are refused with the reason, of "
        f"{by_outcome['not built']} no tiny model was built"
        + (f", {by_outcome['broken']} fail." if by_outcome["broken"] else ".")
        + "**",
        "",
        "## Supported",
        "",
        "| layout | sites it lacks | families |",
        "|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.outcome == "supported":
            groups.setdefault((trial.layout, _lacks(trial)), []).append(_name(trial))
    for (layout, lacks), names in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        lines.append(f"| {layout} | {lacks} | {', '.join(names)} |")
    lines += [
        "",
        "\\*: some weights are in no linear map that every token goes through (experts, convolutions, attention to",
        "another model's states), so no part of the sum that stands for fine-tuning; `steerscope sites` and rankings",
        "name them.",
        "",
        "## Refused",
        "",
        "| reason | families |",
        "|---|---|",
    ]
    refused: dict[str, list[str]] = {}
    for trial in trials:
        if trial.outcome == "refused":
            refused.setdefault(_reason(trial.reason), []).append(f"`{trial.family}`")
    lines += [f"| {why} | {', '.join(names)} |" for why, names in sorted(refused.items(), key=lambda one: -len(one[1]))]
    trials = [*trials, *(Trial(family, "not built", why) for family, why in NOT_SMALL.items())]
    for outcome, title, words in (
        ("broken", "Failing", "Faults of steerscope: the sites are true, the step named fails."),
        ("not built", "Not built", "What their code said of a small configuration."),
    ):
        chosen = [trial for trial in trials if trial.outcome == outcome]
        if chosen:
            lines += ["", f"## {title}", "", words, "", "| family | said |", "|---|---|"]
            lines += [f"| `{trial.family}` | {_cell(trial.reason)} |" for trial in chosen]
    return "\n".join(lines) + "\n"


def _name(trial: Trial) -> str:
    return f"`{trial.family}`" + ("\\*" if trial.left_out else "")


def _lacks(trial: Trial) -> str:
    every = ("resid_pre", "attn_heads", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post")
    missing = [f"`{kind}`" for kind in every if kind not in trial.kinds]
    if "attn_heads" in trial.kinds and not trial.heads:
        missing.append("single heads")
    return ", ".join(missing) or "none"


def _reason(sentence: str) -> str:
    return next((words for part, words in REASONS if part in sentence), _cell(sentence))


def _cell(text: str) -> str:
    short = text if len(text) <= 160 else f"{text[:157]}..."
    return short.replace("|", "/").replace("<", "&lt;")
