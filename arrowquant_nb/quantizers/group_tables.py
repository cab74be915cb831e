"""The grids as compensation needs them: fit the table of a slab, round one column by it, join what is stored.

A slab is the columns that share one fit: a group, or in scale format k the 256 columns under one float pair. Fitting
goes through the same kernels as direct quantization, so a new grid needs a branch in `Table.round`, `fit_table` and
`join_tables`, and nothing else. Knows no Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels import k_format, numpy_k
from arrowquant_nb._kernels.numpy_levels import Planes, nearest_code, value_of
from arrowquant_nb._kernels.numpy_rows import pack_codes, unpack_codes
from arrowquant_nb.quantizers.affine import quantize_matrices
from arrowquant_nb.quantizers.layout import FLOAT32, LEAST_SQUARES_METHODS
from arrowquant_nb.quantizers.matrix_job import MatrixJob
from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["Table", "fit_table", "join_tables", "table_span"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Scale format k: the float pairs of a slab, which stay, and its integers, which a group chooses as it begins."""

    d: Floats
    """(rows,)."""
    dmin: Floats
    """(rows,)."""
    sc: NDArray[np.uint8]
    """(rows, groups of the slab)."""
    mn: NDArray[np.uint8]
    """(rows, groups of the slab)."""
    importance: Floats
    """(columns,)."""
    wide: bool
    """Whether the pairs are float32; then the integers stay too."""


@dataclass(frozen=True, eq=False)
class Table:
    """Stored parameters of one slab, and how its columns are rounded by them."""

    stored: QuantizedTensor
    """The slab as the kernels quantized it; of it only the parameters are kept."""
    scales: Floats
    """(groups of the slab, rows); of levels (groups, rows, 2): both amplitudes."""
    zeros: Floats
    """(groups of the slab, rows): zero-point codes, minima or offsets."""
    pairs: _Pairs | None = None
    """Of scale format k."""

    def begin_group(self, group: int, columns: NDArray[np.float64]) -> None:
        """Take notice of a group's compensated columns (columns, rows) before the first of them is rounded.

        In scale format k the slab was fitted before its own first groups moved the later ones: under the pair that it
        has, a group chooses its integers for what it now is.
        """
        pairs = self.pairs
        if pairs is None or pairs.wide:
            return
        first = group * self.stored.group_size
        importance = pairs.importance[first : first + len(columns)]
        moved = columns.astype(np.float32)
        pairs.sc[:, group], pairs.mn[:, group] = numpy_k.refit(
            moved, importance, pairs.d, pairs.dmin, self.stored.bit_width
        )
        self.scales[group] = pairs.d * pairs.sc[:, group]
        self.zeros[group] = -(pairs.dmin * pairs.mn[:, group])

    def round(self, column: Floats, index: int, codes: NDArray[np.uint8]) -> Floats:
        """Round column `index` of the slab to its nearest codes (rows,), and return their decoded values.

        The arithmetic is that of the direct grids, operation by operation in float32.
        """
        group = index // self.stored.group_size
        scale, zero = self.scales[group], self.zeros[group]
        if self.stored.grid == "levels":
            planes = Planes(scale[:, 0], scale[:, 1], zero)
            codes[:] = nearest_code(column, planes)
            return value_of(codes, planes)
        last = np.float32((1 << self.stored.bit_width) - 1)
        if self.stored.grid == "zero_point":
            code = np.clip(np.rint(column / scale) + zero, np.float32(0), last)
            values: Floats = (code - zero) * scale
        else:
            flat = scale == 0  # scale format k has it, with the code 0 alone
            steps = (column - zero) / np.where(flat, np.float32(1), scale)
            code = np.clip(np.rint(steps), np.float32(0), np.where(flat, np.float32(0), last))
            values = code * scale + zero
        codes[:] = code
        return values


def table_span(job: MatrixJob) -> int:
    """Columns that are fitted together."""
    return k_format.BLOCK if job.scale_format == "k" else job.group_size


def fit_table(job: MatrixJob, slab: Floats, importance: Floats, wide: bool) -> Table:
    """Fit the table of a slab (rows, columns) with the method of `job`, on one thread.

    Gain correction works on the slab, so that every slab by itself is unbiased.
    """
    weights = importance if job.method in LEAST_SQUARES_METHODS else None
    piece = MatrixJob(
        slab, job.name, slab.shape, job.bit_width, job.group_size, job.method, job.gain_correction, weights,
        scale_format=job.scale_format,
    )  # fmt: skip
    stored = quantize_matrices([piece], 1, wide=wide)[0]
    if stored.grid == "k":
        return _k_table(stored, importance)
    scales = np.ascontiguousarray(stored.scales.swapaxes(0, 1), np.float32)
    if stored.grid != "zero_point":
        return Table(stored, scales, stored.zero_points.T.astype(np.float32))
    codes = unpack_codes(stored.zero_points.view(np.uint8), job.bit_width, len(scales))
    return Table(stored, scales, codes.T.astype(np.float32))


def _k_table(stored: QuantizedTensor, importance: Floats) -> Table:
    """Take the bytes of one block of every row apart."""
    sizes = (stored.columns, stored.bit_width, stored.group_size)
    d, sc = k_format.split(stored.scales.view(np.uint8), *sizes)
    dmin, mn = k_format.split(stored.zero_points.view(np.uint8), *sizes)
    wide = stored.layout.scale_dtype(stored.scales) == FLOAT32
    return Table(stored, (d * sc).T, -(dmin * mn).T, _Pairs(d[:, 0], dmin[:, 0], sc, mn, importance, wide))


def join_tables(tables: Sequence[Table]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scales and zero points of the rows whose slabs, left to right, have these tables."""
    stored = [table.stored for table in tables]
    pairs = [table.pairs for table in tables if table.pairs is not None]
    if pairs:
        bits, wide = k_format.INTEGER_BITS[stored[0].bit_width], any(p.wide for p in pairs)
        d, dmin = (np.stack(parts, axis=1) for parts in ([p.d for p in pairs], [p.dmin for p in pairs]))
        sc, mn = np.hstack([p.sc for p in pairs]), np.hstack([p.mn for p in pairs])
        return k_format.join(d, sc, bits, wide), k_format.join(dmin, mn, bits, wide)
    scales = np.concatenate([piece.scales for piece in stored], axis=1)
    if stored[0].grid != "zero_point":
        return scales, np.concatenate([piece.zero_points for piece in stored], axis=1)
    codes = np.concatenate([table.zeros for table in tables]).T.astype(np.uint8)
    return scales, pack_codes(codes, stored[0].bit_width)
