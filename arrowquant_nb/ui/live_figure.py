"""The one figure of a dashboard: built whole, then only its data change, and only where they differ.

Several live figures on a page, or a layout that is changed later, are lost in some viewers; so there is one, and a
change of layout makes a new one. plotly is loaded when the first figure is made: that takes a second, and the
first paint of an app does not wait for it.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from arrowquant_nb.ui.charts.block_map import BlockMap, block_map_traces
from arrowquant_nb.ui.charts.layer_panels import group_points, layer_panel_traces
from arrowquant_nb.ui.charts.layout import SLIM, FigureShape, figure_layout
from arrowquant_nb.ui.charts.size_plan import size_plan_traces
from arrowquant_nb.ui.charts.time_ranges import time_ranges_traces
from arrowquant_nb.ui.charts.worst_list import worst_list_traces
from arrowquant_nb.ui.layer_list import ListView, list_page
from arrowquant_nb.ui.palette import palette
from arrowquant_nb.ui.reference_points import reference_points
from arrowquant_nb.ui.run_state import RunState
from arrowquant_nb.ui.style import CONFIG

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from arrowquant_nb.runs.layer_view import LayerView, TimeRanges
    from arrowquant_nb.ui.figure_widget import FigureScript
    from arrowquant_nb.ui.palette import Palette

__all__ = [
    "Scene", "figure_script", "figure_traces", "live_widget", "load_plotly", "paint", "shape_of",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything that is drawn."""

    state: RunState
    view: ListView
    places: BlockMap
    n_rows: int
    """For how many rows there is room, see `page_rows`."""
    layer: LayerView | None = None
    """The selected layer from near; None while there is none."""
    ranges: TimeRanges | None = None
    """What the time panel shows."""
    ranges_words: str = ""

    @property
    def selected_gate(self) -> float | None:
        """What every timestep group of the selected layer must reach, in dB."""
        found = self.state.layers.get(self.layer.name) if self.layer is not None else None
        if self.layer is None or found is None or found.report is None:
            return None
        # A layer that was just done at another width is still shown as it was, which that gate is not for.
        return found.worst_gate_db if found.report.bit_width == self.layer.bit_width else None


def shape_of(scene: Scene, *, wide: bool = True, width: int | None = None) -> FigureShape:
    """Return what decides the layout of a scene."""
    return FigureShape(
        n_rows=scene.n_rows,
        map_rows=tuple(_short(role, 26 if width is None or width >= SLIM else 18) for role in scene.places.roles),
        n_blocks=len(scene.places.blocks),
        panels=scene.layer is not None,
        timed=scene.ranges is not None,
        grouped=scene.layer is not None and bool(group_points(scene.layer)),
        wide=wide,
        width=width,
    )


def _short(role: str, length: int) -> str:
    tail = length // 2 - 1
    return role if len(role) <= length else f"{role[: length - 1 - tail]}\u2026{role[-tail:]}"


def figure_traces(scene: Scene, shape: FigureShape, colours: Palette) -> list[dict[str, Any]]:
    """Return all traces of a figure; of one shape always the same number in the same order."""
    state = scene.state
    done = [layer.report for layer in state.decided if layer.report is not None]
    bits = 8 * sum(r.nbytes for r in done) / max(1, sum(r.n_weights for r in done))
    page = list_page(state, scene.view, shape.n_rows)
    traces = worst_list_traces(page, scene.view.selected, reference_points(bits), colours, shape.name_length)
    traces += size_plan_traces(state, colours)
    traces += time_ranges_traces(scene.ranges, scene.ranges_words, colours)
    if shape.map_rows:
        traces += block_map_traces(state, scene.places, scene.view.selected, colours, shape.mark_size)
    if shape.panels:
        traces += layer_panel_traces(scene.layer, scene.selected_gate, colours)
    return traces


def load_plotly() -> None:
    """Load and measure what the first figure needs, which takes seconds: for a thread, ahead of time."""
    import plotly.graph_objects as go  # noqa: PLC0415 - see above

    from arrowquant_nb.ui.figure_widget import figure_code  # noqa: PLC0415 - loads plotly

    scene = Scene(RunState(), ListView(), BlockMap(("block",), ("role",), {}), 1)
    shape = replace(shape_of(scene), panels=True)
    colours = palette("light")
    # plotly loads its parts as they are used.
    go.Figure(data=figure_traces(scene, shape, colours), layout=figure_layout(shape, colours))
    reference_points(1.0)
    figure_code()
    gc.collect()  # what was loaded makes a full collection due, which would hold up the loop in mid-run


def figure_script() -> FigureScript:
    """Return what live widgets draw with, sent to the page."""
    from arrowquant_nb.ui.figure_widget import FigureScript, figure_code  # noqa: PLC0415 - loads plotly

    return FigureScript(figure_code())


def live_widget(
    script: FigureScript, traces: list[dict[str, Any]], shape: FigureShape, colours: Palette
) -> go.FigureWidget:
    """Return a new figure widget, complete when it is made."""
    from arrowquant_nb.ui.figure_widget import LiveFigure  # noqa: PLC0415 - loads plotly

    widget = LiveFigure(script, traces, figure_layout(shape, colours))
    widget._config = {**widget._config, **CONFIG}  # noqa: SLF001 - the one way to a widget's configuration
    return widget


def paint(widget: go.FigureWidget, shown: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> int:
    """Send what differs between the traces that are shown and those wanted; return how many traces changed."""
    changes = [
        (i, {key: value for key, value in new.items() if key != "type" and old.get(key) != value})
        for i, (old, new) in enumerate(zip(shown, wanted, strict=True))
    ]
    changes = [(i, change) for i, change in changes if change]
    with widget.batch_update():
        for i, change in changes:
            widget.data[i].update(change)
    return len(changes)
