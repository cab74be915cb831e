"""The grids as compensation needs them: fit the table of a slab, round one column by it, join what is stored.

A slab is the columns that share one fit: a group here. Fitting goes through the same kernels as direct quantization,
so a new grid needs a branch in `table_of` and in `join_tables`, and nothing else. Knows no Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels.numpy_rows import pack_codes, unpack_codes
from arrowquant_nb.quantizers.affine import quantize_matrices
from arrowquant_nb.quantizers.layout import METHODS
from arrowquant_nb.quantizers.matrix_job import MatrixJob
from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["Table", "fit_table", "join_tables", "table_span"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Table:
    """Stored parameters of one slab, and how its columns are rounded by them."""

    stored: QuantizedTensor
    """The slab as the kernels quantized it; of it only the parameters are kept."""
    scales: Floats
    """(groups of the slab, rows)."""
    zeros: Floats
    """(groups of the slab, rows): zero-point codes or minima."""

    def round(self, column: Floats, index: int, codes: NDArray[np.uint8]) -> Floats:
        """Round column `index` of the slab to its nearest codes (rows,), and return their decoded values.

        The arithmetic is that of the direct grids, operation by operation in float32.
        """
        group = index // self.stored.group_size
        scale, zero = self.scales[group], self.zeros[group]
        last = np.float32((1 << self.stored.bit_width) - 1)
        if self.stored.grid == "minimum":
            code = np.clip(np.rint((column - zero) / scale), np.float32(0), last)
            values: Floats = code * scale + zero
        else:
            code = np.clip(np.rint(column / scale) + zero, np.float32(0), last)
            values = (code - zero) * scale
        codes[:] = code
        return values


def table_span(job: MatrixJob) -> int:
    """Columns that are fitted together."""
    return job.group_size


def fit_table(job: MatrixJob, slab: Floats, importance: Floats, wide: bool) -> Table:
    """Fit the table of a slab (rows, columns) with the method of `job`, on one thread.

    Gain correction works on the slab, so that every group by itself is unbiased.
    """
    weights = None if job.method == "rtn" else importance
    piece = MatrixJob(
        slab, job.name, slab.shape, job.bit_width, job.group_size, job.method, job.gain_correction, weights
    )
    stored = quantize_matrices([piece], 1, wide=wide)[0]
    scales = stored.scales.T.astype(np.float32)
    if METHODS[job.method] == "minimum":
        return Table(stored, scales, stored.zero_points.T.astype(np.float32))
    codes = unpack_codes(stored.zero_points.view(np.uint8), job.bit_width, len(scales))
    return Table(stored, scales, codes.T.astype(np.float32))


def join_tables(tables: Sequence[Table]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scales and zero points of the rows whose slabs, left to right, have these tables."""
    stored = [table.stored for table in tables]
    scales = np.concatenate([piece.scales for piece in stored], axis=1)
    if stored[0].grid == "minimum":
        return scales, np.concatenate([piece.zero_points for piece in stored], axis=1)
    codes = np.concatenate([table.zeros for table in tables]).T.astype(np.uint8)
    return scales, pack_codes(codes, stored[0].bit_width)
