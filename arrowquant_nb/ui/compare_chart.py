"""What changed between two runs, and which run to ship: a dumbbell per layer, and size against quality.

Both as panels of one plotly figure and as still SVG pictures, drawn from the same rows. A is hollow, B filled; words
repeat what colour and shape say.
"""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, Final

import plotly.graph_objects as go

from arrowquant_nb.run_comparison import ComparedRun, LayerChange, RunComparison
from arrowquant_nb.ui.layer_chart import short_name
from arrowquant_nb.ui.style import FONT, GRID, INK, QUIET, WIDTHS, layout

__all__ = ["SHOWN_ROWS", "comparison_figure", "dumbbell_svg", "front_svg"]

SHOWN_ROWS: Final = 20
_ROW: Final = 22
_BETTER: Final = WIDTHS[8].colour
_WORSE: Final = WIDTHS[2].colour
_POINT: Final = WIDTHS[4].colour


def comparison_figure(comparison: RunComparison, rows: Sequence[LayerChange]) -> go.Figure:
    """Draw the given layers as dumbbells, and beside them all runs by size and quality.

    Parameters
    ----------
    comparison : RunComparison
        The runs.
    rows : sequence of LayerChange
        From top to bottom; `SHOWN_ROWS` of them are drawn.
    """
    shown = list(rows[:SHOWN_ROWS])
    left = 0.58 if shown else 0.0
    low, high = _range([value for row in shown for value in (row.a_db, row.b_db)])
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": INK}}
    sizes, medians = _spread([run.size_mb for run in comparison.runs]), _spread(_medians(comparison.runs))
    return go.Figure(
        data=[*_dumbbells(shown, low, high), *_points(comparison)],
        layout=layout(
            comparison.verdict,
            height=max(340, _ROW * len(shown) + 130),
            margin={"l": 8, "r": 8, "t": 64, "b": 46},
            showlegend=False,
            xaxis={**axis, "domain": [0, max(left - 0.17, 0.01)], "range": [low, high], "visible": bool(shown),
                   "title": {"text": _axis(comparison)}},
            yaxis={**axis, "range": [len(shown) - 0.4, -0.6], "tickvals": list(range(len(shown))), "automargin": True,
                   "ticktext": [escape(_brief(row.name, 34)) for row in shown], "showgrid": False,
                   "visible": bool(shown)},
            xaxis2={"domain": [max(left - 0.165, 0.01), max(left, 0.02)], "range": [0, 1], "visible": False,
                    "fixedrange": True},
            xaxis3={**axis, "domain": [left + 0.08, 1], "range": sizes, "anchor": "y3",
                    "title": {"text": "size (MB), further left is smaller"}},
            yaxis3={**axis, "range": medians, "anchor": "x3",
                    "title": {"text": f"median {comparison.measure} (dB)", "standoff": 4}},
        ),
    )  # fmt: skip


def dumbbell_svg(comparison: RunComparison, rows: Sequence[LayerChange]) -> str:
    """Draw the same layers as an SVG picture that reads without scripts; "" where there are none."""
    shown = list(rows[:SHOWN_ROWS])
    if not shown:
        return ""
    low, high = _range([value for row in shown for value in (row.a_db, row.b_db)])
    x0, x1, top = 300, 640, 12
    bottom = top + _ROW * len(shown)

    def x(value: float) -> float:
        return x0 + (x1 - x0) * (min(max(value, low), high) - low) / (high - low)

    parts = []
    for value in _ticks(low, high):
        parts.append(f'<path d="M{x(value):.1f} {top}V{bottom}" stroke="{GRID}"/>')
        parts.append(_text(x(value), bottom + 16, f"{value:g}", "middle"))
    for i, row in enumerate(shown):
        y = top + _ROW * (i + 0.5)
        colour = _BETTER if row.change_db > 0 else _WORSE
        parts += [
            _text(x0 - 10, y + 4, _brief(row.name, 40), "end"),
            f'<path d="M{x(row.a_db):.1f} {y}H{x(row.b_db):.1f}" stroke="{QUIET}" stroke-width="3"/>',
            f'<circle cx="{x(row.a_db):.1f}" cy="{y}" r="5" fill="none" stroke="{colour}" stroke-width="2"/>',
            f'<circle cx="{x(row.b_db):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            _text(x1 + 12, y + 4, row.words),
        ]
    parts.append(_text((x0 + x1) / 2, bottom + 34, _axis(comparison), "middle"))
    return _picture(860, bottom + 44, comparison.verdict, parts)


def front_svg(comparison: RunComparison) -> str:
    """Draw size against quality as an SVG picture; "" where no run has a quality."""
    points = [run for run in comparison.runs if math.isfinite(run.median_db)]
    if not points:
        return ""
    x_low, x_high = _spread([run.size_mb for run in points])
    y_low, y_high = _spread([run.median_db for run in points])
    left, right, top, bottom = 70, 620, 14, 250

    def at(size: float, quality: float) -> tuple[float, float]:
        return (
            left + (right - left) * (size - x_low) / (x_high - x_low),
            bottom - (bottom - top) * (quality - y_low) / (y_high - y_low),
        )

    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="{QUIET}"/>']
    parts += [_text(left - 6, at(x_low, v)[1] + 4, f"{v:g}", "end") for v in _ticks(y_low, y_high)]
    parts += [_text(at(v, y_low)[0], bottom + 16, f"{v:g}", "middle") for v in _ticks(x_low, x_high)]
    stairs = _stairs(comparison, x_high)
    if len(comparison.front) > 1:
        path = "".join(f"{'M' if i == 0 else 'L'}{at(*p)[0]:.1f} {at(*p)[1]:.1f}" for i, p in enumerate(stairs))
        parts.append(f'<path d="{path}" fill="none" stroke="{INK}" stroke-dasharray="4 3"/>')
    for run in points:
        px, py = at(run.size_mb, run.median_db)
        parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="5" fill="{_POINT}"/>')
        anchor, step = ("end", -10) if px > (left + right) / 2 else ("start", 10)
        parts.append(_text(px + step, py - 8, run.label, anchor))
    parts.append(
        _text((left + right) / 2, bottom + 34, f"size (MB) against median {comparison.measure} (dB)", "middle")
    )
    return _picture(640, bottom + 44, "Which run to ship: size against quality", parts)


