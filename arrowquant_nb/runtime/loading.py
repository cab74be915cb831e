"""Quantized layers into any torch model, from a model folder: modules are swapped, everything else is set.

The folder and the model must name the same tensors. Layers are views of the mapped files wherever torch can take them
so.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError, ValidationError
from arrowquant_nb.runtime.input_format import INPUT_RULES, InputFormat
from arrowquant_nb.runtime.modules import QuantizedConv1d, QuantizedConv2d, QuantizedConv3d, QuantizedLinear
from arrowquant_nb.runtime.plain_weights import as_torch
from arrowquant_nb.runtime.time import follow_time, time_argument
from arrowquant_nb.storage.joined_tiles import join_tiles
from arrowquant_nb.storage.policy import steers_all_channels
from arrowquant_nb.storage.quantized import open_privately

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from arrowquant_nb.export.folder_settings import FolderLayer
    from arrowquant_nb.runtime.quantized_layer import QuantizedLayer
    from arrowquant_nb.storage.lazy_tensor import LazyTensor
    from arrowquant_nb.storage.quantized import QuantizedModel, Verify

__all__ = ["empty_layer", "load_quantized", "swappable", "swapped_layer"]

Places = dict[int, list[tuple[dict[str, Any], str]]]
SHOWN = 5
_CONVOLUTIONS = {torch.nn.Conv1d: QuantizedConv1d, torch.nn.Conv2d: QuantizedConv2d, torch.nn.Conv3d: QuantizedConv3d}
_CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")


def load_quantized(
    model: Any,
    path: str | Path,
    *,
    inputs: str | None = None,
    verify: Verify = "lazy",
    n_timesteps: float | None = None,
    mask_token_id: int | None = None,
) -> Any:
    """Load a quantized model folder into a torch model of its class.

    Parameters
    ----------
    model
        A torch module with the tensors of the folder: built from its config, with any weights, or on the meta device.
        Linear layers and convolutions whose weight is quantized are replaced, other tensors are set; dtypes stay those
        of the model.
    path
        A finished model folder.
    inputs
        How the replaced layers round their inputs: None = as the folder was made, "float" = not at all, "per_token",
        "per_group" (per token and group of 64 channels), or "static" (grids per group of timesteps, from the folder).
        Layers that see only the timestep and the class stay float.
    verify
        "lazy" checks every file's hash, "off" none.
    n_timesteps
        Training timesteps that `model.forward` counts, see `follow_time`.
    mask_token_id
        Of a masked language model, whose time is the share of masked tokens.

    Returns
    -------
    module
        The model, in evaluation mode; its `forward` now notes the timestep where any layer needs it.

    Raises
    ------
    ShapeMismatchError
        Layers that are missing in the folder or in the model, or of another shape: it is another model's folder.
    ModelNotFoundError, ValidationError, MetadataError
        No folder, a damaged one, or one of a newer version; inputs "static" without tables.
    CheckpointError
        A kept value that overflows the dtype of the model.

    Examples
    --------
    >>> import arrowquant_nb as aq
    >>> from diffusers import DiTTransformer2DModel  # doctest: +SKIP
    >>> model = DiTTransformer2DModel.from_config(DiTTransformer2DModel.load_config("digits-int4"))  # doctest: +SKIP
    >>> aq.load_quantized(model, "digits-int4")  # doctest: +SKIP

    """
    with open_privately(path, verify) as folder:
        _check_names(model, folder)
        rules = _InputRules(folder, inputs, folder.rounded_inputs)
        rest = [name for name in folder if not _swap(model, rules, name)]
        places = _places(model)  # after the swaps: layers have taken biases over
        for name in rest:
            _set(model, places, folder, name)
    _check_filled(model, path)
    if any(getattr(layer, "inputs", InputFormat()).table is not None for layer in model.modules()):
        _follow(model, n_timesteps, mask_token_id)
    return model.eval()


def _follow(model: Any, n_timesteps: float | None, mask_token_id: int | None) -> None:
    """Wrap the forward of a model that has a timestep; of any other the caller says the time."""
    if mask_token_id is not None or time_argument(model.forward) is not None:
        follow_time(model, n_timesteps, mask_token_id=mask_token_id)


def _check_names(model: Any, folder: QuantizedModel) -> None:
    """Refuse a folder whose tensors are not those of the model; of tied tensors one is enough."""
    wanted = model.state_dict(keep_vars=True)
    present = {id(wanted[name]) for name in folder if name in wanted}
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = [n for n, value in wanted.items() if n not in folder and id(value) not in present and n not in tied]
    extra = [name for name in folder if name not in wanted]
    if missing or extra:
        raise ShapeMismatchError(
            f"{folder.path} is not a folder of this {type(model).__name__}: "
            + "; ".join(
                part
                for part in (
                    _listed("the folder lacks", missing, list(folder)),
                    _listed("the model lacks", extra, list(wanted)),
                )
                if part
            )
            + f". Build the model from the folder's config.json (class {folder.facts.get('class_name')})"
        )
    wrong = [n for n in folder if tuple(wanted[n].shape) != folder[n].shape]
    if wrong:
        name = wrong[0]
        raise ShapeMismatchError(
            f"{name}: {folder.path} has shape {folder[name].shape}, the model {tuple(wanted[name].shape)} "
            f"({len(wrong)} such tensors): build the model from the folder's config.json"
        )


def _listed(what: str, names: list[str], others: Iterable[str]) -> str:
    if not names:
        return ""
    near = get_close_matches(names[0], list(others)[:2000], 1, 0.8)
    hint = f" (it has {near[0]!r})" if near else ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what} {', '.join(map(repr, names[:SHOWN]))}{more}{hint}"


def _swap(model: Any, rules: _InputRules, name: str) -> bool:
    """Put a quantized layer in a module's place; False where the tensor is to be set instead."""
    folder, tensor = rules.folder, rules.folder[name]
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if tensor.kept or leaf != "weight" or not path or not swappable(module):
        return False
    parent, _, child = path.rpartition(".")
    rounding = rules.of_layer(name)
    layer = swapped_layer(module, tensor, rounding, None if rounding is None else _means_of(folder, name, rounding))
    setattr(model.get_submodule(parent), child, layer)
    folder.release(name)
    return True


