"""What pyproject.toml cannot say: README as the package index shows it, where paths of the repository lead nowhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def for_the_index(text: str, source: str | None) -> str:
    """Return a page whose links to files of the repository are absolute.

    Args:
        text: Markdown.
        source: Where the repository can be read; without it such links become their words, and pictures are left out.

    Returns:
        The page.
    """

    def turned(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if re.match(r"[a-z]+:|#", target):
            return found[0]
        if source is None:
            return "" if picture else words
        return f"{picture}[{words}]({source.rstrip('/')}/{'raw' if picture else 'blob'}/main/{target})"

    return re.sub(r"(!?)\[((?:[^\[\]`]|`[^`]*`)*)\]\(([^()\s]+)\)", turned, text)


if __name__ == "__main__":
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"].get("urls", {})
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=for_the_index(page, urls.get("Source")),
        long_description_content_type="text/markdown",
    )
