"""What rounding again costs: signal over error of written values against dequantized ones, part by part."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RoundingError"]

CHUNK = 1 << 14
"""Values that are summed in float32 before the sum goes into a float64 one."""


class RoundingError:
    """Sums over the parts of one tensor."""

    def __init__(self) -> None:
        self._signal = self._error = 0.0

    def add(self, wanted: NDArray[np.float32], written: NDArray[np.float32]) -> None:
        """Add a part: dequantized values, and those that a reader of the target gets; arrays of one size."""
        one, other = wanted.reshape(-1), written.reshape(-1)
        for start in range(0, one.size, CHUNK):
            part = one[start : start + CHUNK]
            difference = other[start : start + CHUNK] - part
            self._signal += float(np.dot(part, part))
            self._error += float(np.dot(difference, difference))

    @property
    def sqnr_db(self) -> float:
        """Signal over error in dB; inf where nothing changed."""
        if self._error == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal else -math.inf
