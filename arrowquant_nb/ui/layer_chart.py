"""Which layers hurt: one row per quantized layer, the worst on top, as an interactive figure and as a still SVG.

Both are drawn from the same rows, so they say the same. A filled mark is the accepted attempt, a hollow one an
attempt that missed its gate; colour and shape give the bit width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import plotly.graph_objects as go

from arrowquant_nb import tables
from arrowquant_nb.layer_reports import AttemptReport, LayerReport
from arrowquant_nb.result_card import by_quality, gate_words, measured_at
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.ui.style import FONT, GRID, INK, QUIET, WIDTHS, layout

__all__ = ["LayerRow", "layer_quality_figure", "layer_quality_svg", "layer_rows", "short_name"]

SHOWN_ROWS: Final = 60
ROW_HEIGHT: Final = 18
NAME_LENGTH: Final = 44
_AXIS: Final = "{} (dB), further right is better"


@dataclass(frozen=True)
class LayerRow:
    """What is drawn of one layer."""

    name: str
    """Shortened; begins with a triangle when the layer fell back."""
    sqnr_db: float
    """At the layer's output where it was measured, else of the weights. Finite: a bit-exact layer is drawn at the
    right edge and reads "exact"."""
    bit_width: int
    words: str
    """Value, width and gate, as written at the right."""
    worst_db: float | None
    """In the worst timestep group; None where it was not measured."""
    failed: tuple[tuple[float, int], ...]
    """SQNR in dB and bit width of each attempt that missed its gate."""
    hover: str
    """Lines of the hover box, separated by newlines; not escaped."""


def short_name(name: str, length: int = NAME_LENGTH) -> str:
    """Cut a name in the middle: the beginning tells the block, the end the role.

    Examples
    --------
    >>> short_name("transformer_blocks.0.attn1.to_q.weight", 20)
    'transform...q.weight'
    """
    printable = "".join(character if character.isprintable() else "?" for character in name)
    tail = (length - 3) // 2
    return printable if len(printable) <= length else f"{printable[: length - 3 - tail]}...{printable[-tail:]}"


def layer_rows(
    layers: Iterable[LayerReport], limit: int = SHOWN_ROWS, min_output_sqnr_db: object = None
) -> list[LayerRow]:
    """Return the rows of the quantized layers, worst SQNR first, at most `limit`; the last is the run's own gate."""
    quantized = by_quality(list(layers))
    finite = [r.quality_db for r in quantized if math.isfinite(r.quality_db)]
    edge = max(finite, default=0.0) + 1.0
    return [_row(report, edge, min_output_sqnr_db) for report in quantized[:limit]]


def layer_quality_figure(result: QuantizationResult, limit: int = SHOWN_ROWS) -> go.Figure:
    """Draw the quality of every quantized layer, worst first.

    Parameters
    ----------
    result : QuantizationResult
        A finished run.
    limit : int
        The worst layers that are drawn.

    Returns
    -------
    plotly.graph_objects.Figure
        With its complete layout.
    """
    rows = layer_rows(result.layers, limit, result.config.get("min_output_sqnr_db"))
    title = _AXIS.format(measured_at(result.layers))
    axis = {"gridcolor": GRID, "zeroline": False, "fixedrange": True, "tickfont": {"color": INK}}
    return go.Figure(
        data=_traces(rows),
        layout=layout(
            _title(result, len(rows)),
            height=ROW_HEIGHT * len(rows) + 130,
            margin={"l": 8, "r": 8, "t": 76, "b": 46},
            legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "itemclick": False},
            xaxis={**axis, "title": {"text": title}, "range": list(_range(rows)), "domain": [0, 0.66]},
            xaxis2={"domain": [0.67, 1], "range": [0, 1], "visible": False, "fixedrange": True},
            yaxis={
                **axis, "range": [len(rows) - 0.4, -0.6], "tickmode": "array", "tickvals": list(range(len(rows))),
                "ticktext": [escape(row.name) for row in rows], "automargin": True, "showgrid": False,
                "ticks": "outside", "ticklen": 6, "tickcolor": "rgba(0,0,0,0)",
            },
        ),
    )  # fmt: skip


