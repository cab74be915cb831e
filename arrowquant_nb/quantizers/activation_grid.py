"""The grid of quantized activations: asymmetric, zero exact, one scale and zero point for a whole tensor or row.

Rounding is simulated: values come back on the grid, in float32. Knows arrays; nothing of layers, time or models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ConfigurationError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["ACTIVATION_BIT_WIDTHS", "grid_of_range", "round_rows", "round_to_grid"]

ACTIVATION_BIT_WIDTHS = (4, 8)
LEAST_SCALE = np.float32(2.0**-24)
"""Scale of inputs that are all 0: never 0, so never a division by it."""


def check_activation_bit_width(bit_width: int) -> None:
    """Raise ConfigurationError unless activations can have this width."""
    if bit_width not in ACTIVATION_BIT_WIDTHS:
        raise ConfigurationError(f"activation bit_width {bit_width!r} is not one of 4, 8")


def grid_of_range(low: float, high: float, bit_width: int) -> tuple[float, int]:
    """Return scale (a float32 value) and zero point (0..2^b - 1) of the grid over [min(low, 0), max(high, 0)].

    Zero is always a grid point: activations behind a GELU or a mask hold many exact zeros.
    """
    low, high, n = min(low, 0.0), max(high, 0.0), 2**bit_width - 1
    scale = max(np.float32((high - low) / n), LEAST_SCALE)
    return float(scale), int(np.clip(np.rint(-low / float(scale)), 0, n))


def round_to_grid(x: NDArray[np.float32], scale: float, zero_point: int, bit_width: int) -> NDArray[np.float32]:
    """Return ``(clip(rint(x / scale) + zero_point, 0, 2^b - 1) - zero_point) * scale``, float32, halves to even."""
    rounded: NDArray[np.float32] = np.rint(x / np.float32(scale))
    np.clip(rounded, -zero_point, 2**bit_width - 1 - zero_point, out=rounded)
    rounded *= np.float32(scale)
    return rounded


def round_rows(x: NDArray[np.float32], bit_width: int) -> NDArray[np.float32]:
    """Round every row on a grid over its own range: dynamic scales per token, the reference that needs no table.

    The range is divided in float32, as the kernels do: the last bit of a scale may be another than `grid_of_range` has.

    Parameters
    ----------
    x
        float32 (..., columns).
    bit_width
        4 or 8.

    """
    low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
    n = np.float32(2**bit_width - 1)
    scale = np.maximum((high - low) / n, LEAST_SCALE)
    zero_point = np.clip(np.rint(-low / scale), 0, n)
    rounded: NDArray[np.float32] = np.rint(x / scale)
    np.clip(rounded, -zero_point, n - zero_point, out=rounded)
    rounded *= scale
    return rounded
