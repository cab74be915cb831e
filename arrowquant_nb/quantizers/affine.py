"""Data-free grids, rtn, mse, uls, hqq and r2q: the checks around the kernels, and the array-in, tensor-out functions.

Every input is checked here, so that the kernels may trust their buffers. Knows nothing of files or models.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb._kernels.job import STATUS_NEEDS_FLOAT32, STATUS_NOT_USABLE, RowsJob
from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.layout import (
    FLOAT16,
    FLOAT32,
    WEIGHT_DTYPES,
    Layout,
    check_out_array,
    dtype_named,
    grid_of,
)
from arrowquant_nb.quantizers.matrix_job import LARGEST_WEIGHT, MatrixJob, named_layout
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor

__all__ = [
    "MatrixJob",
    "checked_array",
    "given_buffers",
    "no_room_for_float32",
    "quantize_array",
    "quantize_matrices",
    "unusable_message",
]


Buffers = tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]
TILE_WEIGHTS = 1 << 22  # converted at a time when the input is strided, big-endian or float64


def _fresh_buffers(layout: Layout, scale_dtype: np.dtype[Any]) -> Buffers:
    packed, scales, zero_points = layout.buffers(scale_dtype)
    return np.empty(*packed), np.empty(*scales), np.empty(*zero_points)


def _rows_job(job: MatrixJob, buffers: Buffers) -> RowsJob:
    if job.transformed:
        raise ConfigurationError(f"{job.name}: rotation and low_rank are not a grid's: use quantize_transformed")
    importance = job.importance
    if importance is not None:  # a power of two keeps the order of all candidates and the sums in range
        largest = np.float64(importance.max(initial=0.0))
        exponent = np.frexp(largest)[1] - 1 if largest > 0 else 0
        importance = np.ascontiguousarray(importance * np.ldexp(1.0, -exponent), np.float32)
    rows = job.weight.shape[0]
    return RowsJob(
        job.weight, job.weight.dtype.name, job.bit_width, job.group_size, job.method, job.gain_correction,
        importance, *buffers, np.empty((rows, 4), np.float64), np.empty(rows, np.uint8), job.scale_format,
    )  # fmt: skip


def _run(jobs: Sequence[MatrixJob], buffers: Sequence[Buffers], n_threads: int) -> list[RowsJob]:
    """Run the kernels over all jobs and refuse weights that are no numbers."""
    orders = [_rows_job(job, b) for job, b in zip(jobs, buffers, strict=True)]
    _kernels.quantize_rows(orders, n_threads)
    for job, order in zip(jobs, orders, strict=True):
        if (order.status & STATUS_NOT_USABLE).any():
            raise CheckpointError(unusable_message(job))
    return orders


def _needs_float32(order: RowsJob) -> bool:
    """Whether float16 cannot hold a scale or minimum; then the whole tensor gets float32 ones."""
    return bool((order.status & STATUS_NEEDS_FLOAT32).any())


def quantize_matrices(jobs: Sequence[MatrixJob], n_threads: int = 0, *, wide: bool = False) -> list[QuantizedTensor]:
    """Quantize all jobs in one parallel region; the bytes do not depend on `n_threads`.

    Scales are float16, and float32 where float16 cannot hold them or `wide` asks for it.

    Raises
    ------
    CheckpointError
        NaN, infinity or a weight beyond 2**125, naming tensor, count and first index.

    """
    first = FLOAT32 if wide else FLOAT16
    plain = [job.equalized() for job in jobs]
    orders = _run(plain, [_fresh_buffers(job.layout, first) for job in jobs], n_threads)
    again = [k for k, order in enumerate(orders) if _needs_float32(order)]
    if again:
        widened = _run([plain[k] for k in again], [_fresh_buffers(jobs[k].layout, FLOAT32) for k in again], n_threads)
        for k, order in zip(again, widened, strict=True):
            orders[k] = order
    return [_tensor(job, order) for job, order in zip(jobs, orders, strict=True)]


def _tensor(job: MatrixJob, order: RowsJob) -> QuantizedTensor:
    tensor = QuantizedTensor(
        packed=order.packed,
        scales=order.scales,
        zero_points=order.zero_points,
        shape=job.shape,
        bit_width=job.bit_width,
        group_size=job.group_size,
        method=job.method,
        grid=job.layout.grid,
        dtype=order.kind,
        statistics=LayerStatistics.from_rows(order.sums, job.weight.shape[1]),
    )
    if job.equalization is None:
        return tensor
    # The kernel saw the multiplied columns; the error that counts is that of the weights themselves.
    tensor = replace(tensor, dtype=job.weight.dtype.name, equalization=job.equalization)
    decoded = tensor.dequantize(n_threads=1).reshape(job.weight.shape)
    return replace(tensor, statistics=LayerStatistics.between(job.weight, decoded))


def unusable_message(job: MatrixJob) -> str:
    """Name the tensor, the count and the first index of weights that cannot be quantized."""
    count, first, value = 0, -1, 0.0
    for row, weights in enumerate(job.weight):
        wide = weights.astype(np.float32)
        bad = ~(np.abs(wide) <= np.float32(LARGEST_WEIGHT))
        if count == 0 and bad.any():
            column = int(bad.argmax())
            first, value = row * weights.size + column, float(wide[column])
        count += int(bad.sum())
    first_of_tile, *rest = (int(i) for i in np.unravel_index(first, job.shape or (1,)))
    index = (job.row_start + first_of_tile, *rest)
    return (
        f"{job.file + ': ' if job.file else ''}{job.name}: {count} of {job.weight.size} weights are NaN, infinite "
        f"or beyond 2**125; the first is {value} "
        f"at index {index}. The source is damaged or the training diverged: repair it, or keep this tensor as it is "
        f"with layer_bit_widths={{{job.name!r}: 16}}."
    )


def quantize_array(
    array: Any,
    bit_width: int = 4,
    group_size: int = 64,
    method: str = "uls",
    gain_correction: bool = True,
    importance: NDArray[np.float32] | None = None,
    name: str = "tensor",
    out: QuantizedTensor | None = None,
    n_threads: int = 0,
    scale_format: str = "float16",
) -> QuantizedTensor:
    """Quantize one array.

    Parameters
    ----------
    array : array of float32, float16, bfloat16 or float64
        Any shape with at least one dimension and one weight; 1-D counts as one row. Strided, big-endian,
        read-only and float64 input is accepted (converted a tile at a time); never written.
    bit_width : int
        2, 4 or 8.
    group_size : int
        Weights that share a scale: a multiple of 16 from 16 to 256; scale_format k: 16 or 32 at INT2, 32 or 64 at INT4.
    method : str
        rtn, mse, uls, hqq, or r2q (INT2 only).
    gain_correction : bool
        Rescale each row so that <w, w'> = <w, w>; rtn and hqq, which are no least-squares fits, ignore it.
    importance : float32 array (columns,), optional
        Weight of each column's squared error; mse, uls and r2q only.
    name : str
        For messages.
    out : QuantizedTensor, optional
        A result of the same layout whose buffers are filled instead of fresh ones.
    n_threads : int
        0 = the cores this process may use, fewer for little work.
    scale_format : str
        float16: scale and minimum are one float each per group. k (method uls): they are integers under one float pair
        per 256 weights of a row, as in the Q2_K and Q4_K blocks of llama.cpp.

    Raises
    ------
    TypeError
        Object, integer, boolean or complex input.
    CheckpointError
        NaN, infinity or a weight beyond 2**125.
    ConfigurationError, ShapeMismatchError
        A setting out of range; sizes that do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = quantize_array(np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), bit_width=8)
    >>> tensor.packed.shape, tensor.scales.shape, tensor.bits_per_weight
    ((2, 64), (2, 1), 8.5)

    """
    layout, target = checked_array(array, bit_width, group_size, method, name, scale_format)
    buffers = _fresh_buffers(layout, FLOAT16) if out is None else given_buffers(out, layout, array, name)
    settings = {
        "bit_width": bit_width, "group_size": group_size, "method": method, "gain_correction": gain_correction,
        "importance": importance, "scale_format": scale_format,
    }  # fmt: skip
    orders = _run_tiles(array, target, layout, name, settings, buffers, n_threads)
    if any(map(_needs_float32, orders)):
        if out is not None:
            raise no_room_for_float32(name)
        buffers = _fresh_buffers(layout, FLOAT32)
        orders = _run_tiles(array, target, layout, name, settings, buffers, n_threads)
    sums = np.concatenate([order.sums for order in orders])
    statistics = LayerStatistics.from_rows(sums, layout.columns)
    return QuantizedTensor(*buffers, array.shape, bit_width, group_size, method, layout.grid, target.name, statistics)


def checked_array(
    array: Any, bit_width: int, group_size: int, method: str, name: str, scale_format: str = "float16"
) -> tuple[Layout, np.dtype[Any]]:
    """Return the layout of the result and the dtype in which the kernels read this input."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if array.ndim == 0:
        raise ShapeMismatchError(f"{name}: a 0-D array has no row to group: pass array.reshape(1)")
    layout = named_layout(name, array.shape, bit_width, group_size, grid_of(method, scale_format, name))
    return layout, _kernel_dtype(array, name)