def layer_quality_svg(result: QuantizationResult, limit: int = SHOWN_ROWS) -> str:
    """Draw the same rows as an SVG picture that reads without scripts."""
    rows = layer_rows(result.layers, limit, result.config.get("min_output_sqnr_db"))
    left, right = _range(rows)
    x0, x1, top = 330, 700, 60
    height = top + ROW_HEIGHT * len(rows) + 48

    def x(value: float) -> float:
        return x0 + (x1 - x0) * (value - left) / (right - left)

    parts = [_text(8, 20, _title(result, len(rows)), size=15)]
    shown = sorted({row.bit_width for row in rows})
    for i, bits in enumerate(shown):
        parts += [_mark(16 + 90 * i, 42, bits, filled=True), _text(28 + 90 * i, 46, WIDTHS[bits].word)]
    remarks = ["grey: down to the worst timestep group"] if any(row.worst_db is not None for row in rows) else []
    remarks += ["hollow: missed its gate"] if any(row.failed for row in rows) else []
    parts.append(_text(16 + 90 * len(shown), 46, "; ".join(remarks)))
    bottom = top + ROW_HEIGHT * len(rows)
    for value in _ticks(left, right):
        parts.append(f'<path d="M{x(value):.1f} {top - 4}V{bottom}" stroke="#80808040"/>')
        parts.append(_text(x(value), bottom + 16, f"{value:g}", anchor="middle"))
    parts.append(_text((x0 + x1) / 2, bottom + 36, _AXIS.format(measured_at(result.layers)), anchor="middle"))
    for i, row in enumerate(rows):
        y = top + ROW_HEIGHT * (i + 0.5)
        parts.append(_text(x0 - 12, y + 4, row.name, anchor="end"))
        if row.worst_db is not None:
            parts.append(
                f'<path d="M{x(row.worst_db):.1f} {y}H{x(row.sqnr_db):.1f}" stroke="{QUIET}" stroke-width="3"/>'
            )
        if row.failed:
            first = min(value for value, _ in row.failed)
            parts.append(f'<path d="M{x(first):.1f} {y}H{x(row.sqnr_db):.1f}" stroke="{INK}"/>')
        parts += [_mark(x(value), y, bits, filled=False) for value, bits in row.failed]
        parts += [_mark(x(row.sqnr_db), y, row.bit_width, filled=True), _text(x1 + 14, y + 4, row.words)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1000 {height}" width="1000" height="{height}" '
        f'font-family="{escape(FONT, quote=True)}" font-size="12" role="img">'
        f"<title>{escape(_title(result, len(rows)))}</title>{''.join(parts)}</svg>"
    )


def _row(report: LayerReport, edge: float, min_output_sqnr_db: object) -> LayerRow:
    accepted = report.attempts[-1] if report.attempts else None
    missed = [(_reached(a), a.bit_width) for a in report.attempts if not a.passed]
    worst = report.worst_output_sqnr
    exact = math.isinf(report.quality_db)
    return LayerRow(
        name=("\u25b2 " if report.fell_back else "") + short_name(report.name),
        sqnr_db=edge if exact else report.quality_db,
        bit_width=report.bit_width,
        words="  ".join(
            (
                tables.decibels(report.quality_db),
                WIDTHS[report.bit_width].word,
                _held_to(report, accepted, min_output_sqnr_db),
            )
        ),
        worst_db=None if exact or isinstance(worst, str) or math.isinf(worst) else worst,
        failed=tuple((value, bits) for value, bits in missed if math.isfinite(value)),
        hover="\n".join(_hover_lines(report, report.attempts)),
    )


def _reached(attempt: AttemptReport) -> float:
    return attempt.sqnr_db if isinstance(attempt.output_sqnr, str) else attempt.output_sqnr


def _held_to(report: LayerReport, accepted: AttemptReport | None, min_output_sqnr_db: object) -> str:
    """Say what the layer was held to: its output where it was measured, else the weight cosine."""
    if accepted is not None and not isinstance(accepted.output_sqnr, str):
        gate, state = gate_words(report, min_output_sqnr_db)
        return f"gate {gate.removeprefix('>= ')}, {state.rpartition(', ')[2]}"
    return f"cosine {report.cosine:.4f}" + (f", gate {accepted.min_cosine:g}" if accepted else "")


def _hover_lines(report: LayerReport, attempts: Sequence[AttemptReport]) -> list[str]:
    shape = " x ".join(map(str, report.shape))
    size = f"{report.nbytes / 1000:.1f} kB, {report.bits_per_weight:.4g} bits per weight"
    error = f"SQNR {report.sqnr_db:.2f} dB, cosine {report.cosine:.6f}"
    scales = ", k scales" if report.scale_format == "k" else ""
    return [
        report.name,
        f"{report.role}, {shape}, {report.n_weights:,} weights, {size}",
        f"INT{report.bit_width} {report.method}, group size {report.group_size}{scales}, {error}",
        f"Width: {report.reason}",
        *(attempt.sentence for attempt in attempts),
    ]


