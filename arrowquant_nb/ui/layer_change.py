"""The row that changes one layer: bits, method, or keep it in float, with what that would cost in size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

from arrowquant_nb.config import QuantMethod
from arrowquant_nb.ui.layer_order import KEEP

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.ui.layer_state import LayerState

__all__ = ["LayerChange"]

_APPLY: Final = "Re-quantize this layer"
_METHODS: Final = tuple(str(method) for method in QuantMethod)
_TWO_BITS_ONLY: Final = str(QuantMethod.R2Q)
_OTHER: Final = {2: 4, 4: 8, 8: 4}
"""Width that is offered first, by the present one."""


class LayerChange:
    """Offers another width and method for a layer.

    Parameters
    ----------
    on_apply : called with name, bit width (16 = keep) and method.
    on_undo : called with the name.

    Attributes
    ----------
    widget : the row.
    """

    def __init__(self, on_apply: Callable[[str, int, str], None], on_undo: Callable[[str], None]) -> None:
        self._layer: LayerState | None = None
        self._on_apply, self._on_undo = on_apply, on_undo
        self.bits = widgets.Dropdown(
            options=[("INT2", 2), ("INT4", 4), ("INT8", 8)], value=8, description="Bits", layout={"width": "120px"}
        )
        self.bits.style.description_width = "30px"
        self.method = widgets.Dropdown(options=_METHODS, description="Method", layout={"width": "150px"})
        self.method.style.description_width = "52px"
        self.keep = widgets.Checkbox(description="Keep in float", indent=False, layout={"width": "auto"})
        self.cost = widgets.HTML()
        self.apply = widgets.Button(description=_APPLY, layout={"width": "auto"})
        self.undo = widgets.Button(
            description="Undo", tooltip="Back to what the settings say", layout={"width": "auto"}
        )
        self.note = widgets.HTML()
        self.apply.on_click(lambda _: self._applied())
        self.undo.on_click(lambda _: self._undone())
        for box in (self.bits, self.keep):
            box.observe(lambda _: self._adapt(), names="value")
        self.widget = widgets.HBox([
            widgets.HTML("<b>Change this layer</b>"), self.bits, self.method, self.keep, self.cost, self.apply,
            self.undo, self.note,
        ])  # fmt: skip
        self.widget.add_class("aq-row")

    def show(self, layer: LayerState, method: str, *, fresh: bool) -> None:
        """Offer changes of a layer; with `fresh` begin with another width than it has.

        Parameters
        ----------
        method : the method that the settings give this layer.
        """
        self._layer = layer
        self.undo.disabled = not layer.overridden
        if fresh:
            self.keep.value = False
            self.bits.value = _OTHER.get(layer.report.bit_width if layer.report is not None else 4, 8)
            self.method.value = method if method in self.method.options else self.method.options[0]
        self._adapt()

    def busy(self, words: str) -> None:
        """Say on the button that the change is under way, or with "" that none is."""
        self.apply.description = words or _APPLY
        self.apply.disabled = bool(words)

    def _wanted(self) -> int:
        return KEEP if self.keep.value else int(self.bits.value)

    def _adapt(self) -> None:
        """Offer what goes with the width, and say what the change would cost in size."""
        self.bits.disabled = self.method.disabled = self.keep.value
        offered = tuple(m for m in _METHODS if m != _TWO_BITS_ONLY or self.bits.value == 2)
        if self.method.options != offered:
            chosen = self.method.value
            self.method.options = offered
            self.method.value = chosen if chosen in offered else offered[0]
        if self._layer is None or self._layer.report is None:
            return
        report, wanted = self._layer.report, self._wanted()
        new = self._layer.plan.source_nbytes if wanted == KEEP else report.n_weights * wanted / 8
        old = report.n_weights * report.bit_width / 8 if wanted != KEEP else report.nbytes
        mb = (new - old) / 1e6
        self.cost.value = f"{'+' if mb >= 0 else '&minus;'}{abs(mb):.3f} MB"

    def _applied(self) -> None:
        if self._layer is not None:
            self._on_apply(self._layer.name, self._wanted(), str(self.method.value))

    def _undone(self) -> None:
        if self._layer is not None:
            self._on_undo(self._layer.name)
