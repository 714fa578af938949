"""Links of pages to files of the repository that are no pages: to where the source can be read, or plain text.

A link to what does not exist is left as it is, and fails the build.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# [words](target), words may hold `code` with brackets in it; no picture.
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]`]|`[^`]*`)+)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any, **_: Any) -> str:
    """Return a page's text with its links to files outside the site turned.

    Args:
        markdown: The page's text.
        page: The page.
        config: Of the site.
        files: What the site is made of.

    Returns:
        The text; code blocks are as they were.
    """
    source = posixpath.normpath(posixpath.join("docs", page.file.src_uri))
    # Pages that come from the root are written as if they stood there.
    source = getattr(page.file, "repository_path", source)
    pages = {getattr(one, "repository_path", posixpath.join("docs", one.src_uri)): one.src_uri for one in files}

    def turned(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if re.match(r"[a-z]+:|#|/", target):
            return found[0]
        path, sharp, anchor = target.partition("#")
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if place in pages:
            here = posixpath.dirname(page.file.src_uri) or "."
            return f"[{text}]({posixpath.relpath(pages[place], here)}{sharp}{anchor})"
        if not (ROOT / place).exists():
            return found[0]
        base = config.extra.get("source_url") or os.environ.get("STEERSCOPE_SOURCE_URL", "")
        return f"[{text}]({base}{place}{sharp}{anchor})" if base else text

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(turned, part) for part in parts)
