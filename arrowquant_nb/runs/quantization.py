"""The run itself: open, plan, lock, calibrate, loop, seal. On any way out the committed layers stay to be resumed."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from arrowquant_nb.config.command import changed_settings
from arrowquant_nb.core.orchestrator import quantize_layers
from arrowquant_nb.errors import OutputError, QuantizationError
from arrowquant_nb.events import (
    AttemptFinished,
    CalibrationProgress,
    Event,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from arrowquant_nb.runs.calibrating import RunCalibration, calibrate
from arrowquant_nb.runs.control import RunCancelledError, RunControl
from arrowquant_nb.runs.layer_orders import LayerOrders
from arrowquant_nb.runs.layer_pass import LayerPass
from arrowquant_nb.runs.planning import make_plan, payload_nbytes
from arrowquant_nb.runs.preparation import PreparedModel, prepare
from arrowquant_nb.runs.record import failure_message, what_was_given
from arrowquant_nb.runs.rounds import Rounds
from arrowquant_nb.runs.sealing import Outcome, seal
from arrowquant_nb.runs.sink import ModelSink
from arrowquant_nb.runs.source import LayerSource
from arrowquant_nb.runs.widths import Widths, provisional
from arrowquant_nb.storage.output import ModelFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.network_quality import NetworkQuality
    from arrowquant_nb.results import QuantizationResult
    from arrowquant_nb.runs.model_choice import ModelChoice, OpenedModel

logger = logging.getLogger("arrowquant_nb")
logger.addHandler(logging.NullHandler())

# Per tensor, what framing, statistics, journal and events may add; used for the free-space estimate only.
_OVERHEAD_NBYTES: Final = 12_000
# Progress of a calibration is told this often.
_CALIBRATION_EVENTS: Final = 20


def quantize_model(
    choice: ModelChoice,
    output: str | Path,
    config: DiffusionQuantConfig,
    *,
    listeners: Sequence[Callable[[Event], None]] = (),
    stop: threading.Event | None = None,
    newer_settings: Callable[[], DiffusionQuantConfig | None] = lambda: None,
    overwrite: bool = False,
) -> QuantizationResult:
    """Quantize a model into a folder; see `ArrowQuantV2.quantize_diffusion_model`."""
    if not str(output):
        raise OutputError("the output is an empty text: give a folder")
    listeners = (_log_attempt, *listeners)
    with (
        RunControl(config.num_threads, config.fail_fast, listeners, stop or threading.Event()) as control,
        choice.opened(config) as opened,
    ):
        needed = sum(payload_nbytes(t) + _OVERHEAD_NBYTES for t in opened.tasks)
        with ModelFolder(Path(output), opened.located.path, needed) as folder:
            if not overwrite:
                folder.refuse_other_model({t.name: t.shape for t in opened.tasks}, opened.located.name)
            control.open_log(folder.folder)
            run = _Run(opened, config, folder, control, newer_settings)
            try:
                return run.execute()
            except (RunCancelledError, KeyboardInterrupt):
                _emit_quietly(control, RunCancelled(n_committed=run.n_committed()))
                raise
            except Exception as error:
                if not control.finished:
                    _emit_quietly(control, RunFailed(message=f"{type(error).__name__}: {error}"))
                raise


def _log_attempt(event: Event) -> None:
    if isinstance(event, AttemptFinished):
        logger.log(logging.INFO if event.passed else logging.WARNING, "%s: %s", event.name, event.sentence)


def _emit_quietly(control: RunControl, event: Event) -> None:
    """Record the end of a run without letting a second failure (full disk, broken listener) hide the first."""
    try:
        control.emit(event)
    except Exception as second:  # noqa: BLE001 - the first error is the one to raise
        logger.error("the end of the run could not be recorded: %s", second)  # noqa: TRY400 - as above


class _Run:
    """One execution over an open model and a locked folder."""

    def __init__(
        self,
        opened: OpenedModel,
        config: DiffusionQuantConfig,
        folder: ModelFolder,
        control: RunControl,
        newer_settings: Callable[[], DiffusionQuantConfig | None],
    ) -> None:
        self.opened = opened
        self.config = config
        self.folder = folder
        self.control = control
        self.newer_settings = newer_settings
        self.calibration = RunCalibration(opened.decisions.calibration)
        self.sink: ModelSink | None = None
        self.done: set[str] = set()

    def execute(self) -> QuantizationResult:
        """Calibrate, prepare and quantize; seal the folder when every layer passed."""
        self._announce()
        self.calibration = self._calibrate()
        self.prepared = self._prepare(self.opened, self.config)
        self.widths = self._make_widths()
        with _cancelled_while("the layers were measured"):
            tasks = self.widths.decide()
        with LayerSource(self.prepared.checkpoint, tasks, self.prepared.inputs) as source:
            self.sink = sink = ModelSink(
                self.folder, self.prepared.checkpoint, source,
                {"modality": self.opened.decisions.modality, "is_diffusion_model": True},
                calibration=self.prepared.inputs.key, folding=self.prepared.folding,
            )  # fmt: skip
            rounds, network = self._store(tasks, source, sink)
        return self._seal(rounds, network, sink)

    def _store(
        self, tasks: list[LayerTask], source: LayerSource, sink: ModelSink
    ) -> tuple[Rounds, NetworkQuality | None]:
        """Quantize and keep until limit, gates and floor hold."""
        orders = LayerOrders(self.newer_settings, self._prepare, sink)

        def quantize(some: list[LayerTask]) -> list[LayerReport]:
            return self._quantize(some, len(tasks), source, sink)

        def quantize_now(some: list[LayerTask]) -> list[LayerReport]:
            reports = quantize(some)
            self.folder.drain()
            return reports

        first = LayerPass(quantize, sink, lambda: self._revised(orders, first.tasks), tasks)
        reports = first.run()
        self.folder.drain()
        rounds = Rounds(quantize_now, sink, self.widths, first.tasks, reports)
        rounds.keep_limit(self.config)
        failed = [r for r in rounds.reports if not r.passed]
        if failed:
            raise QuantizationError(failure_message(failed, self.folder.sealed))
        network = rounds.reach_floor(self.prepared, self.folder, self.config)
        sink.finish_kept()
        self.folder.drain()
        return rounds, network

    def _seal(self, rounds: Rounds, network: NetworkQuality | None, sink: ModelSink) -> QuantizationResult:
        reports = self.widths.with_costs(rounds.reports)
        outcome = Outcome(
            self.opened, self.config, self.calibration, rounds.tasks, reports, sink, network,
            self.widths.outcome(reports), self.widths.warnings,
        )  # fmt: skip
        result = seal(outcome, self.folder, self.control.elapsed_s)
        summary = {k: v for k, v in result.to_dict().items() if k not in ("layers", "config")}
        self.control.emit(RunFinished(summary=summary))
        return result

    def _make_widths(self) -> Widths:
        return Widths(self.prepared, self.config, self._measuring, self.control.cancelled)

    def _revised(self, orders: LayerOrders, tasks: list[LayerTask]) -> list[LayerTask]:
        """Take what the user has ordered of single layers, and return their tasks."""
        found = None if self.widths.measuring else orders.revise(self.config, self.opened, tasks)
        if found is None:
            return []
        self.config, self.opened, self.prepared = found.config, found.opened, found.prepared
        self.widths = self._make_widths()
        self.widths.decide()
        self.folder.drain()
        self.control.emit(found.event)
        return found.changed

    def _announce(self) -> None:
        """Tell what is about to be done."""
        opened = self.opened
        plan = make_plan(opened.decisions, provisional(opened.tasks, opened.checkpoint, self.config), self.config)
        rows = [r.to_record() for r in plan.rows]
        given = what_was_given(opened)
        changed = changed_settings(self.config)
        self.control.emit(
            RunStarted(n_layers=len(opened.tasks), rows=rows, model=plan.model, config=changed, given=given)
        )
        logger.info("%s: %s", plan.model, plan.strategy.reason)

    def _calibrate(self) -> RunCalibration:
        """See what the layers are given, where that can be seen."""
        found = self.opened.decisions.calibration
        shown = -1

        def progress(fraction: float) -> None:
            nonlocal shown
            if self.control.cancelled():
                raise RunCancelledError("cancelled while the model was calibrated; nothing new was quantized")
            if int(fraction * _CALIBRATION_EVENTS) > shown:
                shown = int(fraction * _CALIBRATION_EVENTS)
                self.control.emit(CalibrationProgress(source=found.description, fraction=fraction))

        calibration = calibrate(found, self.opened.tasks, self.config, progress)
        for warning in calibration.warnings:
            logger.warning("%s", warning)
        return calibration

    def _prepare(self, opened: OpenedModel, config: DiffusionQuantConfig) -> PreparedModel:
        with _cancelled_while("it was decided what to fold"):
            prepared = prepare(opened, self.calibration, config, self.control.cancelled)
        if prepared.folding:
            n = len(prepared.folding.equalizations)
            logger.info("%s: equalization of %d layers is folded into the weights before them", prepared.name, n)
        return prepared

    def _measuring(self, fraction: float) -> None:
        """Tell how far the layers are measured; raise when asked to stop."""
        if self.control.cancelled():
            raise RunCancelledError("cancelled while the layers were measured; nothing new was quantized")
        self.control.emit(CalibrationProgress(source="what each width costs each layer", fraction=fraction))

    def _quantize(
        self, tasks: list[LayerTask], n_tensors: int, source: LayerSource, sink: ModelSink
    ) -> list[LayerReport]:
        """Run the loop over some tasks, all or nothing."""
        reports = quantize_layers(tasks, source, sink, self.control, n_tensors)
        self.done.update(report.name for report in reports)
        if len(reports) < len(tasks):
            self.folder.drain()
            raise RunCancelledError(
                f"cancelled after {len(self.done)} of {n_tensors} tensors; what is committed in "
                f"{self.folder.folder} stays: run the same command again to resume"
            )
        return reports

    def n_committed(self) -> int:
        """Layers of this run that are safe on disk, those taken over included."""
        if self.sink is None:
            return 0
        with contextlib.suppress(Exception):  # on the way out of another error
            self.folder.drain()
        return sum(self.folder.find(file) is not None for file in self.sink.files)


@contextlib.contextmanager
def _cancelled_while(what: str) -> Iterator[None]:
    """Turn an interruption into the error of a cancelled run."""
    try:
        yield
    except InterruptedError as error:
        raise RunCancelledError(f"cancelled while {what}; nothing new was quantized") from error
