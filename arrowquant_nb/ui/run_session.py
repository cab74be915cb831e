"""One output folder and the runs over it: start, cancel, resume, and doing single layers again.

Runs the work beside the kernel and keeps the state that its events make. Knows no widgets.
"""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.events import LayerFinished, LayersOrdered
from arrowquant_nb.runs.control import RunCancelledError
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.ui.layer_order import KEEP, LayerOrder, applied
from arrowquant_nb.ui.run_state import FAILED, RunState

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.events import Event
    from arrowquant_nb.results import QuantizationResult
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["RunSession"]

_NEXT = "Queued: starts after the layer that is worked on."
_AT_END = "Queued: re-quantized when this run has ended"


class RunSession:
    """Runs over one model into one folder.

    Parameters
    ----------
    worker : where the work is done.
    on_state : called with every newer state.
    on_end : called when a run ends, in whatever way.
    on_begin : called when a run is about to begin, before its thread works.
    on_redone : called when a layer that was ordered otherwise in mid-run is done again.

    Attributes
    ----------
    state : what is shown of the latest run.
    result : of the latest run that finished, else None.
    error, traceback : of the latest run that did not, else "".
    config : settings of the latest run, with the layers that the user changed.
    waiting : what is ordered of single layers and not begun yet, by name.
    """

    def __init__(
        self,
        worker: Worker,
        on_state: Callable[[RunState], None],
        on_end: Callable[[], None],
        on_redone: Callable[[], None] = lambda: None,
        on_begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._worker = worker
        self._on_state, self._on_end, self._on_redone, self._on_begin = on_state, on_end, on_redone, on_begin
        self._stop: threading.Event | None = None
        self._hidden: RunState | None = None
        self._newer: queue.SimpleQueue[DiffusionQuantConfig] = queue.SimpleQueue()
        self.choice = ModelChoice("")
        self.output = Path()
        self.config: DiffusionQuantConfig | None = None
        self.state = RunState()
        self.result: QuantizationResult | None = None
        self.error = ""
        self.traceback = ""
        self.cancelling = False
        self.waiting: dict[str, LayerOrder] = {}
        self.overriding: tuple[str, ...] = ()
        """Layers that are done again after the run, () for none."""
        self.redoing: set[str] = set()
        """Layers that are done again within the run."""

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self._stop is not None

    @property
    def model(self) -> str:
        """The model of the latest run, as it was chosen."""
        return str(self.choice.model)

    def start(self, choice: ModelChoice, output: Path, config: DiffusionQuantConfig) -> None:
        """Begin a run, or go on with the one in the folder."""
        self.choice, self.output, self.config = choice, output, config
        self.state, self._hidden, self.overriding = RunState(), None, ()
        self.waiting = {}
        self._run()

    def cancel(self) -> None:
        """Ask the run to stop; what is committed stays."""
        if self._stop is not None:
            self.cancelling = True
            self._stop.set()

    def override(self, order: LayerOrder) -> str:
        """Do one layer again as ordered; the others are taken over as they are. Returns words.

        While a run goes on, the order is carried out after the batch of layers that is worked on; in a run whose widths
        hang together (a size limit), of a kept layer, or while another layer is done again: when it has ended.
        """
        if self.config is None:
            return ""
        wanted = applied(self.config, [*self.waiting.values(), order])
        try:
            ArrowQuantV2(wanted).plan(self.choice.model, **self.choice.parts)
        except ArrowQuantError as error:
            return f"{error} Nothing was changed."
        if not self.running:
            self._do_again([order])
            return ""
        self.waiting.pop(order.name, None)
        if applied(self.config, [*self.waiting.values(), order]) != applied(self.config, self.waiting.values()):
            self.waiting[order.name] = order
        why = self._why_at_end(order)
        if not why:
            self._newer.put(applied(self.config, self.waiting.values()))
            return _NEXT if order.name in self.waiting else "Taken back."
        return f"{_AT_END}{why}." if order.name in self.waiting else "Taken back."

    def with_failed_kept(self) -> DiffusionQuantConfig | None:
        """Return the settings with every layer that failed at all widths kept in float; None where none has."""
        failed = [layer.name for layer in self.state.decided if layer.report is not None and not layer.report.passed]
        if self.config is None or not failed or self.running:
            return None
        return applied(self.config, [LayerOrder(name, KEEP) for name in failed])

    def open_viewer(self) -> LayerViewer:
        """Open the run's files for looking at its layers."""
        if self.config is None:
            raise AssertionError(self.output)
        return LayerViewer(self.choice.model, self.output, self.config, **self.choice.parts)

    def _why_at_end(self, order: LayerOrder) -> str:
        """Say why an order waits for the end of the run; "" where it need not."""
        if self.overriding:
            return ": a layer is done again now"
        if self.config is not None and self.config.target_model_size_mb is not None:
            return ": a size limit decides all layers together"
        if self.config is not None and self.config.skip_sensitive_layers:
            return ": which layers are sensitive is decided by all of them"
        layer = self.state.layers.get(order.name)
        return ": the layer was to be kept" if layer is None or not layer.quantized else ""

    def _do_again(self, orders: list[LayerOrder]) -> None:
        if self.config is None:
            return
        self.config = applied(self.config, orders)
        self.overriding, self._hidden = tuple(order.name for order in orders), RunState()
        self._run()

    def _run(self) -> None:
        config, choice, output = self.config, self.choice, self.output
        self.cancelling, self.error, self.traceback = False, "", ""
        self.redoing, self._newer = set(), queue.SimpleQueue()
        newer = self._newer

        def tell(event: Event) -> None:
            self._worker.post(lambda: self._event(event))

        def newest() -> DiffusionQuantConfig | None:
            found = None
            while not newer.empty():
                found = newer.get()
            return found

        def work(stop: threading.Event) -> QuantizationResult:
            orchestrator = DiffusionOrchestrator(config)
            return orchestrator.quantize_model(
                choice.model, output, on_event=tell, stop=stop, newer_settings=newest, **choice.parts
            )

        self._stop = threading.Event()
        self._on_begin()
        self._worker.start("run", work, self._ended, self._stop)

    def _event(self, event: Event) -> None:
        if self._hidden is not None:
            self._hidden = self._hidden.apply(event)
            return
        self.state = self.state.apply(event)
        redone = False
        if isinstance(event, LayersOrdered):
            self._begun(event)
        elif isinstance(event, LayerFinished) and event.name in self.redoing:
            self.redoing.discard(event.name)
            redone = True
        self._on_state(self.state)
        if redone:
            self._on_redone()

    def _begun(self, event: LayersOrdered) -> None:
        """Take over that the run has begun what was ordered."""
        self.config = DiffusionQuantConfig.from_dict(event.config)
        names = {str(row["name"]) for row in event.rows}
        self.redoing |= {name for name in names if self.state.layers[name].report is not None}
        config = self.config
        self.waiting = {name: o for name, o in self.waiting.items() if applied(config, [o]) != config}

    def _ended(self, outcome: Outcome[QuantizationResult]) -> None:
        self._stop, self.cancelling = None, False
        self.redoing = set()
        if outcome.error is not None and not isinstance(outcome.error, RunCancelledError):
            self.error, self.traceback = str(outcome.error) or type(outcome.error).__name__, outcome.traceback
        if outcome.result is not None:
            self.result = outcome.result
        if self._hidden is not None:
            if outcome.result is not None or self._hidden.status == FAILED:
                self.state = self._hidden
            self._hidden = None
            self._on_state(self.state)
        orders, self.waiting = list(self.waiting.values()), {}
        if orders and outcome.result is None and self.config is not None:
            self.config = applied(self.config, orders)  # whoever resumes carries them out
        self._on_end()
        self.overriding = ()
        if orders and outcome.result is not None:
            self._do_again(orders)
