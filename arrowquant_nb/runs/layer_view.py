"""One layer of a run from near: its weights before and after, where the error sits, its scales, and its timesteps.

A few hundred numbers, so that a view can be sent and drawn. Knows nothing of files and figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LayerView", "TimeGroup", "TimeRanges"]


@dataclass(frozen=True)
class TimeGroup:
    """Consecutive steps that are judged, and would be quantized, together."""

    first_time: int
    """Smallest training timestep, 0 = clean."""
    last_time: int
    """Largest, inclusive."""
    low: float
    high: float
    """Range of the layer's inputs over its steps."""
    sqnr_db: float | None = None
    """SQNR of the layer's output in dB on held-out rows; None where it was not measured."""


@dataclass(frozen=True, eq=False)
class TimeRanges:
    """The range of a layer's inputs at every calibrated step, most noisy first."""

    name: str
    times: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    groups: tuple[TimeGroup, ...]


@dataclass(frozen=True, eq=False)
class LayerView:
    """What the panels of one layer show."""

    name: str
    shape: tuple[int, ...]
    bit_width: int
    group_size: int
    edges: NDArray[np.float64]
    """Bin edges of the two histograms, (bins + 1,)."""
    before: NDArray[np.int64]
    """Weights of the source per bin."""
    after: NDArray[np.int64]
    """Dequantized weights per bin."""
    tile_mean: NDArray[np.float32]
    """Mean |w - w'| per tile of the matrix, at most 16 x 48."""
    tile_max: NDArray[np.float32]
    """Largest, likewise."""
    row_edges: tuple[int, ...]
    column_edges: tuple[int, ...]
    """Where the tiles begin and end: rows are outputs, columns inputs."""
    scales: NDArray[np.float32]
    """Absolute scales of the groups, sorted, thinned to at most 200."""
    n_groups: int
    """Groups of weights that share a scale, in the rows that were looked at."""
    outlier_share: float
    """Share of weights beyond 6 times their row's standard deviation."""
    outlier_groups: int
    """Groups that hold one of them."""
    n_rows_seen: int
    """Rows that were looked at; fewer than the layer has where it is large."""
    ranges: TimeRanges | None
    """None without calibration."""

    @property
    def tail(self) -> int:
        """Weights in the last, shorter group of each row; 0 where the groups divide it."""
        return 0 if self.group_size == 0 else math.prod(self.shape[1:]) % self.group_size
