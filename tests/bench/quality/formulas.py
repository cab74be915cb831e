"""Two well-known grids as their authors describe them, in NumPy: no package offers them for rows of any length.

The K-quant search is llama.cpp's for asymmetric blocks (make_qkx2_quants), here with scale and minimum in float16 per
group as for every other grid of the table; NF4 is the table of Dettmers et al. 2023 times the group's largest value.
"""

import numpy as np

NF4 = np.array(
    [
        -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
    ]
)  # fmt: skip


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float64)


def nf4(weight: np.ndarray, group: int) -> np.ndarray:
    """Decode of the nearest table entries."""
    x = weight.reshape(-1, group).astype(np.float64)
    largest = _half(np.maximum(np.abs(x).max(1, keepdims=True), 1e-6))
    codes = np.searchsorted((NF4[1:] + NF4[:-1]) / 2, x / largest)
    return (NF4[codes] * largest).reshape(weight.shape).astype(np.float32)


def k_search(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Twenty-one inverse scales, each with its least-squares scale and minimum; the least weighted error stays."""
    n = 2**bits - 1
    x = weight.reshape(-1, group).astype(np.float64)
    v = np.sqrt((x**2).mean(1, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(1, keepdims=True), 0)
    span = np.maximum(x.max(1, keepdims=True) - low, 1e-9)
    sv, sx = v.sum(1, keepdims=True), (v * x).sum(1, keepdims=True)
    scale, minimum = _half(span / n), _half(low)
    least = _error(x, v, scale, minimum, n)
    for step in range(21):
        q = np.clip(np.round((-1 + 0.1 * step + n) / span * (x - low)), 0, n)
        sq, sqq, sqx = ((v * part).sum(1, keepdims=True) for part in (q, q * q, q * x))
        spread = sv * sqq - sq**2
        usable = spread > 1e-20
        spread = np.where(usable, spread, 1)
        s, m = _half((sv * sqx - sx * sq) / spread), _half((sqq * sx - sq * sqx) / spread)
        usable &= s > 0
        error = np.where(usable, _error(x, v, np.where(usable, s, 1), m, n), np.inf)
        better = error < least
        scale, minimum, least = np.where(better, s, scale), np.where(better, m, minimum), np.minimum(error, least)
    q = np.clip(np.round((x - minimum) / scale), 0, n)
    return (q * scale + minimum).reshape(weight.shape).astype(np.float32)


def _error(x: np.ndarray, v: np.ndarray, scale: np.ndarray, minimum: np.ndarray, n: int) -> np.ndarray:
    q = np.clip(np.round((x - minimum) / scale), 0, n)
    return (v * (q * scale + minimum - x) ** 2).sum(1, keepdims=True)
