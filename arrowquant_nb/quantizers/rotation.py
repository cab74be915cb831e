"""Randomised Hadamard rotation of the input axis: outliers are spread over their row before it is quantized.

R = D S / sqrt(n) with random signs D and Sylvester's Hadamard matrix S of size n = 2^k, the largest power of two that
divides the row length; a row of 2^k m weights is rotated in m blocks (QuaRot, arXiv 2404.00456). W R is quantized, and
dequantizing multiplies by R^T. The bytes are the same on every machine. Knows arrays; nothing of grids.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb.errors import ConfigurationError

__all__ = [
    "LARGEST_SEED",
    "ROTATIONS",
    "check_rotation",
    "rotatable",
    "rotate",
    "rotated_hessian",
    "rotated_importance",
    "unrotate",
]

ROTATIONS = ("none", "hadamard", "auto")
SHORTEST = 16
"""Blocks below this spread nothing worth the work."""
LARGEST_SEED = 2**63 - 1


def block_length(columns: int) -> int:
    """Return the largest power of two that divides a row length."""
    return columns & -columns


def rotatable(columns: int) -> bool:
    """Tell whether a row of this length has blocks of a useful size."""
    return block_length(columns) >= SHORTEST


def check_rotation(name: str, columns: int, rotation: str, seed: int) -> None:
    """Raise ConfigurationError for a rotation that does not exist, or that this row length cannot have."""
    if rotation not in ROTATIONS:
        raise ConfigurationError(f"{name}: rotation {rotation!r} is not one of {', '.join(ROTATIONS)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
        raise ConfigurationError(f"{name}: seed {seed!r} is not an integer from 0 to 2**63 - 1")
    if rotation == "hadamard" and not rotatable(columns):
        raise ConfigurationError(
            f"{name}: rows of {columns} weights cannot be rotated: the largest power of two that divides {columns} is "
            f"{block_length(columns)}, at least {SHORTEST} is needed; use rotation 'auto' or 'none'"
        )


def signs(seed: int, columns: int) -> NDArray[np.float64]:
    """Return +1 or -1 for every column: the top bit of SplitMix64 (Steele et al. 2014) at seed and column."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what the generator is made of
        x = np.uint64(seed) + np.arange(1, columns + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where((x ^ (x >> np.uint64(31))) >> np.uint64(63), -1.0, 1.0)


def _apply(values: NDArray[Any], seed: int, backward: bool, n_threads: int) -> None:
    length = block_length(values.shape[1])
    factors = (signs(seed, values.shape[1]) / np.sqrt(np.float64(length))).astype(values.dtype)
    _kernels.rotate_rows(values, factors, length, backward, n_threads)


def rotate(values: NDArray[Any], seed: int, n_threads: int = 0) -> None:
    """Multiply rows by R, in place; float32 or float64 (rows, columns), C-contiguous."""
    _apply(values, seed, False, n_threads)


def unrotate(values: NDArray[Any], seed: int, n_threads: int = 0) -> None:
    """Multiply rows by R^T, in place."""
    _apply(values, seed, True, n_threads)


def rotated_hessian(hessian: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return R^T H R: the second moments of rotated inputs."""
    half = hessian.copy()
    rotate(half, seed)
    whole = np.ascontiguousarray(half.T)
    rotate(whole, seed)
    # Inputs that vanish in a rotated direction leave sums of differences there, which may end just below 0.
    np.fill_diagonal(whole, np.maximum(whole.diagonal(), 0.0))
    return whole


def rotated_importance(importance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the diagonal of R^T diag(v) R: each column weighs what its block weighs on average."""
    blocks = importance.reshape(-1, block_length(importance.size)).astype(np.float64)
    return np.repeat(blocks.mean(axis=1), blocks.shape[1]).astype(np.float32)
