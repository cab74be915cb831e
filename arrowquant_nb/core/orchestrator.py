"""The one loop of a run: layer by layer, small layers batched, INT2 -> INT4 -> INT8 where a gate fails.

Takes a `Source` of weights, a `Sink` of quantized tiles and a `Control` for events and cancelling; knows nothing of
files, formats, threads or widgets. Compiled by mypyc: it calls interpreted code (`cancelled`, `emit`) between any two
tiles, so that a worker thread never starves the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from arrowquant_nb.core.gates import NOT_MEASURED, explain, fallback_chain, passes, required_cosine, scale_layout
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.events import AttemptFinished, LayerFinished, LayerProgress, LayerStarted
from arrowquant_nb.quantizers.affine import MatrixJob, quantize_matrices
from arrowquant_nb.quantizers.tensor import LayerStatistics
from arrowquant_nb.results import AttemptReport, LayerReport

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import Control, LayerTask, Sink, Source, TileWriter

# A tile is the unit of reading, quantizing and storing: 8 Mi weights are 32 MiB of float32 and at most 8 MiB of codes.
TILE_WEIGHTS: Final = 1 << 23
# Layers are gathered until they hold this many weights, so that one parallel region covers many small ones.
BATCH_WEIGHTS: Final = 1 << 21


class Pending:
    """A layer on its way through the fallback chain; `report` is set once it is decided."""

    def __init__(self, task: LayerTask) -> None:
        self.task = task
        self.chain = fallback_chain(task.bit_width)
        self.attempts: list[AttemptReport] = []
        self.report: LayerReport | None = None

    @property
    def bit_width(self) -> int:
        """Width to try now."""
        return self.chain[len(self.attempts)]

    @property
    def group_size(self) -> int:
        """Group size at this width."""
        return scale_layout(self.bit_width, self.task.group_size, self.task.scale_format)[0]

    @property
    def scale_format(self) -> str:
        """Scale format at this width."""
        return scale_layout(self.bit_width, self.task.group_size, self.task.scale_format)[1]

    @property
    def next_bit_width(self) -> int:
        """Width to try after this one; 0 where nothing is left."""
        n = len(self.attempts) + 1
        return self.chain[n] if n < len(self.chain) else 0


def batches(tasks: list[LayerTask]) -> list[list[LayerTask]]:
    """Group consecutive tensors: small layers together up to `BATCH_WEIGHTS`, a large layer alone.

    Kept tensors take no part in the kernels and ride along with whatever batch they stand in.
    """
    groups: list[list[LayerTask]] = [[]]
    open_weights = 0
    for task in tasks:
        weights = 0 if task.kept else task.n_weights
        if open_weights and open_weights + weights > BATCH_WEIGHTS:
            groups.append([])
            open_weights = 0
        groups[-1].append(task)
        open_weights += weights
    return groups


def tile_rows(columns: int) -> int:
    """Rows of one tile of a matrix with so many columns."""
    return max(1, TILE_WEIGHTS // max(1, columns))


class LayerLoop:
    """State of one pass over the layers."""

    def __init__(self, source: Source, sink: Sink, control: Control, n_layers: int) -> None:
        self.source = source
        self.sink = sink
        self.control = control
        self.n_layers = n_layers
        self.stopped = False

    def process(self, batch: list[LayerTask]) -> list[LayerReport]:
        """Reuse, keep or quantize the tensors of one batch; fewer reports than tensors mean that it was cancelled."""
        decided: dict[int, LayerReport] = {}
        pending: list[Pending] = []
        for task in batch:
            if self.control.cancelled():
                self.stopped = True
                break
            found = self.sink.reuse(task)
            if found is not None:
                decided[task.index] = found
                self._finished(task, found, True)
                continue
            self.control.emit(
                LayerStarted(name=task.name, index=task.index, n_layers=self.n_layers, bit_width=task.bit_width)
            )
            if task.kept:
                report = self.sink.keep(task)
                decided[task.index] = report
                self._finished(task, report, False)
            else:
                pending.append(Pending(task))
        while pending and not self.stopped:
            if self.control.cancelled():
                self.stopped = True
                break
            self._attempt(pending)
            still: list[Pending] = []
            for item in pending:
                done = item.report
                if done is None:
                    still.append(item)
                else:
                    decided[item.task.index] = done
                    self._finished(item.task, done, False)
            pending = still
        return [decided[task.index] for task in batch if task.index in decided]

    def _finished(self, task: LayerTask, report: LayerReport, reused: bool) -> None:
        self.control.emit(
            LayerFinished(
                name=task.name, index=task.index, n_layers=self.n_layers, report=report.to_dict(), reused=reused
            )
        )

    def _attempt(self, pending: list[Pending]) -> None:
        """Try every pending layer once at its present width."""
        if len(pending) == 1:
            self._stream(pending[0])
            return
        jobs = [_job(item, self.source.read_rows(item.task.name, 0, item.task.rows), 0) for item in pending]
        tensors = quantize_matrices(jobs, self.control.n_threads)
        for item, tensor in zip(pending, tensors, strict=True):
            writer = self.sink.begin(item.task, tensor.bit_width)
            writer.append(0, tensor)
            self._judge(item, writer, tensor.statistics, tensor.nbytes, tensor.grid)

    def _stream(self, item: Pending) -> None:
        """Try one layer tile by tile; memory stays at a few tiles whatever its size."""
        task = item.task
        step = tile_rows(task.columns)
        writer = self.sink.begin(task, item.bit_width)
        parts: list[LayerStatistics] = []
        nbytes = 0
        grid = ""
        try:
            for start in range(0, task.rows, step):
                if self.control.cancelled():
                    self.stopped = True
                    writer.discard()
                    return
                weight = self.source.read_rows(task.name, start, min(step, task.rows - start))
                tensor = quantize_matrices([_job(item, weight, start)], self.control.n_threads)[0]
                writer.append(start, tensor)
                parts.append(tensor.statistics)
                nbytes += tensor.nbytes
                grid = tensor.grid
                if start + step < task.rows:
                    fraction = (start + step) / task.rows
                    self.control.emit(LayerProgress(name=task.name, fraction=fraction))
        except BaseException:
            writer.discard()
            raise
        self._judge(item, writer, LayerStatistics.combine(parts), nbytes, grid)

    def _judge(self, item: Pending, writer: TileWriter, statistics: LayerStatistics, nbytes: int, grid: str) -> None:
        """Gate an attempt: commit it, or discard it and leave the layer pending, or record it as failed."""
        task = item.task
        bit_width = item.bit_width
        wider = item.next_bit_width
        group_size, scale_format = item.group_size, item.scale_format
        attempt = attempt_report(
            statistics, bit_width, task.bit_width, task.min_accuracy, task.method, grid, wider, group_size, scale_format
        )
        item.attempts.append(attempt)
        gate: dict[str, object] = {
            "gate": "weight_cosine",
            "value": attempt.cosine,
            "threshold": attempt.min_cosine,
            "passed": attempt.passed,
        }
        self.control.emit(
            AttemptFinished(
                name=task.name,
                bit_width=bit_width,
                method=task.method,
                passed=attempt.passed,
                sentence=attempt.sentence,
                gates=[gate],
            )
        )
        if attempt.passed or not wider:
            item.report = _report(item, statistics, nbytes, attempt)
        if attempt.passed and item.report is not None:
            writer.commit(item.report)
            return
        writer.discard()
        if self.control.fail_fast:
            raise QuantizationError(
                f"fail_fast: {task.name!r}: {attempt.sentence} "
                "Lower min_accuracy, or set layer_bit_widths for this layer."
            )


def attempt_report(
    statistics: LayerStatistics,
    bit_width: int,
    requested: int,
    min_accuracy: float,
    method: str,
    grid: str,
    wider: int,
    group_size: int,
    scale_format: str,
) -> AttemptReport:
    """Judge one attempt: its figures against the gate, with the sentence why; `wider` is 0 where no width is left."""
    threshold = required_cosine(bit_width, requested, min_accuracy)
    passed = passes(statistics.cosine, threshold)
    return AttemptReport(
        bit_width=bit_width,
        method=method,
        grid=grid,
        cosine=statistics.cosine,
        sqnr_db=statistics.sqnr_db,
        mse=statistics.mse,
        min_cosine=threshold,
        passed=passed,
        output_sqnr=NOT_MEASURED,
        sentence=explain(bit_width, statistics.cosine, threshold, passed, wider),
        group_size=group_size,
        scale_format=scale_format,
    )


def quantize_layers(tasks: list[LayerTask], source: Source, sink: Sink, control: Control) -> list[LayerReport]:
    """Process every task in order; return the reports so far when cancelled, all of them otherwise.

    Raises
    ------
    QuantizationError
        With `fail_fast`, at the first failed gate. Without it a layer that fails at every width is reported
        (`LayerReport.passed` is false), is not committed, and the run goes on.
    """
    loop = LayerLoop(source, sink, control, len(tasks))
    reports: list[LayerReport] = []
    for batch in batches(tasks):
        if loop.stopped or control.cancelled():
            break
        reports.extend(loop.process(batch))
    return reports


def _job(item: Pending, weight: NDArray[Any], row_start: int) -> MatrixJob:
    task = item.task
    return MatrixJob(
        weight=weight,
        name=task.name,
        shape=weight.shape,
        bit_width=item.bit_width,
        group_size=item.group_size,
        method=task.method,
        gain_correction=task.gain_correction,
        importance=None,
        row_start=row_start,
        file=task.file,
        scale_format=item.scale_format,
    )


def _report(item: Pending, statistics: LayerStatistics, nbytes: int, attempt: AttemptReport) -> LayerReport:
    task = item.task
    return LayerReport(
        name=task.name,
        shape=task.shape,
        dtype=task.dtype,
        action="quantized",
        role=task.role,
        reason=task.reason,
        rule=task.rule,
        requested_bit_width=task.bit_width,
        bit_width=attempt.bit_width,
        method=attempt.method,
        grid=attempt.grid,
        group_size=attempt.group_size,
        n_weights=task.n_weights,
        source_nbytes=task.source_nbytes,
        nbytes=nbytes,
        sqnr_db=statistics.sqnr_db,
        cosine=statistics.cosine,
        mse=statistics.mse,
        gain=statistics.gain,
        w_absmax=statistics.w_absmax,
        attempts=tuple(item.attempts),
        scale_format=attempt.scale_format,
    )