def _title(result: QuantizationResult, n_shown: int) -> str:
    n_all = sum(report.action == "quantized" for report in result.layers)
    kept = len(result.layers) - n_all
    shown = f"{n_all} layers" if n_shown == n_all else f"the {n_shown} worst of {n_all} layers"
    fell_back = sum(report.fell_back for report in result.layers)
    return f"Quality of {shown}, worst first ({kept} tensors kept, \u25b2 {fell_back} layers fell back to more bits)"


def _range(rows: Sequence[LayerRow]) -> tuple[float, float]:
    values = [row.sqnr_db for row in rows] + [value for row in rows for value, _ in row.failed] or [0.0]
    values += [row.worst_db for row in rows if row.worst_db is not None]
    pad = max(0.06 * (max(values) - min(values)), 0.5)
    return min(values) - pad, max(values) + pad


def _ticks(left: float, right: float) -> list[float]:
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if (right - left) / step <= 8)
    first = math.ceil(left / step)
    return [float(step * i) for i in range(first, math.floor(right / step) + 1)]


def _traces(rows: Sequence[LayerRow]) -> list[Any]:
    traces: list[Any] = []
    tails = [(i, row) for i, row in enumerate(rows) if row.worst_db is not None]
    if tails:
        traces.append(go.Scatter(
            x=[x for _, row in tails for x in (row.worst_db, row.sqnr_db, None)],
            y=[i for i, _ in tails for _ in range(3)], mode="lines", line={"color": QUIET, "width": 3},
            hoverinfo="skip", name="down to the worst timestep group",
        ))  # fmt: skip
    for bits, style in WIDTHS.items():
        mine = [(i, row) for i, row in enumerate(rows) if row.bit_width == bits]
        if mine:
            traces.append(go.Scatter(
                x=[row.sqnr_db for _, row in mine], y=[i for i, _ in mine], mode="markers", name=style.word,
                marker={"color": style.colour, "symbol": style.symbol, "size": 10},
                customdata=[escape(row.hover).replace("\n", "<br>") for _, row in mine],
                hovertemplate="%{customdata}<extra></extra>",
            ))  # fmt: skip
    missed = [(i, value, bits, row) for i, row in enumerate(rows) for value, bits in row.failed]
    if missed:
        lines = [(x, i) for i, value, _, row in missed for x in (value, row.sqnr_db, None)]
        traces.insert(0, go.Scatter(
            x=[x for x, _ in lines], y=[i for _, i in lines], mode="lines", line={"color": INK, "width": 1},
            hoverinfo="skip", showlegend=False,
        ))  # fmt: skip
        traces.append(go.Scatter(
            x=[value for _, value, _, _ in missed], y=[i for i, _, _, _ in missed], mode="markers",
            name="hollow: missed its gate",
            marker={
                "color": [WIDTHS[bits].colour for _, _, bits, _ in missed], "size": 9,
                "symbol": [f"{WIDTHS[bits].symbol}-open" for _, _, bits, _ in missed],
            },
            customdata=[escape(row.hover).replace("\n", "<br>") for *_, row in missed],
            hovertemplate="%{customdata}<extra></extra>",
        ))  # fmt: skip
    traces.append(go.Scatter(
        x=[0] * len(rows), y=list(range(len(rows))), xaxis="x2", mode="text", text=[escape(row.words) for row in rows],
        textposition="middle right", textfont={"color": INK, "size": 11}, hoverinfo="skip", showlegend=False,
    ))  # fmt: skip
    return traces


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{INK}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _mark(x: float, y: float, bits: int, *, filled: bool) -> str:
    """Draw the symbol of a bit width, 10 pixels wide."""
    style = WIDTHS[bits]
    paint = f'fill="{style.colour}"' if filled else f'fill="none" stroke="{style.colour}" stroke-width="1.5"'
    shapes = {
        "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" {paint}/>',
        "square": f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9" {paint}/>',
        "triangle-down": f'<path d="M{x - 5.5:.1f} {y - 4:.1f}h11l-5.5 9z" {paint}/>',
    }
    return shapes[style.symbol]
