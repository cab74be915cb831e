"""Affine grids, rtn, mse and uls: the checks around the kernels, and the array-in, tensor-out functions.

Every input is checked here, so that the kernels may trust their buffers. Knows nothing of files or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb._kernels.job import STATUS_NEEDS_FLOAT32, STATUS_NOT_USABLE, RowsJob
from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.layout import METHODS, WEIGHT_DTYPES, Layout, check_out_array, dtype_named
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor

__all__ = ["MatrixJob", "quantize_array", "quantize_matrices"]


@dataclass(frozen=True, eq=False)
class MatrixJob:
    """One weight matrix and how to quantize it."""

    weight: NDArray[Any]
    """(rows, columns) float32, float16 or ml_dtypes.bfloat16, C-contiguous; may be read-only. Never written."""
    name: str
    """For messages."""
    shape: tuple[int, ...]
    """Shape of the original; its matrix view is the shape of `weight`."""
    bit_width: int
    """2, 4 or 8."""
    group_size: int
    """A multiple of 16 from 16 to 256."""
    method: str
    """rtn, mse or uls."""
    gain_correction: bool = True
    """Rescale each row so that <w, w'> = <w, w>; rtn ignores it."""
    importance: NDArray[np.float32] | None = None
    """Weight of each column's squared error, float32 (columns,), not negative; mse and uls only."""
    row_start: int = 0
    """Where `weight` begins in its tensor, for messages; not 0 when it is one tile of several."""

    def __post_init__(self) -> None:
        """Refuse what no kernel can take."""
        if self.method not in METHODS:
            raise ConfigurationError(f"{self.name}: method {self.method!r} is not one of {', '.join(METHODS)}")
        if not isinstance(self.weight, np.ndarray):
            raise TypeError(f"{self.name}: weight must be a NumPy array, got {type(self.weight).__name__}")
        if self.weight.dtype not in map(dtype_named, WEIGHT_DTYPES):
            raise TypeError(f"{self.name}: weight dtype {self.weight.dtype} is not float32, float16 or bfloat16")
        layout = self.layout
        if self.weight.shape != (layout.rows, layout.columns):
            raise ShapeMismatchError(
                f"{self.name}: weight {self.weight.shape} is not the matrix view {(layout.rows, layout.columns)} "
                f"of shape {self.shape}"
            )
        if not self.weight.flags.c_contiguous:
            raise ShapeMismatchError(f"{self.name}: weight must be C-contiguous: pass numpy.ascontiguousarray(weight)")
        if self.importance is not None:
            _check_importance(self.name, self.importance, self.method, layout.columns)

    @property
    def layout(self) -> Layout:
        """Sizes of the result; raises for an empty tensor or a group size that does not exist."""
        return _named_layout(self.name, self.shape, self.bit_width, self.group_size, METHODS[self.method])