def _set(model: Any, places: Places, folder: QuantizedModel, name: str) -> None:
    """Put a plain tensor, decoded where it is quantized, in the place of a parameter or buffer and of its aliases."""
    path, _, leaf = name.rpartition(".")
    old = getattr(model.get_submodule(path), leaf)
    value = as_torch(folder[name], old.dtype)
    if old.device.type not in ("cpu", "meta"):
        value = value.to(old.device)
    if isinstance(old, torch.nn.Parameter):
        value = torch.nn.Parameter(value, old.requires_grad)
    for holder, place in places[id(old)]:
        holder[place] = value
    folder.release(name)


def _places(model: Any) -> Places:
    """Where each parameter and buffer hangs, by identity: tied ones hang in several places."""
    found: Places = {}
    for module in model.modules():
        for holder in (module._parameters, module._buffers):  # noqa: SLF001 - torch has no other way to find aliases
            for leaf, value in holder.items():
                if value is not None:
                    found.setdefault(id(value), []).append((holder, leaf))
    return found


def swappable(module: Any) -> bool:
    """Tell whether a quantized layer can take a module's place.

    Not that of an output projection that an attention reads as a matrix (`torch.nn.MultiheadAttention`).
    """
    if isinstance(module, torch.nn.modules.linear.NonDynamicallyQuantizableLinear):
        return False
    return isinstance(module, (torch.nn.Linear, *_CONVOLUTIONS))


def swapped_layer(
    module: Any, tensor: LazyTensor, inputs: InputFormat | None = None, means: NDArray[np.float32] | None = None
) -> QuantizedLayer:
    """Return the quantized layer that takes the place of a linear layer or convolution, with its bias as it is now."""
    kind, settings = _kind_of(module, tensor.name, inputs)
    layer = kind.from_arrays(join_tiles(tensor), means=means, **settings)
    layer.bias = module.bias  # its values come, or came, with its own name
    device = module.weight.device
    return layer if device.type in ("cpu", "meta") else layer.to(device)


def empty_layer(module: Any, name: str, form: FolderLayer, inputs: InputFormat | None = None) -> QuantizedLayer:
    """Return the layer that takes a module's place and is still to be filled: on the meta device, but for its bias."""
    kind, settings = _kind_of(module, name, inputs)
    layer = kind.empty(form, **settings)
    layer.bias = module.bias
    return layer


def _kind_of(module: Any, name: str, inputs: InputFormat | None) -> tuple[type[QuantizedLayer], dict[str, Any]]:
    settings: dict[str, Any] = {"dtype": module.weight.dtype, "name": name, "inputs": inputs}
    for plain, quantized in _CONVOLUTIONS.items():
        if isinstance(module, plain):
            return quantized, settings | {key: getattr(module, key) for key in _CONVOLUTION_SETTINGS}
    return QuantizedLinear, settings


@dataclass(frozen=True)
class _InputRules:
    """How every layer of a folder rounds its inputs."""

    folder: QuantizedModel
    rule: str | None
    """As `load_quantized` was given it."""
    bits: Mapping[str, int]
    """Of the layers whose inputs the folder wants rounded."""

    def __post_init__(self) -> None:
        if self.rule not in (None, *INPUT_RULES):
            raise ConfigurationError(f"inputs {self.rule!r} is not one of {', '.join(INPUT_RULES)}")
        if self.rule == "static" and self.folder.time_aware is None:
            raise ValidationError(
                f"{self.folder.path} has no grids for the inputs of any layer: quantize with activation_bit_width, or "
                "load with inputs='per_token'"
            )

    def of_layer(self, name: str) -> InputFormat | None:
        """Return the rounding of one layer's inputs, None where they stay float."""
        wanted = name in self.bits if self.bits else self.rule is not None and not self._steers(name)
        if self.rule == "float" or not wanted:
            return None
        bits, tables = self.bits.get(name, 8), self.folder.time_aware
        if self.rule in (None, "static") and tables is not None and name in tables.by_layer:
            return InputFormat("static", bits, tables.by_layer[name])
        return InputFormat("per_group" if self.rule == "per_group" else "per_token", bits)

    def _steers(self, name: str) -> bool:
        return steers_all_channels(name, self.folder.facts.get("class_name"), self.folder.modality)


def _means_of(folder: QuantizedModel, name: str, inputs: InputFormat) -> NDArray[np.float32] | None:
    """Channel means that are taken off a layer's inputs, (time groups, columns); those of groups need their table."""
    spatial = folder.layer_metadata(name).get("spatial") or {}
    means = spatial.get("activation_means", {}).get(name)
    return np.array(means, np.float32) if means and (inputs.table is not None or len(means) == 1) else None


def _check_filled(model: Any, path: str | Path) -> None:
    """Refuse a model with tensors that were built without memory and that no folder holds."""
    empty = [n for n, b in (*model.named_parameters(), *model.named_buffers()) if b.is_meta]
    if empty:
        raise CheckpointError(
            f"{path}: {empty[0]!r} of {type(model).__name__} is on the meta device and not in the folder "
            f"({len(empty)} such tensors): build the model on the processor, or with its buffers there"
        )
