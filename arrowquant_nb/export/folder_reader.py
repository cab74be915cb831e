"""Reading an exported folder back into arrays, without torch: headers first, every tensor checked before any is read.

The other direction of `diffusers_folder.py`, which describes the layout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb.errors import MetadataError, ModelNotFoundError, ShapeMismatchError
from arrowquant_nb.export.diffusers_folder import CONFIG_NAME
from arrowquant_nb.export.folder_settings import FolderLayer, FolderSettings
from arrowquant_nb.quantizers.tensor import QuantizedTensor
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.safetensors_file import FileStamp, TensorEntry, quoted, read_into
from arrowquant_nb.storage.shard_index import read_shards
from arrowquant_nb.storage.source_folder import SourceFolder, choose_component
from arrowquant_nb.storage.weight_files import find_weights

__all__ = ["ExportedFolder", "open_exported"]

MAX_CONFIG_NBYTES = 64 << 20  # 10,000 layers with 100 time groups each take about 40 MB


class ExportedFolder(Mapping[str, QuantizedTensor | NDArray[Any]]):
    """An exported folder: tensor name -> quantized tensor, or array where the tensor was kept; read when asked for.

    Attributes
    ----------
    path : the folder that holds config.json and the weights.
    settings : its checked `quantization_config`.
    config : the rest of config.json.
    """

    def __init__(
        self,
        path: Path,
        settings: FolderSettings,
        config: Mapping[str, Any],
        entries: Mapping[str, TensorEntry],
        stamps: Mapping[Path, FileStamp],
    ) -> None:
        self.path = path
        self.settings = settings
        self.config = config
        self._entries = entries
        self._stamps = stamps
        self._parts = {f"{name}.{part}" for name, layer in settings.layers.items() for part in layer.parts()}
        self._names = [*settings.layers, *(name for name in entries if name not in self._parts)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> QuantizedTensor | NDArray[Any]:
        layer = self.settings.layers.get(name)
        if layer is None:
            if name in self._parts:
                raise KeyError(name)
            return self.array(name)
        return layer.tensor(name, {part: self.array(f"{name}.{part}") for part in layer.parts()})

    def array(self, name: str) -> NDArray[Any]:
        """Return one tensor of the files by its name there (`X.weight.packed`, `X.bias`), a fresh array."""
        entry = self._entries[name]
        buffer = np.empty(entry.nbytes, np.uint8)
        read_into(entry.file, self._stamps[entry.file], entry.offset, buffer)
        return buffer.view(numpy_dtype(entry.dtype)).reshape(entry.shape)

    def __repr__(self) -> str:
        return f"ExportedFolder({str(self.path)!r}, {len(self.settings.layers)} of {len(self)} tensors quantized)"


def open_exported(path: str | Path, variant: str | None = None) -> ExportedFolder:
    """Open a folder that the export to `diffusers` wrote; only config.json and headers are read.

    Parameters
    ----------
    path : the component's folder, or the pipeline's.
    variant : variant of the weight files, such as "fp16".

    Raises
    ------
    ModelNotFoundError, CheckpointError
        No folder; no weights, damaged, or hostile ones.
    MetadataError
        config.json without our `quantization_config`, of a newer major version, or damaged.
    ShapeMismatchError
        Tensors missing, not expected, or of another shape or dtype; the message names the first.
    """
    given = Path(path)
    if "\0" in str(given) or not given.is_dir():
        raise ModelNotFoundError(f"there is no folder at {str(given)[:200]!r}")
    folder = SourceFolder.at(given)
    index = folder.json("model_index.json")
    if index is not None:
        folder = SourceFolder.at(folder.path / choose_component(folder, index, None), inside=folder)
    if CONFIG_NAME not in folder.names():
        raise MetadataError(f"{folder.path}: has no {CONFIG_NAME}: give a folder that was exported to 'diffusers'")
    config = dict(read_json_object(folder.file(CONFIG_NAME), MAX_CONFIG_NBYTES))
    if "quantization_config" not in config:
        raise MetadataError(f"{folder.path / CONFIG_NAME}: has no quantization_config: these weights are plain floats")
    try:
        settings = FolderSettings.from_dict(config.pop("quantization_config"))
    except MetadataError as error:
        raise MetadataError(f"{folder.path / CONFIG_NAME}: {error}") from error
    weights = find_weights(folder, variant)
    headers = read_shards(list(weights.paths), weights.weight_map)
    entries = {entry.name: entry for _, header in headers for entry in header.entries}
    check_names(folder.path, settings, entries)
    stamps = {file: header.stamp for file, header in headers}
    return ExportedFolder(folder.path, settings, config, entries, stamps)


def check_names(path: Path, settings: FolderSettings, entries: Mapping[str, TensorEntry]) -> None:
    """Raise ShapeMismatchError unless the files hold exactly what the settings say."""
    rest = dict(entries)
    for name, layer in settings.layers.items():
        if name in rest:
            raise ShapeMismatchError(f"{path}: {quoted(name)} is there as floats and listed as quantized; keep one")
        found = _parts_of(name, layer, rest)
        layer.check(name, {part: (entry.shape, entry.dtype) for part, entry in found.items()})
    missing = [name for name in settings.kept or () if name not in rest]
    extra = [] if settings.kept is None else sorted(rest.keys() - set(settings.kept))
    if missing or extra:
        raise ShapeMismatchError(
            f"{path}: the weights do not fit {CONFIG_NAME}: missing {missing[:5]}, not expected {extra[:5]}; "
            "the files are of another model, or incomplete"
        )


def _parts_of(name: str, layer: FolderLayer, rest: dict[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Take the parts of a tensor out of `rest`, those too that it should not have."""
    every = (*layer.parts(), "low_rank_a", "low_rank_b", "equalization", "activation_means")
    return {part: rest.pop(f"{name}.{part}") for part in dict.fromkeys(every) if f"{name}.{part}" in rest}
