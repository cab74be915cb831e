"""Randomised Hadamard rotation of rows, NumPy path: the compiled kernel gives the same bytes.

A row is cut into blocks of `length`, a power of two; each is multiplied by a Hadamard matrix in Sylvester's order, by
sums and differences at distance 1, 2, 4, ... in that order. Knows rows only: no seeds, no tensors.
"""

from typing import Any

from numpy.typing import NDArray

__all__ = ["rotate_rows"]

TILE_WEIGHTS = 1 << 16  # values and their differences stay in the second-level cache


def rotate_rows(
    values: NDArray[Any], signs: NDArray[Any], length: int, backward: bool, n_threads: int, isa: str = "numpy"
) -> None:
    """Rotate rows in place.

    Parameters
    ----------
    values : float32 or float64 array (rows, columns)
        IN and OUT, C-contiguous.
    signs : array (columns,) of the same dtype
        +1 or -1 over sqrt(length): multiplied first, or last when `backward`.
    length : int
        Power of two that divides columns.
    backward : bool
        Undo the rotation.
    n_threads, isa
        Accepted for the compiled module's sake.

    """
    del n_threads, isa
    step = max(1, TILE_WEIGHTS // values.shape[1])
    for start in range(0, values.shape[0], step):
        tile = values[start : start + step]
        if not backward:
            tile *= signs
        distance = 1
        while distance < length:
            pairs = tile.reshape(-1, 2, distance)
            difference = pairs[:, 0] - pairs[:, 1]
            pairs[:, 0] += pairs[:, 1]
            pairs[:, 1] = difference
            distance *= 2
        if backward:
            tile *= signs
