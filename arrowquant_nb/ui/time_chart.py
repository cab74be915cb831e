"""How layer inputs drift over the timesteps with the grids that serve them, and what grouping the timesteps buys.

Each as an interactive figure and as a still SVG, drawn from the same rows. Takes an open model or a finished
comparison; computes nothing of either.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import plotly.graph_objects as go

from arrowquant_nb.activation_comparison import ActivationComparison
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.storage.quantized import QuantizedModel
from arrowquant_nb.ui.layer_chart import short_name
from arrowquant_nb.ui.style import FONT, GRID, INK, WIDTHS, layout

__all__ = ["InputDrift", "drift_of", "grouping_figure", "grouping_svg", "input_drift_figure", "input_drift_svg"]

_RANGE, _GRIDS = WIDTHS[4].colour, WIDTHS[2].colour
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 900, 320, 70, 60, 270
_BAR: Final = 26


@dataclass(frozen=True)
class InputDrift:
    """What is drawn of one layer's inputs."""

    layer: str
    times: tuple[int, ...]
    """Training timesteps, rising."""
    low: tuple[float, ...]
    """Smallest input at each, as calibrated."""
    high: tuple[float, ...]
    """Largest input at each."""
    grids: tuple[tuple[int, int, float, float], ...]
    """First timestep, end, smallest and largest value of each group's grid, in units of the input."""
    gain_db: float
    """What grouping gains over one grid, as expected from the calibration."""

    @property
    def title(self) -> str:
        """One line."""
        n = len(self.grids)
        gain = f", {self.gain_db:.1f} dB over one" if n > 1 else ""
        return f"Inputs of {short_name(self.layer)} over time: {n} grid{'s' if n > 1 else ''}{gain}"


def drift_of(model: QuantizedModel, layer: str | None = None) -> InputDrift:
    """Return how one layer's inputs drift; None takes the layer that gains most by grouping and is not equalized.

    Raises
    ------
    ConfigurationError
        The model has no such layer, or none, with stored grids.
    """
    tables = {} if model.time_aware is None else dict(model.time_aware.by_layer)
    plain = {name: t for name, t in tables.items() if not model.layer_metadata(name).get("spatial")}
    known = plain or tables
    name = max(known, key=lambda n: known[n].gain_db, default="") if layer is None else layer
    if name not in tables:
        raise ConfigurationError(
            f"{name or str(model.path)!r}: no input has a stored grid; quantize with activation_bit_width=8 and a "
            "calibration"
        )
    stats, table = model.layer_metadata(name)["activation_stats"], tables[name]
    steps = sorted(zip(stats["times"], stats["low"], stats["high"], strict=True))
    n = 2 ** model.rounded_inputs[name] - 1
    grids = tuple((*g.time_range, -g.zero_point * g.scale, (n - g.zero_point) * g.scale) for g in table.groups)
    times, low, high = (tuple(values) for values in zip(*steps, strict=True))
    return InputDrift(name, times, low, high, grids, table.gain_db)


def input_drift_figure(drift: InputDrift) -> go.Figure:
    """Draw the range of a layer's inputs over the timesteps, and the grids as steps around it; noise is on the left."""
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": INK}}
    edges = [(time, low, high) for first, last, low, high in drift.grids for time in (first, last - 1)]
    outline = [*((t, h) for t, _, h in edges), *((t, low) for t, low, _ in reversed(edges)), (edges[0][0], edges[0][2])]
    return go.Figure(
        data=[
            go.Scatter(
                x=[*drift.times, *reversed(drift.times)], y=[*drift.high, *reversed(drift.low)], fill="toself",
                mode="lines", line={"color": _RANGE, "width": 1}, name="smallest to largest input", hoverinfo="x+y",
            ),
            go.Scatter(
                x=[x for x, _ in outline], y=[y for _, y in outline], mode="lines", hoverinfo="x+y",
                line={"color": _GRIDS, "width": 2, "dash": "dash"}, name="what the group's grid holds",
            ),
        ],
        layout=layout(
            drift.title, height=_HEIGHT, margin={"l": 8, "r": 8, "t": 76, "b": 46},
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "itemclick": False},
            xaxis={**axis, "title": {"text": "training timestep: noise on the left, the finished sample on the right"},
                   "autorange": "reversed"},
            yaxis={**axis, "title": {"text": "input"}, "automargin": True},
        ),
    )  # fmt: skip


