"""Colours, symbols and layout that all figures share.

One set serves light and dark pages: the ground is transparent, the ink a middle grey, and no colour stands alone,
each goes with a shape and a word.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

__all__ = ["CONFIG", "FONT", "GRID", "INK", "QUIET", "REMOVED_BUTTONS", "WIDTHS", "WidthStyle", "layout"]

# About 4.5:1 against white and 4.2:1 against #111111.
INK: Final = "#777777"
QUIET: Final = "rgba(128,128,128,0.6)"
GRID: Final = "rgba(128,128,128,0.25)"
FONT: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class WidthStyle:
    """How a bit width looks."""

    word: str
    colour: str
    symbol: str
    """plotly's name of the marker."""


# Okabe and Ito (2008): told apart with every common colour vision.
WIDTHS: Final[Mapping[int, WidthStyle]] = MappingProxyType({
    2: WidthStyle("INT2", "#D55E00", "triangle-down"),
    4: WidthStyle("INT4", "#0072B2", "circle"),
    8: WidthStyle("INT8", "#009E73", "square"),
})  # fmt: skip

# "Share chart" would upload model statistics; the logo links to another host.
CONFIG: Final[Mapping[str, Any]] = MappingProxyType({"displaylogo": False, "responsive": True})
REMOVED_BUTTONS: Final = ("sendChartToCloud", "lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d")


def layout(title: str, height: int, **more: Any) -> dict[str, Any]:
    """Return a complete plotly layout: what is set after a figure is built is lost in some viewers."""
    return {
        "title": {"text": title, "x": 0, "xanchor": "left", "xref": "container", "pad": {"l": 8}, "font": {"size": 15}},
        "height": height,
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "dragmode": False,
        "hoverlabel": {"align": "left"},
        "modebar": {"remove": list(REMOVED_BUTTONS), "bgcolor": "rgba(0,0,0,0)", "color": INK},
        "template": {},
        **more,
    }
