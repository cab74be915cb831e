"""The Hessian of a linear layer, and the triangular factor by which rounding errors are passed on.

A Hessian here is the mean of x x^T over the calibration rows x of a layer and over all sampling steps: (columns,
columns), symmetric, positive semidefinite, float64 or float32. Error E of the weights costs tr(E H E^T) at the layer's
output. Knows matrices only: not where the rows come from, nor any grid.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError

__all__ = ["DAMPING", "Factor", "LastFactor", "checked_hessian", "factorise", "mean_outer"]

Matrix = NDArray[np.float64]

DAMPING = 0.01
"""Added to the diagonal, as a share of its mean (Frantar et al. 2022, arXiv 2210.17323)."""
DAMPING_FACTOR = 10.0
DAMPING_RETRIES = 4
ASYMMETRY = 1e-3  # of the largest element: what float32 sums taken in two orders may differ by
LEAF = 64  # columns that LAPACK factorises at once; larger parts are halved, so that almost all work is GEMM


@dataclass(frozen=True, eq=False)
class Factor:
    """Upper Cholesky factor of the inverse of a damped Hessian."""

    upper: Matrix
    """U, (columns, columns), upper triangular with U^T U = (H + damping)^-1."""
    importance: NDArray[np.float32]
    """Damped diagonal of H over its mean, (columns,): what a squared error in each column costs."""
    damping: float
    """Share of the mean diagonal that was added."""
    retries: int
    """How often the damping was raised before a factor existed."""
    dead: int
    """Columns that were 0 in all of the calibration."""


def mean_outer(blocks: Iterable[NDArray[Any]], columns: int) -> Matrix:
    """Return the mean of x x^T over the rows of all blocks, accumulated in float64.

    Parameters
    ----------
    blocks : arrays (n, columns) of float32 or float64
        Rows of layer input, for instance one block per sampling step.
    columns : int
        Input width of the layer.

    """
    total, n = np.zeros((columns, columns)), 0
    for block in blocks:
        if block.ndim != 2 or block.shape[1] != columns:
            raise ShapeMismatchError(f"calibration rows of shape {block.shape} for a layer of {columns} input columns")
        rows = block.astype(np.float64, copy=False)
        total += rows.T @ rows
        n += len(rows)
    if n:
        total /= n
    return total


def checked_hessian(hessian: NDArray[Any], columns: int, name: str) -> Matrix:
    """Return the Hessian as a symmetric float64 matrix, the caller's own array where it is one already.

    Raises
    ------
    TypeError, ShapeMismatchError, ConfigurationError
        No float array; not (columns, columns); not finite, not symmetric, or with a negative diagonal. All name the
        layer.

    """
    if not isinstance(hessian, np.ndarray) or hessian.dtype not in (np.float64, np.float32):
        kind = getattr(hessian, "dtype", type(hessian).__name__)
        raise TypeError(f"{name}: a Hessian must be a float64 or float32 array, got {kind}")
    if hessian.shape != (columns, columns):
        raise ShapeMismatchError(
            f"{name}: the Hessian has shape {hessian.shape}, the layer {columns} input columns: "
            "calibrate this layer on its own inputs"
        )
    largest = max(abs(float(hessian.max())), abs(float(hessian.min())))
    if not largest < 2.0**500:  # squares of it stay finite; NaN compares false
        raise ConfigurationError(
            f"{name}: the Hessian holds {largest}: a calibration row was not finite, or far too large"
        )
    if float(hessian.diagonal().min()) < 0:
        at = int(hessian.diagonal().argmin())
        raise ConfigurationError(f"{name}: diagonal element {at} of the Hessian is negative: not a sum of squares")
    symmetric = hessian.astype(np.float64, copy=False)
    difference = symmetric - symmetric.T
    worst = float(np.abs(difference, out=difference).max())
    if worst > ASYMMETRY * largest:
        raise ConfigurationError(f"{name}: the Hessian is not symmetric: elements differ by {worst} of {largest}")
    if worst:
        np.add(symmetric, symmetric.T, out=difference)
        difference *= 0.5
        return difference
    return symmetric


def factorise(hessian: Matrix) -> Factor | None:
    """Damp a checked Hessian and factorise its inverse; None where no damping up to the limit makes it definite.

    A column that calibration never saw gets the mean of the diagonal and no coupling: it is rounded like any weight of
    its group, and neither gives nor takes compensation, because it may fire later.

    Notes
    -----
    Memory: one matrix beside the input, and three of half its width while factorising.

    """
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    if dead.all():
        return None
    live = np.where(dead, diagonal[~dead].mean(), diagonal)
    mean = float(live.mean())
    damping = DAMPING
    for retries in range(DAMPING_RETRIES + 1):
        upper = hessian.copy()
        upper[dead], upper[:, dead] = 0.0, 0.0
        damped = live + damping * mean
        np.fill_diagonal(upper, damped)
        if _inverse_factor(upper):
            importance = (damped / (mean + damping * mean)).astype(np.float32)
            return Factor(upper, importance, damping, retries, int(dead.sum()))
        damping *= DAMPING_FACTOR
    return None


class LastFactor:
    """The factor that was asked for last: ways of one layer, its tiles, and layers with one input have it in common.

    Only one is held, which takes as much memory as a Hessian.
    """

    def __init__(self) -> None:
        self._last: tuple[object, object, Factor | None] | None = None

    def __call__(self, checked: Matrix, source: object, basis: object) -> Factor | None:
        """Return `factorise(checked)`.

        Parameters
        ----------
        checked : float64 array (columns, columns)
            The checked Hessian.
        source, basis
            What it was made from, told by identity, and in which way, told by value.

        """
        last = self._last
        if last is None or last[0] is not source or last[1] != basis:
            self._last = last = None  # two are never held at once
            self._last = last = (source, basis, factorise(checked))
        return last[2]


def _inverse_factor(a: Matrix) -> bool:
    """Turn a symmetric matrix into upper triangular U with U^T U its inverse, in place; False where not definite.

    With a = R R^T, R upper triangular, U is the inverse of R. Of the halves
        a = [[A, B], [B^T, C]],  C = Rc Rc^T,  R = [[Ra, T], [0, Rc]],  T = B Uc^T,  A - T T^T = Ra Ra^T,
        U = [[Ua, -Ua T Uc], [0, Uc]],
    so that both factors come from two half problems and four products, and nothing larger is ever inverted.
    """
    n = len(a)
    if n <= LEAF:
        try:
            reversed_factor = np.linalg.cholesky(a[::-1, ::-1])
        except np.linalg.LinAlgError:  # the answer asked for: not positive definite
            return False
        a[...] = np.linalg.inv(reversed_factor)[::-1, ::-1]
        a[np.tril_indices(n, -1)] = 0.0
        return bool(np.isfinite(a).all())
    half = n // 2
    if not _inverse_factor(a[half:, half:]):
        return False
    t = a[:half, half:] @ a[half:, half:].T
    a[:half, :half] -= t @ t.T
    if not _inverse_factor(a[:half, :half]):
        return False
    np.matmul(-(a[:half, :half] @ t), a[half:, half:], out=a[:half, half:])
    a[half:, :half] = 0.0
    return True
