"""Makes docs/theory.md from saved verifications; nothing in that file is written by hand.

Usage: ``python -m studies.theory random.json [model.json] > docs/theory.md``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from steerscope.equivalence.propositions.base import Verdict
from steerscope.equivalence.propositions.catalogue import file_names
from steerscope.equivalence.propositions.p43_shared_edit import GROUP as SHARED_EDITS
from steerscope.experiments.verification.results import Finetune, Measured, PropositionResult, Verification
from steerscope.reports.tables import TextTable
from steerscope.reports.verification.tables import headline, measurement_tables, number, short
from steerscope.reports.vocabulary import clean
from studies.programs import exit_code_of

FOLDER = "steerscope/equivalence/propositions"
RANDOM, MODEL = "docs/results/verify-random.json", "docs/results/verify-smollm2-135m.json"
STEPS = "studies/results/first_order_steps-smollm2-135m.json"
ROOT = Path(__file__).resolve().parents[1]
_SHARED = (
    "An edit reads the block's output h', the MLP's output y, or the two summands of the output, I' and y. Shares are "
    "what it leaves of isotropic random updates of a map, on the tokens it is fitted on and on those of other texts."
)
_INTRO = """# The theory, tried

Every statement below was checked numerically, with a tolerance fixed in advance and with negative controls: a wrong
form of the statement, or the statement with an assumption taken away, which has to fall *outside* the tolerance. A
proposition **holds** if its claim is inside and every control outside; it **holds with correction** if the public form
of the statement is outside and the corrected form inside; it is **not applicable** where it cannot be asked (a gate, of
a plain MLP); it **fails** otherwise. Words behind a verdict are limits: the statement holds, and says something within
them alone.

