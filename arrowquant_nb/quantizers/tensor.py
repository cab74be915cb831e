"""What a quantized tensor is: packed codes, their scales, and what the rounding cost.

Knows the layout of the buffers and the statistics of the error. Knows nothing of files, layers,
models or of how the codes were chosen; `affine.py` makes these objects, storage writes them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ConfigurationError, MetadataError, ShapeMismatchError
from arrowquant_nb.quantizers.blas import BLOCK_ROWS
from arrowquant_nb.quantizers.layout import (
    BIT_WIDTHS,
    GRIDS,
    WEIGHT_DTYPES,
    Layout,
    check_out_array,
    dtype_named,
)
from arrowquant_nb.quantizers.low_rank import add_product, check_factors
from arrowquant_nb.quantizers.rotation import check_rotation, unrotate
from arrowquant_nb.quantizers.scaled_columns import checked_scales, undo_equalization

__all__ = ["LayerStatistics", "QuantizedTensor"]

TILE_WEIGHTS = 1 << 20  # rotated back at a time: 4 MiB of float32


@dataclass(frozen=True)
class LayerStatistics:
    """Error sums of one or more tensors, taken in float64 over the stored parameters.

    With w a weight, q its dequantized value and e = q - w:
    """

    n: int
    """Number of weights."""
    sum_ww: float
    """Sum of w * w."""
    sum_wq: float
    """Sum of w * q."""
    sum_ee: float
    """Sum of e * e."""
    w_absmax: float
    """Largest abs(w)."""

    def __post_init__(self) -> None:
        """Refuse sums that no weights could have."""
        if self.n < 0 or not all(math.isfinite(v) for v in (self.sum_ww, self.sum_wq, self.sum_ee, self.w_absmax)):
            raise MetadataError(f"layer statistics must be finite with n >= 0, got {self!r}")
        if min(self.sum_ww, self.sum_ee, self.w_absmax) < 0:
            raise MetadataError(f"layer statistics: sums of squares cannot be negative, got {self!r}")

    @staticmethod
    def from_rows(sums: NDArray[np.float64], columns: int) -> "LayerStatistics":
        """Join the per-row sums of a kernel.

        Parameters
        ----------
        sums : float64 array (rows, 4)
            Per row: sum ww, sum wq, sum ee, max abs(w).
        columns : int
            Weights per row.

        """
        if sums.ndim != 2 or sums.shape[1] != 4:
            raise ShapeMismatchError(f"row sums must have shape (rows, 4), got {sums.shape}")
        ww, wq, ee = (math.fsum(sums[:, k].tolist()) for k in range(3))
        return LayerStatistics(sums.shape[0] * columns, ww, wq, ee, float(sums[:, 3].max(initial=0.0)))

    @staticmethod
    def between(weight: NDArray[Any], decoded: NDArray[np.float32]) -> "LayerStatistics":
        """Compare a matrix (rows, columns) with its dequantized values, row by row in float64."""
        sums = np.zeros((len(weight), 4))
        for row, (one, other) in enumerate(zip(weight, decoded, strict=True)):
            w, q = one.astype(np.float64), other.astype(np.float64)
            sums[row] = w @ w, w @ q, (q - w) @ (q - w), np.abs(w).max()
        return LayerStatistics.from_rows(sums, weight.shape[1])

    @staticmethod
    def combine(parts: Sequence["LayerStatistics"]) -> "LayerStatistics":
        """Join several parts; the order of the parts does not matter."""
        return LayerStatistics(
            n=sum(p.n for p in parts),
            sum_ww=math.fsum(p.sum_ww for p in parts),
            sum_wq=math.fsum(p.sum_wq for p in parts),
            sum_ee=math.fsum(p.sum_ee for p in parts),
            w_absmax=max((p.w_absmax for p in parts), default=0.0),
        )

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise, 10 log10(sum ww / sum ee); inf when there is no error."""
        if self.sum_ee == 0.0:
            return math.inf
        return 10.0 * (math.log10(self.sum_ww) - math.log10(self.sum_ee)) if self.sum_ww > 0.0 else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity of w and q; 1.0 when there is no error."""
        if self.sum_ee == 0.0:
            return 1.0
        sum_qq = self.sum_ee + 2.0 * self.sum_wq - self.sum_ww
        if self.sum_ww <= 0.0 or sum_qq <= 0.0:
            return 0.0
        return max(-1.0, min(1.0, self.sum_wq / (math.sqrt(self.sum_ww) * math.sqrt(sum_qq))))

    @property
    def mse(self) -> float:
        """Mean of e * e; 0.0 without weights."""
        return self.sum_ee / self.n if self.n else 0.0

    @property
    def gain(self) -> float:
        """How much of the weights the dequantized values keep, sum wq / sum ww; 1.0 when all weights are 0."""
        return self.sum_wq / self.sum_ww if self.sum_ww > 0.0 else 1.0

    def to_dict(self) -> dict[str, int | float]:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "LayerStatistics":
        """Read what `to_dict` wrote; an unknown or missing key is a MetadataError."""
        names = {"n", "sum_ww", "sum_wq", "sum_ee", "w_absmax"}
        if set(values) != names:
            raise MetadataError(f"layer statistics need exactly the keys {sorted(names)}, got {sorted(values)}")
        return LayerStatistics(
            int(values["n"]), *(float(values[k]) for k in ("sum_ww", "sum_wq", "sum_ee", "w_absmax"))
        )


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes and scales of one tensor, in the layout that is stored."""

    packed: NDArray[np.uint8]
    """Codes, uint8 (rows, ceil(columns * bit_width / 8)); code i of a byte lies in bits [i, i + 1) * bit_width."""
    scales: NDArray[np.float16] | NDArray[np.float32] | NDArray[np.uint8]
    """One scale per group, float16 or float32 (rows, n_groups); grid levels: amplitudes a1, a2 (rows, n_groups, 2);
    grid k: bytes (rows, n), see `layout`."""
    zero_points: NDArray[np.uint8] | NDArray[np.float16] | NDArray[np.float32]
    """Grid zero_point: codes packed like `packed`; minimum: one minimum, levels: one offset mu per group, dtype of
    `scales`; k: bytes like `scales`."""
    shape: tuple[int, ...]
    """Shape of the original; the matrix view is (shape[0], product of the rest), one row for 1-D."""
    bit_width: int
    """2, 4 or 8."""
    group_size: int
    """Weights that share a scale, along the row; the last group of a row may be shorter."""
    method: str
    """How the grid was chosen: rtn, mse, uls, hqq or r2q."""
    grid: str
    """How codes decode: zero_point, w = (code - z) * s; minimum, w = s * code + m; k, w = d * sc * code - dmin * mn;
    levels, w = (mu +- a1) +- a2, where bit 1 of a code is the sign of a1 and bit 0 that of a2, 1 = plus."""
    dtype: str
    """Dtype of the original: float32, float16 or bfloat16."""
    statistics: LayerStatistics
    """What the rounding cost."""
    rotation_seed: int | None = None
    """Signs of the Hadamard rotation that dequantizing undoes; None = not rotated."""
    low_rank_a: NDArray[np.float16] | None = None
    """(rows, rank) of the low-rank branch; None = no branch."""
    low_rank_b: NDArray[np.float16] | None = None
    """(rank, columns) of the low-rank branch."""
    equalization: NDArray[np.float16] | NDArray[np.float32] | None = None
    """What the codes' columns were multiplied by before rounding, (columns,); dequantize divides by it."""

    def __post_init__(self) -> None:
        """Refuse buffers that do not fit the shape."""
        if self.bit_width not in BIT_WIDTHS or self.grid not in GRIDS or self.dtype not in WEIGHT_DTYPES:
            raise ConfigurationError(
                f"no such layout: bit_width {self.bit_width} (of {BIT_WIDTHS}), grid {self.grid!r} (of {GRIDS}), "
                f"dtype {self.dtype!r} (of {WEIGHT_DTYPES})"
            )
        self.layout.check_buffers(self.packed, self.scales, self.zero_points)
        if self.rotation_seed is not None:
            check_rotation("rotation_seed", self.columns, "hadamard", self.rotation_seed)
        check_factors(self.low_rank_a, self.low_rank_b, self.rows, self.columns)
        if self.equalization is not None:
            checked_scales(self.equalization, self.columns, "tensor")

    @property
    def layout(self) -> Layout:
        """Sizes of the buffers."""
        return Layout.of_shape(self.shape, self.bit_width, self.group_size, self.grid)

    @property
    def rows(self) -> int:
        """Rows of the matrix view."""
        return self.layout.rows

    @property
    def columns(self) -> int:
        """Columns of the matrix view."""
        return self.layout.columns

    def rows_of(self, rows: slice) -> "QuantizedTensor":
        """Return some rows of the matrix view as a tensor that shares the buffers; the statistics stay the whole's."""
        packed, scales, zero_points = self.packed[rows], self.scales[rows], self.zero_points[rows]
        shape = (len(packed), self.columns)
        part = None if self.low_rank_a is None else self.low_rank_a[rows]
        return replace(self, packed=packed, scales=scales, zero_points=zero_points, shape=shape, low_rank_a=part)

    @property
    def nbytes(self) -> int:
        """Bytes stored: codes, scales, zero points, the low-rank branch and equalization."""
        optional = (self.low_rank_a, self.low_rank_b, self.equalization)
        extra = sum(part.nbytes for part in optional if part is not None)
        return self.packed.nbytes + self.scales.nbytes + self.zero_points.nbytes + extra

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each weight; every stored byte counts."""
        return 8 * self.nbytes / (self.rows * self.columns)

    def dequantize(self, dtype: str = "float32", out: NDArray[Any] | None = None, n_threads: int = 0) -> NDArray[Any]:
        """Decode the weights.

        Parameters
        ----------
        dtype : str
            float32, float16 or bfloat16; rounded half to even from float32.
        out : array of `shape` and `dtype`, optional
            C-contiguous and writable; filled and returned. Saves the page faults of a fresh array.
        n_threads : int
            0 = the cores this process may use, fewer for little work.

        Raises
        ------
        ConfigurationError
            Unknown dtype, negative n_threads.
        ShapeMismatchError
            `out` of another shape, dtype or memory order, or read-only.

        """
        kind = dtype_named(dtype)
        if out is None:
            out = np.empty(self.shape, kind)
        else:
            check_out_array("out", out, self.shape, kind)
        matrix = out.reshape(self.rows, self.columns)
        if self.rotation_seed is None and self.low_rank_a is None and self.equalization is None:
            self._decode(matrix, dtype, n_threads)
            return out
        step = max(1, TILE_WEIGHTS // self.columns // BLOCK_ROWS) * BLOCK_ROWS
        for start in range(0, self.rows, step):
            part = self.rows_of(slice(start, start + step))
            with np.errstate(over="ignore"):  # a float16 output may overflow to inf, as any conversion does
                matrix[start : start + step] = part._restored(n_threads)  # noqa: SLF001 - a part of itself
        return out

    def _decode(self, out: NDArray[Any], dtype: str, n_threads: int) -> None:
        """Fill `out` (rows, columns) with the values of the codes."""
        _kernels.dequantize_rows(
            self.packed,
            self.scales,
            self.zero_points,
            self.grid,
            self.bit_width,
            self.group_size,
            out,
            dtype,
            n_threads,
        )

    def _restored(self, n_threads: int) -> NDArray[np.float32]:
        """Return the values of the codes, rotated back, plus the low-rank branch, over the equalization."""
        values = np.empty((self.rows, self.columns), np.float32)
        self._decode(values, "float32", n_threads)
        if self.rotation_seed is not None:
            unrotate(values, self.rotation_seed, n_threads)
        if self.low_rank_a is not None and self.low_rank_b is not None:
            add_product(self.low_rank_a, self.low_rank_b, values)
        return values if self.equalization is None else undo_equalization(values, self.equalization)

    def __repr__(self) -> str:
        """One line: what it is and how many bits it takes."""
        return (
            f"QuantizedTensor({'x'.join(map(str, self.shape))}, INT{self.bit_width} g{self.group_size} {self.method}"
            f"{' k' if self.grid == 'k' else ''}, "
            f"{'' if self.rotation_seed is None else 'rotated, '}"
            f"{'' if self.low_rank_a is None else f'rank {self.low_rank_a.shape[1]}, '}"
            f"{self.bits_per_weight:.3f} bits per weight, SQNR {self.statistics.sqnr_db:.2f} dB)"
        )
