"""Where each panel of the live figure lies: pixels in, one complete plotly layout out.

The layout is fixed when the figure is made: what is changed later is lost in some viewers. Axes are numbered once and
for all, whatever panels are drawn.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from arrowquant_nb.ui.palette import Palette
from arrowquant_nb.ui.style import FONT, REMOVED_BUTTONS

__all__ = ["SLIM", "Axes", "FigureShape", "figure_layout"]

ROW: Final = 22
"""Height of a row of the worst list in pixels."""
TITLE: Final = 30
FOOT: Final = 34
"""Room below a panel for its tick labels."""
GAP: Final = 18
PANEL: Final = 190
MAP_ROW: Final = 18
LEAST_LIST: Final = 15
WIDE: Final = 900
"""From this width of the cell on there are two columns."""
SLIM: Final = 620
"""Below this width every panel has a row of its own, and names take more of it."""
LETTER: Final = 6.9
"""Pixels of a letter of a name, on average."""
MOST_LETTERS: Final = 32
LEAST_COUNT: Final = 0.7
"""Where the logarithmic axis of counts begins: below one, and above what stands for none."""


class Axes:
    """Numbers of the axes; "" is the first.

    Where panels overlap, the one with the last number takes pointer and clicks: so the band below a whole row of the
    list comes first, and names, values and dots lie above it.
    """

    BAND = ""
    NAMES = "2"
    VALUES = "3"
    LIST = "4"
    ROWS = ""
    """The vertical axis of these four."""
    SIZE = "5"
    TIME = "6"
    MAP = "7"
    WEIGHTS = "8"
    ERROR = "9"
    SCALES = "10"
    GROUPS = "11"


@dataclass(frozen=True)
class FigureShape:
    """What decides a layout."""

    n_rows: int
    """Rows of the worst list."""
    map_rows: tuple[str, ...] = ()
    """Roles of the map from top to bottom; empty for no map."""
    n_blocks: int = 0
    """Columns of the map."""
    panels: bool = False
    """Whether the panels of one layer are drawn."""
    timed: bool = True
    """Whether there are ranges over timesteps: without them words stand there, and no axes."""
    grouped: bool = True
    """Likewise, whether the output of the layer was measured per timestep group."""
    wide: bool = True
    """Whether there are two columns."""
    width: int | None = None
    """Pixels; None to fill whatever the figure stands in."""

    @property
    def slim(self) -> bool:
        """Whether every panel has a row of its own."""
        return self.width is not None and self.width < SLIM

    @property
    def beside(self) -> bool:
        """Whether size and time stand beside the list: it is as tall as they are."""
        return self.wide and self.n_rows >= LEAST_LIST

    @property
    def list_share(self) -> float:
        """Part of the width that the list takes."""
        return 0.66 if self.beside else 1.0

    @property
    def name_share(self) -> float:
        """Part of the list's width that names take."""
        return 0.41 if self.slim else 0.30 if self.beside or not self.wide else 0.2

    @property
    def names_end(self) -> float:
        """Where names end, as a share of the width."""
        return self.list_share * self.name_share

    @property
    def values_from(self) -> float:
        """Where values begin, as a share of the width."""
        return self.list_share - (0.26 if self.slim else 0.11 if self.wide else 0.18)

    @property
    def name_length(self) -> int:
        """Letters of a name that fit."""
        if self.width is None or self.wide:
            return MOST_LETTERS
        return min(MOST_LETTERS, int(self.name_share * self.width / LETTER))

    @property
    def mark_size(self) -> float:
        """Pixels of a mark on a cell of the map."""
        width = (self.width or WIDE) * (1 - self.name_share * self.list_share)
        return min(7.0, max(2.0, round(width / max(1, self.n_blocks), 1)))

    @property
    def list_height(self) -> int:
        """Pixels of the worst list: its rows and one of reference marks on top."""
        return ROW * (self.n_rows + 1)


class _Stack:
    """Panels from top to bottom, in pixels; turned into shares of the height at the end."""

    def __init__(self) -> None:
        self.height = 0

    def take(self, height: int) -> tuple[int, int]:
        """Reserve a panel and return its top and bottom."""
        top = self.height + TITLE
        self.height = top + height + FOOT
        return top, top + height


