"""The frame of an app in a cell: its style, the page's theme and width, and a place for what is inside."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import ipywidgets as widgets
from anywidget import AnyWidget

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
    on_return : called when a page shows the app again, such as one that was loaded anew.

    Attributes
    ----------
    widget : the outermost widget.
    content : box to fill.
    theme_choice : Auto, Light or Dark.
    """

    def __init__(
        self, title: str, subtitle: str, on_dress: Callable[[str, int], None], on_return: Callable[[], None]
    ) -> None:
        self._on_dress, self._on_return = on_dress, on_return
        self._shown = False
        self.bridge = PageBridge()
        self.theme_choice = widgets.Dropdown(options=THEMES, description="Theme", layout={"width": "140px"})
        self.theme_choice.style.description_width = "46px"
        heading = widgets.HTML(f"<h2>{title} <small>{subtitle}</small></h2>", layout={"flex": "1 1 auto"})
        head = widgets.HBox([heading, self.theme_choice])
        self.content = widgets.VBox([])
        self.widget = widgets.VBox([widgets.HTML(STYLE), self.bridge, head, self.content])
        self.widget.add_class("aq")
        self.bridge.on_shown(self._show)
        self.bridge.observe(self._dress, names=["theme", "width"])
        self.theme_choice.observe(self._dress, names="value")

    @property
    def theme(self) -> str:
        """The theme that is shown: "light" or "dark"."""
        chosen = self.theme_choice.value.lower()
        return self.bridge.theme if chosen == "auto" else chosen

    def _show(self) -> None:
        """Send a page that was loaded anew what it has missed: what changed between its asking and its being ready."""
        if self._shown:
            for part in _tree(self.content):
                part.send_state()
            self._on_return()
        self._shown = True

    def _dress(self, _: Any) -> None:
        dark = self.theme == "dark"
        if dark != ("aq-dark" in self.widget._dom_classes):  # noqa: SLF001 - there is no public list of classes
            (self.widget.add_class if dark else self.widget.remove_class)("aq-dark")
        self._on_dress(self.theme, max(0, self.bridge.width - _PADDING))


def _tree(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """Yield the widgets in a box, innermost first, without figures: those are made anew."""
    for child in getattr(widget, "children", ()):
        yield from _tree(child)
    if not isinstance(widget, AnyWidget):
        yield widget
