"""Will it fit: megabytes written so far against the plan, layer by layer; the limit as a line where there is one."""

from typing import Any, Final

from arrowquant_nb.ui.charts.layout import Axes, axes
from arrowquant_nb.ui.palette import Palette
from arrowquant_nb.ui.run_state import RunState

__all__ = ["size_plan_traces"]

MOST_POINTS: Final = 200


def size_plan_traces(state: RunState, colours: Palette) -> list[dict[str, Any]]:
    """Return plan, written, limit and the words above them."""
    planned, written = _curves(state)
    limit = state.config.get("target_model_size_mb")
    n = len(state.quantized)
    so_far = f"solid: stored {written[-1]:.2f} MB, dotted: planned {planned[-1]:.2f} MB" if n else ""
    return [
        {
            "type": "scatter", "name": "plan", **_thinned(planned), "mode": "lines",
            "line": {"color": colours.ink, "dash": "dot", "width": 1.5}, "hovertemplate": _HOVER, **axes(Axes.SIZE),
        },
        {
            "type": "scatter", "name": "written", **_thinned(written), "mode": "lines",
            "line": {"color": colours.widths[4], "width": 2.5}, "hovertemplate": _HOVER, **axes(Axes.SIZE),
        },
        {
            "type": "scatter", "name": "limit", "x": [0, n] if limit else [], "y": [limit, limit] if limit else [],
            "mode": "lines", "line": {"color": colours.failed, "width": 1.5}, "hovertemplate": "limit %{y} MB",
            **axes(Axes.SIZE),
        },
        {
            "type": "scatter", "name": "words", "x": [0] if n else [], "y": [1.2 * max(planned[-1], written[-1])] if n
            else [], "mode": "text", "text": [so_far], "textposition": "middle right",
            "textfont": {"color": colours.ink, "size": 11}, "hoverinfo": "skip", "cliponaxis": False,
            **axes(Axes.SIZE),
        },
    ]  # fmt: skip


_HOVER: Final = "%{x} layers: %{y:.3f} MB<extra>%{fullData.name}</extra>"


def _curves(state: RunState) -> tuple[list[float], list[float]]:
    """Return MB after 0, 1, 2, ... layers: as planned, in the order they were decided, and as written.

    Kept tensors count from the start on both sides, so that the two differ by what the layers cost.
    """
    kept = sum(layer.plan.nbytes for layer in state.layers.values() if not layer.quantized) / 1e6
    done = set(state.order)
    order = [*state.order, *(layer.name for layer in state.quantized if layer.name not in done)]
    planned, written = [kept], [kept]
    for name in order:
        layer = state.layers[name]
        planned.append(planned[-1] + layer.plan.nbytes / 1e6)
        if layer.report is not None:
            written.append(written[-1] + layer.report.nbytes / 1e6)
    return planned, written


def _thinned(values: list[float]) -> dict[str, list[float]]:
    step = max(1, -(-len(values) // MOST_POINTS))
    places = sorted({*range(0, len(values), step), len(values) - 1})
    return {"x": [float(i) for i in places], "y": [round(values[i], 6) for i in places]}
