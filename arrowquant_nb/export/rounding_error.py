"""What rounding again costs: signal over error of written values against dequantized ones, part by part in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RoundingError"]


class RoundingError:
    """Sums over the parts of one tensor."""

    def __init__(self) -> None:
        self._signal = self._error = 0.0

    def add(self, wanted: NDArray[np.float32], written: NDArray[np.float32]) -> None:
        """Add a part: dequantized values, and those that a reader of the target gets; arrays of one size."""
        one = wanted.reshape(-1).astype(np.float64)
        difference = written.reshape(-1).astype(np.float64) - one
        self._signal += float(one @ one)
        self._error += float(difference @ difference)

    @property
    def sqnr_db(self) -> float:
        """Signal over error in dB; inf where nothing changed."""
        if self._error == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal else -math.inf
