"""What quantized weights cost at a layer's output: from its Hessian, and from held-out rows per timestep group.

Takes arrays only; knows nothing of calibration files, layers or thresholds. Sums are float64 over fixed blocks with
the linear algebra on one thread, so a figure does not depend on the thread count.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from threadpoolctl import ThreadpoolController

from arrowquant_nb.errors import MetadataError, ShapeMismatchError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["HessianError", "OutputStatistics", "hessian_error", "output_statistics"]

# Weights turned to float64 at a time, and input rows multiplied at a time: 16 MiB and at most 8 MiB an operand.
_BLOCK_WEIGHTS: Final = 1 << 21
_BLOCK_ROWS: Final = 512


@dataclass(frozen=True)
class HessianError:
    """Expected squared output error over the inputs that built the Hessian."""

    error: float
    """tr(E H E^T) with E = W' - W."""
    power: float
    """tr(W H W^T)."""

    @property
    def relative(self) -> float:
        """Noise to signal, error / power; 0 without error, inf for an error without power."""
        if self.error == 0.0:
            return 0.0
        return self.error / self.power if self.power > 0.0 else math.inf

    @staticmethod
    def combine(parts: Sequence[HessianError]) -> HessianError:
        """Join the figures of several row tiles of one weight."""
        return HessianError(math.fsum(p.error for p in parts), math.fsum(p.power for p in parts))


@dataclass(frozen=True)
class OutputStatistics:
    """Sums over a layer's output y = W x and its quantized output y', per timestep group; e = y' - y."""

    sum_yy: tuple[float, ...]
    """Sum of y * y per group."""
    sum_ye: tuple[float, ...]
    """Sum of y * e per group."""
    sum_ee: tuple[float, ...]
    """Sum of e * e per group."""

    def __post_init__(self) -> None:
        """Refuse sums that no outputs could have."""
        values = (*self.sum_yy, *self.sum_ye, *self.sum_ee)
        if not self.sum_yy or not len(self.sum_yy) == len(self.sum_ye) == len(self.sum_ee):
            raise ShapeMismatchError(f"output statistics need the same groups in every sum, got {self!r}")
        if not all(map(math.isfinite, values)) or min(*self.sum_yy, *self.sum_ee) < 0:
            raise MetadataError(f"output statistics must be finite, sums of squares not negative, got {self!r}")

    @staticmethod
    def combine(parts: Sequence[OutputStatistics]) -> OutputStatistics:
        """Join the sums of several row tiles of one weight; the order of the tiles does not matter."""
        sums = ([p.sum_yy for p in parts], [p.sum_ye for p in parts], [p.sum_ee for p in parts])
        return OutputStatistics(*(tuple(math.fsum(group) for group in zip(*s, strict=True)) for s in sums))

    @property
    def sqnr_db(self) -> float:
        """Signal over error of all rows together in dB; inf without error."""
        return _decibels(math.fsum(self.sum_yy), math.fsum(self.sum_ee))

    @property
    def group_sqnr_db(self) -> tuple[float, ...]:
        """Signal over error per timestep group in dB."""
        return tuple(_decibels(yy, ee) for yy, ee in zip(self.sum_yy, self.sum_ee, strict=True))

    @property
    def worst_sqnr_db(self) -> float:
        """Signal over error of the worst timestep group in dB."""
        return min(self.group_sqnr_db)

    @property
    def worst_group(self) -> int:
        """Index of that group; the first of equals."""
        return self.group_sqnr_db.index(self.worst_sqnr_db)

    @property
    def cosine(self) -> float:
        """Cosine similarity of y and y' over all rows; 1 without error, 0 where either vanishes."""
        yy, ye, ee = math.fsum(self.sum_yy), math.fsum(self.sum_ye), math.fsum(self.sum_ee)
        if ee == 0.0:
            return 1.0
        quantized = yy + 2.0 * ye + ee
        if yy <= 0.0 or quantized <= 0.0:
            return 0.0
        return max(-1.0, min(1.0, (yy + ye) / (math.sqrt(yy) * math.sqrt(quantized))))

    @property
    def gain(self) -> float:
        """How much of the output is kept, <y, y'> / <y, y>; 1 for outputs of zero."""
        yy = math.fsum(self.sum_yy)
        return 1.0 + math.fsum(self.sum_ye) / yy if yy > 0.0 else 1.0


