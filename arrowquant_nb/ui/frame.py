"""The frame of an app in a cell: its style, the page's theme and width, and a place for what is inside."""

from collections.abc import Callable
from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb.ui.page_bridge import PageBridge
from arrowquant_nb.ui.stylesheet import STYLE

__all__ = ["THEMES", "Frame"]

THEMES: Final = ("Auto", "Light", "Dark")
_PADDING: Final = 26


class Frame:
    """Shows `content` in the page's theme, or the one that is chosen.

    Parameters
    ----------
    on_dress : called with the theme ("light" or "dark") and the width in pixels whenever one of them changes.

    Attributes
    ----------
    widget : the outermost widget.
    content : box to fill.
    theme_choice : Auto, Light or Dark.
    """

    def __init__(self, title: str, subtitle: str, on_dress: Callable[[str, int], None]) -> None:
        self._on_dress = on_dress
        self.bridge = PageBridge()
        self.theme_choice = widgets.Dropdown(options=THEMES, description="Theme", layout={"width": "140px"})
        self.theme_choice.style.description_width = "46px"
        heading = widgets.HTML(f"<h2>{title} <small>{subtitle}</small></h2>", layout={"flex": "1 1 auto"})
        head = widgets.HBox([heading, self.theme_choice])
        self.content = widgets.VBox([])
        self.widget = widgets.VBox([widgets.HTML(STYLE), self.bridge, head, self.content])
        self.widget.add_class("aq")
        self.bridge.observe(self._dress, names=["theme", "width"])
        self.theme_choice.observe(self._dress, names="value")

    @property
    def theme(self) -> str:
        """The theme that is shown: "light" or "dark"."""
        chosen = self.theme_choice.value.lower()
        return self.bridge.theme if chosen == "auto" else chosen

    def _dress(self, _: Any) -> None:
        dark = self.theme == "dark"
        if dark != ("aq-dark" in self.widget._dom_classes):  # noqa: SLF001 - there is no public list of classes
            (self.widget.add_class if dark else self.widget.remove_class)("aq-dark")
        self._on_dress(self.theme, max(0, self.bridge.width - _PADDING))
