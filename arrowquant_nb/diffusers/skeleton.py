"""A float model made ready for packed codes before a loader fills it, and finished afterwards.

Both loaders, that of diffusers and that of transformers, build a model without memory, let us replace modules, put in
every tensor under its name in the file, and let us finish. The names are those of the exported folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from arrowquant_nb.errors import CheckpointError, MetadataError, ShapeMismatchError
from arrowquant_nb.export.folder_reader import check_names
from arrowquant_nb.runtime.input_format import InputFormat
from arrowquant_nb.runtime.loading import follow_tables, layer_over, swappable
from arrowquant_nb.runtime.module_tree import quantized_layers, replace_module
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer
from arrowquant_nb.runtime.stored_weight import StoredWeight
from arrowquant_nb.storage.safetensors_file import TensorEntry, quoted, read_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from arrowquant_nb.export.folder_settings import FolderSettings

__all__ = [
    "SHOWN",
    "check_model",
    "decode_rest",
    "finish",
    "headers",
    "make_room",
    "offload_codes",
    "stored_weight_at",
    "tied_names",
]

SHOWN = 5
NO_PARAMETER = "arrowquant_codes"
"""Name of a parameter that is None, see `offload_codes`."""


def headers(files: Iterable[str | Path], settings: FolderSettings) -> dict[str, TensorEntry]:
    """Return the tensors of weight files by name, checked against what the settings say; headers alone are read.

    Raises
    ------
    CheckpointError
        A file that is no safetensors file, such as a pickle.
    ShapeMismatchError
        Tensors missing, not expected, or of another shape or dtype.

    """
    entries: dict[str, TensorEntry] = {}
    folder = Path()
    for file in files:
        folder = Path(file).parent
        entries |= {entry.name: entry for entry in read_header(Path(file)).entries}
    check_names(folder, settings, entries)
    return entries


def check_model(model: Any, settings: FolderSettings, entries: Mapping[str, TensorEntry]) -> None:
    """Refuse a folder whose tensors are not those of the model; of tied tensors one is enough.

    Raises
    ------
    ShapeMismatchError
        Tensors that the folder or the model lacks, or of another shape; the message names them and the class.

    """
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    shapes = {name: layer.shape for name, layer in settings.layers.items()}
    stored = {f"{name}.{part}" for name, layer in settings.layers.items() for part in layer.parts()}
    shapes |= {name: entry.shape for name, entry in entries.items() if name not in stored}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(wanted.keys() - shapes.keys() - tied)
    extra = sorted(shapes.keys() - wanted.keys())
    wrong = sorted(name for name in shapes.keys() & wanted.keys() if shapes[name] != wanted[name])
    if not (missing or extra or wrong):
        return
    found = next((entry.file.parent for entry in entries.values()), Path())
    sizes = [f"{quoted(name)} is {shapes[name]} in the folder, {wanted[name]} in the model" for name in wrong[:1]]
    lacks = [f"the folder lacks {missing[:SHOWN]}"] if missing else []
    lacks += [f"the model lacks {extra[:SHOWN]}"] if extra else []
    raise ShapeMismatchError(
        f"{found} is not a folder of this {type(model).__name__}: {'; '.join(lacks + sizes)}; load it with the class "
        "that its config.json names"
    )


def make_room(model: Any, settings: FolderSettings) -> None:
    """Put empty quantized layers in the place of those that are stored as codes.

    A weight that no quantized layer can hold, or that is tied to one that none can, gets room for its codes where it
    stood; `finish` decodes it.
    """
    for name, form in settings.layers.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        old = getattr(module, leaf, None)
        if not isinstance(old, torch.nn.Parameter):
            raise MetadataError(f"{quoted(name)} is stored as codes, and {type(model).__name__} has no such weight")
        weight = StoredWeight(form, old.dtype, "meta")
        if leaf == "weight" and path and all(map(swappable, (module, *_tied_modules(model, name)))):
            replace_module(model, path, layer_over(weight, module, name, _input_format(settings, name)))
        else:
            delattr(module, leaf)
            module.add_module(leaf, weight)


def tied_names(model: Any, name: str) -> list[str]:
    """Return the other weights that a model of transformers ties to one; of other models none are known."""
    pairs: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    source = pairs.get(name, name)
    return [other for other in (source, *(t for t, s in pairs.items() if s == source)) if other != name]


def _tied_modules(model: Any, name: str) -> list[Any]:
    return [model.get_submodule(other.rpartition(".")[0]) for other in tied_names(model, name)]


def _input_format(settings: FolderSettings, name: str) -> InputFormat | None:
    """Return how a layer's inputs are rounded: by its table, else by their own range where they are rounded at all."""
    tables = settings.time_aware
    if tables is not None and name in tables.by_layer:
        return InputFormat("static", tables.bit_width, tables.by_layer[name])
    layer = settings.layers[name]
    return InputFormat(layer.activation_rule, layer.activation_bit_width) if layer.activation_bit_width else None


def stored_weight_at(model: Any, name: str) -> tuple[StoredWeight, str] | None:
    """Return the stored weight that a tensor of the file is a part of, and which one; None for any other tensor."""
    path, _, part = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return (module, part) if isinstance(module, StoredWeight) and part in module.form.parts() else None


def decode_rest(model: Any) -> list[str]:
    """Decode the weights that no quantized layer holds into plain parameters, and return their names."""
    decoded = []
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLayer):
            continue
        for leaf, child in list(module.named_children()):
            if isinstance(child, StoredWeight):
                name = f"{path}.{leaf}" if path else leaf
                _check_parts(name, child)
                delattr(module, leaf)
                module.register_parameter(leaf, torch.nn.Parameter(child.dequantize(), requires_grad=False))
                decoded.append(name)
    return decoded


def finish(model: Any, settings: FolderSettings) -> list[str]:
    """Decode what no quantized layer holds, check that all is filled, and let layers know the timestep if they need it.

    Returns
    -------
    list of str
        Names of the weights that were decoded; they are plain parameters now.

    Raises
    ------
    CheckpointError
        A tensor that no file filled, or a value that overflowed float16.
    ShapeMismatchError
        A loader has cast what is stored.

    """
    decoded = decode_rest(model)
    layers = quantized_layers(model)
    for name, layer in layers.items():
        _check_parts(f"{name}.weight", layer.weight)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(f"{quoted(name)} of {type(model).__name__} was not filled; export the model again")
        if tensor.dtype == torch.float16 and stored_weight_at(model, name) is None and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{quoted(name)} overflows float16, whose largest is 65504: load it as bfloat16 or float32"
            )
    if any(layer.inputs.table is not None for layer in layers.values()):
        follow_tables(model, settings.time_aware)
    offload_codes(model)
    return decoded


def offload_codes(model: Any) -> None:
    """Have `enable_sequential_cpu_offload` of a pipeline take the codes off the device, which are buffers.

    It leaves the buffers of a model there unless the model itself, and not only its layers, has parameters: even one
    that is None.
    """
    if next(model.named_parameters(recurse=False), None) is None:
        model.register_parameter(NO_PARAMETER, None)


def _check_parts(name: str, weight: StoredWeight) -> None:
    """Refuse parts that a loader has cast."""
    parts = {part: (tuple(a.shape), str(a.dtype).removeprefix("torch.")) for part, a in weight.arrays().items()}
    weight.form.check(name, parts)
