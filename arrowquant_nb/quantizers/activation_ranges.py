"""What the inputs of one layer look like at every captured step, and what a grid over a range would cost them.

Takes arrays from a capture; knows nothing of how they were captured, of files or of how steps are grouped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.activation_grid import grid_of_range

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["N_BINS", "RANGE_RULES", "StepRanges", "union_range"]

N_BINS = 2048
RANGE_RULES = ("minmax", "percentile", "mse")
PERCENTILE = 99.99
"""Share of the inputs, in percent, that `percentile` keeps unclipped on either side."""
HIGH_SHRINKS = np.linspace(1.0, 0.3, 15)
"""Candidates of `mse` for the upper end; the lower end shrinks along, times one of `LOW_SHRINKS`."""
LOW_SHRINKS = (1.0, 0.8, 0.6)


@dataclass(frozen=True, eq=False)
class StepRanges:
    """Ranges and histograms of one layer's inputs, one entry per timestep, earliest timestep first."""

    layer: str
    """Weight's name, for messages."""
    times: NDArray[np.int64]
    """Training timesteps (T,), rising."""
    low: NDArray[np.float64]
    """Smallest input (T,)."""
    high: NDArray[np.float64]
    """Largest input (T,)."""
    histogram: NDArray[np.float64] | None = None
    """Share of the inputs per bin (T, bins), rows add up to 1; bins are equally wide over `histogram_range`."""
    histogram_range: tuple[float, float] = (0.0, 0.0)
    """Lower end of the first bin, upper end of the last."""

    @classmethod
    def of_capture(
        cls,
        layer: str,
        times: ArrayLike,
        channel_min: NDArray[np.float32],
        channel_max: NDArray[np.float32],
        histogram: NDArray[np.int64] | None = None,
        histogram_range: tuple[float, float] | None = None,
    ) -> StepRanges:
        """Read a capture.

        Parameters
        ----------
        layer
            Name of the layer, for messages.
        times
            int (T,): training timesteps, each once, in any order (sampling runs downwards).
        channel_min, channel_max
            float32 (T, columns): smallest and largest input per step and channel.
        histogram, histogram_range
            int (T, bins) counts of all channels together, and the range that the bins share. Without them the cost of
            a grid is the noise of rounding alone, ``scale ** 2 / 12``.

        Raises
        ------
        ShapeMismatchError, ConfigurationError
            Sizes that do not fit; NaN, empty ranges, repeated or negative timesteps, a step without counts.

        """
        order, steps = _checked_times(layer, times)
        if channel_min.shape != channel_max.shape or channel_min.ndim != 2 or len(channel_min) != len(steps):
            raise ShapeMismatchError(
                f"{layer}: channel_min {channel_min.shape} and channel_max {channel_max.shape} must both be "
                f"(steps, columns) for {len(steps)} timesteps"
            )
        low, high = channel_min.min(1).astype(np.float64)[order], channel_max.max(1).astype(np.float64)[order]
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
            raise ConfigurationError(f"{layer}: captured ranges hold NaN, infinity or a minimum above its maximum")
        if histogram is None or histogram_range is None:
            return cls(layer, steps, low, high)
        return cls(layer, steps, low, high, _shares(layer, histogram, len(steps))[order], histogram_range)

    @classmethod
    def of_rows(
        cls,
        layer: str,
        times: ArrayLike,
        rows: NDArray[np.float32],
        channel_min: NDArray[np.float32] | None = None,
        channel_max: NDArray[np.float32] | None = None,
    ) -> StepRanges:
        """Measure input rows themselves: after a transform no captured histogram fits any more.

        Parameters
        ----------
        layer, times
            As for `of_capture`.
        rows
            float32 (T, R, columns).
        channel_min, channel_max
            float32 (T, columns): extremes of more inputs than `rows` holds, where they are known.

        """
        if rows.ndim != 3 or 0 in rows.shape or len(rows) != len(np.atleast_1d(np.asarray(times))):
            raise ShapeMismatchError(
                f"{layer}: rows {rows.shape} must be (steps, rows, columns), one step per timestep"
            )
        low = rows.min(1) if channel_min is None else np.minimum(rows.min(1), channel_min)
        high = rows.max(1) if channel_max is None else np.maximum(rows.max(1), channel_max)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ConfigurationError(f"{layer}: calibration rows or captured ranges hold NaN or infinity")
        first = float(low.min())
        ends = (first, max(float(high.max()), float(np.nextafter(np.float32(first), np.float32(np.inf)))))
        counts = np.stack([np.histogram(step, N_BINS, ends)[0] for step in rows])
        return cls.of_capture(layer, times, low, high, counts, ends)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.times)

    @property
    def bin_centres(self) -> NDArray[np.float64]:
        """Middle of every bin (bins,)."""
        if self.histogram is None:
            return np.empty(0)
        low, high = self.histogram_range
        n = self.histogram.shape[1]
        centres: NDArray[np.float64] = low + (np.arange(n) + 0.5) * ((high - low) / n)
        return centres


