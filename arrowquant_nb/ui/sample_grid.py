"""Images drawn from several models side by side, pixel by pixel: rows are models, columns start from the same noise."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import ArrayLike, NDArray

from arrowquant_nb.errors import ShapeMismatchError
from arrowquant_nb.ui.style import FONT, INK, layout

__all__ = ["sample_grid_figure", "sample_grid_svg"]

CELL: Final = 64
"""Pixels that an image takes in height and width, the gap included."""
LABEL: Final = 250
GREYS: Final = 32
_TITLE: Final = "Samples drawn from the same noise"


def sample_grid_figure(images: Mapping[str, ArrayLike], title: str = _TITLE) -> go.Figure:
    """Draw a grid of images as one heat map with square, unsmoothed pixels.

    Parameters
    ----------
    images : Mapping
        Row label (newlines allowed) -> array (n, height, width) in [-1, 1], -1 black, 1 white; the same shape in
        every row.

    Raises
    ------
    ShapeMismatchError
        No rows, or rows of different shapes.
    """
    rows = _checked(images)
    n, height, width = next(iter(rows.values())).shape
    centres = [i * (height + 1) + (height - 1) / 2 for i in range(len(rows))]
    hidden = {
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
        "ticks": "outside",
        "ticklen": 8,
        "tickcolor": "rgba(0,0,0,0)",
    }
    return go.Figure(
        data=[go.Heatmap(
            z=_mosaic(rows), zmin=-1, zmax=1, colorscale=[[0, "#000000"], [1, "#ffffff"]], showscale=False,
            hoverinfo="skip", hoverongaps=False,
        )],
        layout=layout(
            title,
            height=CELL * len(rows) + 70,
            width=LABEL + CELL * n,
            margin={"l": LABEL, "r": 8, "t": 52, "b": 8},
            xaxis={**hidden, "showticklabels": False, "range": [-0.5, n * (width + 1) - 1.5], "constrain": "domain"},
            yaxis={
                **hidden, "tickvals": centres, "ticktext": [escape(label).replace("\n", "<br>") for label in rows],
                "range": [len(rows) * (height + 1) - 1.5, -0.5], "scaleanchor": "x", "constrain": "domain",
                "tickfont": {"color": INK, "size": 13},
            },
        ),
    )  # fmt: skip


def sample_grid_svg(
    images: Mapping[str, ArrayLike], title: str = _TITLE, captions: tuple[str, Sequence[str]] | None = None
) -> str:
    """Draw the same grid as an SVG picture that reads without scripts; 32 shades of grey.

    Parameters
    ----------
    images, title : as above.
    captions : what the words under the columns are, and one for each column; None for none.
    """
    rows = _checked(images)
    n, height, width = next(iter(rows.values())).shape
    scale = (CELL - 6) / max(height, width)
    parts = [f'<text x="8" y="22" font-size="15" fill="{INK}">{escape(title)}</text>']
    for i, (label, row) in enumerate(rows.items()):
        top = 40 + CELL * i
        lines = label.split("\n")
        for j, line in enumerate(lines):
            y = top + CELL / 2 + 4 + 16 * (j - (len(lines) - 1) / 2) - 3
            parts.append(f'<text x="{LABEL - 14}" y="{y:.1f}" text-anchor="end" fill="{INK}">{escape(line)}</text>')
        for k, image in enumerate(row):
            parts.append(f'<g transform="translate({LABEL + CELL * k} {top}) scale({scale:.4f})">{_pixels(image)}</g>')
    total_width, total_height = LABEL + CELL * n + 8, 46 + CELL * len(rows)
    if captions is not None:
        name, words = captions
        places = [(LABEL - 14.0, "end", name)]
        places += [(LABEL + CELL * k + (CELL - 6) / 2, "middle", word) for k, word in zip(range(n), words, strict=True)]
        y = total_height + 6
        total_height += 14
        parts += [
            f'<text x="{x:g}" y="{y}" font-size="11" text-anchor="{anchor}" fill="{INK}">{escape(word)}</text>'
            for x, anchor, word in places
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" width="{total_width}" '
        f'height="{total_height}" font-family="{escape(FONT, quote=True)}" font-size="13" role="img" '
        f'shape-rendering="crispEdges"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _checked(images: Mapping[str, ArrayLike]) -> dict[str, NDArray[np.float64]]:
    rows = {label: np.asarray(row, dtype=np.float64) for label, row in images.items()}
    shapes = {row.shape for row in rows.values()}
    if len(shapes) != 1 or any(len(shape) != 3 or 0 in shape for shape in shapes):
        found = ", ".join(f"{label!r} {row.shape}" for label, row in rows.items()) or "none"
        raise ShapeMismatchError(f"a grid needs rows of one shape (images, height, width), got: {found}")
    return rows


def _mosaic(rows: Mapping[str, NDArray[np.float64]]) -> list[list[Any]]:
    """Lay the images out with one-pixel gaps, which hold None."""
    n, height, width = next(iter(rows.values())).shape
    grid = np.full((len(rows) * (height + 1) - 1, n * (width + 1) - 1), np.nan)
    for i, row in enumerate(rows.values()):
        for k, image in enumerate(row):
            top, left = i * (height + 1), k * (width + 1)
            grid[top : top + height, left : left + width] = image
    return [[None if np.isnan(value) else round(float(value), 3) for value in line] for line in grid]


def _pixels(image: NDArray[np.float64]) -> str:
    """Paint an image of unit pixels: a black ground, then one path for each shade."""
    height, width = image.shape
    shades = np.rint((np.clip(np.nan_to_num(image, nan=-1.0), -1, 1) + 1) / 2 * (GREYS - 1)).astype(int)
    paint = [f'<path d="M0 0h{width}v{height}h-{width}z" fill="#000000"/>']
    for shade in np.unique(shades[shades > 0]):
        level = round(255 * int(shade) / (GREYS - 1))
        path = "".join(f"M{x} {y}h1v1h-1z" for y, x in np.argwhere(shades == shade))
        paint.append(f'<path d="{path}" fill="#{level:02x}{level:02x}{level:02x}"/>')
    return "".join(paint)
