"""Figures of any numbers: legends, references, logarithms of zero, and the words of a picture."""

from __future__ import annotations

import base64

import pytest

from steerscope.errors import InputError
from steerscope.reports.figure_style import NULL
from steerscope.reports.plain_figures import SMALLEST, Panel, picture, plot_lines, plot_rows


def test_a_name_has_one_look_in_all_panels_and_stands_in_the_legend_once():
    first = Panel({"a": ([1, 2], [1.0, 2.0]), "b": ([1, 2], [2.0, 1.0])}, "y", nulls={"none": 0.0, "all": 1.0})
    second = Panel({"b": ([1, 2], [3.0, 4.0])}, "z", marks={"here": 1.5})
    figure = plot_lines([first, second], "x", "title", "foot")
    top, bottom = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "none", "all", "here"]
    assert top.lines[1].get_marker() == bottom.lines[0].get_marker() != top.lines[0].get_marker()
    nulls = [line.get_linestyle() for line in top.lines if line.get_color() == NULL]
    assert len(set(nulls)) == 2
    assert (top.get_ylabel(), bottom.get_ylabel(), bottom.get_xlabel()) == ("y", "z", "x")


def test_logarithmic_axes_and_zeros():
    figure = plot_rows({"one": {"claim": 0.0, "control": 0.5}, "two": {"claim": 1e-12}}, "error", "title", "foot")
    (ax,) = figure.axes
    assert ax.get_xscale() == "log"
    assert ax.lines[0].get_xdata().tolist() == [SMALLEST, 1e-12]
    assert ax.lines[1].get_ydata().tolist() == [0]
    whole = plot_lines(Panel({"a": ([1, 2, 4], [1.0, 0.5, 0.2])}, "y", log="xy"), "rank", "title", "foot").axes[0]
    assert (whole.get_xscale(), whole.get_yscale()) == ("log", "log")


def test_a_picture_has_words_and_the_same_bytes_every_time():
    def drawn():
        return picture(plot_rows({"one": {"a": 1.0}}, "x", "title", "foot", nulls={"null": 0.5}), "what it shows")

    data, metadata = drawn()._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"] == "what it shows"
    assert drawn() == drawn()


@pytest.mark.parametrize("draw", [lambda: plot_lines([], "x", "t", "f"), lambda: plot_rows({}, "x", "t", "f")])
def test_nothing_to_draw_is_refused(draw):
    with pytest.raises(InputError, match="at least one"):
        draw()
