"""Columns multiplied before rounding and divided after it: the arithmetic of stored equalization.

Knows arrays only; `equalization.py` chooses the numbers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError

__all__ = ["apply_equalization", "checked_scales", "storable_scales", "undo_equalization"]

Scales = NDArray[np.float16] | NDArray[np.float32]


def checked_scales(scales: Scales, columns: int, name: str) -> NDArray[np.float32]:
    """Return scales as float32 after checking that they can be divided by, one per column."""
    if not isinstance(scales, np.ndarray) or scales.dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        raise TypeError(f"{name}: equalization must be a float16 or float32 array with one value per column")
    if scales.shape != (columns,):
        raise ShapeMismatchError(f"{name}: equalization has shape {scales.shape}, the matrix {columns} columns")
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ConfigurationError(f"{name}: equalization scales must be positive and finite")
    return scales.astype(np.float32, copy=False)


def storable_scales(scales: NDArray[np.float32]) -> Scales:
    """Return scales in the dtype to store them in: float16 where it holds every one exactly, else float32."""
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float16)
    return narrow if (narrow.astype(np.float32) == scales).all() else scales


def apply_equalization(weight: NDArray[Any], scales: Scales) -> NDArray[np.float32]:
    """Return the matrix (rows, columns) as float32, each column multiplied by its scale."""
    product: NDArray[np.float32] = weight.astype(np.float32) * scales.astype(np.float32)
    return product


def undo_equalization(weight: NDArray[np.float32], scales: Scales) -> NDArray[np.float32]:
    """Divide each column of a float32 matrix by its scale, in place, and return it."""
    weight /= scales.astype(np.float32)
    return weight
