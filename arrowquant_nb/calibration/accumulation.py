"""One input's statistics, built up call by call: Hessian, ranges, histogram, moments and a seeded sample of rows.

Nothing grows with the number of calls. Sums are float64 in a fixed order, so with the linear algebra on one thread
the result depends on the calls alone. Knows nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from arrowquant_nb.calibration.scratch import Scratch
from arrowquant_nb.calibration.statistics import N_BINS, LayerCapture
from arrowquant_nb.errors import MetadataError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

# Rows turned to float64 at a time.
BLOCK_ROWS: Final = 4096
# Rows of one call that enter the histogram.
COUNTED_ROWS: Final = 1024
# Rows of a Hessian that are brought up to date at a time: bounds what is held in memory beside it.
TILE_ROWS: Final = 4096


class RowSample:
    """Uniform sample of rows without replacement: those with the smallest random keys, whatever order they come in.

    Parameters
    ----------
    n_rows : rows kept at most.
    columns : width of a row.
    scratch : where they are kept.
    """

    def __init__(self, n_rows: int, columns: int, scratch: Scratch) -> None:
        self._n_rows = n_rows
        self._keys: NDArray[np.float64] = np.empty(0)
        self._columns = columns
        self._scratch = scratch
        self._buffer: NDArray[np.float32] = np.empty((0, columns), np.float32)

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows kept, (n, columns), by rising key."""
        return self._buffer[: len(self._keys)]

    def add(self, rows: NDArray[np.float32], keys: NDArray[np.float64]) -> None:
        """Offer rows (n, columns) with their keys (n,)."""
        few = np.argsort(keys, kind="stable")[: self._n_rows]
        joined = np.concatenate([self._keys, keys[few]])
        kept = np.argsort(joined, kind="stable")[: self._n_rows]
        found = np.concatenate([self.rows, rows[few]])[kept]
        if len(found) > len(self._buffer):
            self._buffer = self._scratch.zeros((min(self._n_rows, 2 * len(found)), self._columns), np.float32)
        self._buffer[: len(found)] = found
        self._keys = joined[kept]


class StepStatistics:
    """What the inputs of one timestep look like."""

    def __init__(self, columns: int, n_rows: int, scratch: Scratch) -> None:
        self.channel_min = np.full(columns, np.inf, np.float32)
        self.channel_max = np.full(columns, -np.inf, np.float32)
        self.histogram = np.zeros(N_BINS, np.int64)
        self.sum_squares = 0.0
        self.n_rows = 0
        self.sample = RowSample(n_rows, columns, scratch)


