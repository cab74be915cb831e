"""Which layers hurt: one row per layer, name on the left, quality in the middle, value and width on the right.

A dot is the SQNR of the layer's output (of its weights where no output was measured), a grey tail reaches to the worst
timestep group, a tall tick is the gate and a short one the worst group's gate. Colour and shape both tell the width.
Unseen squares lie under names and values, so that the whole row can be clicked: texts take no clicks.
"""

import math
from html import escape
from typing import Any, Final

from arrowquant_nb.tables import WIDTH_NAMES
from arrowquant_nb.ui.charts.layout import Axes
from arrowquant_nb.ui.layer_list import ListPage
from arrowquant_nb.ui.layer_name import NAME_LENGTH, list_name
from arrowquant_nb.ui.layer_state import LayerState
from arrowquant_nb.ui.palette import SYMBOLS, Palette
from arrowquant_nb.ui.reference_points import ReferencePoint

__all__ = ["worst_list_traces"]

REFERENCE_ROW: Final = -1
_LIST: Final = {"xaxis": f"x{Axes.LIST}", "yaxis": f"y{Axes.ROWS}"}
_HIT_PLACES: Final = tuple((i + 0.5) / 10 for i in range(10))


def worst_list_traces(
    page: ListPage,
    selected: str,
    references: tuple[ReferencePoint, ...],
    colours: Palette,
    name_length: int = NAME_LENGTH,
) -> list[dict[str, Any]]:
    """Return the traces of the list, always the same number in the same order."""
    rows = list(enumerate(page.rows))
    edge = max((v for _, r in rows if (v := r.sqnr_db) is not None and math.isfinite(v)), default=40.0) + 3
    dots = [(i, row, min(value, edge)) for i, row in rows if (value := row.sqnr_db) is not None]
    return [
        _band([i for i, row in rows if row.name == selected], colours),
        _tails(dots, colours),
        _ticks([(i, row.gate_db) for i, row, _ in dots], 17, "gate", colours),
        _ticks([(i, row.worst_gate_db) for i, row, _ in dots], 8, "gate of the worst time group", colours),
        _dots(dots, colours),
        _names(rows, page.pinned, colours, name_length),
        _values(rows, colours),
        _hits(page.rows, Axes.NAMES),
        _hits(page.rows, Axes.VALUES),
        _references(references, colours, named=name_length == NAME_LENGTH),
    ]


def hover_text(layer: LayerState) -> str:
    """Return the lines of the hover box, escaped."""
    report = layer.report
    if report is None:
        return escape(layer.name)
    of = "output" if layer.measured_output else "weights"
    lines = [layer.name]
    if layer.sqnr_db is not None:
        worst = "" if layer.worst_db is None else f", {layer.worst_db:.1f} in the worst time group"
        lines.append(f"SQNR of its {of}: {_decibels(layer.sqnr_db)}{worst}")
    if layer.gate_db is not None and layer.worst_gate_db is not None:
        lines.append(f"gate {layer.gate_db:g} dB, worst group {layer.worst_gate_db:g} dB: {layer.words}")
    width = WIDTH_NAMES[report.bit_width]
    lines.append(f"{width} {report.method}, {report.nbytes / 1e6:.3f} MB, {report.bits_per_weight:.2f} bits per weight")
    lines.append(f"{len(report.attempts)} attempts" if len(report.attempts) != 1 else "1 attempt")
    return "<br>".join(escape(line) for line in lines)


def _decibels(value: float) -> str:
    return f"{value:.1f} dB" if math.isfinite(value) else "exact"


def _band(places: list[int], colours: Palette) -> dict[str, Any]:
    x: list[float | None] = []
    y: list[float | None] = []
    for i in places:
        x += [0, 1, 1, 0, 0, None]
        y += [i - 0.5, i - 0.5, i + 0.5, i + 0.5, i - 0.5, None]
    return {
        "type": "scatter", "name": "selected", "x": x, "y": y, "mode": "lines", "fill": "toself",
        "fillcolor": colours.selected, "line": {"width": 0}, "hoverinfo": "skip",
        "xaxis": f"x{Axes.BAND}", "yaxis": f"y{Axes.ROWS}",
    }  # fmt: skip


def _tails(dots: list[tuple[int, LayerState, float]], colours: Palette) -> dict[str, Any]:
    x: list[float | None] = []
    y: list[float | None] = []
    for i, row, value in dots:
        if row.worst_db is not None and math.isfinite(row.worst_db):
            x += [row.worst_db, value, None]
            y += [i, i, None]
    return {
        "type": "scatter", "name": "down to the worst time group", "x": x, "y": y, "mode": "lines",
        "line": {"color": colours.quiet, "width": 2}, "hoverinfo": "skip", **_LIST,
    }  # fmt: skip


