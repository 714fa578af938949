"""The notebooks as pages, with what they printed and drew when they last ran."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
_FENCE = "```"


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add a page per notebook, and its pictures.

    Args:
        files: What the site is made of.
        config: Of the site.

    Returns:
        The files, with the pages.
    """
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = page(path)
        made = File.generated(config, f"notebooks/{path.stem}.md", content=text)
        made.repository_path = f"notebooks/{path.name}"  # type: ignore[attr-defined]  # for the links in it
        files.append(made)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"{_FENCE}python\n{source}\n{_FENCE}")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "figure")
                parts.append(f"![{re.sub(r'[][]', '', alt)}]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))):
                parts.append(f"{_FENCE}text\n{text.rstrip()}\n{_FENCE}")
    return "\n\n".join(parts) + "\n", pictures
