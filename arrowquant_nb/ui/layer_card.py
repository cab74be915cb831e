"""What is said of the selected layer below the figure: its attempts and gates, why, and how to change it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import ipywidgets as widgets

from arrowquant_nb.tables import html_table
from arrowquant_nb.ui.run_words import ATTEMPT_HEADER, attempt_rows, layer_headline

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.ui.layer_change import LayerChange
    from arrowquant_nb.ui.layer_state import LayerState

__all__ = ["LayerCard"]


class LayerCard:
    """Shows one layer.

    Parameters
    ----------
    on_step : called with -1 for "< worse" and 1 for "better >".
    on_close : called for "Close".
    change : the row that changes the layer; None to offer no change.

    Attributes
    ----------
    widget : the card, hidden while no layer is selected.
    """

    def __init__(
        self, on_step: Callable[[int], None], on_close: Callable[[], None], change: LayerChange | None = None
    ) -> None:
        self._layer: LayerState | None = None
        self.change = change
        self.title = widgets.HTML()
        self.worse = widgets.Button(description="< worse", tooltip="The next worse layer", layout={"width": "auto"})
        self.better = widgets.Button(description="better >", tooltip="The next better layer", layout={"width": "auto"})
        self.close = widgets.Button(description="Close", tooltip="Select no layer", layout={"width": "auto"})
        self.worse.on_click(lambda _: on_step(-1))
        self.better.on_click(lambda _: on_step(1))
        self.close.on_click(lambda _: on_close())
        self.attempts = widgets.HTML()
        self.attempts.add_class("aq-across")
        self.why = widgets.HTML()
        self.trouble = widgets.HTML()
        self.title.layout.flex = "1 1 340px"
        steps = widgets.HBox([self.worse, self.better, self.close])
        steps.add_class("aq-together")  # they go to the next line as one
        head = widgets.HBox([self.title, steps])
        head.add_class("aq-row")
        parts = [head, self.trouble, self.attempts, self.why]
        self.widget = widgets.VBox(parts if change is None else [*parts, change.widget])
        self.widget.add_class("aq-card")
        self.widget.layout.display = "none"

    def show(self, layer: LayerState | None, rank: int, n: int, why: str, method: str = "") -> None:
        """Show a layer, or hide the card for None; `method` is what the settings give it."""
        changed = layer is not None and (self._layer is None or self._layer.name != layer.name)
        fresh = changed or (layer is not None and self._layer is not None and layer.report is not self._layer.report)
        self._layer = layer
        self.widget.layout.display = "none" if layer is None else ""
        if layer is None:
            return
        self.title.value = f"<h3>{escape(layer_headline(layer, rank, n))}</h3>"
        self.attempts.value = html_table(ATTEMPT_HEADER, attempt_rows(layer), "Attempts and gates")
        self.why.value = f"<b>Why:</b> {escape(why)}" if why else ""
        self.worse.disabled, self.better.disabled = rank <= 0, rank >= n - 1
        if self.change is not None:
            self.change.show(layer, method, fresh=fresh)

    def say_trouble(self, text: str) -> None:
        """Say why the layer's weights cannot be shown; "" for no trouble."""
        said = f"Its weights and errors cannot be drawn: {text}" if text else ""
        words = f"<span class='aq-error' role='alert'>{escape(said)}</span>" if said else ""
        if self.trouble.value != words:
            self.trouble.value = words
