"""From a quantized folder back to float safetensors in the layout of the source: drop-in for any loader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from arrowquant_nb.errors import CheckpointError, OutputError
from arrowquant_nb.runs.source_layout import write_source_layout
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.durable import emptied_on_failure, real_path, refuse_used
from arrowquant_nb.storage.quantized import QuantizedModel, open_quantized
from arrowquant_nb.storage.safetensors_folder import TensorToWrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.storage.lazy_tensor import LazyTensor

LARGEST_FLOAT16: Final = np.float16(65504)
# A float8 source comes back as bfloat16: its values times their scale do not fit float8 again.
_DTYPE_BACK = {"float8_e4m3fn": "bfloat16", "float8_e5m2": "bfloat16"}


def dequantize_model(
    quantized: str | Path, output: str | Path, progress_callback: Callable[[str, float], None] | None = None
) -> Path:
    """Write a quantized model as a safetensors folder: the file names, tensor names, shapes and dtypes of its source.

    Parameters
    ----------
    quantized : a finished model folder.
    output : empty or new folder. Of a pipeline it gets the quantized component and the files beside it, not the other
        components.
    progress_callback : called with (message, fraction).

    Returns
    -------
    Path
        The folder. A float8 source comes back as bfloat16; weights that round to more than the float16 of their source
        can hold come back as the largest it has.

    Raises
    ------
    ModelNotFoundError, ValidationError, OutputError, CheckpointError
        No such model, damaged, an output that cannot be written, or a folded weight that float16 cannot hold.
    """
    folder = Path(output)
    if not str(output) or "\0" in f"{folder}{quantized}" or len(folder.name.encode()) > 255:
        raise OutputError(f"{str(folder)[:200]!r} is no name for a folder: choose another one")
    refuse_used(folder)
    if real_path(folder).is_relative_to(real_path(Path(quantized))):
        raise OutputError(f"the output {folder} lies inside the model {quantized}: choose another folder")
    with open_quantized(quantized) as model, emptied_on_failure(folder):
        write_float_folder(model, folder, progress_callback)
    if progress_callback is not None:
        progress_callback("finished", 1.0)
    return folder


def write_float_folder(
    model: QuantizedModel, folder: Path, progress_callback: Callable[[str, float], None] | None = None
) -> None:
    """Write an open model into a folder that is empty or new; see `dequantize_model`."""
    done = 0

    def content(name: str) -> memoryview:
        nonlocal done
        if progress_callback is not None:
            progress_callback(name, done / len(model))
        done += 1
        return bytes_back(model, name)

    write_source_layout(
        model, folder, lambda name: [TensorToWrite(name, model[name].shape, float_dtype(model[name]))], content
    )


def float_dtype(tensor: LazyTensor) -> str:
    """Dtype in which a tensor is written back: the source's, bfloat16 for a quantized float8 tensor."""
    return tensor.dtype if tensor.kept else _DTYPE_BACK.get(tensor.dtype, tensor.dtype)


def bytes_back(model: QuantizedModel, name: str) -> memoryview:
    """Return the bytes of a tensor in its `float_dtype`."""
    tensor = model[name]
    if tensor.kept:
        return tensor.bytes_view()
    dtype = float_dtype(tensor)
    array = np.empty(tensor.shape, numpy_dtype(dtype))
    tensor.dequantize(dtype, out=array)
    if dtype == "float16" and np.isinf(array).any():
        if tensor.folding:
            raise CheckpointError(
                f"{model.path}: {name!r}, folded, overflows the float16 of its source: quantize it again with "
                "fold_equalization false, or load it in bfloat16 or float32 by load_quantized"
            )
        np.clip(array, -LARGEST_FLOAT16, LARGEST_FLOAT16, out=array)  # no weight was larger, only what it rounds to
    return array.reshape(-1).view(np.uint8).data
