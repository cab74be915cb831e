"""ComfyUI's integer weights: one scale per row, in the basis of a regular Hadamard matrix ("ConvRot").

The arithmetic of comfy-kitchen's eager code (`tensor/int8_utils.py`, `backends/eager`), so that codes and scales are
its bytes. Only the sums of the rotation depend on the matrix library that it runs on: they are added here in the order
of MKL, which PyTorch has on x86; another order changes last bits of scales. Knows arrays; nothing of files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.quantizers.blas import BLOCK_ROWS, single_threaded_blas

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["INT4_COLUMNS", "rotated", "rotation_group", "round_rows_to_int4", "round_rows_to_int8"]

ROTATION_GROUPS = (256, 64, 16)
"""Columns that are rotated together, the widest that divides the row; powers of 4."""
SEED = np.array([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], np.float32)
SUMMED = 128  # terms that MKL adds one after the other before it adds the sums
INT4_COLUMNS = 64
"""What the columns of an INT4 weight must be a multiple of."""


def rotation_group(columns: int) -> int:
    """Return the widest group of columns that can be rotated, 0 where none divides the row.

    >>> rotation_group(512), rotation_group(320), rotation_group(200)
    (256, 64, 0)
    """
    return next((size for size in ROTATION_GROUPS if columns % size == 0), 0)


def hadamard(size: int) -> Floats:
    """Return the regular Hadamard matrix over sqrt(size), symmetric and its own inverse; `size` is a power of 4."""
    matrix: Floats = SEED
    while len(matrix) < size:
        matrix = np.kron(matrix, SEED).astype(np.float32)
    return matrix / np.float32(np.sqrt(size))


def rotated(weight: Floats, group: int) -> Floats:
    """Return float32 (rows, columns) with every `group` columns multiplied by the Hadamard matrix; twice is nothing."""
    matrix = hadamard(group)
    parts = np.ascontiguousarray(weight, np.float32).reshape(-1, group)
    found = np.empty_like(parts)
    with single_threaded_blas():
        for start in range(0, len(parts), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            found[rows] = parts[rows, :SUMMED] @ matrix[:SUMMED]
            if group > SUMMED:
                found[rows] += parts[rows, SUMMED:] @ matrix[SUMMED:]
    return found.reshape(weight.shape)


def round_rows_to_int8(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Return codes int8 (rows, columns) and scales float32 (rows, 1): the largest magnitude becomes 127."""
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scales = np.maximum(largest / np.float32(127), np.float32(1e-30))
    return np.clip(np.rint(weight / scales), -128, 127).astype(np.int8), scales


def round_rows_to_int4(weight: Floats) -> tuple[NDArray[np.int8], NDArray[np.int8], Floats]:
    """Return codes int8 (rows, columns) in -7..7, the same packed (rows, columns / 2), and scales float32 (rows,).

    Two codes a byte, the even column in the low half.
    """
    largest = np.maximum(np.abs(weight).max(axis=1, keepdims=True), np.float32(1e-10))
    scales = largest / np.float32(7)
    codes = np.clip(np.rint(weight / scales), -7, 7).astype(np.int8)
    nibbles = codes.view(np.uint8) & 15
    return codes, (nibbles[:, ::2] | nibbles[:, 1::2] << 4).view(np.int8), scales[:, 0]