def hessian_error(weight: NDArray[Any], dequantized: NDArray[Any], hessian: NDArray[np.float64]) -> HessianError:
    """Measure tr(E H E^T).

    Parameters
    ----------
    weight, dequantized
        Original W and its quantized form, (rows, ...) with the same `columns` = product of the rest; float32, float16
        or bfloat16.
    hessian
        float64 (columns, columns), symmetric: mean of x x^T.

    Raises
    ------
    ShapeMismatchError
        Shapes that do not fit.

    """
    original, quantized = _matrices(weight, dequantized)
    if hessian.shape != (original.shape[1],) * 2:
        raise ShapeMismatchError(f"a weight of {original.shape[1]} columns needs a square Hessian, got {hessian.shape}")
    parts = []
    with _libraries().limit(limits=1, user_api="blas"):
        for w, e in _blocks(original, quantized):
            # Rounding can leave a vanishing quadratic form just below zero.
            error, power = (max(0.0, float(np.sum((m @ hessian) * m))) for m in (e, w))
            parts.append(HessianError(error, power))
    return HessianError.combine(parts)


def output_statistics(
    weight: NDArray[Any],
    dequantized: NDArray[Any],
    held_out: NDArray[np.float32],
    groups: Sequence[slice],
    rounded: NDArray[np.float32] | None = None,
) -> OutputStatistics:
    """Measure a layer's output over held-out rows.

    Parameters
    ----------
    weight, dequantized
        As in `hessian_error`; row tiles may be measured apart and joined by `OutputStatistics.combine`.
    held_out
        Input rows, float32 (T, R, columns): R rows of each of T steps.
    groups
        Timestep groups as slices of the T steps, first to last, without gaps.
    rounded
        What the quantized layer is given instead of `held_out`, of the same shape; None: the same rows.

    Raises
    ------
    ShapeMismatchError
        Shapes that do not fit, or groups that do not cut the steps.

    """
    original, quantized = _matrices(weight, dequantized)
    if held_out.ndim != 3 or held_out.shape[2] != original.shape[1] or 0 in held_out.shape:
        raise ShapeMismatchError(
            f"held-out rows {held_out.shape} must be (steps, rows, {original.shape[1]}) for a weight of so many columns"
        )
    _check_groups(groups, len(held_out))
    if rounded is not None and rounded.shape != held_out.shape:
        raise ShapeMismatchError(
            f"rounded rows {rounded.shape} must have the shape {held_out.shape} of the held-out ones"
        )
    inputs = [held_out[group].reshape(-1, held_out.shape[2]) for group in groups]
    given = inputs if rounded is None else [rounded[group].reshape(-1, held_out.shape[2]) for group in groups]
    parts = []
    with _libraries().limit(limits=1, user_api="blas"):
        for w, e in _blocks(original, quantized):
            sums = [_group_sums(rows, other, w, e) for rows, other in zip(inputs, given, strict=True)]
            parts.append(OutputStatistics(*(tuple(s[k] for s in sums) for k in range(3))))
    return OutputStatistics.combine(parts)


@cache
def _libraries() -> ThreadpoolController:
    """NumPy's linear algebra, looked up once: finding it takes longer than measuring a small layer."""
    return ThreadpoolController()


def _group_sums(
    rows: NDArray[np.float32], given: NDArray[np.float32], w: NDArray[np.float64], e: NDArray[np.float64]
) -> tuple[float, ...]:
    """Return the sums of y y, y e and e e over input rows for one block of the weight.

    The quantized layer is `given` rows d away from the true ones, so its error is (x + d) E^T + d W^T.
    """
    totals = np.zeros(3)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS].astype(np.float64)
        y, error = block @ w.T, block @ e.T
        if given is not rows:
            moved = given[start : start + _BLOCK_ROWS].astype(np.float64)
            error = moved @ e.T + (moved - block) @ w.T
        totals += (np.sum(y * y), np.sum(y * error), np.sum(error * error))
    return tuple(totals.tolist())


def _matrices(weight: NDArray[Any], dequantized: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    if weight.shape != dequantized.shape or weight.ndim < 1 or not weight.size:
        raise ShapeMismatchError(
            f"the weight is {weight.shape} and its quantized form {dequantized.shape}; they must be the same and not "
            "empty"
        )
    rows = weight.shape[0] if weight.ndim > 1 else 1
    return weight.reshape(rows, -1), dequantized.reshape(rows, -1)


def _blocks(
    original: NDArray[Any], quantized: NDArray[Any]
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Yield row blocks of W and of E = W' - W in float64."""
    step = max(1, _BLOCK_WEIGHTS // original.shape[1])
    for start in range(0, len(original), step):
        w = original[start : start + step].astype(np.float64)
        yield w, quantized[start : start + step].astype(np.float64) - w


def _check_groups(groups: Sequence[slice], n_steps: int) -> None:
    edges = [(group.start or 0, n_steps if group.stop is None else group.stop) for group in groups]
    starts, stops = [a for a, _ in edges], [b for _, b in edges]
    if starts[:1] != [0] or stops != [*starts[1:], n_steps] or any(a >= b for a, b in edges):
        raise ShapeMismatchError(f"the groups {edges} do not cut {n_steps} steps in order and without gaps")


def _decibels(power: float, error: float) -> float:
    if error == 0.0:
        return math.inf
    return 10.0 * (math.log10(power) - math.log10(error)) if power > 0.0 else -math.inf
