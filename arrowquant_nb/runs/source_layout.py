"""Writing a folder in the layout that the source of a quantized model had: its file names, index and JSON files.

What stands in the files is the caller's business: the same tensors in float, or others in their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb.errors import ValidationError
from arrowquant_nb.storage.durable import write_file
from arrowquant_nb.storage.safetensors_folder import TensorToWrite, index_name, write_index, write_safetensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["component_of", "write_source_layout"]


def component_of(model: QuantizedModel) -> str:
    """Return the sub-folder of a pipeline that the weights lie in, "" when the source was no pipeline.

    Raises
    ------
    ValidationError
        The manifest names something that is no folder name.
    """
    component = str(model.facts.get("component") or "")
    if component != Path(component).name or component == "..":
        raise ValidationError(f"{model.path}: its manifest names a component {component!r}, which is no folder name")
    return component


def write_source_layout(
    model: QuantizedModel,
    folder: Path,
    tensors: Callable[[str], Iterable[TensorToWrite]],
    content: Callable[[str], memoryview],
    replaced: Mapping[str, bytes] | None = None,
) -> None:
    """Write safetensors files and the JSON files beside them; one tensor is in memory at a time.

    Parameters
    ----------
    model : the quantized model.
    folder : empty or new; of a pipeline it gets the quantized component and the files beside it.
    tensors : what is written for a tensor of the model, into the file that held it.
    content : bytes of a tensor to write, by its name.
    replaced : files of the weights' folder to write with this content, instead of as the source had them.

    Raises
    ------
    ValidationError, OutputError
        The model is damaged, or something cannot be written.
    """
    weights_folder = folder / component_of(model)
    files: dict[str, list[TensorToWrite]] = {}
    for name in model:
        files.setdefault(model[name].source_file, []).extend(tensors(name))
    header = {"format": "pt", **model.facts.get("header", {})}
    for name, listed in files.items():
        write_safetensors(weights_folder / name, listed, content, header)
    if len(files) > 1:
        weight_map = {t.name: name for name, listed in files.items() for t in listed}
        total = sum(t.nbytes for listed in files.values() for t in listed)
        write_index(weights_folder / index_name(next(iter(files))), weight_map, total)
    for target in model.facts.get("metadata_files", []):
        place = weights_folder if target in model.facts.get("component_files", []) else folder
        if place != weights_folder or target not in (replaced or {}):
            write_file(place / target, model.file_path(target).read_bytes())
    for target, bytes_ in (replaced or {}).items():
        write_file(weights_folder / target, bytes_)