def figure_layout(shape: FigureShape, colours: Palette) -> dict[str, Any]:
    """Return the whole layout of a figure."""
    boxes, height = _boxes(shape)
    found: dict[str, Any] = {}
    notes = []
    for axis, title, across, (upper, lower) in boxes:
        rows = Axes.ROWS if axis == Axes.LIST else axis
        found[f"xaxis{axis}"] = {"domain": list(across), "anchor": f"y{rows}"}
        found[f"yaxis{rows}"] = {"domain": [1 - lower / height, 1 - upper / height], "anchor": f"x{axis}"}
        left = 0.0 if axis == Axes.LIST or shape.slim else across[0]
        notes.append(_title(title, left, 1 - (upper - 8) / height, colours))
    for axis, across in (
        (Axes.NAMES, (0.0, shape.names_end)), (Axes.VALUES, (shape.values_from, shape.list_share)),
        (Axes.BAND, (0.0, shape.list_share)),
    ):  # fmt: skip
        found[f"xaxis{axis}"] = {"domain": list(across), "anchor": f"y{Axes.ROWS}", "range": [0, 1]}
    _dress(found, shape, colours)
    return {
        "height": height,
        **({"autosize": True} if shape.width is None else {"width": shape.width}),
        "annotations": notes,
        "margin": {"l": 8, "r": 8, "t": 0, "b": 4},
        "font": {"family": FONT, "size": 12, "color": colours.ink},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "hovermode": "closest",
        "showlegend": False,
        "hoverlabel": {"align": "left", "bgcolor": colours.ground, "font": {"color": colours.ink}},
        "modebar": {"remove": list(REMOVED_BUTTONS), "bgcolor": "rgba(0,0,0,0)", "color": colours.quiet},
        "template": {},
        "uirevision": "kept",
        **found,
    }


_LIST_TITLE: Final = "Quality per layer, SQNR in dB (further right is better)"
_SLIM_LIST_TITLE: Final = "SQNR in dB, right is better"
_SIZE_TITLE: Final = "Size in MB by layers"
_TIME_TITLE: Final = "Input range by timestep (0 clean)"
_MAP_TITLE: Final = "Where in the model, SQNR in dB by block and role"
_SLIM_MAP_TITLE: Final = "Where in the model, SQNR in dB"


_Box = tuple[str, str, tuple[float, float], tuple[int, int]]
"""Axis, title, left and right as shares of the width, top and bottom in pixels."""


def _boxes(shape: FigureShape) -> tuple[list[_Box], int]:
    """Return where the panels stand, and the height of all."""
    stack = _Stack()
    top, bottom = stack.take(shape.list_height)
    title = _SLIM_LIST_TITLE if shape.slim else _LIST_TITLE
    boxes: list[_Box] = [(Axes.LIST, title, (shape.names_end, shape.values_from), (top, bottom))]
    if shape.beside:
        middle = (top + bottom - FOOT - TITLE) // 2
        side = (shape.list_share + 0.055, 1.0)
        boxes.append((Axes.SIZE, _SIZE_TITLE, side, (top, middle)))
        boxes.append((Axes.TIME, _TIME_TITLE, side, (middle + FOOT + TITLE, bottom)))
    elif shape.wide:
        box = stack.take(PANEL)
        boxes.append((Axes.SIZE, _SIZE_TITLE, (0.04, 0.47), box))
        boxes.append((Axes.TIME, _TIME_TITLE, (0.555, 1.0), box))
    else:
        boxes.append((Axes.SIZE, _SIZE_TITLE, (0.1, 1.0), stack.take(PANEL)))
        boxes.append((Axes.TIME, _TIME_TITLE, (0.1, 1.0), stack.take(PANEL)))
    if shape.map_rows:
        box = stack.take(MAP_ROW * len(shape.map_rows) + 6)
        map_title = _SLIM_MAP_TITLE if shape.slim else _MAP_TITLE
        boxes.append((Axes.MAP, map_title, (shape.names_end, 1.0), box))
    if shape.panels:
        boxes += _panel_boxes(stack, shape)
    return boxes, stack.height