def _checked_times(layer: str, times: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return the order that makes timesteps rise, and them in that order."""
    steps = np.asarray(times)
    if steps.ndim != 1 or len(steps) == 0 or steps.dtype.kind not in "iu":
        raise ShapeMismatchError(f"{layer}: times must be integers (steps,), got {steps.dtype} {steps.shape}")
    order = np.argsort(steps, kind="stable")
    rising = steps[order].astype(np.int64)
    if rising[0] < 0 or (np.diff(rising) == 0).any():
        raise ConfigurationError(f"{layer}: timesteps must be distinct and not negative, got {steps.tolist()}")
    return order, rising


def _shares(layer: str, histogram: NDArray[np.int64], n_steps: int) -> NDArray[np.float64]:
    if histogram.ndim != 2 or len(histogram) != n_steps:
        raise ShapeMismatchError(f"{layer}: histogram {histogram.shape} must be (steps, bins) for {n_steps} steps")
    counts = histogram.sum(1, keepdims=True)
    if (histogram < 0).any() or (counts == 0).any():
        raise ConfigurationError(f"{layer}: a step's histogram is empty or holds a negative count")
    shares: NDArray[np.float64] = histogram / counts
    return shares


def rounding_error(centres: NDArray[np.float64], scale: float, zero_point: int, bit_width: int) -> NDArray[np.float64]:
    """Mean squared error of inputs spread evenly over each bin when they are rounded to a grid: float64 (bins,).

    Exact where a bin lies within one cell of the grid.
    """
    codes = np.clip(np.rint(centres / scale), -zero_point, 2**bit_width - 1 - zero_point)
    width = float(centres[1] - centres[0]) if len(centres) > 1 else 0.0
    error: NDArray[np.float64] = (codes * scale - centres) ** 2 + width**2 / 12
    return error


def union_range(steps: StepRanges, first: int, last: int, rule: str, bit_width: int) -> tuple[float, float]:
    """Return the range that serves the steps [first, last) together.

    Parameters
    ----------
    steps
        Of one layer.
    first, last
        Half-open range of indices into `steps`.
    rule
        minmax: nothing is clipped. percentile: a share of 1e-4 is, on either side. mse: the 45 shrunken ranges'
        least expected error. It wins the error of a single call and loses the samples: it clips the same channels at
        every step, an error that adds up coherently. Use it behind a check of the whole network only.
    bit_width
        4 or 8.

    """
    low, high = float(steps.low[first:last].min()), float(steps.high[first:last].max())
    if rule == "minmax":
        return low, high
    if steps.histogram is None:
        raise ConfigurationError(f"{steps.layer}: range rule {rule!r} needs histograms; use minmax without them")
    shares = steps.histogram[first:last].mean(0)
    if rule == "percentile":
        return _percentile_range(steps, shares, low, high)
    centres = steps.bin_centres
    candidates = [(a * b * min(low, 0.0), a * max(high, 0.0)) for a in HIGH_SHRINKS for b in LOW_SHRINKS]
    errors = [
        float(shares @ rounding_error(centres, *grid_of_range(*ends, bit_width), bit_width)) for ends in candidates
    ]
    best = int(np.argmin(errors))
    return float(candidates[best][0]), float(candidates[best][1])


def _percentile_range(steps: StepRanges, shares: NDArray[np.float64], low: float, high: float) -> tuple[float, float]:
    """Return the ends of the bins beyond which the share of `PERCENTILE` lies, inside the true range."""
    tail = 1 - PERCENTILE / 100
    first, last = steps.histogram_range
    edges = np.linspace(first, last, len(shares) + 1)
    below = np.cumsum(shares)
    above = np.cumsum(shares[::-1])[::-1]
    return max(low, float(edges[:-1][below > tail][0])), min(high, float(edges[1:][above > tail][-1]))
