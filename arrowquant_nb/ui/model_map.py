"""Where in the model it hurts: a still map with one column per block and one row per role, as SVG.

A bad block is a column, a bad role a row. The colour of a cell is the quality of its worst layer, which its tooltip
names; a triangle is a layer that fell back, a hollow square a kept one, an empty cell stands for nothing.
"""

import math
import re
from collections.abc import Iterable
from html import escape
from typing import Final

from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.tables import WIDTH_NAMES, decibels
from arrowquant_nb.ui.layer_chart import short_name
from arrowquant_nb.ui.style import FONT, INK

__all__ = ["model_map_svg", "place"]

LEAST_LAYERS: Final = 41
"""Fewer layers all stand in the list of the worst, and their map would be an empty strip."""
MOST_ROLES: Final = 16
OUTSIDE: Final = "outside blocks"
OTHER: Final = "other"
_BLOCK: Final = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
# Cividis (Nunez, Anderton, Renslow 2018), dark to bright: worst to best on a light ground.
_CIVIDIS: Final = ("#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#fee838")
_LOW_DB: Final = 6.0
_HIGH_DB: Final = 45.0
_LABEL: Final = 220
_ROW: Final = 20


def place(name: str) -> tuple[str, str]:
    """Return block and role of a tensor; no block for one that stands outside.

    Examples
    --------
    >>> place("transformer_blocks.3.attn1.to_out.0.weight")
    ('transformer_blocks.3', 'attn1.to_out')
    >>> place("proj_out_2.weight")
    ('', 'proj_out_2.weight')
    """
    match = _BLOCK.match(name.removesuffix(".weight"))
    if match is None:
        return "", name
    head, number, rest = match.groups()
    return f"{head}.{number}", re.sub(r"\.\d+(?=\.|$)", "", rest)


def model_map_svg(layers: Iterable[LayerReport]) -> str:
    """Draw the map; "" for a model of few layers, or without numbered blocks."""
    matrices = [r for r in layers if len(r.shape) > 1]
    placed = [(*place(r.name), r) for r in matrices]
    blocks = list(dict.fromkeys(block for block, _, _ in placed if block))
    if sum(r.action == "quantized" for r in matrices) < LEAST_LAYERS or not blocks:
        return ""
    counts: dict[str, int] = {}
    for block, role, _ in placed:
        if block:
            counts[role] = counts.get(role, 0) + 1
    common = sorted(counts, key=lambda role: -counts[role])[:MOST_ROLES]
    roles = [role for role in counts if role in common] + ([OTHER] if len(counts) > len(common) else [])
    outside = [report for block, _, report in placed if not block]
    cells: dict[tuple[int, int], list[LayerReport]] = {}
    for block, role, report in placed:
        if block:
            row = roles.index(role if role in common else OTHER)
            cells.setdefault((row, blocks.index(block)), []).append(report)
    for column, report in enumerate(outside):
        cells[len(roles), column] = [report]
    return _svg(blocks, roles + ([OUTSIDE] if outside else []), cells)


def _svg(blocks: list[str], rows: list[str], cells: dict[tuple[int, int], list[LayerReport]]) -> str:
    n_columns = max(column for _, column in cells) + 1
    step = min(28.0, 760 / n_columns)
    height = 26 + _ROW * len(rows) + 50
    parts = [
        f'<text x="{_LABEL - 8}" y="{26 + _ROW * i + 14}" text-anchor="end" fill="{INK}">{escape(short_name(role, 30))}'
        "</text>"
        for i, role in enumerate(rows)
    ]
    for (row, column), reports in cells.items():
        parts.append(_cell(_LABEL + step * column, 26 + _ROW * row, step, reports))
    bottom = 26 + _ROW * len(rows) + 14
    every = max(1, math.ceil(40 / step))
    for column in range(0, len(blocks), every):
        x = _LABEL + step * (column + 0.5)
        parts.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle" fill="{INK}">{column}</text>')
    words = f"block, from first to last; dark is worst: {_LOW_DB:g} dB or less to {_HIGH_DB:g} dB or more"
    parts.append(f'<text x="{_LABEL}" y="{bottom + 18}" fill="{INK}">{words}; \u25b2 fell back, \u25a1 kept</text>')
    width = max(_LABEL + step * n_columns + 8, 760.0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" '
        f'height="{height}" font-family="{escape(FONT, quote=True)}" font-size="12" role="img">'
        f"<title>Quality of each layer by block and role</title>{''.join(parts)}</svg>"
    )


def _cell(x: float, y: float, step: float, reports: list[LayerReport]) -> str:
    done = [r for r in reports if r.action == "quantized"]
    middle = f'x="{x + step / 2:.1f}" y="{y + 14}" text-anchor="middle" font-size="10"'
    if not done:
        return f'<text {middle} fill="{INK}">\u25a1<title>{escape(reports[0].name)}: kept</title></text>'
    worst = min(done, key=lambda r: r.quality_db)
    words = f"{worst.name}: {WIDTH_NAMES[worst.bit_width]}, {decibels(worst.quality_db)}"
    colour = _colour(worst.quality_db)
    mark = f'<text {middle} fill="#ffffff" stroke="#000000" stroke-width="0.5">\u25b2</text>' if worst.fell_back else ""
    return (
        f'<g><title>{escape(words)}</title><rect x="{x + 0.5:.1f}" y="{y + 0.5}" width="{step - 1:.1f}" '
        f'height="{_ROW - 1}" fill="{colour}"/>{mark}</g>'
    )


def _colour(value_db: float) -> str:
    share = (value_db - _LOW_DB) / (_HIGH_DB - _LOW_DB)
    return _CIVIDIS[round(min(max(share, 0.0), 1.0) * (len(_CIVIDIS) - 1))]
