"""The folder that diffusers loads: `config.json` with our `quantization_config`, and safetensors with packed codes.

Layout, format version 1.1. The folder has the source's files and names (`diffusion_pytorch_model*.safetensors`, index,
`config.json`, of a pipeline also `model_index.json` and the small files beside it), with two changes:

1. In the safetensors, a quantized tensor NAME (such as `blocks.0.to_q.weight`, matrix view `[rows, columns]` =
   `[shape[0], product of the rest]`) is replaced by its parts; every other tensor stands as in the source.

   ======================  ==================  ==============================================================
   name                    dtype               shape and meaning
   ======================  ==================  ==============================================================
   NAME.packed             uint8               [rows, ceil(columns * bit_width / 8)]; code i of a byte in bits
                                               [i * bit_width, (i + 1) * bit_width), rows start on a byte
   NAME.scales             scale_dtype         grid zero_point, minimum: [rows, n_groups]; levels:
                                               [rows, n_groups, 2]
                           uint8               grid k: [rows, n] bytes, see `_kernels.k_format`
   NAME.zero_points        uint8               grid zero_point: [rows, ceil(n_groups * bit_width / 8)], packed
                                               like the codes; grid k: [rows, n]
                           scale_dtype         grid minimum and levels: [rows, n_groups]
   NAME.low_rank_a, _b     float16             [rows, rank] and [rank, columns]; only with low_rank
   NAME.equalization       float16 or float32  [columns]; only with equalization
   NAME.activation_means   float32             [time groups, columns], taken off the input; only with them
   ======================  ==================  ==============================================================

   The float weight is (R^T decode(packed, scales, zero_points) + low_rank_a low_rank_b) / equalization: decode as in
   `storage.parquet_v2`, R^T only with a rotation_seed. `QuantizedTensor.dequantize` does all of it.

2. In `config.json`, the key `quantization_config` holds

   - `quant_method` "arrowquant", `format_version` "1.1", `modality`;
   - `layers`: {NAME: {shape, dtype, bit_width, group_size, grid, method, and where they apply scale_dtype
     (default "float16"), rotation_seed, low_rank, equalization (a dtype), activation_means (number of groups),
     activation_bit_width (4 or 8: the input is rounded, by its own range where `time_aware` has no grids),
     activation_rule (since 1.1; "per_token" by default, "per_group": a scale per token and 64 channels)}};
   - `kept`: names of all other tensors (or null: not listed);
   - `time_aware`: null, or `TimeAwareQuantMetadata.to_dict()`: activation grids per timestep group, by NAME, and
     (since 1.1) how the model's calls say their time.

Unknown major versions are refused; unknown keys too, unless the minor version is newer. `FolderSettings` reads and
checks all this, `FolderLayer.parts` says which tensors there must be, `FolderLayer.tensor` joins arrays to a
`QuantizedTensor`; `open_exported` reads a folder without torch.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.export.folder_settings import FolderLayer, FolderSettings
from arrowquant_nb.export.parts import Parts
from arrowquant_nb.export.report import ExportReport, TensorExport
from arrowquant_nb.runs.source_layout import write_source_layout
from arrowquant_nb.storage.joined_tiles import equalization_dtype, join_tiles, scale_dtype
from arrowquant_nb.storage.json_file import read_json_object
from arrowquant_nb.storage.safetensors_folder import TensorToWrite

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.export.options import ExportOptions
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["settings_of", "write_folder"]

CONFIG_NAME = "config.json"


def settings_of(model: QuantizedModel) -> FolderSettings:
    """Return what `quantization_config` says of an open model."""
    means = _means(model)
    layers = {
        name: _layer(tensor, len(means.get(name, ())), model.rounded_inputs.get(name, 0))
        for name, tensor in model.items()
        if not tensor.kept
    }
    kept = tuple(name for name in model if model[name].kept)
    return FolderSettings(layers, model.modality, kept, model.time_aware)


def _layer(tensor: LazyTensor, n_means: int, activation_bit_width: int) -> FolderLayer:
    equalization = equalization_dtype(tensor)
    return FolderLayer(
        shape=tensor.shape,
        dtype=tensor.dtype if tensor.dtype in ("float32", "float16") else "bfloat16",  # float8 comes back as bfloat16
        bit_width=tensor.bit_width,
        group_size=tensor.group_size,
        grid=tensor.grid,
        method=tensor.method,
        scale_dtype=scale_dtype(tensor).name,
        rotation_seed=tensor.rotation_seed,
        low_rank=tensor.low_rank,
        equalization=None if equalization is None else equalization.name,
        activation_means=n_means,
        activation_bit_width=activation_bit_width,
    )


def _means(model: QuantizedModel) -> dict[str, NDArray[np.float32]]:
    """Channel means of the layers' inputs, float32 (time groups, columns), of layers whose inputs are centred."""
    means = {} if model.spatial is None else model.spatial.activation_means
    return {name: np.array(values, np.float32) for name, values in means.items()}


def write_folder(
    model: QuantizedModel,
    folder: Path,
    options: ExportOptions,
    progress_callback: Callable[[str, float], None] | None = None,
) -> ExportReport:
    """Write an open model into an empty or new folder; one tensor is in memory at a time."""
    options.check_weight_type("diffusers", ())
    options.check_convolutions("diffusers")
    settings = settings_of(model)

    def plan(name: str) -> list[TensorToWrite]:
        tensor = model[name]
        if tensor.kept:
            return [TensorToWrite(name, tensor.shape, tensor.dtype)]
        return [TensorToWrite(f"{name}.{part}", *of) for part, of in settings.layers[name].parts().items()]

    means = _means(model)
    parts = Parts(plan, lambda name: _contents(model[name], settings, means), len(model), progress_callback)
    replaced = {CONFIG_NAME: _config_bytes(model, settings)}
    write_source_layout(model, folder, parts.tensors, parts.content, replaced)
    exported = tuple(
        TensorExport(name, tensor.shape, tensor.stored_as, tensor.stored_as, parts.nbytes[name], exact=True)
        for name, tensor in model.items()
    )
    return ExportReport("diffusers", folder.name, sum(parts.nbytes.values()), exported, (), _remarks(model))


def _contents(
    tensor: LazyTensor, settings: FolderSettings, means: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[Any] | memoryview]:
    name = tensor.name
    if tensor.kept:
        return {name: tensor.bytes_view()}
    whole = join_tiles(tensor)
    found: dict[str, NDArray[Any] | memoryview] = {}
    for part in settings.layers[name].parts():
        found[f"{name}.{part}"] = means[name] if part == "activation_means" else getattr(whole, part)
    return found


def _config_bytes(model: QuantizedModel, settings: FolderSettings) -> bytes:
    names = model.facts.get("metadata_files", [])
    config = dict(read_json_object(model.file_path(CONFIG_NAME))) if CONFIG_NAME in names else {}
    config["quantization_config"] = settings.to_dict()
    return (json.dumps(config, indent=2) + "\n").encode()


def _remarks(model: QuantizedModel) -> tuple[str, ...]:
    remarks = ["loading needs arrowquant_nb: `import arrowquant_nb.diffusers`, then the class's own from_pretrained"]
    if CONFIG_NAME not in model.facts.get("metadata_files", []):
        remarks.append("the source has no config.json: add the model class's own keys to the one written")
    return tuple(remarks)
