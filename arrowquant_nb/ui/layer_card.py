"""What is said of the selected layer below the figure: its attempts and gates, why, and how to change it."""

from collections.abc import Callable
from html import escape
from typing import Final

import ipywidgets as widgets

from arrowquant_nb.tables import html_table
from arrowquant_nb.ui.layer_state import LayerState
from arrowquant_nb.ui.run_words import ATTEMPT_HEADER, attempt_rows, layer_headline

__all__ = ["KEEP", "LayerCard"]

KEEP: Final = 16
"""Bit width that stands for keeping a layer in float."""


class LayerCard:
    """Shows one layer; `on_override(name, bit_width)` is called for "Re-quantize this layer".

    Attributes
    ----------
    widget : the card, hidden while no layer is selected.
    bits, keep, apply, undo : the override row.
    """

    def __init__(
        self,
        on_step: Callable[[int], None],
        on_close: Callable[[], None],
        on_override: Callable[[str, int], None] | None = None,
        on_undo: Callable[[str], None] | None = None,
    ) -> None:
        self._layer: LayerState | None = None
        self._on_override = on_override
        self._on_undo = on_undo
        self.title = widgets.HTML()
        self.worse = widgets.Button(description="< worse", tooltip="The next worse layer", layout={"width": "auto"})
        self.better = widgets.Button(description="better >", tooltip="The next better layer", layout={"width": "auto"})
        self.close = widgets.Button(description="Close", tooltip="Select no layer", layout={"width": "auto"})
        self.worse.on_click(lambda _: on_step(-1))
        self.better.on_click(lambda _: on_step(1))
        self.close.on_click(lambda _: on_close())
        self.attempts = widgets.HTML()
        self.why = widgets.HTML()
        self.note = widgets.HTML()
        self.bits = widgets.Dropdown(
            options=[("INT2", 2), ("INT4", 4), ("INT8", 8)], value=8, description="Bits", layout={"width": "120px"}
        )
        self.bits.style.description_width = "30px"
        self.keep = widgets.Checkbox(description="Keep in float", indent=False, layout={"width": "auto"})
        self.cost = widgets.HTML()
        self.apply = widgets.Button(description="Re-quantize this layer", layout={"width": "auto"})
        self.undo = widgets.Button(
            description="Undo", tooltip="Back to what the settings say", layout={"width": "auto"}
        )
        self.apply.on_click(lambda _: self._override())
        self.undo.on_click(lambda _: self._undone())
        for box in (self.bits, self.keep):
            box.observe(lambda _: self._price(), names="value")
        self.row = widgets.HBox([
            widgets.HTML("<b>Change this layer</b>"), self.bits, self.keep, self.cost, self.apply, self.undo, self.note
        ])  # fmt: skip
        self.row.add_class("aq-row")
        head = widgets.HBox([self.title, self.worse, self.better, self.close])
        head.add_class("aq-row")
        parts = [head, self.attempts, self.why]
        self.widget = widgets.VBox([*parts, self.row] if on_override is not None else parts)
        self.widget.add_class("aq-card")
        self.widget.layout.display = "none"

    def show(self, layer: LayerState | None, rank: int, n: int, why: str) -> None:
        """Show a layer, or hide the card for None."""
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
        self.undo.disabled = not layer.overridden
        if fresh:
            self.keep.value = False
            bits = layer.report.bit_width if layer.report is not None else 4
            self.bits.value = {2: 4, 4: 8, 8: 4}.get(bits, 8)
        self._price()

    def busy(self, words: str) -> None:
        """Say that an override is under way ("Working..."), or with "" that none is."""
        self.apply.description = words or "Re-quantize this layer"
        self.apply.disabled = bool(words)

    def _wanted(self) -> int:
        return KEEP if self.keep.value else int(self.bits.value)

    def _price(self) -> None:
        """Say what the change would cost in size."""
        self.bits.disabled = self.keep.value
        if self._layer is None or self._layer.report is None:
            return
        report, wanted = self._layer.report, self._wanted()
        new = self._layer.plan.source_nbytes if wanted == KEEP else report.n_weights * wanted / 8
        old = report.n_weights * report.bit_width / 8 if wanted != KEEP else report.nbytes
        mb = (new - old) / 1e6
        self.cost.value = f"{'+' if mb >= 0 else '&minus;'}{abs(mb):.3f} MB"

    def _override(self) -> None:
        if self._layer is not None and self._on_override is not None:
            self._on_override(self._layer.name, self._wanted())

    def _undone(self) -> None:
        if self._layer is not None and self._on_undo is not None:
            self._on_undo(self._layer.name)
