"""Sizes of the buffers of a quantized tensor, and the checks that stand before every kernel.

A tensor is seen as a matrix [shape[0], product of the rest]; a row is cut into groups of `group_size`
weights, the last one possibly shorter. Knows nothing of values.

Grid `k`: w = d * sc * code - dmin * mn, d and dmin one float per 256 weights of a row, sc and mn one integer per
group. The buffer `scales` holds for each row the bytes [d of every block][packed sc], `zero_points` the same of dmin
and mn; `arrowquant_nb._kernels.k_format` reads and writes them. Integers of 6 bits at INT4 and 4 bits at INT2 take,
where 256 divides the columns, (2 * 16) / 256 + 12 / group_size or 8 / group_size bits per weight beside the codes:
4.5 (INT4 g32), 4.3125 (INT4 g64), 2.625 (INT2 g16), 2.375 (INT2 g32) in all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels import k_format
from arrowquant_nb._kernels.job import LEAST_SQUARES_METHODS, METHODS
from arrowquant_nb.config.profiles import K_GROUP_SIZES
from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError

__all__ = [
    "BIT_WIDTHS",
    "GRIDS",
    "LEAST_SQUARES_METHODS",
    "METHODS",
    "SCALE_FORMATS",
    "WEIGHT_DTYPES",
    "Layout",
    "check_out_array",
    "dtype_named",
    "grid_of",
    "matrix_shape",
]

BIT_WIDTHS = (2, 4, 8)
KEPT_BIT_WIDTH = 16
"""Stands for "carried over in the source format" wherever a bit width is asked for."""
GRIDS = ("zero_point", "minimum", "levels", "k")
SCALE_FORMATS = ("float16", "k")
WEIGHT_DTYPES = ("float32", "float16", "bfloat16")
FLOAT16, FLOAT32 = np.dtype(np.float16), np.dtype(np.float32)
Buffer = tuple[tuple[int, ...], np.dtype[Any]]
MAX_GROUP_SIZE = 256  # a tile of 16 groups then stays in the first-level cache


def dtype_named(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a weight dtype name."""
    if name not in WEIGHT_DTYPES:
        raise ConfigurationError(f"dtype {name!r} is not one of {', '.join(WEIGHT_DTYPES)}")
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def grid_of(method: str, scale_format: str, name: str = "tensor") -> str:
    """Grid that a method gives in a scale format; ConfigurationError where there is none."""
    if method not in METHODS:
        raise ConfigurationError(f"{name}: method {method!r} is not one of {', '.join(METHODS)}")
    if scale_format not in SCALE_FORMATS:
        raise ConfigurationError(f"{name}: scale_format {scale_format!r} is not one of {', '.join(SCALE_FORMATS)}")
    if scale_format == "float16":
        return METHODS[method]
    if method != "uls":
        raise ConfigurationError(f"{name}: scale_format k needs method uls: {method} has no fit of its own for it")
    return "k"