def _ticks(gates: list[tuple[int, float | None]], size: int, name: str, colours: Palette) -> dict[str, Any]:
    found = [(i, gate) for i, gate in gates if gate is not None]
    return {
        "type": "scatter", "name": name, "x": [gate for _, gate in found], "y": [i for i, _ in found],
        "mode": "markers",
        "marker": {"symbol": "line-ns", "size": size, "color": colours.gate,
                   "line": {"width": 2, "color": colours.gate}},
        "hoverinfo": "skip", **_LIST,
    }  # fmt: skip


def _dots(dots: list[tuple[int, LayerState, float]], colours: Palette) -> dict[str, Any]:
    widths = [row.report.bit_width if row.report is not None else 16 for _, row, _ in dots]
    return {
        "type": "scatter", "name": "layers", "x": [value for _, _, value in dots], "y": [i for i, _, _ in dots],
        "mode": "markers",
        "marker": {"size": 11, "color": [colours.widths[b] for b in widths], "symbol": [SYMBOLS[b] for b in widths],
                   "line": {"width": 1, "color": colours.ground}},
        "customdata": [row.name for _, row, _ in dots], "hovertext": [hover_text(row) for _, row, _ in dots],
        "hoverinfo": "text", **_LIST,
    }  # fmt: skip


def _names(rows: list[tuple[int, LayerState]], pinned: int, colours: Palette, length: int) -> dict[str, Any]:
    texts = [escape(list_name(row, length)) for _, row in rows]
    if pinned >= 0 and texts:
        said = f"selected, rank {pinned + 1}" if length == NAME_LENGTH else f"rank {pinned + 1}"
        texts[0] = f"{escape(list_name(rows[0][1], max(8, length - len(said) + 4)))} <i>{said}</i>"
    return _texts(texts, 0.0, Axes.NAMES, "names", colours)


def _values(rows: list[tuple[int, LayerState]], colours: Palette) -> dict[str, Any]:
    texts = []
    for _, row in rows:
        width = WIDTH_NAMES[row.report.bit_width] if row.report is not None else ""
        value = "" if row.sqnr_db is None else "exact" if math.isinf(row.sqnr_db) else f"{row.sqnr_db:.1f}"
        missed = f" <b>{'below gate'}</b>" if row.report is not None and not row.report.passed else ""
        texts.append(f"<b>{value}</b> {width}{missed}")
    return _texts(texts, 0.08, Axes.VALUES, "values", colours)


def _texts(texts: list[str], x: float, axis: str, name: str, colours: Palette) -> dict[str, Any]:
    return {
        "type": "scatter", "name": name, "x": [x] * len(texts), "y": list(range(len(texts))), "mode": "text",
        "text": texts, "textposition": "middle right", "textfont": {"color": colours.ink, "size": 12},
        "hoverinfo": "skip", "cliponaxis": False, "xaxis": f"x{axis}", "yaxis": f"y{Axes.ROWS}",
    }  # fmt: skip


def _hits(rows: tuple[LayerState, ...], axis: str) -> dict[str, Any]:
    names = [row.name for row in rows for _ in _HIT_PLACES]
    return {
        "type": "scatter", "name": "rows", "x": [x for _ in rows for x in _HIT_PLACES],
        "y": [i for i in range(len(rows)) for _ in _HIT_PLACES], "mode": "markers",
        "marker": {"size": 21, "symbol": "square", "opacity": 0}, "customdata": names,
        "hovertemplate": "%{customdata}<extra></extra>", "xaxis": f"x{axis}", "yaxis": f"y{Axes.ROWS}",
    }  # fmt: skip


def _references(points: tuple[ReferencePoint, ...], colours: Palette, *, named: bool) -> dict[str, Any]:
    """Return the marks above the first row: what plain formats, and theory, give on Gaussian weights.

    On a narrow page their names would meet, and stand in the hover box alone.
    """
    texts = [escape(p.short) if named else "" for p in points]
    return {
        "type": "scatter", "name": "on Gaussian weights", "x": [p.sqnr_db for p in points],
        "y": [REFERENCE_ROW] * len(points), "mode": "markers+text", "text": texts,
        "textposition": [p.side for p in points], "textfont": {"color": colours.quiet, "size": 10},
        "marker": {"symbol": [p.symbol for p in points], "size": 8, "color": colours.quiet,
                   "line": {"width": 1, "color": colours.quiet}},
        "hovertext": [escape(p.words) for p in points], "hoverinfo": "text", "cliponaxis": False, **_LIST,
    }  # fmt: skip
