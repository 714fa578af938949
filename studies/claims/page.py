"""Write docs/claims.md from run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steerscope.analysis.provenance import RECIPE
from steerscope.experiments.comparison.groups import Comparison, run_folders
from steerscope.experiments.runs.folder import read_json, read_results
from studies.claims.convergence import longer_runs
from studies.claims.groups import SMALLEST, Group, groups_of, studies
from studies.claims.kept import with_kept
from studies.claims.learned import admission
from studies.claims.leftover import LEFTOVER
from studies.claims.outcomes import Outcome, outcome
from studies.claims.sections import SECTIONS
from studies.claims.summary import summary
from studies.claims.tables import ends_table, leftover_table, links_table, power_sentence, rows_table, runs_table
from studies.claims.words import EARLIER, HEAD, NOTHING, OF_SPACES, RULE, SPACES, TINY
from studies.programs import write_page


def write_claims(folders: Sequence[str | Path], page: Path) -> None:
    """Write the page; with no folders it says that nothing was run.

    Args:
        folders: Folders of runs, and files that :func:`~studies.claims.kept.keep` wrote.
        page: The Markdown file.

    Raises:
        InputError: A folder is missing or holds no run, a run is damaged, or the file is another page.
    """
    with with_kept(folders) as places:
        write_page(page, HEAD, render(studies(places), leftovers(places)))


def leftovers(folders: Sequence[str | Path]) -> list[Mapping[str, Any]]:
    """Return what was measured for claim (f), with the recipe of the runs it was measured on."""
    places = run_folders(folders) if folders else []
    return [
        {**read_json(p / LEFTOVER, "a measurement"), "recipe": read_results(p).settings.get("recipe", 1)}
        for p in places
        if (p / LEFTOVER).exists()
    ]


def render(found: Sequence[Comparison], left: Sequence[Mapping[str, Any]]) -> str:
    """Return the page as Markdown."""
    groups = [group for one in found for group in groups_of(one)]
    real = [group for group in groups if not group.is_tiny and not group.is_earlier]
    tiny = [group for group in groups if group.is_tiny and not group.is_earlier]
    earlier = [group for group in groups if group.is_earlier]
    ours = [one for one in left if one["recipe"] == RECIPE and not _is_tiny(one)]
    outcomes = [told for section in SECTIONS for group in real if (told := outcome(section, group))]
    parts = [HEAD, "## Summary\n", _opening(real), summary(outcomes, ours), RULE]
    if real:
        parts.append("## Runs\n")
        parts += [_runs(group, groups, [one for one in outcomes if one.group is group]) for group in real]
    for section in SECTIONS:
        parts += [f"## ({section.letter}) {section.title}\n", f"{section.note}\n"]
        parts += [_outcome(one) for one in outcomes if one.section is section] or [NOTHING]
    parts += [f"## (f) {SPACES}\n", OF_SPACES, leftover_table(ours) if ours else NOTHING]
    for title, note, own, spaces in (
        ("Appendix: tiny models", TINY, tiny, [one for one in left if one["recipe"] == RECIPE and _is_tiny(one)]),
        ("Appendix: earlier runs", EARLIER, earlier, [one for one in left if one["recipe"] != RECIPE]),
    ):
        if own or spaces:
            parts += [f"## {title}\n", note, *(_appended(group, groups) for group in own)]
            parts += [f"**(f) {SPACES}**\n", leftover_table(spaces)] if spaces else []
    return "\n".join(parts)


def _is_tiny(left: Mapping[str, Any]) -> bool:
    return int(left["model"].get("n_params") or 0) < SMALLEST


def _opening(groups: Sequence[Group]) -> str:
    if not groups:
        return "No runs yet of a real model with today's prompts: every claim is open.\n"
    told = [f"{group.title} ({_seeds(group)}): {_admitted(group)}" for group in groups]
    return "\n".join(["What the sentences rest on:\n", *(f"- {one}" for one in told)]) + "\n"


def _seeds(group: Group) -> str:
    """Return how many seeds there are, and how long searches were where they were shorter than the runs."""
    counts = sorted({len(entry.seeds) for entry in group.trained})
    if not counts:
        return "nothing trained"
    words = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    asked = [entry.settings.get("lr_steps") for entry in group.trained]
    searches = {steps for steps in asked if steps is not None} - {group.trained[0].settings.get("steps")}
    short = f", learning rates searched with {' or '.join(map(str, sorted(searches)))} steps" if searches else ""
    return f"{words} {'seed' if words == '1' else 'seeds'}{short}"


def _admitted(group: Group) -> str:
    found = admission(group)
    return f"{'counts' if found.holds else 'does not count'}, since {found.sentence}"


def _runs(group: Group, all_groups: Sequence[Group], outcomes: Sequence[Outcome]) -> str:
    head = f"### {group.title}\n"
    told = f"Always the most frequent answer: {group.runs.majority:.1%}."
    if group.recalibrated is not None:
        told += f" The untrained model recalibrated: {group.recalibrated:.1%}."
    told += f" This task {_admitted(group)}\n"
    ends = ends_table(group, longer_runs(group, all_groups))
    parts = [head, told, runs_table(group), power_sentence(outcomes), "**How trainings ended**\n", ends]
    return "\n".join(part for part in parts if part)


def _outcome(one: Outcome) -> str:
    counts = "" if one.admission.holds else " (this task does not count)"
    parts = [f"**{one.group.title}: {one.kind}**{counts}\n", links_table(one)]
    sized = [row for row in one.apart if row.at_equal_parameters]
    others = [row for row in one.apart if not row.at_equal_parameters]
    parts += ["Apart, at equal parameters:\n", rows_table(sized)] if sized else []
    parts += ["Apart, not the claim:\n", rows_table(others)] if others else []
    return "\n".join(parts)


def _appended(group: Group, all_groups: Sequence[Group]) -> str:
    outcomes = [told for section in SECTIONS if (told := outcome(section, group))]
    parts = [_runs(group, all_groups, outcomes)]
    parts += [f"**({one.section.letter})** {one.section.title}\n\n{_outcome(one)}" for one in outcomes]
    return "\n".join(parts)