The work is *Weight Updates as Activation Shifts* ([arXiv 2603.00425](https://arxiv.org/abs/2603.00425)). Its full text
was not available when these propositions were written: only its abstract, the authors' posts and their code. The
column *source* says where each statement comes from; *this project* means that nobody else is responsible for it.

One check was changed after a first look. P40 is about small edits, and was tried at 0.01, 0.001 and 0.0001 of the
stream; on SmolLM2-135M it failed with a slope of 1.86, because the outputs are not near linear at the two larger sizes.
Its sizes now start at each subject's own first-order radius, measured on single vectors and not on the gap that is on
trial. The tolerance is the same.
"""


def document(random: Verification, model: Verification | None = None) -> str:
    """Return docs/theory.md.

    Args:
        random: A verification on random blocks.
        model: One on a model, with measurements.
    """
    files = [RANDOM] + ([MODEL] if model else [])
    parts = [_INTRO, _how(files, random, model), _propositions(random, model), _public(random)]
    parts += [_not_applicable(random, model), _shared_edits(random, model), _steps(model)]
    failing = [
        f"- {one.name} on {_name(found)}: {clean(one.title)}. Outside: "
        + "; ".join(f"{entry.name}: {number(entry.value)}, expected {entry.expected}" for entry in _wrong(one))
        + "".join(f". {clean(note)}" for note in one.notes)
        for found in (random, model)
        if found
        for one in found.propositions
        if one.verdict == Verdict.FAILS
    ]
    if failing:
        parts.append("## What fails\n\n" + "\n".join(failing) + "\n")
    if model is not None and model.finetune is not None:
        parts.append(_measurements(model, model.finetune))
    return "\n".join(part for part in parts if part)


def _wrong(one: PropositionResult) -> list[Measured]:
    """Return what makes a proposition fail: claims outside and controls inside."""
    return [entry for entry in one.claims if not entry.inside] + [entry for entry in one.controls if entry.inside]


def _name(found: Verification) -> str:
    return clean(found.subject, 60)


def _how(files: Sequence[str], random: Verification, model: Verification | None) -> str:
    lines = ["This file is made by", "", "```"]
    for found, file in zip((random, model), files, strict=False):
        assert found is not None
        name = "" if found.model is None else f" {found.model.name}"
        lines.append(f"steerscope verify{name} --seed {found.seed} --json {file}")
    lines += [
        f"python -m studies.theory {' '.join(files)} > docs/theory.md",
        "```",
        "",
        f"{headline(random)}" + (f" {headline(model)}" if model else ""),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return clean(text).replace("|", "\\|")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _propositions(random: Verification, model: Verification | None) -> str:
    on_model = {one.name: one for one in model.propositions} if model else {}
    columns = ["no.", "claim", "source", "measured", "expected", "verdict"]
    if model is not None:
        columns += [f"measured on {_name(model)}", "expected", "verdict there"]
    lines = ["## Propositions", "", f"The first verdict is on {_name(random)} (float64, seed {random.seed})."]
    if model is not None:
        lines[-1] += (
            f" The second is on {_name(model)} (float64, {model.tokens} tokens of real prompts, P18 and P20 more of "
            "them; the prompts are those of listops, a narrow language, and so are numbers that depend on them)."
        )
    lines += [
        "*measured* is, of a claim's measurements, the one nearest to the end of its interval; the JSON files hold all",
        "of them, the controls and the curves. Numbers that would be the same on any model (of draws and constructions",
        "of a check's own) do not stand in the model's columns. Above every table stand the files with its checks;",
        f"their names have the numbers of the propositions, and `{FOLDER}/` lists them.",
        "",
    ]
    for group in dict.fromkeys(one.group for one in random.propositions):
        lines += [f"### {clean(group)[:1].upper()}{clean(group)[1:]}", ""]
        lines += _files(one.name for one in random.propositions if one.group == group)
        lines += [_row(columns), _row(["---"] * len(columns))]
        for one in random.propositions:
            if one.group == group:
                cells = [one.name, _cell(one.claim), _cell(one.source), *_found(one)]
                other = on_model.get(one.name)
                if model is not None:
                    cells += ["", "", ""] if other is None else _found_on_model(other)
                lines.append(_row(cells))
        lines.append("")
    return "\n".join(lines)


def _found(one: PropositionResult) -> list[str]:
    """Return value, interval and verdict, with the limits within which it says something."""
    limit = f": {_cell(one.limit)}" if one.limit else ""
    return [*map(_cell, short(one.decisive())), one.verdict + limit]


def _found_on_model(one: PropositionResult) -> list[str]:
    """Return the same for the model's columns: nothing where the model has no part in what was measured."""
    if one.claims and not one.says_of_subject:
        return ["nothing of the model", "", ""]
    return _found(one)


def _files(names: Iterable[str]) -> list[str]:
    """Return where the propositions are written down: their files, with links."""
    known = file_names()
    files = dict.fromkeys(known[name] for name in names if name in known)
    return ["In " + ", ".join(f"[{file}](../{FOLDER}/{file})" for file in files) + ".", ""] if files else []


def _public(random: Verification) -> str:
    """Return what public statements need a correction, with the numbers of both forms."""
    found = [one for one in random.propositions if one.published]
    if not found:
        return ""
    lines = ["## Public statements that need a correction", ""]
    for one in found:
        wrong = [entry for entry in one.published_form if not entry.inside]
        measured = "; ".join(f"{entry.name}: {number(entry.value)}, expected {entry.expected}" for entry in wrong)
        lines.append(
            f"- **{one.name}** ({clean(one.source)}). {clean(one.published)}"
            + (f" Measured: {measured}." if measured else "")
        )
    return "\n".join([*lines, ""])


def _not_applicable(random: Verification, model: Verification | None) -> str:
    lines = []
    for found in (random, model):
        for one in found.propositions if found else ():
            if one.verdict == Verdict.NOT_APPLICABLE:
                assert found is not None
                lines.append(f"- {one.name} on {_name(found)}: {clean(one.vacuous)}")
    return "\n".join(["## Where a proposition cannot be asked", "", *lines, ""]) if lines else ""


def _shared_edits(random: Verification, model: Verification | None) -> str:
    """Return the numbers of the statements about one edit for all tokens, which are more than a verdict."""
    lines = [
        f"- {one.name} on {_name(found)}. {clean(note)}."
        for found in (random, model)
        if found is not None
        for one in found.propositions
        if one.group == SHARED_EDITS
        for note in one.notes
    ]
    return "\n".join(["## One edit for all tokens, in numbers", "", _SHARED, "", *lines, ""]) if lines else ""


def _steps(model: Verification | None) -> str:
    """Return how long first order lasts along a real fine-tuning, where that was measured for this model."""
    path = ROOT / STEPS
    if model is None or model.model is None or not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["model"]["name"] != model.model.name:
        return ""
    lines = [
        "## Steps of training until first order ends",
        "",
        f"[{STEPS}](../{STEPS}): AdamW on all linear maps of the blocks, {found['task']}, after every step the shift "
        "of the logits that the update so far makes on other prompts against its first-order prediction from the "
        "start. *steps* is how many explain at least 90% (the median over tokens); then the explained part and the "
        "relative size of the update after the last of them and after the next.",
        "",
        _row(["learning rate", "seed", "steps", "explained", "size", "explained next", "size next"]),
        _row(["---:"] * 7),
    ]
    for run in found["runs"].values():
        inside = run["steps_within"]
        cells = [f"{run['learning_rate']:g}", str(run["seed"]), str(inside)]
        for index in (inside - 1, inside):
            there = 0 <= index < len(run["explained"])
            cells += [number(run[key][index]) if there else "" for key in ("explained", "relative_size")]
        lines.append(_row(cells))
    return "\n".join([*lines, ""])


def _measurements(model: Verification, tuned: Finetune) -> str:
    size = model.settings
    lines = [
        f"## Measurements on {_name(model)}",
        "",
        f"The update is that of a real, short fine-tuning: {tuned.steps} steps of AdamW at learning rate "
        f"{tuned.learning_rate:g} on {tuned.batch_size} prompts of {tuned.task} each, all linear maps of the "
        f"blocks, relative size {number(tuned.relative_size)}. On {tuned.num_held_out} other prompts the loss "
        f"went from {number(tuned.loss_before)} to {number(tuned.loss_after)} (guessing one of ten digits: "
        "2.303). It is the direction in which training sets out, not a trained model. Measurements use other prompts "
        "of the same task. They are this project's; where they concern a published figure, its quantity stands beside "
        "ours.",
        "",
        f"One model, one task, one seed, no intervals: regressions use {size.rows} prompts of one length, curves "
        f"over strength {size.few_rows}, radii and slopes 2, matrices {size.positions} tokens of one prompt. Two "
        "choices were made after a first look, because a few tokens with streams five to a hundred times longer "
        "decided everything: radii are medians over tokens, and spectra leave such tokens out. The range of sizes of "
        'the slopes was fixed in advance, for "the real blocks"; it is tried in two readings. The first, all blocks at '
        "once, was what the first run measured: there an update of relative size 0.01 is not small, and the slopes "
        "over small errors alone were added. The second, one block by itself with what enters it held fixed, was added "
        "after that run; sizes and tolerance are the same.",
        "",
    ]
    lines += [f"- {clean(warning)}" for warning in model.warnings] + [""]
    for table in measurement_tables(model):
        lines += [_markdown(table), ""]
    return "\n".join(lines)


def _markdown(table: TextTable) -> str:
    rule = ["---:" if column in table.right else "---" for column in table.columns]
    rows = [_row([_cell(cell) for cell in row]) for row in table.rows]
    head = [f"### {clean(table.title)}", "", _row([_cell(column) for column in table.columns]), _row(rule), *rows]
    return "\n".join(head + (["", clean(table.note)] if table.note else []))


def main(arguments: Sequence[str]) -> int:
    """Print the document made of the given files; exit code 2 for bad input."""
    if not 1 <= len(arguments) <= 2:
        print("usage: python -m studies.theory random.json [model.json]", file=sys.stderr)
        return 2
    return exit_code_of("steerscope", lambda: print(document(*map(Verification.load, arguments)).rstrip("\n")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
