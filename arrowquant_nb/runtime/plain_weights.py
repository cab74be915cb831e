"""Stored tensors as plain torch tensors: kept ones without a copy, quantized ones decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import torch

from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.storage.quantized import open_privately

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.model_files import Verify

__all__ = ["as_torch", "dequantize_state_dict", "torch_dtype"]

_BACK = {"float8_e4m3fn": torch.bfloat16, "float8_e5m2": torch.bfloat16}


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a stored dtype name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def as_torch(tensor: LazyTensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return a stored tensor in its shape; a kept one of a privately mapped folder shares the mapping.

    Parameters
    ----------
    tensor : of an open folder.
    dtype : None = that of the source; float8 weights come as bfloat16.

    Raises
    ------
    CheckpointError
        A value overflows float16.

    """
    if tensor.kept:
        value = _shared(np.asarray(tensor.dequantize()))
        wanted = dtype or value.dtype
    else:
        wanted = dtype or _BACK.get(tensor.dtype) or torch_dtype(tensor.dtype)
        value = torch.from_numpy(np.asarray(tensor.dequantize("float32")))
    narrow = value.to(wanted)
    if (
        wanted == torch.float16
        and value.dtype != wanted
        and not (torch.isfinite(narrow) | ~torch.isfinite(value)).all()
    ):
        raise CheckpointError(
            f"{tensor.name}: a value overflows float16, whose largest is 65504: load it as bfloat16 or float32"
        )
    return narrow


def _shared(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> torch.Tensor:
    """Return a tensor over an array's memory, or over a copy where torch cannot write to it."""
    usable = array.flags.writeable and array.flags.aligned
    array = np.ascontiguousarray(array if usable else array.copy()).reshape(array.shape)
    for extended, dtype in ((ml_dtypes.bfloat16, torch.bfloat16), (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
                            (ml_dtypes.float8_e5m2, torch.float8_e5m2)):  # fmt: skip
        if array.dtype == extended:
            return torch.from_numpy(array.view(np.uint16 if array.itemsize == 2 else np.uint8)).view(dtype)
    return torch.from_numpy(array)


def dequantize_state_dict(
    path: str | Path, dtype: torch.dtype | None = None, verify: Verify = "lazy"
) -> dict[str, torch.Tensor]:
    """Return every tensor of a quantized model folder as a plain torch tensor, by its name in the source.

    Parameters
    ----------
    path : a finished model folder.
    dtype : of the float tensors; None = that of the source, float8 as bfloat16.
    verify : "lazy" checks every file's hash, "off" none.

    Returns
    -------
    dict
        What `model.load_state_dict` takes. Tensors that were kept share the mapped files until they are written to.

    Raises
    ------
    ModelNotFoundError, ValidationError, MetadataError, CheckpointError
        No such model, damaged, newer than this version, or a value that overflows `dtype`.

    """
    with open_privately(path, verify) as folder:
        state = {}
        for name in folder.in_turn(folder):
            tensor = folder[name]
            floating = not tensor.kept or torch_dtype(tensor.dtype).is_floating_point
            state[name] = as_torch(tensor, dtype if floating else None)
        return state
