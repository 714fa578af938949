"""What every report is made of: one self-contained page, its figures and its result in a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steerscope.files import written_aside
from steerscope.folders import Kind, require_folder_for
from steerscope.reports.figure_style import figure_bytes
from steerscope.reports.vocabulary import clean


class Saved(Protocol):
    """A result that writes itself to a file."""

    def save(self, path: Path, /) -> object:
        """Write the result."""


Result = TypeVar("Result", bound=Saved)


@dataclass(frozen=True)
class Spot:
    """A rectangle of a figure and what a reader sees who points at it; in parts of the figure, from its top left."""

    left: float
    top: float
    width: float
    height: float
    text: str

    @property
    def line(self) -> str:
        """As the page's script reads it: four numbers in thousandths, and the text."""
        numbers = (self.left, self.top, self.width, self.height)
        return " ".join([*(f"{1000 * number:.0f}" for number in numbers), clean(self.text)])


def spot_at(ax: Axes, low: tuple[float, float], high: tuple[float, float], text: str) -> Spot:
    """Return the spot that a rectangle of a pair of axes covers, once the figure was drawn.

    Args:
        ax: The axes.
        low: Left and lower end of the rectangle, in the axes' data.
        high: Right and upper end.
        text: What is told there.

    Returns:
        The rectangle in parts of the figure.
    """
    figure = ax.figure
    to_figure = ax.transData + figure.transFigure.inverted()
    (left, bottom), (right, top) = to_figure.transform([low, high])
    return Spot(float(left), float(1 - top), float(right - left), float(top - bottom), text)


@dataclass(frozen=True)
class PageFigure(Generic[Result]):
    """One figure of a page.

    Attributes:
        stem: Of its files.
        heading: Of its section.
        plot: Draws it from the result.
        alt: What it shows, for a reader who cannot see it.
        caption: How to read it.
        spots: Values under the pointer, from the result and the drawn figure; without it there are none.
        is_wide: Whether its smallest text needs more than a phone's width; it is scrolled sideways there.
    """

    stem: str
    heading: str
    plot: Callable[[Result], Figure]
    alt: str
    caption: str
    spots: Callable[[Result, Figure], Sequence[Spot]] | None = None
    is_wide: bool = False


@dataclass(frozen=True)
class Drawn(Generic[Result]):
    """A figure of a page with its pictures."""

    entry: PageFigure[Result]
    svg: bytes
    png: bytes = b""
    spots: tuple[Spot, ...] = ()


def draw(entry: PageFigure[Result], result: Result) -> Drawn[Result]:
    """Draw a figure of a page; equal results give equal bytes.

    Args:
        entry: The figure.
        result: What it is drawn from.

    Returns:
        Its pictures and spots.
    """
    figure = entry.plot(result)
    svg, png = figure_bytes(figure, "svg"), figure_bytes(figure, "png")
    # After drawing: only then axes are where they stay.
    return Drawn(entry, svg, png, tuple(entry.spots(result, figure)) if entry.spots else ())


def write_page_folder(
    result: Result,
    folder: str | Path,
    kind: Kind,
    result_name: str,
    figures: Sequence[PageFigure[Result]],
    page: Callable[[Result, list[Drawn[Result]]], str],
    *,
    stems: Sequence[str],
    also: tuple[Kind, ...] = (),
    instead_of: Sequence[str] = (),
) -> Path:
    """Write ``index.html``, ``figures/*.svg`` with ``*.png``, and the result itself.

    Everything is drawn, then written aside, before anything is replaced: a failure or an interruption leaves no
    half-written report behind, nor touches an earlier one. Equal results give equal bytes. A result that the folder
    holds already, as a sweep's does its table, is left as it is.

    Args:
        result: What is reported.
        folder: Where to write; made where it does not exist.
        kind: What the folder then is.
        result_name: The result's file name.
        figures: What is drawn, in the order of the page.
        page: The page as HTML, from the result and the drawn figures.
        stems: Of all figures that an earlier report in the folder may hold; those that are not drawn now go away.
        also: What else it may be already.
        instead_of: Patterns of other earlier files that go away.

    Returns:
        The path of ``index.html``.

    Raises:
        InputError: The folder holds something else, or cannot be written to.
    """
    folder = Path(folder)
    require_folder_for(folder, kind, also=also)
    drawn = [draw(entry, result) for entry in figures]
    html = page(result, drawn)
    earlier = [f"figures/{stem}.{ending}" for stem in stems for ending in ("svg", "png")]
    last, there = [result_name, "index.html"], folder / result_name
    with written_aside(folder, "the report", last=last, instead_of=[*earlier, *instead_of]) as aside:
        (aside / "figures").mkdir()
        for one in drawn:
            (aside / "figures" / f"{one.entry.stem}.svg").write_bytes(one.svg)
            (aside / "figures" / f"{one.entry.stem}.png").write_bytes(one.png)
        saved = aside / result_name
        result.save(saved)
        if there.is_file() and there.read_bytes() == saved.read_bytes():
            saved.unlink()
            last.remove(result_name)
        (aside / "index.html").write_text(html, encoding="utf-8", newline="\n")
    return folder / "index.html"