def no_room_for_float32(name: str) -> ShapeMismatchError:
    """Say that the scales of a result do not fit the buffers that were given."""
    return ShapeMismatchError(
        f"{name}: scales of this tensor do not fit float16, but those of out are float16: "
        "leave out away, or pass one with float32 scales"
    )


def _kernel_dtype(array: NDArray[Any], name: str) -> np.dtype[Any]:
    """Return the dtype in which the kernels read this input."""
    native = array.dtype.newbyteorder("=")
    if native == np.float64:
        return FLOAT32
    if native in map(dtype_named, WEIGHT_DTYPES):
        return native
    raise TypeError(f"{name}: dtype {array.dtype} cannot be quantized: pass float32, float16, bfloat16 or float64")


def _run_tiles(
    array: NDArray[Any],
    target: np.dtype[Any],
    layout: Layout,
    name: str,
    settings: dict[str, Any],
    buffers: Buffers,
    n_threads: int,
) -> list[RowsJob]:
    """Run over tiles of rows; one tile without a copy where the kernels can read the array as it is."""
    matrix = array[None] if array.ndim == 1 else array
    direct = array.flags.c_contiguous and array.dtype == target
    step = layout.rows if direct else max(1, TILE_WEIGHTS // layout.columns)
    orders: list[RowsJob] = []
    for start in range(0, layout.rows, step):
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is reported as such
            tile = np.ascontiguousarray(matrix[start : start + step], target)
        shape = array.shape if array.ndim == 1 else tile.shape
        job = MatrixJob(tile.reshape(-1, layout.columns), name, shape, row_start=start, **settings)
        packed, scales, zero_points = (b[start : start + step] for b in buffers)
        orders += _run([job], [(packed, scales, zero_points)], n_threads)
    return orders


def given_buffers(out: QuantizedTensor, layout: Layout, array: NDArray[Any], name: str) -> Buffers:
    """Return the buffers of `out` after checking that the result fits."""
    if not isinstance(out, QuantizedTensor):
        raise TypeError(f"{name}: out must be a QuantizedTensor, got {type(out).__name__}")
    if out.layout != layout:
        raise ShapeMismatchError(f"{name}: out has the layout {out.layout}, the result {layout}")
    for field in ("packed", "scales", "zero_points"):
        buffer = getattr(out, field)
        check_out_array(f"{name}: out.{field}", buffer, buffer.shape, buffer.dtype)
        if np.may_share_memory(buffer, array):
            raise ShapeMismatchError(f"{name}: out.{field} shares memory with the input")
    return out.packed, out.scales, out.zero_points
