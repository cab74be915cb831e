"""The run itself: open, plan, lock, loop, seal. On any way out the committed layers stay and the next run resumes."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_nb import _kernels
from arrowquant_nb.core.orchestrator import quantize_layers
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.events import (
    AttemptFinished,
    CalibrationProgress,
    Event,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from arrowquant_nb.runs.calibrating import calibrate, find_source
from arrowquant_nb.runs.card import model_card
from arrowquant_nb.runs.control import RunCancelledError, RunControl
from arrowquant_nb.runs.input_strategy import applied_strategy, input_warnings
from arrowquant_nb.runs.layer_inputs import LayerInputSearch
from arrowquant_nb.runs.layer_orders import LayerOrders
from arrowquant_nb.runs.layer_pass import LayerPass
from arrowquant_nb.runs.locating import LocatedModel, locate_model
from arrowquant_nb.runs.planning import Decisions, decide, make_plan, make_tasks, payload_nbytes
from arrowquant_nb.runs.record import (
    CARD_NAME,
    STATS_NAME,
    assemble_result,
    changed_settings,
    failure_message,
    machine,
    statistics_table,
    versions,
    what_was_given,
)
from arrowquant_nb.runs.rounds import Rounds, floor_warnings
from arrowquant_nb.runs.sink import ModelSink
from arrowquant_nb.runs.source import LayerSource
from arrowquant_nb.runs.widths import Widths, provisional
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.manifest import Manifest
from arrowquant_nb.storage.output import RUN_NAME, ModelFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.network_quality import NetworkQuality, SizeOutcome
    from arrowquant_nb.results import LayerReport, QuantizationResult
    from arrowquant_nb.storage.checkpoint import Checkpoint

logger = logging.getLogger("arrowquant_nb")
logger.addHandler(logging.NullHandler())

# Per tensor, what framing, statistics, journal and events may add; used for the free-space estimate only.
_OVERHEAD_NBYTES = 12_000
# Progress of a calibration is told this often.
_CALIBRATION_EVENTS = 20


def quantize_model(
    model: str | Path,
    output: str | Path,
    config: DiffusionQuantConfig,
    *,
    listeners: Sequence[Callable[[Event], None]] = (),
    stop: threading.Event | None = None,
    newer_settings: Callable[[], DiffusionQuantConfig | None] = lambda: None,
    requantize: bool = False,
    component: str | None = None,
    variant: str | None = None,
    overwrite: bool = False,
    calibration: str | Path | None = None,
) -> QuantizationResult:
    """Quantize a model into a folder; see `ArrowQuantV2.quantize_diffusion_model`."""
    located = locate_model(model)
    listeners = (_log_attempt, *listeners)
    with (
        RunControl(config.num_threads, config.fail_fast, listeners, stop or threading.Event()) as control,
        open_checkpoint(located.path, component=component, variant=variant, requantize=requantize) as checkpoint,
    ):
        decisions = decide(checkpoint, located, config, find_source(located, config, calibration))
        tasks = make_tasks(checkpoint, decisions, config)
        needed = sum(payload_nbytes(t) + _OVERHEAD_NBYTES for t in tasks)
        with (
            ModelFolder(Path(output), located.path, needed) as folder,
            LayerSource(checkpoint, tasks) as source,
        ):
            if not overwrite:
                folder.refuse_other_model({t.name: t.shape for t in tasks}, located.name)
            control.open_log(folder.folder)
            run = _Run(checkpoint, decisions, tasks, config, folder, control, located, source, newer_settings)
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
    """One execution over an open checkpoint and a locked folder."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        decisions: Decisions,
        tasks: list[LayerTask],
        config: DiffusionQuantConfig,
        folder: ModelFolder,
        control: RunControl,
        located: LocatedModel,
        source: LayerSource,
        newer_settings: Callable[[], DiffusionQuantConfig | None],
    ) -> None:
        self.checkpoint = checkpoint
        self.decisions = decisions
        self.tasks = tasks
        self.config = config
        self.folder = folder
        self.control = control
        self.located = located
        self.source = source
        self.sink = ModelSink(
            folder,
            checkpoint,
            self.source,
            {"modality": decisions.modality, "is_diffusion_model": True},
        )

        self.orders = LayerOrders(newer_settings, checkpoint, located, self.sink)
        self.widths = self._make_widths()
        self.done: set[str] = set()
        self.network: NetworkQuality | None = None
        self.size: SizeOutcome | None = None

    def _make_widths(self) -> Widths:
        return Widths(
            self.checkpoint, self.located, self.config, self.tasks, self._measuring, self.control.cancelled
        )  # fmt: skip

    def _measuring(self, fraction: float) -> None:
        """Tell how far the layers are measured; raise when asked to stop."""
        if self.control.cancelled():
            raise RunCancelledError("cancelled while the layers were measured; nothing new was quantized")
        self.control.emit(CalibrationProgress(source="what each width costs each layer", fraction=fraction))

    def execute(self) -> QuantizationResult:
        """Run the loop; seal the folder when every layer passed."""
        plan = make_plan(self.decisions, provisional(self.tasks, self.checkpoint, self.config), self.config)
        rows = [r.to_record() for r in plan.rows]
        self.control.emit(
            RunStarted(
                n_layers=len(self.tasks),
                rows=rows,
                model=plan.model,
                config=changed_settings(self.config),
                given=what_was_given(self.located, self.checkpoint, self.decisions.calibration),
            )
        )
        logger.info("%s: %s", plan.model, plan.strategy.reason)
        self._calibrate()
        try:
            self.tasks = self.widths.decide(self.source.calibration)
        except InterruptedError as error:
            raise RunCancelledError("cancelled while the layers were measured; nothing new was quantized") from error
        first = LayerPass(self._quantize, self.sink, self._revised, self.tasks)
        reports = first.run()
        self.folder.drain()
        rounds = Rounds(self._quantize_now, self.sink, self.widths, first.tasks, reports)
        rounds.keep_limit(self.config)
        failed = [r for r in rounds.reports if not r.passed]
        if failed:
            raise QuantizationError(failure_message(failed, self.folder.sealed))
        self.network = rounds.reach_floor(self.located, self.folder, self.config)
        self.tasks, reports = rounds.tasks, rounds.reports
        self.sink.finish_kept()
        self.folder.drain()
        return self._seal(reports)

    def _quantize(self, tasks: list[LayerTask]) -> list[LayerReport]:
        """Run the loop over some tasks, all or nothing."""
        reports = quantize_layers(tasks, self.source, self.sink, self.control, len(self.tasks))
        self.done.update(report.name for report in reports)
        if len(reports) < len(tasks):
            self.folder.drain()
            raise RunCancelledError(
                f"cancelled after {len(self.done)} of {len(self.tasks)} tensors; what is committed in "
                f"{self.folder.folder} stays: run the same command again to resume"
            )
        return reports

    def _quantize_now(self, tasks: list[LayerTask]) -> list[LayerReport]:
        """Do the same and have it all on disk."""
        reports = self._quantize(tasks)
        self.folder.drain()
        return reports

    def _revised(self) -> list[LayerTask]:
        """Take what the user has ordered of single layers, and return their tasks."""
        found = None if self.widths.measuring else self.orders.revise(self.config, self.decisions, self.tasks)
        if found is None:
            return []
        self.config, self.decisions, self.tasks = found.config, found.decisions, found.tasks
        self.widths = self._make_widths()
        self.widths.decide(self.source.calibration)
        self.folder.drain()
        self.control.emit(found.event)
        return found.changed

    def _calibrate(self) -> None:
        """See what the layers are given, where that can be seen."""
        found = self.decisions.calibration
        shown = -1

        def progress(fraction: float) -> None:
            nonlocal shown
            if self.control.cancelled():
                raise RunCancelledError("cancelled while the model was calibrated; nothing new was quantized")
            if int(fraction * _CALIBRATION_EVENTS) > shown:
                shown = int(fraction * _CALIBRATION_EVENTS)
                self.control.emit(CalibrationProgress(source=found.description, fraction=fraction))

        self.source.calibration = calibrate(found, self.tasks, self.config, progress)
        inputs = LayerInputSearch(
            self.source.calibration, self.checkpoint, self.tasks, self.config, spatial=self.decisions.strategy.spatial
        )
        self.source.layer_inputs = inputs
        self.sink.calibration = inputs.key
        for warning in self.source.calibration.warnings:
            logger.warning("%s", warning)

    def n_committed(self) -> int:
        """Layers of this run that are safe on disk, those taken over included."""
        with contextlib.suppress(Exception):  # on the way out of another error
            self.folder.drain()
        return sum(self.folder.find(file) is not None for file in self.sink.files)

    def _seal(self, reports: list[LayerReport]) -> QuantizationResult:
        """Write everything that is not tensor data; the manifest is the last file that makes a model of the folder."""
        self.decisions = replace(self.decisions, strategy=applied_strategy(self.decisions.strategy, reports))
        files: dict[str, dict[str, Any]] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for file in sorted(self.sink.files):  # whatever order they were committed in
            commit = self.folder.committed(file)
            files[file] = {"nbytes": commit.nbytes, "xxh3": commit.xxh3}
            tensors.update(commit.tensors)
        for source, target in self.checkpoint.metadata_files:
            files[target] = self.folder.write(target, source.read_bytes())
        reports = self.widths.with_costs(reports)
        self.size = self.widths.outcome(reports)
        files[STATS_NAME] = self.folder.write(STATS_NAME, statistics_table(reports))
        hashes = {name: str(entry["xxh3"]) for name, entry in files.items()}
        files[CARD_NAME] = self.folder.write(CARD_NAME, self._card(reports, hashes))
        seconds = self.control.elapsed_s
        self.folder.write(RUN_NAME, self._record(seconds, tensors, self._warnings(reports)), listed=False)
        manifest = Manifest(self._facts(), {t.name: tensors[t.name] for t in self.tasks}, files)
        self.folder.seal(manifest)
        result = self._result(reports, seconds, self.folder.size_nbytes(manifest))
        summary = {k: v for k, v in result.to_dict().items() if k not in ("layers", "config")}
        self.control.emit(RunFinished(summary=summary))
        return result

    def _card(self, reports: list[LayerReport], hashes: dict[str, str]) -> bytes:
        return model_card(self.decisions, self.config, reports, hashes, self.network, self.size)

    def _warnings(self, reports: list[LayerReport]) -> tuple[str, ...]:
        found = self.source.calibration
        return (
            *found.warnings,
            *self.widths.warnings,
            *floor_warnings(self.network, self.config),
            *input_warnings(reports, found),
        )

    def _facts(self) -> dict[str, Any]:
        checkpoint, decisions = self.checkpoint, self.decisions
        return {
            "name": decisions.model,
            "kind": checkpoint.kind,
            "component": checkpoint.component,
            "variant": checkpoint.variant,
            "class_name": checkpoint.class_name,
            "modality": decisions.modality,
            "modality_reason": decisions.modality_reason,
            "strategy": decisions.strategy.to_dict(),
            "calibration": self.source.calibration.facts(),
            # A thread count changes no byte of a model, so it does not enter the manifest.
            "config": self.config.to_dict() | {"num_threads": 0},
            "metadata_files": [target for _, target in checkpoint.metadata_files],
            "component_files": [
                t for source, t in checkpoint.metadata_files if _belongs_to_component(checkpoint, source)
            ],
            "header": _header_facts(checkpoint),
            **{
                name: value.to_dict()
                for name, value in (("network", self.network), ("size", self.size))
                if value is not None
            },
        }

    def _record(self, seconds: float, tensors: dict[str, dict[str, Any]], warnings: tuple[str, ...]) -> bytes:
        record = {
            "model": self.located.argument,
            "component": self.checkpoint.component,
            "variant": self.checkpoint.variant,
            "config": self.config.to_dict(),
            "sources": dict(self.config.sources),
            "inputs": {name: entry["source_xxh3"] for name, entry in tensors.items()},
            "versions": versions(),
            "machine": machine(),
            "n_threads": _kernels.resolve_threads(self.config.num_threads),
            "quantization_time_s": seconds,
            "reused": self.sink.reused,
            "calibration": self.source.calibration.record(),
            "warnings": list(warnings),
        }
        return (json.dumps(record, indent=1) + "\n").encode()

    def _result(self, reports: list[LayerReport], seconds: float, size: int) -> QuantizationResult:
        return assemble_result(
            reports,
            size_nbytes=size,
            quantized_path=str(self.folder.folder),
            model=self.decisions.model,
            modality=self.decisions.modality,
            modality_reason=self.decisions.modality_reason,
            strategy=self.decisions.strategy,
            bit_width=self.config.bit_width,
            quantization_time_s=seconds,
            reused=self.sink.reused,
            config=self.config.to_dict(),
            calibration=self.source.calibration.facts(),
            warnings=self._warnings(reports),
            network=self.network,
            size=self.size,
        )


def _belongs_to_component(checkpoint: Checkpoint, source: Path) -> bool:
    return checkpoint.component is not None and source.is_relative_to(checkpoint.path / checkpoint.component)


def _header_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what of a safetensors header tells the architecture, for writing it back."""
    architecture = checkpoint.modality_evidence.header_architecture
    return {"modelspec.architecture": architecture} if architecture else {}
