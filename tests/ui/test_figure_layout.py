"""The live figure's layout: nothing lies over a title, and a row of the list can be clicked wherever it is drawn."""

import pytest

from arrowquant_nb.ui.charts.layout import SLIM, WIDE, Axes, FigureShape, figure_layout
from arrowquant_nb.ui.palette import palette

LETTER_PX = 7.0
"""No bold letter of 12 px of the usual fonts is wider on the average of a title."""
MODEBAR_PX = 44


@pytest.mark.parametrize("width", [300, 560, SLIM, WIDE - 1, WIDE, 942, 1500])
def test_titles_do_not_meet_each_other_the_buttons_or_the_edge(width):
    shape = FigureShape(20, ("attn", "ff"), 12, panels=True, wide=width >= WIDE, width=width)
    layout = figure_layout(shape, palette("light"))
    room = width - layout["margin"]["l"] - layout["margin"]["r"]
    titles = [
        (note["y"], note["x"] * room, note["x"] * room + LETTER_PX * (len(note["text"]) - len("<b></b>")))
        for note in layout["annotations"]
    ]
    top = max(y for y, _, _ in titles)
    for y, left, right in titles:
        assert right <= (room - MODEBAR_PX if y == top else room)
        assert all(right < other for height, other, _ in titles if height == y and other > left)


def test_the_pointer_reaches_names_values_and_dots_above_the_band():
    # Where panels overlap plotly gives the pointer to the one whose axis has the higher number.
    assert all(int(axis or 1) > int(Axes.BAND or 1) for axis in (Axes.NAMES, Axes.VALUES, Axes.LIST))
