"""Where the live figure stands: makes it when the first scene comes, paints what differs, passes clicks on.

A change of theme, of width, or of which panels there are needs another layout, and so another figure in the same place.
"""

from collections.abc import Callable
from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb.ui.charts.layout import WIDE, FigureShape
from arrowquant_nb.ui.live_figure import Scene, figure_script, figure_traces, live_widget, paint, shape_of
from arrowquant_nb.ui.palette import palette

__all__ = ["FigureBox"]

LEAST_WIDTH: Final = 280
MOST_WIDTH: Final = 1500
DEFAULT_WIDTH: Final = 1120


class FigureBox:
    """Holds at most one figure.

    Parameters
    ----------
    on_click : called with the full name of the layer that was clicked.

    Attributes
    ----------
    widget : the box.
    figure : the figure, None before the first scene.
    n_paints, n_made : how often data were sent, and figures made.
    """

    def __init__(self, on_click: Callable[[str], None]) -> None:
        self.widget = widgets.Box(layout={"width": "100%", "overflow": "hidden"})
        self.figure: Any = None
        self.theme = "light"
        self.width = 0
        self.n_paints = 0
        self.n_made = 0
        self._on_click = on_click
        self._made_of: tuple[FigureShape, str] | None = None
        self._script: Any = None
        self._retired: Any = None
        self._traces: list[dict[str, Any]] = []

    def draw(self, scene: Scene) -> None:
        """Show a scene."""
        width = min(max(self.width or DEFAULT_WIDTH, LEAST_WIDTH), MOST_WIDTH)
        shape = shape_of(scene, wide=width >= WIDE, width=width)
        colours = palette(self.theme)
        traces = figure_traces(scene, shape, colours)
        if self.figure is None or self._made_of != (shape, self.theme):
            self._make(traces, shape)
        else:
            self.n_paints += bool(paint(self.figure, self._traces, traces))
        self._traces = traces

    def prepare(self) -> None:
        """Send the page what figures are drawn with, before the first of them."""
        if self._script is None:
            self._script = figure_script()

    def clear(self) -> None:
        """Take the figure away."""
        self.widget.children = ()
        self._retire(self.figure)
        self.figure, self._made_of = None, None

    def renew(self) -> None:
        """Have the next scene drawn in a new figure: a page has missed changes of this one."""
        self._made_of = None

    def _make(self, traces: list[dict[str, Any]], shape: FigureShape) -> None:
        old = self.figure
        self.prepare()
        self.figure = live_widget(self._script, traces, shape, palette(self.theme))
        self._made_of = (shape, self.theme)
        self.n_made += 1
        for trace in self.figure.data:
            if trace.customdata is not None or trace.name in ("layers", "rows", "map"):
                trace.on_click(self._clicked)
        with self.widget.hold_sync():
            self.widget.children = ()  # else traitlets compares the two figures, down to their data
            self.widget.children = (self.figure,)
        self._retire(old)

    def _retire(self, old: Any) -> None:
        """Close the figure before the last one only: a page that is being loaded may have asked for the last one."""
        if self._retired is not None:
            self._retired.close()
        self._retired = old

    def _clicked(self, trace: Any, points: Any, _: Any) -> None:
        """Find the layer of a click; every trace is told of every click, all but one with no points."""
        if not points.point_inds:
            return
        place = points.point_inds[0]
        found = trace.customdata
        try:
            name = found[place[0]][place[1]] if isinstance(place, list | tuple) else found[place]
        except (IndexError, TypeError):  # the rows have moved since the click
            return
        if isinstance(name, str) and name:
            self._on_click(name)
