"""Pages of the site that stand elsewhere in the repository, where people look for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Path in the repository, and the name of the page.
PAGES = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "studies/site_tables/README.md": "data_card.md",
}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add these pages to the site.

    Args:
        files: What the site is made of.
        config: Of the site.

    Returns:
        The files, with the pages.
    """
    for path, name in PAGES.items():
        made = File.generated(config, name, abs_src_path=str(ROOT / path))
        made.repository_path = path  # type: ignore[attr-defined]  # for the links in it
        files.append(made)
    return files
