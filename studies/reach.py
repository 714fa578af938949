"""What does one edit for all tokens leave of updates of the down projection, layer by layer, by what the edit reads?

    python studies/reach.py MODEL --out studies/results/reach-NAME.json [--text FILE ...]

On English text and on a task's prompts: one minus R squared of what the map reads, predicted from what an edit reads
(P43), on the tokens fitted on and on other texts, and the spectrum of canonical correlations (P44). ``--text`` takes
text files (paragraphs separated by empty lines) or JSON lines, plain or gzip, of which the field ``--field`` is read.
Only formulas are computed here, in float32 passes and float64 algebra; that they are right is what `steerscope verify`
tries. The file grows layer by layer, and layers that it has are not repeated.
"""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from steerscope import get_task, load_model
from steerscope.analysis.data.encoding import encode_for
from steerscope.equivalence.propositions.block_tokens import READS, BlockTokens, data_sets
from steerscope.equivalence.propositions.shared_edit import chosen_ridge
from steerscope.equivalence.propositions.subject import subject_of
from steerscope.equivalence.reach import held_out_share, orthonormal_basis, unreachable_share, variates_between
from steerscope.experiments.verification.texts import ENGLISH, paragraphs, task_windows, text_windows
from steerscope.installed import package_versions
from steerscope.sites import SiteKind
from studies.programs import parser_of


def texts_of(path: Path, field: str, most: int) -> list[str]:
    """Return the paragraphs of a text file, or a field of JSON lines."""
    if ".jsonl" not in path.name:
        return paragraphs(path)[:most]
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        rows = [json.loads(line)[field] for line in lines]
    return list(dict.fromkeys(rows))[:most]


def reach(data: BlockTokens) -> dict[str, Any]:
    """Return what edits leave of updates of one block's down projection on one data set, by what they read."""
    n = data.fitted
    hidden = data.rows(data.tensors[SiteKind.MLP_HIDDEN]).double()
    found: dict[str, Any] = {"fitted": n, "held_out": len(hidden) - n, "dropped": data.dropped}
    for name in READS:
        if not data.identifies(name):
            continue
        x = data.reads(name).double()
        ridge = chosen_ridge(x[:n], hidden[:n])
        squares = variates_between(orthonormal_basis(x[:n]), orthonormal_basis(hidden[:n]))[0].square()
        found[name] = {
            "here": unreachable_share(x[:n], hidden[:n], bias=True),
            "other texts": held_out_share(x[:n], hidden[:n], x[n:], hidden[n:], ridge),
            "ridge": ridge,
            "mean rho^2": float(squares.mean()),
            "deciles of rho^2": squares.quantile(torch.linspace(0, 1, 11, dtype=torch.float64)).tolist(),
        }
    return found


def main() -> None:
    """Measure every layer that the file does not have yet."""
    parser = parser_of(__doc__)
    parser.add_argument("model")
    parser.add_argument("--task", default="listops")
    parser.add_argument("--text", nargs="*", type=Path, default=[])
    parser.add_argument("--field", default="passage")
    parser.add_argument("--most", type=int, default=250, help="texts of a file")
    parser.add_argument("--layers", nargs="*", type=int)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()

    loaded = load_model(options.model, dtype="float32")
    sets = [text_windows(loaded, paragraphs(ENGLISH), "English")]
    # A file goes by its name without folders: results name no path of a machine.
    sets += [text_windows(loaded, texts_of(path, options.field, options.most), path.name) for path in options.text]
    sets.append(
        task_windows(loaded, encode_for(loaded, get_task(options.task).split("validation", 1000, 0)), options.task)
    )
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {"layers": {}}
    found |= {"model": loaded.identity.as_dict(), "versions": package_versions()}
    subject = replace(subject_of(loaded.model, name=options.model), texts=tuple(sets))
    for layer in options.layers or range(len(loaded.site_map.blocks)):
        if str(layer) in found["layers"]:
            continue
        with torch.no_grad():
            found["layers"][str(layer)] = {data.name: reach(data) for data in data_sets(replace(subject, layer=layer))}
        options.out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        for name, one in found["layers"][str(layer)].items():
            shares = {
                read: (round(one[read]["here"], 3), round(one[read]["other texts"], 3)) for read in READS if read in one
            }
            print(f"layer {layer}, {name}, {one['fitted']} + {one['held_out']} tokens: {shares}", flush=True)


if __name__ == "__main__":
    main()
