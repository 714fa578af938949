"""What every report is made of: one self-contained page, its figures and its result in a folder."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from steerscope.files import written_aside
from steerscope.reports.figure_style import figure_bytes
from steerscope.reports.tables import TextTable

# One look for all pages.
_STYLE = Path(__file__).parent / "style.css"


class Saved(Protocol):
    """A result that writes itself to a file."""

    def save(self, path: Path, /) -> object:
        """Write the result."""


Result = TypeVar("Result", bound=Saved)


@dataclass(frozen=True)
class PageFigure(Generic[Result]):
    """One figure of a page: file stem, heading, the function that draws it from the result, and its words."""

    stem: str
    heading: str
    plot: Callable[[Result], Figure]
    alt: str
    caption: str


def render(template: Path, figures: Sequence[tuple[PageFigure[Any], bytes]], **values: Any) -> str:
    """Return a page as HTML that loads nothing: styles inlined, figures as data URIs, every string escaped.

    Args:
        template: The page's template; it gets ``css``, ``figures`` and the values.
        figures: The figures in the order of the page, each with its SVG.
        values: What else the template names.

    Returns:
        The whole page as text.
    """
    # Data URIs rather than inline SVG: the figures' ids repeat and would collide in one document.
    shown = [
        {
            "stem": entry.stem,
            "heading": entry.heading,
            "alt": entry.alt,
            "caption": entry.caption,
            "uri": "data:image/svg+xml;base64," + base64.b64encode(svg).decode("ascii"),
        }
        for entry, svg in figures
    ]
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = _STYLE.read_text(encoding="utf-8")
    return environment.get_template(template.name).render(css=css, figures=shown, **values)


def table_values(table: TextTable) -> dict[str, Any]:
    """Return a table for a template."""
    return {
        "title": table.title,
        "note": table.note,
        "columns": [{"name": name, "right": name in table.right} for name in table.columns],
        "rows": table.rows,
    }


def write_page_folder(
    result: Result,
    folder: Path,
    result_name: str,
    figures: Sequence[PageFigure[Result]],
    page: Callable[[Result, list[tuple[PageFigure[Result], bytes]]], str],
    *,
    stems: Sequence[str],
) -> Path:
    """Write ``index.html``, ``figures/*.svg`` with ``*.png``, and the result itself.

    Everything is drawn, then written aside, before anything is replaced: a failure or an interruption leaves no
    half-written report behind, nor touches an earlier one. Equal results give equal bytes.

    Args:
        result: What is reported.
        folder: Where to write; made where it does not exist.
        result_name: The result's file name.
        figures: What is drawn, in the order of the page.
        page: The page as HTML, from the result and every figure's SVG.
        stems: Of all figures that an earlier report in the folder may hold; those that are not drawn now go away.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder cannot be written to.
    """
    drawn = []
    for entry in figures:
        figure = entry.plot(result)
        drawn.append((entry, figure_bytes(figure, "svg"), figure_bytes(figure, "png")))
    html = page(result, [(entry, svg) for entry, svg, _ in drawn])
    earlier = tuple(f"figures/{stem}.{ending}" for stem in stems for ending in ("svg", "png"))
    with written_aside(folder, "the report", last=(result_name, "index.html"), instead_of=earlier) as aside:
        (aside / "figures").mkdir()
        for entry, svg, png in drawn:
            (aside / "figures" / f"{entry.stem}.svg").write_bytes(svg)
            (aside / "figures" / f"{entry.stem}.png").write_bytes(png)
        result.save(aside / result_name)
        (aside / "index.html").write_text(html, encoding="utf-8", newline="\n")
    return folder / "index.html"
