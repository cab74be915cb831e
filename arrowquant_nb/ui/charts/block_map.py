"""Where in the model: one cell per block and role, so that a bad block is a column and a bad role a row.

Colour is the SQNR, a triangle a layer that fell back, a hollow square a kept one, an empty cell one not yet done. The
range of colours is fixed when the run begins, so that no cell changes its colour when another comes in.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

from arrowquant_nb.ui.charts.layout import Axes, axes
from arrowquant_nb.ui.layer_state import quality
from arrowquant_nb.ui.model_map import LEAST_LAYERS, MOST_ROLES, OTHER, OUTSIDE, place
from arrowquant_nb.ui.palette import Palette
from arrowquant_nb.ui.run_state import RunState

__all__ = ["BlockMap", "block_map_traces"]

# From 3 dB below the lowest gate of the table to what INT8 reaches.
_LOWEST_DB: Final = 6.0
_HIGHEST_DB: Final = 45.0


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Which tensor stands in which cell."""

    roles: tuple[str, ...]
    """Rows from top to bottom."""
    blocks: tuple[str, ...]
    """Columns from left to right: the blocks in model order."""
    cells: dict[tuple[int, int], tuple[str, ...]]
    """(row, column) -> names of the tensors there; several where roles were joined."""

    @classmethod
    def of(cls, state: RunState) -> "BlockMap":
        """Place the tensors of a plan that are matrices; empty for a model of few layers."""
        if len(state.quantized) < LEAST_LAYERS:
            return cls((), (), {})
        places = [(place(layer.name), layer) for layer in state.layers.values() if len(layer.plan.shape) > 1]
        blocks = list(dict.fromkeys(block for (block, _), _ in places if block))
        counts: dict[str, int] = {}
        for (block, role), _ in places:
            if block:
                counts[role] = counts.get(role, 0) + 1
        common = sorted(counts, key=lambda role: -counts[role])[:MOST_ROLES]
        roles = [role for role in counts if role in common]
        roles += [OTHER] if len(counts) > len(common) else []
        roles += [OUTSIDE] if any(not block for (block, _), _ in places) else []
        cells: dict[tuple[int, int], list[str]] = {}
        outside = 0
        for (block, role), layer in places:
            if block:
                cell = (roles.index(role if role in common else OTHER), blocks.index(block))
            else:
                cell = (len(roles) - 1, outside)
                outside += 1

            cells.setdefault(cell, []).append(layer.name)
        n_columns = max(len(blocks), outside)
        names = (*blocks, *("" for _ in range(n_columns - len(blocks))))
        return cls(tuple(roles), names, {cell: tuple(found) for cell, found in cells.items()})


def block_map_traces(
    state: RunState, places: BlockMap, selected: str, colours: Palette, mark_size: float = 7.0
) -> list[dict[str, Any]]:
    """Return the traces of the map: cells, fallbacks, kept ones, the selected one; marks of so many pixels."""
    n_rows, n_columns = len(places.roles), len(places.blocks)
    values: list[list[float | None]] = [[None] * n_columns for _ in range(n_rows)]
    names: list[list[str]] = [[""] * n_columns for _ in range(n_rows)]
    fell_back: list[tuple[int, int]] = []
    kept: list[tuple[int, int]] = []
    chosen: list[tuple[int, int]] = []
    for (row, column), tensors in places.cells.items():
        layers = [state.layers[name] for name in tensors]
        decided = [layer for layer in layers if layer.quantized and layer.report is not None]
        shown = min(decided, key=quality, default=layers[0])
        names[row][column] = shown.name
        if decided and shown.sqnr_db is not None:
            values[row][column] = round(min(shown.sqnr_db, 200.0), 2) if math.isfinite(shown.sqnr_db) else 200.0
        if any(layer.report is not None and layer.report.fell_back for layer in decided):
            fell_back.append((column, row))
        if not any(layer.quantized for layer in layers):
            kept.append((column, row))
        if selected in tensors:
            chosen.append((column, row))
    return [
        {
            "type": "heatmap", "name": "map", "z": values, "zmin": _LOWEST_DB, "zmax": _HIGHEST_DB, "xgap": 1,
            "ygap": 1, "colorscale": colours.worst_first_scale, "customdata": names,
            "hovertemplate": "%{customdata}<br>%{z} dB<extra></extra>", "hoverongaps": False, "showscale": True,
            "colorbar": {"thickness": 10, "len": 0.16, "y": 0, "yanchor": "bottom", "outlinewidth": 0, "x": 1.0,
                         "title": {"text": "dB", "font": {"color": colours.ink, "size": 11}},
                         "tickfont": {"color": colours.ink, "size": 10}},
            **axes(Axes.MAP),
        },
        _marks(fell_back, "fell back", {"symbol": "triangle-up", "size": mark_size, "color": "#FFFFFF",
                                        "line": {"width": 1, "color": "#000000"}}),
        _marks(kept, "kept", {"symbol": "square-open", "size": mark_size, "color": colours.widths[16]}),
        _marks(chosen, "selected", {"symbol": "square-open", "size": 14, "color": "#CC79A7", "line": {"width": 3}}),
    ]  # fmt: skip


def _marks(places: list[tuple[int, int]], name: str, marker: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter", "name": name, "x": [x for x, _ in places], "y": [y for _, y in places], "mode": "markers",
        "marker": marker, "hoverinfo": "skip", **axes(Axes.MAP),
    }  # fmt: skip
