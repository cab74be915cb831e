"""The tensors of a sample: read from its file, compared with what its config asks for, multiplied.

It knows no model.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, so that safetensors can hand it over
import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray


def stored_weights(path: Path) -> Mapping[str, ArrayLike]:
    """Read every tensor of a safetensors file."""
    tensors: Mapping[str, ArrayLike] = load_file(path)
    return tensors


def own_product(weight: NDArray[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``x @ weight.T`` for x (..., columns); a kernel [O, I, kh, kw] is read as [O, I*kh*kw]."""
    rows = x.reshape(-1, x.shape[-1])
    return (rows @ weight.reshape(len(weight), -1).T).reshape(*x.shape[:-1], len(weight))


def checked_weights(
    weights: Mapping[str, ArrayLike], shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, NDArray[np.float32]]:
    """Copy `weights` to read-only float32 arrays after comparing their names and shapes with `shapes`."""
    missing, unknown = sorted(shapes.keys() - weights.keys()), sorted(weights.keys() - shapes.keys())
    if missing:
        raise ValueError(f"the weights lack {len(missing)} of the model's {len(shapes)} tensors, first {missing[0]!r}")
    if unknown:
        raise ValueError(
            f"the model has no place for {len(unknown)} of the {len(weights)} weights, first {unknown[0]!r}"
        )
    checked = {}
    for name, shape in shapes.items():
        array = np.array(weights[name], dtype=np.float32)
        if array.shape != shape:
            raise ValueError(f"{name!r} has shape {list(array.shape)}; the model's config asks for {list(shape)}")
        array.flags.writeable = False
        checked[name] = array
    return MappingProxyType(checked)