def matrix_shape(shape: Sequence[int]) -> tuple[int, int]:
    """Return rows and columns of the matrix view: [O, product of the rest]; (1, n) for 1-D, (1, 1) for 0-D."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


@dataclass(frozen=True)
class Layout:
    """Buffer sizes of one quantized matrix."""

    rows: int
    """Rows of the matrix view, at least 1."""
    columns: int
    """Columns of the matrix view, at least 1."""
    bit_width: int
    """2, 4 or 8."""
    group_size: int
    """A multiple of 16 from 16 to 256."""
    grid: str
    """zero_point, minimum, levels or k."""

    def __post_init__(self) -> None:
        """Refuse sizes that no kernel can take."""
        if self.bit_width not in BIT_WIDTHS:
            raise ConfigurationError(f"bit_width {self.bit_width!r} is not one of 2, 4, 8")
        if self.grid not in GRIDS:
            raise ConfigurationError(f"grid {self.grid!r} is not one of {', '.join(GRIDS)}")
        if self.grid == "levels" and self.bit_width != 2:
            raise ConfigurationError(
                f"method r2q (grid levels) has two sign bits a weight, so bit_width {self.bit_width} does not exist: "
                "set bit_width=2, or method uls"
            )
        if isinstance(self.group_size, bool) or self.group_size not in range(16, MAX_GROUP_SIZE + 1, 16):
            raise ConfigurationError(
                f"group_size {self.group_size!r} is not a multiple of 16 from 16 to {MAX_GROUP_SIZE}"
            )
        if self.grid == "k" and self.group_size not in K_GROUP_SIZES.get(self.bit_width, ()):
            allowed = "; ".join(
                f"INT{bits} with group_size {' or '.join(map(str, sizes))}" for bits, sizes in K_GROUP_SIZES.items()
            )
            raise ConfigurationError(
                f"scale_format k does not have INT{self.bit_width} with group_size {self.group_size}; it has {allowed}"
            )
        if self.rows < 1 or self.columns < 1:
            raise ShapeMismatchError(f"a matrix of {self.rows} x {self.columns} has no weights to quantize")

    @staticmethod
    def of_shape(shape: Sequence[int], bit_width: int, group_size: int, grid: str) -> "Layout":
        """Layout of a tensor of any shape."""
        rows, columns = matrix_shape(shape)
        return Layout(rows, columns, bit_width, group_size, grid)

    @property
    def n_groups(self) -> int:
        """Groups of one row, a shorter last one included."""
        return -(-self.columns // self.group_size)

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Shape of the uint8 codes."""
        return self.rows, -(-self.columns * self.bit_width // 8)

    @property
    def scales_shape(self) -> tuple[int, ...]:
        """Shape of the scales; levels: of the pairs a1, a2; k: of their bytes with float16 blocks."""
        return self.parameters(FLOAT16)[0][0]

    @property
    def zero_points_shape(self) -> tuple[int, ...]:
        """Shape of the packed zero points, of the minima (k: like `scales_shape`), or of the offsets of levels."""
        return self.parameters(FLOAT16)[1][0]

    def parameters(self, scale_dtype: np.dtype[Any]) -> tuple[Buffer, Buffer]:
        """Shape and dtype of scales and of zero points, for scales (grid k: floats of the blocks) of this dtype."""
        groups = (self.rows, self.n_groups)
        if self.grid == "k":
            n = k_format.row_nbytes(self.columns, self.bit_width, self.group_size, scale_dtype.itemsize == 4)
            return ((self.rows, n), np.dtype(np.uint8)), ((self.rows, n), np.dtype(np.uint8))
        if self.grid == "zero_point":
            return (groups, scale_dtype), ((self.rows, -(-self.n_groups * self.bit_width // 8)), np.dtype(np.uint8))
        return ((*groups, 2) if self.grid == "levels" else groups, scale_dtype), (groups, scale_dtype)

    def buffers(self, scale_dtype: np.dtype[Any]) -> tuple[Buffer, Buffer, Buffer]:
        """Shape and dtype of codes, scales and zero points."""
        return ((self.packed_shape, np.dtype(np.uint8)), *self.parameters(scale_dtype))

    def nbytes(self, scale_dtype: np.dtype[Any] = FLOAT16) -> int:
        """Return the stored bytes: codes, scales and zero points."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self.buffers(scale_dtype))

    def scale_dtype(self, scales: NDArray[Any]) -> np.dtype[Any]:
        """Dtype of the floats in a buffer of scales."""
        if self.grid != "k":
            return scales.dtype
        wide = self.parameters(FLOAT32)[0][0][1:] == scales.shape[1:]
        return FLOAT32 if wide else FLOAT16

    def check_buffers(self, packed: NDArray[Any], scales: NDArray[Any], zero_points: NDArray[Any]) -> None:
        """Raise ShapeMismatchError unless the three buffers have this layout."""
        scale_dtype = self.scale_dtype(scales)
        if scale_dtype not in (FLOAT16, FLOAT32):
            raise ShapeMismatchError(f"scales must be float16 or float32 in native byte order, got {scales.dtype}")
        (scales_shape, scales_dtype), (zeros_shape, zeros_dtype) = self.parameters(scale_dtype)
        expected = (
            ("packed", packed, self.packed_shape, np.dtype(np.uint8)),
            ("scales", scales, scales_shape, scales_dtype),
            ("zero_points", zero_points, zeros_shape, zeros_dtype),
        )
        for name, array, shape, dtype in expected:
            if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
                raise ShapeMismatchError(
                    f"{name} must be a C-contiguous {dtype} array of shape {shape} for a {self.rows} x {self.columns} "
                    f"matrix at {self.bit_width} bits, group_size {self.group_size}, grid {self.grid}; "
                    f"got {array.dtype} {array.shape}{'' if array.flags.c_contiguous else ', not contiguous'}"
                )


def check_out_array(name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise ShapeMismatchError unless `array` can be filled in place."""
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array, got {type(array).__name__}")
    if array.shape != shape or array.dtype != dtype:
        raise ShapeMismatchError(f"{name} must be {dtype} {shape}, got {array.dtype} {array.shape}")
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise ShapeMismatchError(f"{name} must be C-contiguous and writable: pass a fresh array or leave it out")
