"""Quantized layers into any torch model, from a model folder: modules are swapped, everything else is set.

The folder and the model must name the same tensors. Layers are views of the mapped files wherever torch can take them
so.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from arrowquant_nb.errors import CheckpointError, ConfigurationError, ShapeMismatchError
from arrowquant_nb.runtime.embedding import QuantizedEmbedding
from arrowquant_nb.runtime.followed_forward import follow_reading, time_argument
from arrowquant_nb.runtime.input_format import InputFormat
from arrowquant_nb.runtime.input_rules import InputRules
from arrowquant_nb.runtime.module_tree import quantized_layers
from arrowquant_nb.runtime.modules import QuantizedConv1d, QuantizedConv2d, QuantizedConv3d, QuantizedLinear
from arrowquant_nb.runtime.plain_weights import as_torch
from arrowquant_nb.runtime.quantized_layer import QuantizedLayer
from arrowquant_nb.runtime.stored_weight import StoredWeight, form_of
from arrowquant_nb.runtime.time import N_TIMESTEPS, counted_timesteps
from arrowquant_nb.storage.joined_tiles import join_tiles
from arrowquant_nb.time_reading import UNKNOWN_READING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.quantizers.time_tables import TimeAwareQuantMetadata
    from arrowquant_nb.storage.quantized import QuantizedModel

__all__ = ["follow_tables", "layer_over", "load_into", "swappable"]

Value = TypeVar("Value")
Places = dict[int, list[tuple[dict[str, Any], str]]]
SHOWN = 5
READERS = 2
"""Threads that check hashes and copy while layers are put into the model; more gain nothing."""
_CONVOLUTIONS = {torch.nn.Conv1d: QuantizedConv1d, torch.nn.Conv2d: QuantizedConv2d, torch.nn.Conv3d: QuantizedConv3d}
_CONVOLUTION_SETTINGS = ("stride", "padding", "dilation", "groups", "padding_mode")


def load_into(
    model: Any,
    folder: QuantizedModel,
    *,
    inputs: str | None = None,
    n_timesteps: float | None = None,
    mask_token_id: int | None = None,
) -> Any:
    """Load an open model folder into a torch model of its class; see `arrowquant_nb.load_quantized`.

    `folder` is privately mapped; its arrays are shared where torch can take them so.
    """
    _check_model(model)
    _check_names(model, folder)
    rules = InputRules(folder, inputs, folder.rounded_inputs)
    slots = _Slots(model)
    layers = {name: bool(slots.users_of(model, folder, name)) for name in folder}
    for name, stored in _read_ahead(folder, [n for n in folder if layers[n]], lambda n: join_tiles(folder[n])):
        _swap(model, rules, name, stored, slots)
    places = _places(model)  # after the swaps: layers have taken biases over
    rest = [name for name in folder if not layers[name]]
    for name, value in _read_ahead(folder, rest, lambda n: as_torch(folder[n], _held(model, n).dtype)):
        _set(places, _held(model, name), value)
    _check_filled(model, folder.path)
    if any(getattr(layer, "inputs", InputFormat()).table is not None for layer in model.modules()):
        follow_tables(model, folder.time_aware, n_timesteps, mask_token_id)
    return model.eval()


def follow_tables(
    model: Any,
    tables: TimeAwareQuantMetadata | None,
    n_timesteps: float | None = None,
    mask_token_id: int | None = None,
) -> None:
    """Have a model note its time as its tables were calibrated, or as the user says where they differ.

    Of a model that is given neither a timestep nor masked tokens the caller says the time.
    """
    reading = UNKNOWN_READING if tables is None else tables.reading
    if n_timesteps is not None:
        reading = replace(reading, time_range=(0.0, counted_timesteps(n_timesteps)))
    if mask_token_id is not None:
        reading = replace(reading, mask_token_id=mask_token_id)
    if reading.mask_token_id is not None or time_argument(model.forward) is not None:
        follow_reading(model, reading, N_TIMESTEPS if tables is None else tables.n_timesteps)


def _check_model(model: Any) -> None:
    """Refuse what is no model of float layers."""
    if not isinstance(model, torch.nn.Module):
        raise ConfigurationError(
            f"a quantized folder is loaded into a torch module, not into a {type(model).__name__}: build the model "
            "from the folder's config.json; of a pipeline give the model, such as pipeline.transformer"
        )
    coded = next(iter(quantized_layers(model)), None)
    if coded is not None:
        raise ConfigurationError(
            f"{type(model).__name__} holds quantized layers already, such as {coded!r}: build it anew from its config, "
            "or give its float layers back with dequantize()"
        )


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


def _read_ahead(folder: QuantizedModel, names: list[str], read: Callable[[str], Value]) -> Iterator[tuple[str, Value]]:
    """Yield tensors as `read` gives them, in order; threads read the next ones meanwhile."""
    with ThreadPoolExecutor(READERS) as pool:
        coming = (pool.submit(read, name) for name in names)
        waiting = deque(islice(coming, READERS))
        for name in folder.in_turn(names):
            value = waiting.popleft().result()
            waiting.extend(islice(coming, 1))
            yield name, value


def _swap(model: Any, rules: InputRules, name: str, stored: QuantizedTensor, slots: _Slots) -> None:
    """Put quantized layers in the place of all modules that share a weight."""
    folder, rounding = rules.folder, rules.of_layer(name)
    users = slots.users_of(model, folder, name)
    if not users:  # a tied weight that the folder holds under another name too
        return
    old = users[0].weight
    means = None if rounding is None else rules.means_of(name, rounding)
    weight = StoredWeight(form_of(stored, 0 if means is None else len(means)), old.dtype, "meta")
    weight.set_quantized(stored, means, name)
    if old.device.type not in ("cpu", "meta"):
        weight = weight.to(old.device)
    for module in users:
        layer = layer_over(weight, module, name, rounding)
        for parent, child in slots.of_modules.pop(id(module)):
            setattr(parent, child, layer)
    del slots.users[id(old)]  # so that the floats go before the next layer comes


class _Slots:
    """Where parameters and modules hang before any is swapped, by identity; what is shared hangs in several places."""

    def __init__(self, model: Any) -> None:
        self.users: dict[int, list[tuple[Any, str]]] = {}
        self.of_modules: dict[int, list[tuple[Any, str]]] = {}
        for parent in model.modules():
            for leaf, value in parent._parameters.items():  # noqa: SLF001 - torch has no other way to find aliases
                self.users.setdefault(id(value), []).append((parent, leaf))
            for child, module in parent._modules.items():  # noqa: SLF001
                self.of_modules.setdefault(id(module), []).append((parent, child))

    def users_of(self, model: Any, folder: QuantizedModel, name: str) -> list[Any]:
        """Return the modules whose weight a stored tensor is; none where it is kept or not all can be swapped."""
        path, _, leaf = name.rpartition(".")
        if folder[name].kept or leaf != "weight" or not path:
            return []
        old = getattr(model.get_submodule(path), leaf)
        users = self.users.get(id(old), []) if isinstance(old, torch.nn.Parameter) else []
        return [m for m, _ in users] if all(place == leaf and swappable(m) for m, place in users) else []


def _held(model: Any, name: str) -> torch.Tensor:
    """Return the parameter or buffer of a name."""
    path, _, leaf = name.rpartition(".")
    held: torch.Tensor = getattr(model.get_submodule(path), leaf)
    return held


def _set(places: Places, old: torch.Tensor, value: torch.Tensor) -> None:
    """Put a plain tensor in the place of a parameter or buffer and of its aliases."""
    if old.device.type not in ("cpu", "meta"):
        value = value.to(old.device)
    if isinstance(old, torch.nn.Parameter):
        value = torch.nn.Parameter(value, old.requires_grad)
    for holder, place in places[id(old)]:
        holder[place] = value


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

    Not that of an output projection that an attention reads as a matrix (`torch.nn.MultiheadAttention`), nor of a table
    of embeddings that does more than look rows up.
    """
    if isinstance(module, torch.nn.Embedding):
        return type(module) is torch.nn.Embedding and module.max_norm is None
    if isinstance(module, (torch.nn.modules.linear.NonDynamicallyQuantizableLinear, QuantizedLayer)):
        return False
    return isinstance(module, (torch.nn.Linear, *_CONVOLUTIONS))


