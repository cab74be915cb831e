"""One weight matrix and how to quantize it: the checks that stand before every kernel.

Knows arrays and settings; nothing of files, models or of how codes are chosen.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.layout import LEAST_SQUARES_METHODS, WEIGHT_DTYPES, Layout, dtype_named, grid_of
from arrowquant_nb.quantizers.low_rank import check_low_rank
from arrowquant_nb.quantizers.rotation import check_rotation
from arrowquant_nb.quantizers.scaled_columns import apply_equalization, checked_scales

__all__ = ["LARGEST_WEIGHT", "MatrixJob", "named_layout"]

LARGEST_WEIGHT = 2.0**125
"""No kernel takes a weight beyond: twice the range of a group still is a float32."""


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
    """A multiple of 16 from 16 to 256; scale_format k: 16 or 32 at INT2, 32 or 64 at INT4."""
    method: str
    """rtn, mse, uls, hqq or r2q."""
    gain_correction: bool = True
    """Rescale each row so that <w, w'> = <w, w>; rtn and hqq ignore it."""
    importance: NDArray[np.float32] | None = None
    """Weight of each column's squared error, float32 (columns,), not negative; mse, uls and r2q only."""
    row_start: int = 0
    """Where `weight` begins in its tensor, for messages; not 0 when it is one tile of several."""
    file: str = ""
    """File that the weights come from, for messages."""
    scale_format: str = "float16"
    """float16, or k: integer scales and minima under a float16 pair per 256 weights (uls only)."""
    rotation: str = "none"
    """none, hadamard, or auto: rotated where that lowers the error."""
    seed: int = 0
    """Signs of the rotation."""
    low_rank: int = 0
    """Rank of the float16 branch; 0 = none."""
    equalization: NDArray[np.float16] | NDArray[np.float32] | None = None
    """What the columns are multiplied by before rounding, (columns,); stored, and undone at dequantize."""

    def __post_init__(self) -> None:
        """Refuse what no kernel can take."""
        grid_of(self.method, self.scale_format, self.name)
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
        check_rotation(self.name, layout.columns, self.rotation, self.seed)
        check_low_rank(self.name, self.weight.size, self.low_rank)
        if self.importance is not None:
            _check_importance(self.name, self.importance, self.method, layout.columns)
        if self.equalization is not None:
            checked_scales(self.equalization, layout.columns, self.name)

    def equalized(self) -> "MatrixJob":
        """Return the job on multiplied columns; the job itself without equalization.

        An error there is as many times larger, so each column's importance is divided by the square of its scale.
        """
        if self.equalization is None:
            return self
        importance = self.importance
        if importance is not None:
            importance = (importance / np.square(self.equalization.astype(np.float64))).astype(np.float32)
        weight = apply_equalization(self.weight, self.equalization)
        return replace(self, weight=weight, importance=importance, equalization=None)

    @property
    def transformed(self) -> bool:
        """Whether more than the grid is asked for."""
        return self.rotation != "none" or self.low_rank > 0

    @property
    def layout(self) -> Layout:
        """Sizes of the result; raises for an empty tensor or a group size that does not exist."""
        grid = grid_of(self.method, self.scale_format, self.name)
        return named_layout(self.name, self.shape, self.bit_width, self.group_size, grid)


def named_layout(name: str, shape: tuple[int, ...], bit_width: int, group_size: int, grid: str) -> Layout:
    """Layout of a tensor; errors begin with its name."""
    try:
        return Layout.of_shape(shape, bit_width, group_size, grid)
    except ShapeMismatchError as error:
        raise ShapeMismatchError(f"{name}: {error}") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None


def _check_importance(name: str, importance: NDArray[np.float32], method: str, columns: int) -> None:
    if method not in LEAST_SQUARES_METHODS:
        raise ConfigurationError(
            f"{name}: importance weighs squared errors, which {method} does not fit: leave it out, or use method "
            f"{', '.join(LEAST_SQUARES_METHODS)}"
        )
    if not isinstance(importance, np.ndarray) or importance.dtype != np.float32:
        raise TypeError(f"{name}: importance must be a float32 array with one value per column")
    if importance.shape != (columns,):
        raise ShapeMismatchError(f"{name}: importance has shape {importance.shape}, the matrix {columns} columns")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ConfigurationError(f"{name}: importance must be finite and not negative")
