"""What well-known formats, and theory, give on Gaussian weights: marks to compare a layer's decibels with.

Measured once on a seeded matrix with the package's own kernels; the bound is arithmetic. A layer's output may lie above
its weights' bound: calibrated methods move the error to where the inputs are small.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.quantizers.affine import quantize_array

__all__ = ["ReferencePoint", "gaussian_bound_db", "nf4", "reference_points"]

# NormalFloat-4 (Dettmers et al. 2023, QLoRA), the 16 values of bitsandbytes.
NF4_VALUES: Final = (
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip
NF4_GROUP: Final = 64
# One float16 scale for 64 codes of four bits; Q4_K: 144 bytes for 256 weights.
NF4_BITS: Final = 4.25
Q4_K_BITS: Final = 4.5
_SHAPE: Final = (128, 2048)


@dataclass(frozen=True)
class ReferencePoint:
    """One mark."""

    short: str
    sqnr_db: float
    bits_per_weight: float
    symbol: str
    side: str
    """Where its text stands, in plotly's words."""

    @property
    def words(self) -> str:
        """The mark in one sentence."""
        kind = "no code can do better" if self.short == "bound" else "measured"
        return f"{self.short} on Gaussian weights at {self.bits_per_weight:.2f} bits: {self.sqnr_db:.1f} dB ({kind})"


def gaussian_bound_db(bits_per_weight: float) -> float:
    """Return the SQNR in dB that no code of so many bits exceeds on Gaussian weights (Shannon 1959).

    Examples
    --------
    >>> round(gaussian_bound_db(4.5), 2)
    27.09
    """
    return 20 * math.log10(2) * bits_per_weight


def nf4(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return weights (rows, columns) as NF4 stores them, in groups of 64 with a float16 scale; 64 divides columns."""
    groups = weights.reshape(-1, NF4_GROUP)
    scales = np.abs(groups).max(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    values = np.array(NF4_VALUES, np.float32)
    shares = groups / np.maximum(scales, np.finfo(np.float32).tiny)
    codes = np.searchsorted((values[1:] + values[:-1]) / 2, shares)
    stored: NDArray[np.float32] = (values[codes] * scales).reshape(weights.shape)
    return stored


def reference_points(bits_per_weight: float) -> tuple[ReferencePoint, ...]:
    """Return the marks for a run of so many bits per weight over its quantized layers."""
    if bits_per_weight <= 0:
        return ()
    q4_k, nf4_db = _measured()
    bound = ReferencePoint("bound", gaussian_bound_db(bits_per_weight), bits_per_weight, "diamond-open", "middle right")
    return (
        ReferencePoint("NF4", nf4_db, NF4_BITS, "x-thin-open", "middle left"),
        ReferencePoint("Q4_K", q4_k, Q4_K_BITS, "cross-thin-open", "middle right"),
        bound,
    )


@cache
def _measured() -> tuple[float, float]:
    """Measure Q4_K's arithmetic and NF4 on one seeded Gaussian matrix, in dB."""
    weights = np.random.default_rng(0).standard_normal(_SHAPE, dtype=np.float32)
    stored = quantize_array(weights, bit_width=4, group_size=32, method="uls", scale_format="k", n_threads=1)
    return _sqnr_db(weights, stored.dequantize()), _sqnr_db(weights, nf4(weights))


def _sqnr_db(weights: NDArray[np.float32], stored: NDArray[np.float32]) -> float:
    error = float(np.sum((weights - stored).astype(np.float64) ** 2))
    return 10 * math.log10(float(np.sum(weights.astype(np.float64) ** 2)) / error)
