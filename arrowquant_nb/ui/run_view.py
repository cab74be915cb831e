"""A run on show: its headline and Cancel above, the dashboard, and what can be done when it has ended."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.ui.compare_panel import ComparePanel
from arrowquant_nb.ui.dashboard import Dashboard
from arrowquant_nb.ui.layer_change import LayerChange
from arrowquant_nb.ui.layer_order import LayerOrder, ordered_words, orders_of
from arrowquant_nb.ui.report import report
from arrowquant_nb.ui.run_session import RunSession
from arrowquant_nb.ui.run_state import CANCELLED, FINISHED, RunState
from arrowquant_nb.ui.run_words import going_on, headline, megabytes
from arrowquant_nb.ui.samples_fold import SamplesFold
from arrowquant_nb.ui.spoken import error_html
from arrowquant_nb.ui.text_button import text_button

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.runs.model_choice import ModelChoice
    from arrowquant_nb.ui.worker import Worker

__all__ = ["RunView"]

_SPELLED_OUT: Final = 5
"""More orders of layers than this fold away."""


class RunView:
    """Shows the runs of one session.

    Parameters
    ----------
    worker : where work is done.
    on_change : called when a run begins or ends, or a layer was changed.
    on_settings : called for "Show settings".
    """

    def __init__(self, worker: Worker, on_change: Callable[[], None], on_settings: Callable[[], None]) -> None:
        self._worker = worker
        self._on_change = on_change
        self.session = RunSession(worker, self._newer, self._ended, self._redone, self._begun)
        self.samples = SamplesFold(worker)
        self.compare = ComparePanel(worker)
        self.change = LayerChange(self._override, self._undo)
        self.dashboard = Dashboard(
            worker, self.session.open_viewer, self.change, {"Samples: original and quantized": self.samples.widget}
        )
        self.title = widgets.HTML(layout={"flex": "1 1 auto"})
        self.cancel = text_button("Cancel", "Stop after this piece; what is done is kept", self._cancel)
        self.settings = text_button("Show settings", "Back to the form", on_settings)
        self.resume = text_button(going_on(RunState()), "Go on where the run stopped", self._resume)
        self.again = text_button("Run again", "The same settings; unchanged layers are taken over", self._resume)
        self.keep = text_button("Keep in float and go on", "The layers that failed; others are taken over", self._keep)
        self.save = text_button("Save report", "One HTML file for a colleague", self._report)
        self.other = text_button("Compare with...", "This run beside another one", self.compare.toggle)
        self.error = widgets.HTML()
        self.changed = widgets.HTML()
        head = widgets.HBox([self.title, self.cancel, self.settings])
        head.add_class("aq-row")
        self.ends = widgets.HBox([self.resume, self.keep, self.again, self.save, self.other])
        self.ends.add_class("aq-row")
        self.widget = widgets.VBox([
            head, self.error, self.ends, self.compare.widget, self.changed, self.dashboard.widget
        ])  # fmt: skip
        self.widget.add_class("aq-section")
        self._buttons()

    def start(self, choice: ModelChoice, output: Path, config: DiffusionQuantConfig) -> None:
        """Begin a run and show it."""
        self.dashboard.restart()
        self.compare.hide()
        self.title.value = f"<h3>{escape(str(choice.model))} &rarr; {escape(output.name)}</h3>"
        self.error.value = ""
        self.change.note.value = ""
        self.dashboard.announce("Started. The plan is being made.")
        self.session.start(choice, output, config)

    def tick(self) -> bool:
        """Paint what is due."""
        return self.dashboard.tick()

    # -- what the session says ---------------------------------------------------------------------------------------

    def _begun(self) -> None:
        """Say that a run is about to begin."""
        self._buttons()
        self._on_change()

    def _newer(self, state: RunState) -> None:
        if state.layers and not self.session.overriding:
            self.title.value = f"<h3>{escape(headline(state, self.session.output.name))}</h3>"
        if self.session.redoing or self.session.waiting:
            self._say_orders()
        self.dashboard.show(state)

    def _redone(self) -> None:
        """Follow a layer that was done again in mid-run."""
        self.change.note.value = ""
        self._say_orders()
        self.dashboard.read_again()

    def _ended(self) -> None:
        session = self.session
        if session.error:
            first = "That layer could not be done again" if session.overriding else "Failed"
            self.error.value = error_html(first, session.error, session.traceback)
        else:
            self.error.value = ""
        self.change.note.value = ""
        if session.overriding:
            self.dashboard.read_again()
        if session.result is not None and not session.error and session.state.status == FINISHED:
            result = session.result
            label = f"INT{result.bit_width}, {megabytes(result.payload_nbytes)}"
            if self.samples.offer(session.model, session.output, label) and not session.overriding:
                self.dashboard.folds.open_first()
            self.compare.offer(result, session.output)
        self._buttons()
        self._on_change()

    def _buttons(self) -> None:
        session = self.session
        running, status = session.running, session.state.status
        failed = bool(session.error) and not session.overriding
        self.cancel.disabled = not running or session.cancelling
        self.cancel.description = "Cancelling..." if session.cancelling else "Cancel"
        self.cancel.layout.display = "" if running else "none"
        self.resume.description = going_on(session.state)
        shown = {
            self.resume: not running and (status == CANCELLED or failed),
            self.keep: not running and failed and session.state.n_below_gate > 0,
            self.again: not running and status == FINISHED,
            self.save: not running and status == FINISHED,
            self.other: not running and status == FINISHED,
        }
        for button, visible in shown.items():
            button.layout.display = "" if visible else "none"
        self.ends.layout.display = "" if any(shown.values()) else "none"
        self._say_orders()

    def _say_orders(self) -> None:
        """Say which layers the user changed, and which changes are still to come."""
        session = self.session
        orders = () if session.config is None else orders_of(session.config)
        parts = [_orders("Changed by you", orders), _orders("Queued", tuple(session.waiting.values()))]
        self.changed.value = " &nbsp; ".join(filter(None, parts))
        redone = session.overriding if session.running else ()
        self.change.busy("Working..." if redone or self.dashboard.selection in session.redoing else "")

    # -- buttons -----------------------------------------------------------------------------------------------------

    def _cancel(self) -> None:
        self.session.cancel()
        self.dashboard.announce("Stopping: the piece that is worked on ends first. What is done is kept.")
        self._buttons()

    def _resume(self) -> None:
        if self.session.config is not None and not self.session.running:
            self.start(self.session.choice, self.session.output, self.session.config)

    def _keep(self) -> None:
        config = self.session.with_failed_kept()
        if config is not None:
            self.start(self.session.choice, self.session.output, config)

    def _report(self) -> None:
        result = self.session.result
        if result is None:
            return
        path = self.session.output.with_name(f"{self.session.output.name}-report.html")
        self.save.disabled = True

        def done(outcome: Any) -> None:
            self.save.disabled = False
            if outcome.error is None:
                self.dashboard.announce(f"Report saved: {path}")
            elif isinstance(outcome.error, ArrowQuantError):
                self.dashboard.announce(f"The report was not saved: {outcome.error}")
            else:
                self.error.value = f"<div class='aq-error' role='alert'>{escape(outcome.traceback)}</div>"

        self._worker.start("report", lambda _: report(result, path), done)

    def _override(self, name: str, bit_width: int, method: str) -> None:
        config, layer = self.session.config, self.session.state.layers.get(name)
        if config is not None and layer is not None:
            self._order(LayerOrder.of(layer.plan, bit_width, method, config))

    def _undo(self, name: str) -> None:
        self._order(LayerOrder(name))

    def _order(self, order: LayerOrder) -> None:
        self.change.note.value = f"<span role='status'>{escape(self.session.override(order))}</span>"
        self._buttons()


def _orders(what: str, orders: Sequence[LayerOrder]) -> str:
    """Return orders of layers in one line; many of them folded."""
    if not orders:
        return ""
    head, words = f"<b>{what} ({len(orders)})</b>", escape(ordered_words(orders))
    if len(orders) <= _SPELLED_OUT:
        return f"{head} {words}"
    return f"<details><summary>{head}</summary>{words}</details>"
