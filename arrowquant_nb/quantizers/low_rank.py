"""The low-rank branch: a small float16 product that takes over what codes express badly.

W is stored as A B + Q(W - A B), with A (rows, rank) and B (rank, columns). The factors come from a truncated singular
value decomposition by subspace iteration (Halko et al. 2011, arXiv 0909.4061), deterministic on one machine because
its start is fixed and BLAS is pinned to one thread. Knows arrays; nothing of grids.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.blas import BLOCK_ROWS, single_threaded_blas
from arrowquant_nb.quantizers.rotation import signs

__all__ = [
    "LARGEST_RANK",
    "WHOLE_WEIGHTS",
    "Factors",
    "add_product",
    "check_factors",
    "check_low_rank",
    "effective_rank",
    "factors_of",
]

Factors = tuple[NDArray[np.float16], NDArray[np.float16]]

LARGEST_RANK = 128
WHOLE_WEIGHTS = 1 << 26
"""Largest matrix that gets a branch: all of it is held in memory, in four float32 copies."""
EXTRA = 16  # directions beyond the rank, so that the wanted ones converge
ITERATIONS = 4


def effective_rank(rows: int, columns: int, rank: int) -> int:
    """Return the rank that is stored: never more than the matrix has."""
    return min(rank, rows, columns)


def check_low_rank(name: str, n_weights: int, rank: int) -> None:
    """Raise ConfigurationError for a rank out of range, or a matrix too large to be held as a whole."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= LARGEST_RANK:
        raise ConfigurationError(f"{name}: low_rank {rank!r} is not an integer from 0 to {LARGEST_RANK}")
    if rank and n_weights > WHOLE_WEIGHTS:
        raise ConfigurationError(
            f"{name}: {n_weights} weights are too many for low_rank, which needs the whole matrix in memory: "
            f"the limit is {WHOLE_WEIGHTS}; use low_rank 0, or keep this tensor with layer_bit_widths={{{name!r}: 16}}"
        )


def check_factors(a: NDArray[Any] | None, b: NDArray[Any] | None, rows: int, columns: int) -> None:
    """Raise ShapeMismatchError unless both factors are absent, or fit together and a matrix of this size."""
    if a is None and b is None:
        return
    rank = 0 if a is None or a.ndim != 2 else a.shape[1]
    for name, part, shape in (("low_rank_a", a, (rows, rank)), ("low_rank_b", b, (rank, columns))):
        if part is None or rank < 1 or part.dtype != np.float16 or part.shape != shape or not part.flags.c_contiguous:
            got = None if part is None else f"{part.dtype} {part.shape}"
            raise ShapeMismatchError(
                f"{name} must be a C-contiguous float16 array for a {rows} x {columns} matrix of rank {rank}, got {got}"
            )


def factors_of(residual: NDArray[np.float32], rank: int, weights: NDArray[np.float64] | None) -> Factors | None:
    """Return the float16 factors of the best product of a rank, or None where float16 cannot hold them.

    Parameters
    ----------
    residual : float32 (rows, columns)
    rank : int
        At least 1, at most the smaller side.
    weights : float64 (columns,), positive, optional
        d: the product is best for (residual - A B) diag(d). How large they are together changes nothing.

    """
    # Powers of two take the sizes out, so that float32 holds every square and A and B are of one size.
    d = np.ones(residual.shape[1]) if weights is None else np.ldexp(weights, -_exponent(weights.mean()))
    exponent = _exponent(np.abs(residual).max())
    matrix = np.ldexp(residual, -exponent) * d.astype(np.float32)
    width = min(rank + EXTRA, *matrix.shape)
    basis = signs(0, matrix.shape[1] * width).reshape(matrix.shape[1], width).astype(np.float32)
    with single_threaded_blas():
        for _ in range(ITERATIONS):
            left = np.linalg.qr(matrix @ basis)[0]
            basis = np.linalg.qr(matrix.T @ left)[0]
        left = np.linalg.qr(matrix @ basis)[0]
        u, s, vt = np.linalg.svd(left.T @ matrix, full_matrices=False)
        root = np.sqrt(np.ldexp(s[:rank].astype(np.float64), exponent))
        a = (left @ u[:, :rank]) * root
    b = root[:, None] * vt[:rank] / d
    with np.errstate(over="ignore"):  # reported by the return value
        halves = a.astype(np.float16), b.astype(np.float16)
    return halves if all(np.isfinite(half).all() for half in halves) else None


def _exponent(size: np.floating[Any]) -> int:
    """Return the power of two that a size is just below."""
    return int(np.frexp(size)[1])


def add_product(a: NDArray[np.float16], b: NDArray[np.float16], values: NDArray[Any], sign: float = 1.0) -> None:
    """Add sign times A B to float32 values (rows, columns), in place, with one BLAS thread and blocks of fixed size."""
    wide_a, wide_b = a.astype(np.float32) * np.float32(sign), b.astype(np.float32)
    with single_threaded_blas():
        for start in range(0, len(values), BLOCK_ROWS):
            values[start : start + BLOCK_ROWS] += wide_a[start : start + BLOCK_ROWS] @ wide_b