def layer_over(weight: StoredWeight, module: Any, name: str, inputs: InputFormat | None = None) -> QuantizedLayer:
    """Return the layer over a stored weight that takes a module's place, with its bias as it is now.

    `name` is the weight's in the folder, for messages.
    """
    kind, settings = _kind_of(module)
    layer = kind.empty(weight.form, inputs, dtype=module.weight.dtype, name=name, **settings)
    layer.weight = weight
    layer.bias = getattr(module, "bias", None)  # its values come, or came, with its own name
    return layer


def _kind_of(module: Any) -> tuple[type[QuantizedLayer], dict[str, Any]]:
    if isinstance(module, torch.nn.Embedding):
        return QuantizedEmbedding, {"padding_idx": module.padding_idx}
    for plain, quantized in _CONVOLUTIONS.items():
        if isinstance(module, plain):
            return quantized, {key: getattr(module, key) for key in _CONVOLUTION_SETTINGS}
    return QuantizedLinear, {}


def _check_filled(model: Any, path: str | Path) -> None:
    """Refuse a model with tensors that were built without memory and that no folder holds."""
    empty = [n for n, b in (*model.named_parameters(), *model.named_buffers()) if b.is_meta]
    if empty:
        raise CheckpointError(
            f"{path}: {empty[0]!r} of {type(model).__name__} is on the meta device and not in the folder "
            f"({len(empty)} such tensors): build the model on the processor, or with its buffers there"
        )
