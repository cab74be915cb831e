"""The one loop of a run: layer by layer, small layers batched, INT2 -> INT4 -> INT8 where a gate fails.

Takes a `Source` of weights, a `Sink` of quantized tiles and a `Control` for events and cancelling; knows nothing of
files, formats, threads or widgets. Compiled by mypyc: it calls interpreted code (`cancelled`, `emit`) between any two
tiles, so that a worker thread never starves the interpreter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.core.batches import batches, rows_at_once, tile_rows
from arrowquant_nb.core.gates import OutputFigures, fallback_chain, judge
from arrowquant_nb.core.pending import Pending
from arrowquant_nb.core.recipes import recipes
from arrowquant_nb.core.reports import attempt_report, layer_report
from arrowquant_nb.core.trial_choice import Choice, matrix_job
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.events import AttemptFinished, LayerFinished, LayerProgress, LayerStarted
from arrowquant_nb.quantizers.measure import tiles_of
from arrowquant_nb.quantizers.metrics import OutputStatistics
from arrowquant_nb.quantizers.tensor import LayerStatistics
from arrowquant_nb.quantizers.transforms import quantize_transformed

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import Control, LayerTask, Sink, Source, TileWriter
    from arrowquant_nb.events import Event
    from arrowquant_nb.layer_reports import AttemptReport, LayerReport
    from arrowquant_nb.quantizers.tensor import QuantizedTensor


class Unstoppable:
    """A control for work on a single array: nobody listens and nobody cancels."""

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self.fail_fast = False

    def emit(self, event: Event) -> None:
        """Take an event and tell nobody."""

    def cancelled(self) -> bool:
        """Never."""
        return False


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
                pending.append(Pending(task, self.source.inputs(task)))
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
                name=task.name, index=task.index, n_layers=self.n_layers, report=report.to_record(), reused=reused
            )
        )

    def _attempt(self, pending: list[Pending]) -> None:
        """Try every pending layer once at its present width."""
        together = [item for item in pending if item.batchable]
        alone = [item for item in pending if not item.batchable]
        if len(together) > 1:
            self._try_together(together)
        else:
            alone = pending
        for item in alone:
            if self.stopped:
                return
            self._stream(item)

    def _try_together(self, items: list[Pending]) -> None:
        """Try several small layers in one parallel region."""
        jobs = []
        for item in items:
            weight = self.source.read_rows(item.task.name, 0, item.task.rows)
            jobs.append(matrix_job(item.task, item.recipes()[0], weight, 0, item.task.rotation))
        tensors = quantize_transformed(jobs, self.control.n_threads)
        for item, job, tensor in zip(items, jobs, tensors, strict=True):
            writer = self.sink.begin(item.task, tensor.bit_width)
            writer.append(0, tensor)
            outputs: list[OutputStatistics] = []
            choice = Choice(item.recipes(), "")
            if item.inputs is not None:
                outputs.append(choice.measure(job.weight, tensor, item.inputs, self.control.n_threads))
            self._judge(item, writer, tensor.statistics, tensor.nbytes, tensor, choice, outputs)

    def _stream(self, item: Pending) -> None:
        """Try one layer tile by tile; without compensation memory stays at a few tiles whatever its size."""
        task = item.task
        step = rows_at_once(task)
        choice = Choice(item.recipes(), task.rotation)
        writer = self.sink.begin(task, item.bit_width)
        parts: list[LayerStatistics] = []
        outputs: list[OutputStatistics] = []
        nbytes = 0
        tensor: QuantizedTensor | None = None
        try:
            for start in range(0, task.rows, step):
                weight = self.source.read_rows(task.name, start, min(step, task.rows - start))
                tensor = None
                if not self.control.cancelled():
                    tensor = choice.quantize(task, weight, start, item.inputs, self.control)
                if tensor is None:
                    self.stopped = True
                    writer.discard()
                    return
                for first, tile in tiles_of(tensor, weight, tile_rows(task.columns), self.control.n_threads):
                    writer.append(start + first, tile)
                parts.append(tensor.statistics)
                if item.inputs is not None:
                    outputs.append(choice.measure(weight, tensor, item.inputs, self.control.n_threads))
                nbytes += tensor.nbytes
                if start + step < task.rows:
                    fraction = (start + step) / task.rows
                    self.control.emit(LayerProgress(name=task.name, fraction=fraction))
        except BaseException:
            writer.discard()
            raise
        if tensor is not None:
            self._judge(item, writer, LayerStatistics.combine(parts), nbytes, tensor, choice, outputs)

    def _judge(
        self,
        item: Pending,
        writer: TileWriter,
        statistics: LayerStatistics,
        nbytes: int,
        tensor: QuantizedTensor,
        choice: Choice,
        outputs: list[OutputStatistics],
    ) -> None:
        """Gate an attempt: commit it, or discard it and leave the layer pending, or record it as failed.

        `tensor` is the layer or its last tile.
        """
        task = item.task
        wider = item.next_bit_width
        output = output_figures(outputs)
        judgement = judge(
            tensor.bit_width,
            task.bit_width,
            choice.recipe.compensated,
            statistics.cosine,
            output,
            task.min_accuracy,
            task.min_output_sqnr_db,
            wider,
        )
        attempt = attempt_report(statistics, task, tensor, choice, judgement, output)
        item.attempts.append(attempt)
        self.control.emit(
            AttemptFinished(
                name=task.name,
                bit_width=tensor.bit_width,
                method=attempt.method,
                passed=attempt.passed,
                sentence=attempt.sentence,
                gates=[gate.to_dict() for gate in judgement.gates],
            )
        )
        accepted = attempt.passed or (task.held and not self.control.fail_fast)
        if accepted or wider <= 0:
            inputs = choice.input_report(item.inputs)
            item.report = layer_report(task, statistics, nbytes, tensor, item.attempts, inputs)
        if accepted and item.report is not None:
            writer.commit(item.report, choice.facts(task, item.inputs))
            return
        writer.discard()
        if self.control.fail_fast:
            raise QuantizationError(
                f"fail_fast: {task.name!r}: {attempt.sentence} "
                "Lower min_accuracy or min_output_sqnr_db, or set layer_bit_widths for this layer."
            )


def attempt_array(
    task: LayerTask, weight: NDArray[Any], bit_width: int, n_threads: int
) -> tuple[QuantizedTensor, AttemptReport]:
    """Try one array at one width, without calibration, and judge it; stores nothing."""
    chain = fallback_chain(bit_width)
    found = recipes(task.methods, bit_width, task.group_size, False, task.scale_format, task.columns)
    choice = Choice(found, task.rotation)
    tensor = choice.quantize(task, weight, 0, None, Unstoppable(n_threads))
    if tensor is None:
        raise AssertionError(task.name)
    statistics = tensor.statistics
    wider = chain[1] if len(chain) > 1 else 0
    judgement = judge(bit_width, task.bit_width, False, statistics.cosine, None, task.min_accuracy, None, wider)
    return tensor, attempt_report(statistics, task, tensor, choice, judgement, None)


def output_figures(outputs: list[OutputStatistics]) -> OutputFigures | None:
    """Join the output's figures over a layer's tiles; None where it was not measured."""
    if not outputs:
        return None
    joined = OutputStatistics.combine(outputs)
    return OutputFigures(joined.sqnr_db, joined.worst_sqnr_db, joined.cosine, joined.gain)


def quantize_layers(
    tasks: list[LayerTask], source: Source, sink: Sink, control: Control, n_layers: int | None = None
) -> list[LayerReport]:
    """Process every task in order; return the reports so far when cancelled, all of them otherwise.

    Parameters
    ----------
    tasks : all tensors, or some of them.
    n_layers : tensors of the whole run, for the events; default as many as there are tasks.

    Raises
    ------
    QuantizationError
        With `fail_fast`, at the first failed gate. Without it a layer that fails at every width is reported
        (`LayerReport.passed` is false), is not committed, and the run goes on.
    """
    loop = LayerLoop(source, sink, control, len(tasks) if n_layers is None else n_layers)
    reports: list[LayerReport] = []
    for batch in batches(tasks):
        if loop.stopped or control.cancelled():
            break
        reports.extend(loop.process(batch))
    return reports
