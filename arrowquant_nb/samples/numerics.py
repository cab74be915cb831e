"""The small functions that transformers are made of, in float32 NumPy: activations, norm, softmax, heads.

They know no model and no weights.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""Coefficients of Abramowitz and Stegun 7.1.26, highest power first; the largest error is 1.5e-7."""


def silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``x * sigmoid(x)``; written with tanh, which cannot overflow."""
    y: NDArray[np.float32] = x * (0.5 * (1 + np.tanh(0.5 * x)))
    return y


def tanh_gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the tanh approximation of GELU (Hendrycks and Gimpel 2016)."""
    y = x * x  # the widest activation of the model: one new array instead of nine
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def layer_norm(x: NDArray[np.float32], eps: float) -> NDArray[np.float32]:
    """Normalize the last axis to mean 0 and variance 1."""
    centred = x - x.mean(-1, keepdims=True)
    variance = np.mean(centred * centred, -1, keepdims=True)
    normalized: NDArray[np.float32] = centred / np.sqrt(variance + eps)
    return normalized


def softmax(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the softmax over the last axis."""
    powers = np.exp(x - x.max(-1, keepdims=True))
    shares: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return shares


def erf(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the error function to within 1e-6 (Abramowitz and Stegun 1964, 7.1.26, in float32)."""
    size = np.abs(x)
    t = 1 / (1 + np.float32(0.3275911) * size)
    polynomial = np.zeros_like(t)
    for coefficient in _ERF:
        polynomial = (polynomial + np.float32(coefficient)) * t
    values: NDArray[np.float32] = np.copysign(1 - polynomial * np.exp(-size * size), x)
    return values


def gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return GELU as BERT has it, ``x * P(N(0, 1) <= x)`` (Hendrycks and Gimpel 2016)."""
    y: NDArray[np.float32] = x * (0.5 * (1 + erf(x * np.float32(math.sqrt(0.5)))))
    return y


def log_softmax(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithm of the softmax over the last axis, in float64."""
    shifted = x.astype(np.float64) - x.max(-1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return logarithms


def split_heads(x: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Split (n, tokens, width) into (n, heads, tokens, width / heads)."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).swapaxes(1, 2)


def attend(
    query: NDArray[np.float32], key: NDArray[np.float32], value: NDArray[np.float32], heads: int
) -> NDArray[np.float32]:
    """Mix `value` by scaled dot-product attention (Vaswani et al. 2017); all (n, tokens, width)."""
    q, k, v = (split_heads(x, heads) for x in (query, key, value))
    shares = softmax(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    return (shares @ v).swapaxes(1, 2).reshape(value.shape)
