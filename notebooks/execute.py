"""Execute notebooks and keep what they print and draw, without anything of the machine they ran on.

    python notebooks/execute.py [FILE.ipynb ...]     all of them where none is named; in place

With STEERSCOPE_LIGHT=1 in the environment they use small sizes and tiny models; nothing is then written.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
# What a notebook may say about the program that ran it.
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, timeout: float = 1800) -> nbformat.NotebookNode:
    """Return the notebook with fresh outputs; raises ``CellExecutionError`` where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute(
        # No progress bars are drawn, so that nobody needs the widgets whose absence tqdm reports.
        env={**os.environ, "PYTHONWARNINGS": "ignore:IProgress not found"},
    )
    return plain(notebook)


def plain(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook with generic metadata and cells named by their place, so that two runs compare."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata = nbformat.from_dict({})
    return notebook


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all."""
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.perf_counter()
        notebook = executed(path)
        if os.environ.get("STEERSCOPE_LIGHT") != "1":
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