def _dumbbells(rows: Sequence[LayerChange], low: float, high: float) -> list[Any]:
    if not rows:
        return []
    ends = [(min(max(r.a_db, low), high), min(max(r.b_db, low), high)) for r in rows]
    colours = [_BETTER if row.change_db > 0 else _WORSE for row in rows]
    places = list(range(len(rows)))
    hover = [f"{escape(r.name)}<br>{r.a_db:.2f} to {r.b_db:.2f} dB<br>{r.bits}, {r.nbytes / 1e6:+.3f} MB" for r in rows]
    shared = {"customdata": hover, "hovertemplate": "%{customdata}<extra></extra>", "mode": "markers", "y": places}
    return [
        go.Scatter(
            x=[x for a, b in ends for x in (a, b, None)], y=[i for i in places for _ in range(3)], mode="lines",
            line={"color": QUIET, "width": 3}, hoverinfo="skip",
        ),
        go.Scatter(x=[a for a, _ in ends], marker={"color": colours, "symbol": "circle-open", "size": 11,
                                                   "line": {"width": 2}}, name="A", **shared),
        go.Scatter(x=[b for _, b in ends], marker={"color": colours, "symbol": "circle", "size": 11}, name="B",
                   **shared),
        go.Scatter(
            x=[0] * len(rows), y=places, xaxis="x2", mode="text", text=[escape(row.words) for row in rows],
            textposition="middle right", textfont={"color": INK, "size": 11}, hoverinfo="skip",
        ),
    ]  # fmt: skip


def _brief(name: str, length: int) -> str:
    """Shorten a name and keep its block: transformer_blocks.3.attn1.to_q.weight reads b3.attn1.to_q."""
    return short_name(re.sub(r"\b(?:\w+_)?blocks\.(\d+)", r"b\1", name.removesuffix(".weight")), length)


def _axis(comparison: RunComparison) -> str:
    return f"{comparison.measure} (dB): {comparison.a.letter} hollow, {comparison.b.letter} filled"


def _points(comparison: RunComparison) -> list[Any]:
    points = [run for run in comparison.runs if math.isfinite(run.median_db)]
    high = _spread([run.size_mb for run in comparison.runs])[1]
    traces = []
    if len(comparison.front) > 1:
        stairs = _stairs(comparison, high)
        traces.append(go.Scatter(
            x=[x for x, _ in stairs], y=[y for _, y in stairs], mode="lines", xaxis="x3", yaxis="y3",
            line={"color": INK, "width": 1, "dash": "dash"}, hoverinfo="skip",
        ))  # fmt: skip
    traces.append(go.Scatter(
        x=[run.size_mb for run in points], y=[run.median_db for run in points], mode="markers+text", xaxis="x3",
        yaxis="y3", text=[escape(run.label) for run in points], textposition=_positions(points),
        textfont={"color": INK}, marker={"color": _POINT, "size": 11},
        customdata=[escape(run.words) for run in points], hovertemplate="%{customdata}<extra></extra>",
    ))  # fmt: skip
    return traces


def _positions(points: Sequence[ComparedRun]) -> list[str]:
    """Put the names towards the middle, so that none leaves the panel."""
    low, high = _spread([run.size_mb for run in points]) if points else (0.0, 1.0)
    return ["top left" if run.size_mb > (low + high) / 2 else "top right" for run in points]


def _stairs(comparison: RunComparison, right: float) -> list[tuple[float, float]]:
    """Return the corners of the line below which every run is beaten."""
    corners: list[tuple[float, float]] = []
    for run in comparison.front:
        if corners:
            corners.append((run.size_mb, corners[-1][1]))
        corners.append((run.size_mb, run.median_db))
    return [*corners, (right, corners[-1][1])] if corners else []


def _medians(runs: Sequence[ComparedRun]) -> list[float]:
    return [run.median_db for run in runs if math.isfinite(run.median_db)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    pad = max(0.06 * (max(finite) - min(finite)), 1.0)
    return min(finite) - pad, max(finite) + pad


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Return a range around values with room for names."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    pad = 0.15 * (high - low) or max(0.1 * abs(high), 0.1)
    return low - pad, high + 1.4 * pad


def _ticks(low: float, high: float) -> list[float]:
    raw = (high - low) / 6
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(scale * m for m in (1, 2, 5, 10) if scale * m >= raw)
    return [round(step * i, 9) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}">{escape(words)}</text>'


def _picture(width: int, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" width="{width}" '
        f'height="{height:.0f}" font-family="{escape(FONT, quote=True)}" font-size="12" role="img">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
