"""Channel equalization: divide a layer's input channels and multiply its weight columns by the same numbers.

Outlier channels of the input then cost fewer codes (SmoothQuant, Xiao et al. 2023), with the largest value over all
timesteps as in DiTAS (Dong and Zhang 2025). The exponent that shares the burden between input and weights is searched
by the error of the layer's output, "off" always among the candidates. Knows arrays; nothing of layers' neighbours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    Rounding = Callable[[NDArray[np.float32]], NDArray[np.float32]]

__all__ = ["ALPHAS", "Equalization", "equalization_scales", "search_equalization", "search_weight_equalization"]

ALPHAS = tuple(k / 20 for k in range(21))
LARGEST_SCALE = 1e4
"""Scales lie within this factor of their geometric mean, so that no float16 product overflows."""
MAX_ROWS, MAX_OUTPUTS = 4096, 512
"""Input rows and weight rows that the search looks at, evenly spread: it takes 21 products of that size."""


@dataclass(frozen=True, eq=False)
class Equalization:
    """The scales that layers with one input share, and what they gain at the layers' output."""

    scales: NDArray[np.float32]
    """Per channel, float32 (columns,), float16 values: inputs are divided, weight columns multiplied by them."""
    alpha: float | None
    """Exponent of the input's share; None when equalization is off (all scales 1)."""
    error: float
    """Error over signal power of the output with these scales, on the rows of the search."""
    error_without: float
    """The same without equalization."""

    def measured(self, gain_db: float) -> Equalization:
        """Return the same scales with what they gained in another measure."""
        return replace(self, error=self.error_without * 10.0 ** (-gain_db / 10.0))

    @property
    def gain_db(self) -> float:
        """What the scales gain at the output, at least 0."""
        if self.error == self.error_without:
            return 0.0
        return 10 * math.log10(self.error_without / self.error) if self.error > 0 else math.inf


def equalization_scales(
    input_absmax: NDArray[np.floating], weight_absmax: NDArray[np.floating], alpha: float
) -> NDArray[np.float32]:
    """Return ``input_absmax ** alpha / weight_absmax ** (1 - alpha)`` over its geometric mean.

    Parameters
    ----------
    input_absmax
        Largest absolute input per channel over all steps (columns,).
    weight_absmax
        Largest absolute weight per column, over all matrices that share the input (columns,).
    alpha
        0 makes all weight maxima equal, 1 all input maxima.

    Returns
    -------
    NDArray[np.float32]
        (columns,), within 1e-4..1e4, rounded to float16 values; 1 for a channel with no input or no weight.

    """
    live = (input_absmax > 0) & (weight_absmax > 0)
    logs = np.zeros(len(input_absmax))
    inputs, columns = np.log(input_absmax[live].astype(np.float64)), np.log(weight_absmax[live].astype(np.float64))
    logs[live] = alpha * inputs - (1 - alpha) * columns
    if live.any():
        logs[live] -= logs[live].mean()
    scales = np.clip(np.exp(logs), 1 / LARGEST_SCALE, LARGEST_SCALE)
    return scales.astype(np.float16).astype(np.float32)


def search_equalization(
    weights: Sequence[NDArray[np.float32]],
    input_absmax: NDArray[np.float32],
    rows: NDArray[np.float32],
    round_weight: Rounding,
    round_input: Rounding | None,
    alphas: Sequence[float] = ALPHAS,
) -> Equalization:
    """Choose the exponent by the output error of all matrices together.

    Parameters
    ----------
    weights
        float32 (outputs, columns) each: the matrices that read this input.
    input_absmax
        float32 (columns,): largest absolute input per channel over all steps.
    rows
        float32 (T, R, columns): inputs per step.
    round_weight
        Quantizes and dequantizes a matrix.
    round_input
        The same for inputs (T, R, columns); None leaves them float.
    alphas
        Candidates; "off" is always one more, and wins a tie.

    """
    thin_rows = rows[:, :: -(-rows.shape[0] * rows.shape[1] // MAX_ROWS)]
    thin = [np.ascontiguousarray(w[:: -(-len(w) // MAX_OUTPUTS)]) for w in weights]
    flat = thin_rows.reshape(-1, rows.shape[-1])
    targets = [flat @ w.T for w in thin]
    power = sum(float(np.sum(t.astype(np.float64) ** 2)) for t in targets) or 1.0

    def error(scales: NDArray[np.float32]) -> float:
        equalized = thin_rows / scales
        rounded = equalized if round_input is None else round_input(equalized)
        x = rounded.reshape(flat.shape)
        errors = (
            np.sum((x @ round_weight(w * scales).T - target).astype(np.float64) ** 2)
            for w, target in zip(thin, targets, strict=True)
        )
        return float(sum(errors)) / power

    return _least_error(weights, input_absmax, error, alphas)


def search_weight_equalization(
    weights: Sequence[NDArray[np.float32]],
    input_absmax: NDArray[np.float32],
    hessian: NDArray[np.float64],
    round_weight: Rounding,
    alphas: Sequence[float] = ALPHAS,
) -> Equalization:
    """Choose the exponent for float inputs: by tr(E H E^T), which is what compensated weights are judged by too.

    `hessian` is float64 (columns, columns), the mean of x x^T; the rest as in `search_equalization`.
    """
    thin = [np.ascontiguousarray(w[:: -(-len(w) // MAX_OUTPUTS)]) for w in weights]
    moments = hessian.astype(np.float32)

    def energy(matrices: Iterable[NDArray[np.float32]]) -> float:
        return float(sum(np.sum((m @ moments) * m, dtype=np.float64) for m in matrices))

    power = energy(thin) or 1.0

    def error(scales: NDArray[np.float32]) -> float:
        return max(0.0, energy(round_weight(w * scales) / scales - w for w in thin)) / power

    return _least_error(weights, input_absmax, error, alphas)


def _least_error(
    weights: Sequence[NDArray[np.float32]],
    input_absmax: NDArray[np.float32],
    error: Callable[[NDArray[np.float32]], float],
    alphas: Sequence[float],
) -> Equalization:
    absmax = np.max([np.abs(w).max(0) for w in weights], axis=0)
    off = np.ones(len(absmax), np.float32)
    best = Equalization(off, None, without := error(off), without)
    for alpha in alphas:
        scales = equalization_scales(input_absmax, absmax, alpha)
        found = error(scales)
        if found < best.error:
            best = Equalization(scales, alpha, found, without)
    return best
