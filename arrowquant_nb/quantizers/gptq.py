"""GPTQ over any grid: each column's rounding error is compensated by the columns that come after it.

Frantar et al. 2022 (arXiv 2210.17323), with the table of a group fitted on the compensated columns when the group
begins. Blocks of rows are independent and of fixed size, and each is worked through by one thread with
single-threaded BLAS, so the bytes do not depend on the number of threads (on one machine and BLAS build). Knows arrays
and a Hessian; nothing of files, models or calibration data.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb._kernels.numpy_rows import pack_codes
from arrowquant_nb.json_form import JsonForm
from arrowquant_nb.quantizers.affine import quantize_matrices
from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.quantizers.group_tables import fit_table, join_tables, table_span
from arrowquant_nb.quantizers.hessian import Factor, Matrix, checked_hessian, factorise
from arrowquant_nb.quantizers.layout import FLOAT32
from arrowquant_nb.quantizers.matrix_job import LARGEST_WEIGHT, MatrixJob
from arrowquant_nb.quantizers.measure import measure, over_rows
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor

__all__ = ["GptqReport", "gptq_matrix"]

BLOCK_COLUMNS = 128
"""Columns after which the rest of the row is updated by one matrix product; rounded up to whole slabs."""


@dataclass(frozen=True)
class GptqReport(JsonForm):
    """What compensation did for one matrix."""

    compensated: bool
    """False when the direct grid was kept."""
    reason: str
    """Why, in plain words."""
    objective_direct: float
    """tr(E H E^T) of the job quantized as it is."""
    objective_gptq: float
    """The same after compensation; inf where it could not be carried out."""
    damping: float
    """Share of the mean diagonal that was added to the Hessian; 0 without a factor."""
    retries: int
    """How often the damping had to be raised."""
    dead_columns: int
    """Columns that calibration never saw."""


class _CancelledError(Exception):
    """Leaves the worker threads."""


def gptq_matrix(
    job: MatrixJob,
    hessian: NDArray[Any],
    *,
    n_threads: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    factor_of: Callable[[Matrix], Factor | None] = factorise,
) -> tuple[QuantizedTensor, GptqReport] | None:
    """Quantize a matrix so that its output error under the Hessian is small.

    Parameters
    ----------
    job : MatrixJob
        The matrix, and the grid whose tables are used (`method`). Groups are fitted with the diagonal of the Hessian
        as importance, and with `gain_correction` each group by itself is unbiased. The importance of the job itself
        only weighs the direct result that the guard compares with.
    hessian : float64 or float32 array (columns, columns)
        Mean of x x^T over the inputs of the layer.
    n_threads : int
        0 = the cores this process may use; never changes a byte.
    cancelled : callable
        Asked before each block of 128 columns, from any worker thread.
    factor_of : callable
        Gives `factorise` of the checked Hessian, for whoever has it already.

    Returns
    -------
    (QuantizedTensor, GptqReport), or None when cancelled
        Never worse than the direct grid in tr(E H E^T): where compensation does not help, or no damping makes the
        Hessian definite, it is the direct result and the report says so. The statistics are of the original weights.

    Raises
    ------
    CheckpointError, ConfigurationError, ShapeMismatchError, TypeError
        Weights or a Hessian that cannot be used; all name the layer.

    """
    direct = quantize_matrices([job], n_threads)[0]
    threads = _kernels.resolve_threads(n_threads, job.weight.size)
    with single_threaded_blas():
        checked = checked_hessian(hessian, job.weight.shape[1], job.name)
        baseline, _ = measure(direct, job.weight, checked, threads)
        if cancelled():
            return None
        factor = factor_of(checked)
        if factor is None:
            why = "no damping makes the Hessian definite" if checked.any() else "the layer saw no input"
            return direct, GptqReport(False, f"direct grid: {why}", baseline, np.inf, 0.0, 0, 0)
        try:
            tensor = _compensated(job, factor, threads, cancelled)
        except _CancelledError:
            return None
        objective = np.inf
        if tensor is not None:
            objective, statistics = measure(tensor, job.weight, checked, threads)
    facts = (baseline, objective, factor.damping, factor.retries, factor.dead)
    if tensor is None:
        return direct, GptqReport(False, "direct grid: compensated weights leave the range of float32", *facts)
    if not objective <= baseline:
        return direct, GptqReport(False, "direct grid: compensation did not lower the output error", *facts)
    return replace(tensor, statistics=statistics), GptqReport(True, f"GPTQ over {job.method}", *facts)


def _compensated(job: MatrixJob, factor: Factor, threads: int, cancelled: Callable[[], bool]) -> QuantizedTensor | None:
    """Quantize all rows; None where compensation drives a weight out of range."""
    parts = over_rows(lambda rows: _rows(job, rows, factor, cancelled, wide=False), job.weight.shape[0], threads)
    layout = job.layout
    if any(part is not None and layout.scale_dtype(part[1]) == FLOAT32 for part in parts):  # one type for the whole
        parts = over_rows(lambda rows: _rows(job, rows, factor, cancelled, wide=True), job.weight.shape[0], threads)
    done = [part for part in parts if part is not None]
    if len(done) < len(parts):
        return None
    packed, scales, zero_points = (np.concatenate(pieces) for pieces in zip(*done, strict=True))
    empty = LayerStatistics(0, 0.0, 0.0, 0.0, 0.0)
    return QuantizedTensor(
        packed, scales, zero_points, job.shape, job.bit_width, job.group_size, f"gptq-{job.method}", layout.grid,
        job.weight.dtype.name, empty,
    )  # fmt: skip


def _rows(
    job: MatrixJob, rows: slice, factor: Factor, cancelled: Callable[[], bool], *, wide: bool
) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]] | None:
    """Quantize one block of rows, column after column; return its packed codes, scales and zero points."""
    upper, columns, span = factor.upper, job.weight.shape[1], table_span(job)
    work = np.ascontiguousarray(job.weight[rows].T, np.float64)  # (columns, rows): a column is contiguous
    errors, codes = np.empty_like(work[: -(-BLOCK_COLUMNS // span) * span]), np.empty(work.shape, np.uint8)
    tables = []
    for start in range(0, columns, len(errors)):
        if cancelled():
            raise _CancelledError
        stop = min(start + len(errors), columns)
        for first in range(start, stop, span):
            last = min(first + span, stop)
            slab = np.ascontiguousarray(work[first:last].T, np.float32)
            if not np.abs(slab).max() <= LARGEST_WEIGHT:
                return None
            table = fit_table(job, slab, factor.importance[first:last], wide)
            tables.append(table)
            for j in range(first, last):
                if (j - first) % job.group_size == 0:
                    table.begin_group((j - first) // job.group_size, work[j : min(j + job.group_size, last)])
                values = table.round(work[j].astype(np.float32), j - first, codes[j])
                error = np.divide(work[j] - values, upper[j, j], out=errors[j - start])
                work[j + 1 : last] -= upper[j, j + 1 : last, None] * error
            work[last:stop] -= upper[first:last, last:stop].T @ errors[first - start : last - start]
        work[stop:] -= upper[start:stop, stop:].T @ errors[: stop - start]
    return pack_codes(codes.T, job.bit_width), *join_tables(tables)
