"""A small convolutional classifier of 8x8 digits in NumPy: what it sees in a picture stands for how the picture looks.

Trained on the same scans as `digits-dit` by `train/digits.py`; its 64 inner features carry the Frechet distance. It
knows nothing of diffusion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .numerics import gelu
from .tensors import checked_weights, own_product, stored_weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

SHAPES = {
    "0.weight": (32, 1, 3, 3),
    "0.bias": (32,),
    "2.weight": (64, 32, 3, 3),
    "2.bias": (64,),
    "5.weight": (64, 64 * 16),
    "5.bias": (64,),
    "7.weight": (10, 64),
    "7.bias": (10,),
}
"""Tensors by their place in the torch `Sequential` that was trained."""


@dataclass(frozen=True, eq=False)
class Judge:
    """The trained classifier."""

    weights: Mapping[str, NDArray[np.float32]]
    """Every tensor of `SHAPES`, float32, read-only."""

    @classmethod
    def from_file(cls, path: Path) -> Judge:
        """Read a safetensors file.

        Raises
        ------
        ValueError
            A tensor is missing, unknown or misshapen.

        """
        return cls(checked_weights(stored_weights(path), SHAPES))

    def features(self, images: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return the 64 inner features of each image: (n, 8, 8) in [-1, 1] to (n, 64)."""
        hidden = np.asarray(images, np.float32)[:, None]
        for layer, stride in (("0", 1), ("2", 2)):
            columns = _neighbourhoods(hidden, stride)
            hidden = np.moveaxis(self._layer(layer, columns), -1, 1)
        return self._layer("5", hidden.reshape(len(hidden), -1))

    def read(self, images: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the digit that each image (n, 8, 8) is read as, int64 (n,)."""
        scores = own_product(self.weights["7.weight"], self.features(images)) + self.weights["7.bias"]
        digits: NDArray[np.int64] = scores.argmax(-1)
        return digits

    def _layer(self, layer: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return gelu(own_product(self.weights[f"{layer}.weight"], x) + self.weights[f"{layer}.bias"])


def _neighbourhoods(x: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Cut the zero-padded 3x3 surroundings of every pixel: (n, c, h, w) to (n, h / stride, w / stride, c * 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    moved = np.moveaxis(views, 1, 3)
    return moved.reshape(*moved.shape[:3], -1)