def _named_layout(name: str, shape: tuple[int, ...], bit_width: int, group_size: int, grid: str) -> Layout:
    try:
        return Layout.of_shape(shape, bit_width, group_size, grid)
    except ShapeMismatchError as error:
        raise ShapeMismatchError(f"{name}: {error}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def _check_importance(name: str, importance: NDArray[np.float32], method: str, columns: int) -> None:
    if method == "rtn":
        raise ConfigurationError(f"{name}: importance needs a search: use method mse or uls, rtn has none")
    if not isinstance(importance, np.ndarray) or importance.dtype != np.float32:
        raise TypeError(f"{name}: importance must be a float32 array with one value per column")
    if importance.shape != (columns,):
        raise ShapeMismatchError(f"{name}: importance has shape {importance.shape}, the matrix {columns} columns")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ConfigurationError(f"{name}: importance must be finite and not negative")


def quantize_matrices(jobs: Sequence[MatrixJob], n_threads: int = 0) -> list[QuantizedTensor]:
    """Quantize all jobs in one parallel region; the bytes do not depend on `n_threads`.

    Raises
    ------
    CheckpointError
        NaN, infinity or a weight beyond 2**125, naming tensor, count and first index.

    """
    return _run(jobs, [_fresh_buffers(job, np.dtype(np.float16)) for job in jobs], n_threads, [False] * len(jobs))


Buffers = tuple[NDArray[np.uint8], NDArray[Any], NDArray[Any]]


def _fresh_buffers(job: MatrixJob, scale_dtype: np.dtype[Any]) -> Buffers:
    layout = job.layout
    zero_dtype = scale_dtype if layout.grid == "minimum" else np.dtype(np.uint8)
    return (
        np.empty(layout.packed_shape, np.uint8),
        np.empty(layout.scales_shape, scale_dtype),
        np.empty(layout.zero_points_shape, zero_dtype),
    )


def _rows_job(job: MatrixJob, buffers: Buffers) -> RowsJob:
    importance = job.importance
    if importance is not None:  # a power of two keeps the order of all candidates and the sums in range
        largest = np.float64(importance.max(initial=0.0))
        exponent = np.frexp(largest)[1] - 1 if largest > 0 else 0
        importance = np.ascontiguousarray(importance * np.ldexp(1.0, -exponent), np.float32)
    rows = job.weight.shape[0]
    return RowsJob(
        job.weight, job.weight.dtype.name, job.bit_width, job.group_size, job.method, job.gain_correction,
        importance, *buffers, np.empty((rows, 4), np.float64), np.empty(rows, np.uint8),
    )  # fmt: skip


def _run(jobs: Sequence[MatrixJob], buffers: list[Buffers], n_threads: int, given: list[bool]) -> list[QuantizedTensor]:
    """Run the kernels; tensors whose scales float16 cannot hold run again with float32 scales."""
    orders = [_rows_job(job, b) for job, b in zip(jobs, buffers, strict=True)]
    _kernels.quantize_rows(orders, n_threads)
    for job, order in zip(jobs, orders, strict=True):
        if (order.status & STATUS_NOT_USABLE).any():
            raise CheckpointError(_unusable_message(job))
    again = [k for k, order in enumerate(orders) if (order.status & STATUS_NEEDS_FLOAT32).any()]
    for k in again:
        if given[k]:
            raise ShapeMismatchError(
                f"{jobs[k].name}: scales of this tensor do not fit float16, but the scales of out are float16: "
                "leave out away, or pass one with float32 scales"
            )
        orders[k] = _rows_job(jobs[k], _fresh_buffers(jobs[k], np.dtype(np.float32)))
    if again:
        _kernels.quantize_rows([orders[k] for k in again], n_threads)
    return [_tensor(job, order) for job, order in zip(jobs, orders, strict=True)]


def _tensor(job: MatrixJob, order: RowsJob) -> QuantizedTensor:
    return QuantizedTensor(
        packed=order.packed,
        scales=order.scales,
        zero_points=order.zero_points,
        shape=job.shape,
        bit_width=job.bit_width,
        group_size=job.group_size,
        method=job.method,
        grid=METHODS[job.method],
        dtype=order.kind,
        statistics=LayerStatistics.from_rows(order.sums, job.weight.shape[1]),
    )


def _unusable_message(job: MatrixJob) -> str:
    """Name the tensor, the count and the first index of weights that cannot be quantized."""
    count, first, value = 0, -1, 0.0
    for row, weights in enumerate(job.weight):
        wide = weights.astype(np.float32)
        bad = ~(np.abs(wide) <= np.float32(2.0**125))
        if count == 0 and bad.any():
            column = int(bad.argmax())
            first, value = row * weights.size + column, float(wide[column])
        count += int(bad.sum())
    first_of_tile, *rest = (int(i) for i in np.unravel_index(first, job.shape or (1,)))
    index = (job.row_start + first_of_tile, *rest)
    return (
        f"{job.name}: {count} of {job.weight.size} weights are NaN, infinite or beyond 2**125; the first is {value} "
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
        Weights that share a scale: a multiple of 16 from 16 to 256.
    method : str
        rtn, mse or uls.
    gain_correction : bool
        Rescale each row so that <w, w'> = <w, w>; rtn ignores it.
    importance : float32 array (columns,), optional
        Weight of each column's squared error; mse and uls only.
    name : str
        For messages.
    out : QuantizedTensor, optional
        A result of the same layout whose buffers are filled instead of fresh ones.
    n_threads : int
        0 = the cores this process may use, fewer for little work.

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
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array, got {type(array).__name__}")
    if array.ndim == 0:
        raise ShapeMismatchError(f"{name}: a 0-D array has no row to group: pass array.reshape(1)")
    shape = array.shape
    if method not in METHODS:
        raise ConfigurationError(f"{name}: method {method!r} is not one of {', '.join(METHODS)}")
    layout = _named_layout(name, shape, bit_width, group_size, METHODS[method])
    matrix = _as_matrix(array, name, layout)
    job = MatrixJob(matrix, name, shape, bit_width, group_size, method, gain_correction, importance)
    if out is None:
        return quantize_matrices([job], n_threads)[0]
    return _run([job], [_given_buffers(out, job)], n_threads, [True])[0]


def _as_matrix(array: NDArray[Any], name: str, layout: Layout) -> NDArray[Any]:
    """Return the matrix view in a dtype and memory order the kernels read."""
    native = array.dtype.newbyteorder("=")
    if native == np.float64:
        target = np.dtype(np.float32)
    elif native in (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)):
        target = native
    else:
        raise TypeError(f"{name}: dtype {array.dtype} cannot be quantized: pass float32, float16, bfloat16 or float64")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is reported as such
        return np.ascontiguousarray(array, target).reshape(layout.rows, layout.columns)


def _given_buffers(out: QuantizedTensor, job: MatrixJob) -> Buffers:
    """Return the buffers of `out` after checking that the result fits."""
    if not isinstance(out, QuantizedTensor):
        raise TypeError(f"{job.name}: out must be a QuantizedTensor, got {type(out).__name__}")
    if out.layout != job.layout:
        raise ShapeMismatchError(f"{job.name}: out has the layout {out.layout}, the result {job.layout}")
    for field in ("packed", "scales", "zero_points"):
        array = getattr(out, field)
        check_out_array(f"{job.name}: out.{field}", array, array.shape, array.dtype)
        if np.may_share_memory(array, job.weight):
            raise ShapeMismatchError(f"{job.name}: out.{field} shares memory with the input")
    return out.packed, out.scales, out.zero_points
