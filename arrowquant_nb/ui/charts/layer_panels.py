"""One layer from near: weights before and after, the error map, the scales, and the output per timestep group."""

from typing import Any

from arrowquant_nb.runs.layer_view import LayerView, TimeGroup
from arrowquant_nb.ui.charts.layout import LEAST_COUNT, Axes, axes
from arrowquant_nb.ui.palette import Palette

__all__ = ["group_points", "layer_panel_traces"]


def layer_panel_traces(view: LayerView | None, worst_gate_db: float | None, colours: Palette) -> list[dict[str, Any]]:
    """Return the traces of the four panels, empty ones without a view.

    Parameters
    ----------
    view : the layer.
    worst_gate_db : what each timestep group must reach; None where that was not measured.
    colours : the theme.
    """
    if view is None:
        names = (Axes.WEIGHTS, Axes.WEIGHTS, Axes.ERROR, Axes.SCALES, Axes.GROUPS, Axes.GROUPS, Axes.GROUPS)
        kinds = ("scatter", "scatter", "heatmap", "scatter", "bar", "scatter", "scatter")
        return [
            {"type": kind, "showscale": False, "z": [], **axes(axis)}
            if kind == "heatmap"
            else {"type": kind, "x": [], "y": [], **axes(axis)}
            for kind, axis in zip(kinds, names, strict=True)
        ]
    return [
        *_weights(view, colours),
        _error(view, colours),
        _scales(view, colours),
        *_groups(view, worst_gate_db, colours),
    ]


def _weights(view: LayerView, colours: Palette) -> list[dict[str, Any]]:
    centres = ((view.edges[1:] + view.edges[:-1]) / 2).round(6).tolist()
    shared: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": centres, **axes(Axes.WEIGHTS)}
    before, after = ([int(n) for n in counts] for counts in (view.before, view.after))
    return [
        shared | {
            "name": "before", "y": _on_log_scale(before), "customdata": before,
            "line": {"color": colours.quiet, "width": 1, "shape": "hvh"}, "fill": "tozeroy",
            "fillcolor": "rgba(128,128,128,0.35)",
            "hovertemplate": "%{x:.4g}: %{customdata:,} before<extra></extra>",
        },
        shared | {
            "name": "after", "y": _on_log_scale(after), "customdata": after,
            "line": {"color": colours.widths[view.bit_width], "width": 1.8, "shape": "hvh"},
            "hovertemplate": "%{x:.4g}: %{customdata:,} after<extra></extra>",
        },
    ]  # fmt: skip


def _on_log_scale(counts: list[int]) -> list[float]:
    """Put what is none just below the axis: a logarithm has no place for it, and a gap would hide its neighbours."""
    return [n or LEAST_COUNT / 2 for n in counts]


def _error(view: LayerView, colours: Palette) -> dict[str, Any]:
    rows, columns = view.row_edges, view.column_edges
    text = [
        [
            f"outputs {rows[i]} to {rows[i + 1] - 1}, inputs {columns[j]} to {columns[j + 1] - 1}<br>"
            f"mean {view.tile_mean[i, j]:.3g}, largest {view.tile_max[i, j]:.3g}"
            for j in range(len(columns) - 1)
        ]
        for i in range(len(rows) - 1)
    ]
    return {
        "type": "heatmap", "name": "error", "x": list(columns), "y": list(rows),
        "z": view.tile_mean.astype(float).round(8).tolist(), "text": text, "hovertemplate": "%{text}<extra></extra>",
        "colorscale": colours.error_scale, "zmin": 0, "showscale": False, **axes(Axes.ERROR),
    }  # fmt: skip


def _scales(view: LayerView, colours: Palette) -> dict[str, Any]:
    n = len(view.scales)
    places = [round(i * (view.n_groups - 1) / max(1, n - 1)) for i in range(n)]
    return {
        "type": "scatter", "name": "scales", "x": places, "y": [float(f"{v:.5g}") for v in view.scales],
        "mode": "lines", "line": {"color": colours.widths[view.bit_width], "width": 2},
        "hovertemplate": "group %{x} of the sorted: %{y:.4g}<extra></extra>", **axes(Axes.SCALES),
    }  # fmt: skip


def group_points(view: LayerView) -> list[TimeGroup]:
    """Return the timestep groups whose output was measured."""
    return [] if view.ranges is None else [g for g in view.ranges.groups if g.sqnr_db is not None]


def _groups(view: LayerView, gate: float | None, colours: Palette) -> list[dict[str, Any]]:
    groups = group_points(view)
    x = list(range(1, len(groups) + 1))
    words = [f"timesteps {g.first_time} to {g.last_time}<br>{g.sqnr_db:.1f} dB" for g in groups]
    values = [round(float(g.sqnr_db or 0.0), 2) for g in groups]
    colour = [colours.failed if gate is not None and v < gate else colours.widths[view.bit_width] for v in values]
    note = [] if groups else ["not measured: no calibration"]
    end = len(groups) + 0.5
    return [
        {
            "type": "bar", "name": "groups", "x": x, "y": values, "marker": {"color": colour}, "hovertext": words,
            "hoverinfo": "text", **axes(Axes.GROUPS),
        },
        {
            "type": "scatter", "name": "gate", "x": [0.5, end] if gate is not None and groups else [],
            "y": [gate, gate] if gate is not None and groups else [], "mode": "lines",
            "line": {"color": colours.gate, "width": 2}, "hovertemplate": "gate %{y:g} dB<extra></extra>",
            **axes(Axes.GROUPS),
        },
        {
            "type": "scatter", "name": "note", "x": [1.0] * len(note), "y": [1.0] * len(note), "mode": "text",
            "text": note, "textfont": {"color": colours.ink, "size": 11}, "hoverinfo": "skip", **axes(Axes.GROUPS),
        },
    ]  # fmt: skip
