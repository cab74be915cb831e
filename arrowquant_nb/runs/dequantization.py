"""From a quantized folder back to float safetensors in the layout of the source: drop-in for any loader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import OutputError, ValidationError
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.durable import refuse_used, write_file
from arrowquant_nb.storage.quantized import QuantizedModel, open_quantized
from arrowquant_nb.storage.safetensors_folder import TensorToWrite, index_name, write_index, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable

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
        The folder. A float8 source comes back as bfloat16.

    Raises
    ------
    ModelNotFoundError, ValidationError, OutputError
        No such model, damaged, or an output that cannot be written.
    """
    folder = Path(output)
    if "\0" in f"{folder}{quantized}" or len(folder.name.encode()) > 255:
        raise OutputError(f"{str(folder)[:200]!r} is no name for a folder: choose another one")
    refuse_used(folder)
    if folder.resolve().is_relative_to(Path(quantized).resolve()):
        raise OutputError(f"the output {folder} lies inside the model {quantized}: choose another folder")
    with open_quantized(quantized) as model:
        files = _tensors_by_file(model)
        facts = model.facts
        # In a pipeline the weights and what describes them lie in the component's folder.
        component = str(facts.get("component") or "")
        if component != Path(component).name or component == "..":
            raise ValidationError(f"{quantized}: its manifest names a component {component!r}, which is no folder name")
        weights_folder = folder / component
        header = {"format": "pt", **facts.get("header", {})}
        done = 0
        for name, tensors in files.items():

            def content(tensor: str) -> memoryview:
                nonlocal done
                if progress_callback is not None:
                    progress_callback(tensor, done / len(model))
                done += 1
                return _bytes_back(model, tensor)

            write_safetensors(weights_folder / name, tensors, content, header)
        if len(files) > 1:
            weight_map = {t.name: name for name, tensors in files.items() for t in tensors}
            total = sum(t.nbytes for tensors in files.values() for t in tensors)
            write_index(weights_folder / index_name(next(iter(files))), weight_map, total)
        for target in facts.get("metadata_files", []):
            place = weights_folder if target in facts.get("component_files", []) else folder
            write_file(place / target, model.file_path(target).read_bytes())
    if progress_callback is not None:
        progress_callback("finished", 1.0)
    return folder


def _tensors_by_file(model: QuantizedModel) -> dict[str, list[TensorToWrite]]:
    files: dict[str, list[TensorToWrite]] = {}
    for name in model:
        tensor = model[name]
        dtype = tensor.dtype if tensor.kept else _DTYPE_BACK.get(tensor.dtype, tensor.dtype)
        files.setdefault(tensor.source_file, []).append(TensorToWrite(name, tensor.shape, dtype))
    return files


def _bytes_back(model: QuantizedModel, name: str) -> memoryview:
    tensor = model[name]
    if tensor.kept:
        return tensor.bytes_view()
    dtype = _DTYPE_BACK.get(tensor.dtype, tensor.dtype)
    array = np.empty(tensor.shape, numpy_dtype(dtype))
    return tensor.dequantize(dtype, out=array).reshape(-1).view(np.uint8).data
