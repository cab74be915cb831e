"""Colours of the live dashboard on light and on dark pages; every colour goes with a shape and a word.

Okabe and Ito (2008) for widths, Cividis (Nunez et al. 2018) for maps: told apart with every common colour vision.
Dark pages take the lighter twins, and Cividis backwards, so that the worst stands out from the page on both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from arrowquant_nb.ui.style import WIDTHS

__all__ = ["DARK", "LIGHT", "Palette", "palette"]

KEPT: Final = 16
SYMBOLS: Final[Mapping[int, str]] = MappingProxyType({**{b: s.symbol for b, s in WIDTHS.items()}, KEPT: "square-open"})


@dataclass(frozen=True)
class Palette:
    """One theme."""

    name: str
    ink: str
    quiet: str
    """Tails, secondary words."""
    grid: str
    gate: str
    ground: str
    """Colour of the page, for what must stand off a line; figures themselves are transparent."""
    widths: Mapping[int, str]
    """Bit width (16 = kept) -> colour."""
    selected: str
    failed: str
    worst_first_scale: str
    """Plotly's name of the colour scale in which the smallest value stands out."""
    error_scale: str
    """Likewise, bright = large."""


LIGHT: Final = Palette(
    "light", ink="#1B1B1B", quiet="#6B7075", grid="#E6E8EB", gate="#000000", ground="#FFFFFF",
    widths=MappingProxyType({2: "#D55E00", 4: "#0072B2", 8: "#009E73", KEPT: "#6B7075"}),
    selected="rgba(204,121,167,0.28)", failed="#D55E00", worst_first_scale="Cividis", error_scale="Cividis",
)  # fmt: skip
DARK: Final = Palette(
    "dark", ink="#E8EAED", quiet="#9AA0A6", grid="#2B3138", gate="#FFFFFF", ground="#111111",
    widths=MappingProxyType({2: "#E69F00", 4: "#56B4E9", 8: "#009E73", KEPT: "#9AA0A6"}),
    selected="rgba(204,121,167,0.28)", failed="#E69F00", worst_first_scale="Cividis_r", error_scale="Cividis",
)  # fmt: skip


def palette(name: str) -> Palette:
    """Return the colours of a theme, "light" or "dark"."""
    return DARK if name == DARK.name else LIGHT
