"""What folds away below a run's figure: the log, the attempts that failed a gate, and what else it is given."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

from arrowquant_nb.tables import html_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.ui.run_state import RunState

__all__ = ["RunFolds"]

LOG_LINES: Final = 200


class RunFolds:
    """Writes a part only while it is open: a long run has many lines.

    Parameters
    ----------
    extra : parts to show above the log, title -> widget.

    Attributes
    ----------
    widget : all parts.
    log, failed : the two that are written here.
    """

    def __init__(self, extra: Mapping[str, widgets.Widget]) -> None:
        self.log = widgets.HTML()
        self.failed = widgets.HTML()
        parts = {**extra, f"Log (last {LOG_LINES} lines)": self.log, "Attempts that failed a gate (0)": self.failed}
        self.widget = widgets.Accordion(list(parts.values()), selected_index=None)
        self.widget.add_class("aq-fold")
        for place, title in enumerate(parts):
            self.widget.set_title(place, title)

    def open_first(self) -> None:
        """Open the part on top, unless another one is open."""
        if self.widget.selected_index is None:
            self.widget.selected_index = 0

    def show(self, state: RunState) -> None:
        """Write the log and the failed attempts of a run."""
        layers = [state.layers[name] for name in state.order]
        failed = [
            [layer.name, attempt.sentence]
            for layer in layers
            if layer.report is not None
            for attempt in layer.report.attempts
            if not attempt.passed
        ]
        last = len(self.widget.children) - 1
        title = f"Attempts that failed a gate ({len(failed)})"
        if self.widget.get_title(last) != title:
            self.widget.set_title(last, title)
        if self.widget.selected_index == last:
            self.failed.value = html_table(("Layer", "Why"), failed) if failed else "None: every first attempt passed."
        if self.widget.selected_index == last - 1:
            lines = [f"{layer.name}: {layer.words}" for layer in layers[-LOG_LINES:]]
            self.log.value = f"<pre class='aq-scroll'>{escape(chr(10).join(lines)) or 'nothing yet'}</pre>"
