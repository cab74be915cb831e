"""Quantized layers back to layers of torch's own, with the float weights that their codes stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.runtime.followed_forward import unfollow_time
from arrowquant_nb.runtime.module_tree import quantized_layers, replace_module

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

__all__ = ["restore_floats"]


def restore_floats(model: Any, dtype: torch.dtype | None = None) -> Any:
    """Replace every quantized layer of a model by a float one; inputs are not rounded any more.

    Parameters
    ----------
    model : changed in place. Its `forward` no longer notes the timestep.
    dtype : of the decoded weights and their biases; default that of each layer.

    Returns
    -------
    module
        The model. Layers that shared their codes share one float weight.

    Raises
    ------
    CheckpointError
        A layer whose codes are not in memory, or a weight that overflows float16.

    """
    decoded: dict[int, torch.nn.Parameter] = {}
    for path, layer in quantized_layers(model).items():
        weight = decoded.get(id(layer.weight))
        if weight is None:
            weight = decoded[id(layer.weight)] = _decoded(path, layer, dtype)
        replace_module(model, path, _float_layer(layer, weight))
    unfollow_time(model)
    return model


def _decoded(path: str, layer: QuantizedLayer, dtype: torch.dtype | None) -> torch.nn.Parameter:
    if layer.weight.device.type == "meta":
        raise CheckpointError(
            f"{path}.weight is on the meta device, so there are no codes to decode: load the model, or take its "
            "offloading back, first"
        )
    values = layer.dequantize(dtype)
    if not torch.isfinite(values).all():
        raise CheckpointError(f"{path}.weight overflows {values.dtype}: dequantize to bfloat16 or float32")
    return torch.nn.Parameter(values)


def _float_layer(layer: QuantizedLayer, weight: torch.nn.Parameter) -> torch.nn.Module:
    """Return the layer of torch that a quantized one stands for, built without memory and given its tensors."""
    make: Callable[..., torch.nn.Module]
    make, settings = layer.float_form()
    with torch.device("meta"):
        plain = make(**settings)
    plain.weight = weight
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.detach().to(weight.dtype), layer.bias.requires_grad)
    return plain.train(layer.training)
