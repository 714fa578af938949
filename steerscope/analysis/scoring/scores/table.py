"""The table of all scores in docs/scores.md.

python -m steerscope.analysis.scoring.scores.table
"""

from __future__ import annotations

from steerscope.analysis.scoring.scores import all_scores


def scores_table() -> str:
    """Return a Markdown table of the registered scores."""
    lines = ["| name | formula | says | unit | needs | source |", "|---|---|---|---|---|---|"]
    for score in all_scores():
        cells = (f"`{score.name}`", score.formula, score.meaning, score.unit, score.needs, score.source)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(scores_table(), end="")
