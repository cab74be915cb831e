"""The order form of a kernel: buffers of one matrix, checked by the quantizers, filled by either path.

Shared by the NumPy path and the compiled module; knows nothing of tensors' names or of errors' texts.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["LEAST_SQUARES_METHODS", "METHODS", "STATUS_NEEDS_FLOAT32", "STATUS_NOT_USABLE", "RowsJob", "StoredMatrix"]

METHODS = {"rtn": "zero_point", "mse": "zero_point", "uls": "minimum", "hqq": "minimum", "r2q": "levels"}
"""Method -> grid."""
LEAST_SQUARES_METHODS = ("mse", "uls", "r2q")
"""Methods that minimise squared errors: they take an importance, and their rows are rescaled by the gain correction."""

STATUS_NOT_USABLE = 1
"""A weight of the row is NaN, infinite or beyond 2**125."""
STATUS_NEEDS_FLOAT32 = 2
"""A float16 scale or minimum of the row would overflow or flush to 0."""


class RowsJob(NamedTuple):
    """One matrix to quantize; every array is C-contiguous."""

    weight: NDArray[np.generic]
    """IN (rows, columns), dtype `kind`; may be read-only and unaligned."""
    kind: str
    """float32, float16 or bfloat16."""
    bit_width: int
    group_size: int
    method: str
    """rtn, mse, uls, hqq or r2q."""
    gain_correction: bool
    importance: NDArray[np.float32] | None
    """IN (columns,), not negative, largest value in [1, 2)."""
    packed: NDArray[np.uint8]
    """OUT (rows, ceil(columns * bit_width / 8))."""
    scales: NDArray[np.float16] | NDArray[np.float32] | NDArray[np.uint8]
    """OUT (rows, n_groups); r2q: (rows, n_groups, 2); scale_format k: uint8 (rows, bytes), see `k_format`."""
    zero_points: NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]
    """OUT packed codes (rtn, mse), or minima (uls, hqq) or offsets (r2q) like the scales."""
    sums: NDArray[np.float64]
    """OUT (rows, 4): sum ww, sum wq, sum ee, max abs(w)."""
    status: NDArray[np.uint8]
    """OUT (rows,): 0 or STATUS_ bits; a row with a bit set holds no usable codes."""
    scale_format: str = "float16"
    """float16 (one float per group; float32 by the dtype of `scales`) or k, with method uls only."""


class StoredMatrix(NamedTuple):
    """One quantized matrix to multiply with; every array is C-contiguous and IN."""

    packed: NDArray[np.uint8]
    """(rows, ceil(columns * bit_width / 8))."""
    scales: NDArray[np.float16] | NDArray[np.float32] | NDArray[np.uint8]
    """(rows, n_groups); levels: (rows, n_groups, 2); k: uint8 (rows, bytes)."""
    zero_points: NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]
    """Packed codes (zero_point), or like the scales."""
    grid: str
    """zero_point, minimum, levels or k."""
    bit_width: int
    group_size: int
    shape: tuple[int, int]
    """(rows, columns)."""