def input_drift_svg(drift: InputDrift) -> str:
    """Draw the same as an SVG picture that reads without scripts."""
    top = max(*drift.high, *(g[3] for g in drift.grids))
    low = min(*drift.low, *(g[2] for g in drift.grids))
    first, last = drift.grids[0][0], drift.grids[-1][1]

    def place(time: float, value: float) -> str:
        x = _WIDTH - 20 - (_WIDTH - 20 - _LEFT) * (time - first) / max(1, last - first)
        y = _BOTTOM - (_BOTTOM - _TOP) * (value - low) / ((top - low) or 1.0)
        return f"{x:.1f} {y:.1f}"

    band = [place(t, v) for t, v in zip(drift.times, drift.high, strict=True)]
    band += [place(t, v) for t, v in reversed(list(zip(drift.times, drift.low, strict=True)))]
    boxes = "".join(
        f'<path d="M{place(a, h)}L{place(b, h)}L{place(b, v)}L{place(a, v)}z" fill="none" stroke="{_GRIDS}" '
        'stroke-width="2" stroke-dasharray="6 4"/>'
        for a, b, v, h in drift.grids
    )
    parts = [
        _text(8, 20, drift.title, size=15),
        _text(8, 42, "filled: smallest to largest input; dashed: what the group's grid holds"),
        f'<path d="M{"L".join(band)}z" fill="{_RANGE}" fill-opacity="0.4" stroke="{_RANGE}"/>', boxes,
        *(_text(_LEFT - 8, _BOTTOM - (_BOTTOM - _TOP) * f + 4, f"{low + f * (top - low):.3g}", "end") for f in (0, 1)),
        _text(_LEFT, _BOTTOM + 24, f"timestep {last - 1}: noise"),
        _text(_WIDTH - 20, _BOTTOM + 24, f"timestep {first}: the finished sample", "end"),
    ]  # fmt: skip
    return _svg(drift.title, parts, _HEIGHT)


def grouping_figure(comparison: ActivationComparison) -> go.Figure:
    """Draw the network's SQNR for each way of rounding inputs, a row of bars for each width."""
    title, rows = _grouping(comparison)
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": INK}}
    bars = [
        go.Bar(
            x=[value for _, value, b in rows if b == bits], y=[escape(name) for name, _, b in rows if b == bits],
            orientation="h", marker={"color": WIDTHS[bits].colour}, name=f"{bits}-bit inputs",
            text=[f"{value:.1f} dB" for _, value, b in rows if b == bits], textposition="inside",
            insidetextanchor="end", hoverinfo="skip",
        )
        for bits in comparison.bit_widths
    ]  # fmt: skip
    return go.Figure(
        data=bars,
        layout=layout(
            title, height=_BAR * len(rows) + 150, margin={"l": 8, "r": 8, "t": 76, "b": 46}, barmode="group",
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "itemclick": False},
            xaxis={**axis, "title": {"text": "network SQNR (dB), further right is better"}, "rangemode": "tozero"},
            yaxis={"autorange": "reversed", "automargin": True, "fixedrange": True, "tickfont": {"color": INK}},
        ),
    )  # fmt: skip


def grouping_svg(comparison: ActivationComparison) -> str:
    """Draw the same as an SVG picture that reads without scripts."""
    title, rows = _grouping(comparison)
    longest = max(value for _, value, _ in rows)
    parts = [_text(8, 20, title, size=15)]
    for i, (name, value, bits) in enumerate(rows):
        y, width = 44 + _BAR * i, 380 * max(value, 0.0) / longest
        parts.append(_text(330, y + 13, f"{name}, {bits} bits", "end"))
        parts.append(f'<path d="M340 {y}h{width:.1f}v18h-{width:.1f}z" fill="{WIDTHS[bits].colour}"/>')
        parts.append(_text(348 + width, y + 13, f"{value:.1f} dB"))
    return _svg(title, parts, 60 + _BAR * len(rows))


def _grouping(comparison: ActivationComparison) -> tuple[str, list[tuple[str, float, int]]]:
    title = f"{comparison.sample}: the network's output with rounded inputs (float: {comparison.float_sqnr_db:.1f} dB)"
    return title, [(run.name, run.network_sqnr_db, run.bit_width) for run in comparison.runs]


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'
    )


def _svg(title: str, parts: Sequence[Any], height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="{escape(FONT, quote=True)}" font-size="12" role="img"><title>{escape(title)}</title>'
        f"{''.join(parts)}</svg>"
    )
