"""One output folder and the runs over it: start, cancel, resume, and doing single layers again.

Runs the work beside the kernel and keeps the state that its events make. Knows no widgets.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from arrowquant_nb.diffusion_orchestrator import DiffusionOrchestrator
from arrowquant_nb.runs.control import RunCancelledError
from arrowquant_nb.runs.layer_viewer import LayerViewer
from arrowquant_nb.ui.run_state import FAILED, RunState

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.events import Event
    from arrowquant_nb.results import QuantizationResult
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["RunSession"]

_KEPT: Final = 16


class RunSession:
    """Runs over one model into one folder.

    Parameters
    ----------
    worker : where the work is done.
    on_state : called with every newer state.
    on_end : called when a run ends, in whatever way.

    Attributes
    ----------
    state : what is shown of the latest run.
    result : of the latest run that finished, else None.
    error, traceback : of the latest run that did not, else "".
    config : settings of the latest run, with the layers that the user changed.
    """

    def __init__(self, worker: Worker, on_state: Callable[[RunState], None], on_end: Callable[[], None]) -> None:
        self._worker = worker
        self._on_state, self._on_end = on_state, on_end
        self._stop: threading.Event | None = None
        self._hidden: RunState | None = None
        self._queued: tuple[str, int] | None = None
        self.model = ""
        self.output = Path()
        self.config: DiffusionQuantConfig | None = None
        self.state = RunState()
        self.result: QuantizationResult | None = None
        self.error = ""
        self.traceback = ""
        self.cancelling = False
        self.overriding = ""
        """Layer that is done again, "" for none."""

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self._stop is not None

    def start(self, model: str, output: Path, config: DiffusionQuantConfig) -> None:
        """Begin a run, or go on with the one in the folder."""
        self.model, self.output, self.config = model, output, config
        self.state, self._hidden, self.overriding = RunState(), None, ""
        self._run()

    def resume(self) -> None:
        """Begin again where the latest run stopped."""
        if self.config is not None and not self.running:
            self.start(self.model, self.output, self.config)

    def cancel(self) -> None:
        """Ask the run to stop; what is committed stays."""
        if self._stop is not None:
            self.cancelling = True
            self._queued = None
            self._stop.set()

    def override(self, name: str, bit_width: int | None) -> str:
        """Do one layer again at another width (16 keeps it, None is what the settings say); returns words.

        The others are taken over as they are. While a run goes on the wish waits for its end.
        """
        if self.config is None:
            return ""
        if self.running:
            if bit_width is not None:
                self._queued = (name, bit_width)
            return "Queued: starts when this run has ended."
        widths = {n: bits for n, bits in self.config.layer_bit_widths.items() if n != name}
        if bit_width is not None:
            widths[name] = bit_width
        self.config = self.config.replace(layer_bit_widths=widths)
        self.overriding, self._hidden = name, RunState()
        self._run()
        return ""

    def keep_failed(self) -> None:
        """Keep every layer that failed at all widths in float, and go on."""
        failed = [layer.name for layer in self.state.decided if layer.report is not None and not layer.report.passed]
        if self.config is not None and failed and not self.running:
            widths = dict(self.config.layer_bit_widths) | dict.fromkeys(failed, _KEPT)
            self.start(self.model, self.output, self.config.replace(layer_bit_widths=widths))

    def open_viewer(self) -> LayerViewer:
        """Open the run's files for looking at its layers."""
        if self.config is None:
            raise AssertionError(self.output)
        return LayerViewer(self.model, self.output, self.config)

    def _run(self) -> None:
        config, model, output = self.config, self.model, self.output
        self.cancelling, self.error, self.traceback = False, "", ""

        def tell(event: Event) -> None:
            self._worker.post(lambda: self._event(event))

        def work(stop: threading.Event) -> QuantizationResult:
            return DiffusionOrchestrator(config).quantize_model(model, output, on_event=tell, stop=stop)

        self._stop = self._worker.start("run", work, self._ended)

    def _event(self, event: Event) -> None:
        if self._hidden is not None:
            self._hidden = self._hidden.apply(event)
            return
        self.state = self.state.apply(event)
        self._on_state(self.state)

    def _ended(self, outcome: Outcome[QuantizationResult]) -> None:
        self._stop, self.cancelling = None, False
        if outcome.error is not None and not isinstance(outcome.error, RunCancelledError):
            self.error, self.traceback = str(outcome.error) or type(outcome.error).__name__, outcome.traceback
        if outcome.result is not None:
            self.result = outcome.result
        if self._hidden is not None:
            if outcome.result is not None or self._hidden.status == FAILED:
                self.state = self._hidden
            self._hidden = None
            self._on_state(self.state)
        self._on_end()
        self.overriding = ""
        if self._queued is not None and outcome.result is not None:
            (name, bits), self._queued = self._queued, None
            self.override(name, bits)
