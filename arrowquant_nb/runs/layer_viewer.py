"""Looks at one layer of a run from near.

Joins the source, what the run has committed, and the calibration. Everything is cut down to a few hundred numbers, so
that a view can be sent and drawn; a large layer is sampled. Knows nothing of figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from arrowquant_nb.errors import MetadataError
from arrowquant_nb.quantizers.metrics import output_statistics
from arrowquant_nb.runs.calibrating import RunCalibration, calibrate, find_source
from arrowquant_nb.runs.folding import stored_folding
from arrowquant_nb.runs.layer_view import LayerView, TimeGroup, TimeRanges
from arrowquant_nb.runs.locating import locate_model
from arrowquant_nb.runs.planning import decide, make_tasks
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.quantized import open_committed

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.calibration.statistics import LayerCapture
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.storage.checkpoint import Checkpoint
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["LayerViewer"]

N_BINS: Final = 96
MAX_TILES: Final = (16, 48)
MAX_SCALES: Final = 200
# Rows of a layer that are looked at: some 4 M weights take a tenth of a second.
MOST_WEIGHTS: Final = 1 << 22
# Rows whose output is measured per timestep group.
MOST_OUTPUT_ROWS: Final = 512
OUTLIER_SPREADS: Final = 6.0


class LayerViewer:
    """Opens what a run reads and writes, and views its layers; not for several threads at once.

    Parameters
    ----------
    model, config, calibration, component, variant : as the run was given them.
    output : the run's folder, finished or not.
    """

    def __init__(
        self,
        model: str | Path,
        output: Path,
        config: DiffusionQuantConfig,
        calibration: str | Path | None = None,
        component: str | None = None,
        variant: str | None = None,
    ) -> None:
        self._config = config
        self._output = output
        self._located = locate_model(model)
        self._source = find_source(self._located, config, calibration)
        self._checkpoint: Checkpoint = open_checkpoint(self._located.path, component, variant)
        self._calibrated: RunCalibration | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the source."""
        self._checkpoint.close()

    def view(self, name: str) -> LayerView:
        """Return the view of one layer.

        Raises
        ------
        MetadataError
            The run has not committed it, or has kept it as it is.
        """
        with open_committed(self._output) as committed:
            if name not in committed or committed[name].kept:
                raise MetadataError(f"{name!r} is not among the quantized layers in {self._output.name}")
            tensor = committed[name]
            rows = _rows_to_see(self._checkpoint.entries[name].rows, tensor.columns)
            before = self._source_rows(name, rows)
            after = self._stored_rows(committed, tensor, rows)
            return self._compare(tensor, before, after, rows)

    def _compare(
        self, tensor: LazyTensor, before: NDArray[np.float32], after: NDArray[np.float32], rows: NDArray[np.int64]
    ) -> LayerView:
        spread = np.maximum(before.std(axis=1, keepdims=True), np.finfo(np.float32).tiny)
        outliers = np.abs(before) > OUTLIER_SPREADS * spread
        span = (float(min(before.min(), after.min())), float(max(before.max(), after.max())))
        edges = np.histogram_bin_edges(np.array(span), N_BINS)
        row_places, column_places = (_tile_edges(n, most) for n, most in zip(before.shape, MAX_TILES, strict=True))
        mean, largest = _tiles(np.abs(before - after), row_places, column_places)
        scales = _scales(tensor, rows)
        return LayerView(
            name=tensor.name,
            shape=tensor.shape,
            bit_width=tensor.bit_width,
            group_size=tensor.group_size,
            edges=edges,
            before=np.histogram(before, edges)[0],
            after=np.histogram(after, edges)[0],
            tile_mean=mean,
            tile_max=largest,
            row_edges=(*(int(rows[i]) for i in row_places[:-1]), int(rows[-1]) + 1),
            column_edges=tuple(column_places),
            scales=_thinned(np.sort(scales, axis=None)),
            n_groups=scales.size,
            outlier_share=float(outliers.mean()),
            outlier_groups=_groups_with(outliers, tensor.group_size),
            n_rows_seen=len(rows),
            ranges=self._measured_ranges(tensor.name, before, after),
        )

    def _measured_ranges(self, name: str, before: NDArray[np.float32], after: NDArray[np.float32]) -> TimeRanges | None:
        capture = self._capture(name)
        if capture is None:
            return None
        groups = self._groups(name)
        rows = slice(None, None, -(-len(before) // MOST_OUTPUT_ROWS))
        found = output_statistics(before[rows], after[rows], capture.held_out, groups)
        return _ranges(capture, groups, found.group_sqnr_db)

    def _stored_rows(
        self, committed: QuantizedModel, tensor: LazyTensor, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Read dequantized rows; of a folded layer in the form of the source."""
        runs = _runs_of(rows)
        read = [np.asarray(tensor.read_rows(int(run[0]), len(run)), np.float32) for run in runs]
        if tensor.folding:
            folded = stored_folding(committed, self._checkpoint).get(tensor.name)
            if folded is None or folded.words != tensor.folding:
                raise MetadataError(f"{tensor.name!r} is folded, and the layers that read it are not stored yet")
            read = [folded.undone(part, int(run[0])) for part, run in zip(read, runs, strict=True)]
        return np.concatenate(read)

    def _source_rows(self, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        entry = self._checkpoint.entries[name]
        dtype = numpy_dtype(entry.value_dtype)
        parts = []
        for run in _runs_of(rows):
            buffer = np.empty(len(run) * entry.columns * dtype.itemsize, np.uint8)
            self._checkpoint.read_rows(name, int(run[0]), len(run), buffer)
            parts.append(buffer.view(dtype).reshape(len(run), entry.columns).astype(np.float32))
        return np.concatenate(parts)

    def _capture(self, name: str) -> LayerCapture | None:
        found = self._calibration().statistics
        return None if found is None or name not in found else found[name]

    def _groups(self, name: str) -> tuple[slice, ...]:
        n_groups = self._config.num_time_groups if self._config.enable_time_aware else 1
        entry = self._checkpoint.entries[name]
        inputs = self._calibration().inputs(name, entry.rows, entry.columns, n_groups)
        return () if inputs is None else inputs.groups

    def _calibration(self) -> RunCalibration:
        """Read what the run was calibrated on; the run has left it in the cache."""
        if self._calibrated is None:
            decisions = decide(self._checkpoint, self._located, self._config, self._source)
            tasks = make_tasks(self._checkpoint, decisions, self._config)
            self._calibrated = calibrate(self._source, tasks, self._config)
        return self._calibrated


def _rows_to_see(n_rows: int, columns: int) -> NDArray[np.int64]:
    """Return the rows that are looked at: all, or stretches of 16 spread evenly."""
    most = max(16, MOST_WEIGHTS // max(1, columns))
    if n_rows <= most:
        return np.arange(n_rows)
    starts = np.linspace(0, n_rows - 16, most // 16).astype(np.int64)
    return np.unique(starts[:, None] + np.arange(16))


def _runs_of(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut rising row numbers into stretches without gaps."""
    return list(np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1))


def _tile_edges(n: int, most: int) -> list[int]:
    count = min(n, most)
    return [i * n // count for i in range(count + 1)]


def _tiles(error: NDArray[np.float32], rows: list[int], columns: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and maximum of `error` per tile."""
    sums = np.add.reduceat(np.add.reduceat(error, rows[:-1], axis=0, dtype=np.float64), columns[:-1], axis=1)
    counts = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    largest = np.maximum.reduceat(np.maximum.reduceat(error, rows[:-1], axis=0), columns[:-1], axis=1)
    return (sums / counts).astype(np.float32), largest


def _scales(tensor: LazyTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the step of every group of the rows that are looked at; of grid k, the distance that its values keep."""
    wanted = set(rows.tolist())
    parts = []
    for start, tile in tensor.tiles():
        places = [i for i in range(tile.rows) if start + i in wanted]
        if not places:
            continue
        if tile.grid == "k":
            values = tile.dequantize()[places]
            edges = list(range(0, tile.columns, tile.group_size))
            span = np.maximum.reduceat(values, edges, axis=1) - np.minimum.reduceat(values, edges, axis=1)
            parts.append(span / ((1 << tile.bit_width) - 1))
        else:
            parts.append(np.abs(np.asarray(tile.scales, np.float32)).reshape(tile.rows, -1)[places])
    return np.concatenate(parts)


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    if values.size <= MAX_SCALES:
        return values
    places = np.linspace(0, values.size - 1, MAX_SCALES).astype(np.int64)
    return values[places]


def _groups_with(marked: NDArray[np.bool_], group_size: int) -> int:
    edges = list(range(0, marked.shape[1], group_size))
    return int(np.logical_or.reduceat(marked, edges, axis=1).sum())


def _ranges(capture: LayerCapture, groups: tuple[slice, ...], sqnr_db: tuple[float, ...]) -> TimeRanges:
    low, high = capture.channel_min.min(axis=1), capture.channel_max.max(axis=1)
    found = tuple(
        TimeGroup(
            first_time=int(capture.times[group][-1]),
            last_time=int(capture.times[group][0]),
            low=float(low[group].min()),
            high=float(high[group].max()),
            sqnr_db=sqnr_db[i] if sqnr_db else None,
        )
        for i, group in enumerate(groups)
    )
    return TimeRanges(
        capture.name,
        tuple(int(t) for t in capture.times),
        tuple(float(v) for v in low),
        tuple(float(v) for v in high),
        found,
    )