def _panel_boxes(stack: _Stack, shape: FigureShape) -> list[_Box]:
    titles = {
        Axes.WEIGHTS: "Weights, count (grey: before)",
        Axes.ERROR: "Error |w - w'| (bright: large)",
        Axes.SCALES: "Group scales, sorted",
        Axes.GROUPS: "SQNR by time group, dB",
    }
    if shape.slim:
        return [(axis, title, (0.12, 1.0), stack.take(PANEL)) for axis, title in titles.items()]
    if shape.wide:
        box = stack.take(PANEL)
        lefts = (0.04, 0.295, 0.555, 0.815)
        return [(axis, titles[axis], (left, left + 0.185), box) for axis, left in zip(titles, lefts, strict=True)]
    found = []
    for pair in ((Axes.WEIGHTS, Axes.ERROR), (Axes.SCALES, Axes.GROUPS)):
        box = stack.take(PANEL)
        found += [(axis, titles[axis], (left, left + 0.4), box) for axis, left in zip(pair, (0.07, 0.59), strict=True)]
    return found


def _title(text: str, x: float, y: float, colours: Palette) -> dict[str, Any]:
    return {
        "text": f"<b>{text}</b>", "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left",
        "yanchor": "bottom", "showarrow": False, "font": {"size": 12, "color": colours.ink},
    }  # fmt: skip


def _dress(found: dict[str, Any], shape: FigureShape, colours: Palette) -> None:
    """Give every axis its grid, ticks and range."""
    for name, axis in found.items():
        axis |= {"gridcolor": colours.grid, "zeroline": False, "fixedrange": True, "linecolor": colours.grid}
        axis["tickfont"] = {"color": colours.ink, "size": 11}
        if name.startswith("yaxis"):
            axis["nticks"] = 6
    rows = {"range": [shape.n_rows - 0.5, -1.6]}
    found[f"yaxis{Axes.ROWS}"] |= rows | {"visible": False}
    found[f"xaxis{Axes.LIST}"] |= {"nticks": 4 if shape.slim else 8, "tickangle": 0}
    for axis in (Axes.NAMES, Axes.VALUES, Axes.BAND):
        found[f"xaxis{axis}"]["visible"] = False
    found[f"yaxis{Axes.SIZE}"] |= {"rangemode": "tozero", "showgrid": False}
    found[f"xaxis{Axes.SIZE}"] |= {"rangemode": "tozero", "showgrid": False}
    found[f"xaxis{Axes.TIME}"] |= {"showgrid": False, "visible": shape.timed}
    found[f"yaxis{Axes.TIME}"]["visible"] = shape.timed
    if shape.map_rows:
        found[f"yaxis{Axes.MAP}"] |= {
            "range": [len(shape.map_rows) - 0.5, -0.5], "tickmode": "array", "showgrid": False,
            "tickvals": list(range(len(shape.map_rows))), "ticktext": list(shape.map_rows), "ticksuffix": "  ",
        }  # fmt: skip
        found[f"xaxis{Axes.MAP}"] |= {"range": [-0.5, shape.n_blocks - 0.5], "showgrid": False}
    if shape.panels:
        found[f"yaxis{Axes.WEIGHTS}"] |= {"type": "log", "dtick": 1, "exponentformat": "power"}
        found[f"yaxis{Axes.WEIGHTS}"]["autorangeoptions"] = {"minallowed": math.log10(LEAST_COUNT)}
        found[f"xaxis{Axes.WEIGHTS}"] |= {"showgrid": False, "nticks": 5}
        found[f"xaxis{Axes.ERROR}"] |= {"showgrid": False, "nticks": 5}
        found[f"yaxis{Axes.ERROR}"] |= {"showgrid": False, "autorange": "reversed"}
        found[f"yaxis{Axes.SCALES}"] |= {"type": "log", "exponentformat": "power", "nticks": 5}
        found[f"xaxis{Axes.SCALES}"] |= {"showgrid": False, "nticks": 5}
        found[f"yaxis{Axes.GROUPS}"] |= {"rangemode": "tozero", "visible": shape.grouped}
        found[f"xaxis{Axes.GROUPS}"] |= {"showgrid": False, "nticks": 6, "visible": shape.grouped}


def axes(number: str) -> dict[str, str]:
    """Return the two axis references of a trace."""
    return {"xaxis": f"x{number}", "yaxis": f"y{number}"}