class InputAccumulator:
    """Statistics of one input of a model.

    Parameters
    ----------
    name : the first layer that has this input, for messages.
    columns : its width.
    low, high : smallest and largest value of a first look; the range widens when others come.
    n_rows, n_held_out : rows kept per step, at most.
    scratch : where Hessian and rows are kept; in memory unless given.
    """

    def __init__(
        self,
        name: str,
        columns: int,
        low: float,
        high: float,
        n_rows: int,
        n_held_out: int,
        scratch: Scratch | None = None,
    ) -> None:
        self.name = name
        self.columns = columns
        self._low = low
        # A constant input still needs bins of some width.
        self._high = high if high > low else low + max(abs(low), 1.0) * 2.0**-10
        self._n_rows = n_rows
        self._n_held_out = n_held_out
        self._scratch = scratch or Scratch()
        self._hessian: NDArray[np.float64] = self._scratch.zeros((columns, columns), np.float64)
        self._weight = 0.0
        self._steps: dict[int, StepStatistics] = {}
        self._held_out: dict[int, RowSample] = {}

    def add(self, time: int, rows: NDArray[np.float32], weight: float, keys: NDArray[np.float64]) -> None:
        """Add the rows of one call.

        Parameters
        ----------
        time
            Training timestep.
        rows
            float32 (n, columns), finite.
        weight
            Share of this call in all calls of its timestep.
        keys
            Random float64 (n,): which rows are kept.

        """
        step = self._steps.setdefault(time, StepStatistics(self.columns, self._n_rows, self._scratch))
        np.minimum(step.channel_min, rows.min(0), out=step.channel_min)
        np.maximum(step.channel_max, rows.max(0), out=step.channel_max)
        self._widen(float(step.channel_min.min()), float(step.channel_max.max()))
        step.histogram += self._counts(self._few(rows, keys))
        step.sum_squares += self._add_products(rows, weight / len(rows))
        step.n_rows += len(rows)
        step.sample.add(rows, keys)
        self._weight += weight

    def hold_out(self, time: int, rows: NDArray[np.float32], keys: NDArray[np.float64]) -> None:
        """Sample rows of other trajectories."""
        if time not in self._held_out:
            self._held_out[time] = RowSample(self._n_held_out, self.columns, self._scratch)
        self._held_out[time].add(rows, keys)

    def finish(self) -> Mapping[str, object]:
        """Return the arrays of a `LayerCapture`, steps by falling timestep."""
        times = sorted(self._steps, reverse=True)
        if times != sorted(self._held_out, reverse=True):
            raise MetadataError(
                f"calibration of {self.name!r}: fit trajectories visit {len(times)} timesteps, held-out trajectories "
                f"{len(self._held_out)}, not the same ones; the model must visit the same timesteps whatever the seed"
            )
        steps = [self._steps[t] for t in times]
        return {
            "times": np.array(times, np.int64),
            "hessian": self._mean_hessian(),
            "n_rows": sum(s.n_rows for s in steps),
            "channel_min": np.stack([s.channel_min for s in steps]),
            "channel_max": np.stack([s.channel_max for s in steps]),
            "histogram": np.stack([s.histogram for s in steps]),
            "histogram_range": (self._low, self._high),
            "second_moment": np.array([s.sum_squares / (s.n_rows * self.columns) for s in steps]),
            "rows": self._stacked([s.sample for s in steps]),
            "held_out": self._stacked([self._held_out[t] for t in times]),
        }

    def covers(self, times: Collection[int]) -> bool:
        """Tell whether rows of all these timesteps were added, and others held out."""
        return self._steps.keys() == set(times) == self._held_out.keys()

    def _add_products(self, rows: NDArray[np.float32], factor: float) -> float:
        """Add ``factor x^T x`` to the Hessian's tiles on and above the diagonal; return the sum of the squares of x."""
        squares = 0.0
        for first in range(0, self.columns, TILE_ROWS):
            tile = slice(first, first + TILE_ROWS)
            product = np.zeros(self._hessian[tile, first:].shape)
            for start in range(0, len(rows), BLOCK_ROWS):
                block = rows[start : start + BLOCK_ROWS].astype(np.float64)
                product += block[:, tile].T @ block[:, first:]
            squares += float(np.trace(product))
            product *= factor
            self._hessian[tile, first:] += product
        return squares

    def _mean_hessian(self) -> NDArray[np.float64]:
        """Divide the Hessian by the weight of its calls and mirror it, in place."""
        hessian = self._hessian
        for first in range(0, self.columns, TILE_ROWS):
            hessian[first : first + TILE_ROWS] /= self._weight
        for first in range(0, self.columns, TILE_ROWS):
            for second in range(first, self.columns, TILE_ROWS):
                a, b = slice(first, first + TILE_ROWS), slice(second, second + TILE_ROWS)
                mean = hessian[a, b] if first < second else (hessian[a, a] + hessian[a, a].T) / 2
                hessian[a, b] = mean
                hessian[b, a] = mean.T
        return hessian

    def _stacked(self, samples: list[RowSample]) -> NDArray[np.float32]:
        """Return (T, R, columns): the same number of rows of every step; the first ones are a uniform sample too."""
        n_rows = min(len(s.rows) for s in samples)
        stacked = self._scratch.zeros((len(samples), n_rows, self.columns), np.float32)
        for place, sample in zip(stacked, samples, strict=True):
            place[:] = sample.rows[:n_rows]
        return stacked

    @staticmethod
    def _few(rows: NDArray[np.float32], keys: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the rows that are counted: of many a random part, whose shares are as good."""
        if len(rows) <= COUNTED_ROWS:
            return rows
        return rows[np.argpartition(keys, COUNTED_ROWS)[:COUNTED_ROWS]]

    def _counts(self, rows: NDArray[np.float32]) -> NDArray[np.int64]:
        places = ((rows.astype(np.float64) - self._low) * (N_BINS / (self._high - self._low))).astype(np.int64)
        np.clip(places, 0, N_BINS - 1, out=places)
        return np.bincount(places.ravel(), minlength=N_BINS)

    def _widen(self, low: float, high: float) -> None:
        """Double the range towards the side that is too short until it holds [low, high]; counts move exactly."""
        half = N_BINS // 2
        while low < self._low or high > self._high:
            width = self._high - self._low
            upwards = low >= self._low
            for step in self._steps.values():
                pairs = step.histogram.reshape(half, 2).sum(1)
                step.histogram[:] = 0
                step.histogram[:half] = pairs if upwards else 0
                step.histogram[half:] = 0 if upwards else pairs
            if upwards:
                self._high += width
            else:
                self._low -= width


def layer_captures(accumulator: InputAccumulator, names: list[str]) -> dict[str, LayerCapture]:
    """Return one capture per layer that has this input; they share the arrays."""
    arrays = accumulator.finish()
    return {name: LayerCapture(name=name, input_name=names[0], **arrays) for name in names}  # type: ignore[arg-type]
