"""A quantized folder that runs: its weights, and a hook that rounds the inputs of its layers as the folder says.

Joins storage, the activation hook and the bundled models; knows nothing of how anything was quantized.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from arrowquant_nb import samples
from arrowquant_nb.errors import ConfigurationError, ModelNotFoundError, ShapeMismatchError
from arrowquant_nb.quantizers.activations import ActivationQuantizer, HadamardRotation, InputTransform
from arrowquant_nb.samples.hooked import HookedSample
from arrowquant_nb.samples.tensors import own_product

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.samples import Linear, Sample
    from arrowquant_nb.storage.quantized import QuantizedModel

ACTIVATIONS: Final = ("stored", "per_token", "float")


def rounding_hook(model: QuantizedModel, product: Linear, activations: str = "stored") -> Linear:
    """Return a hook that rounds the inputs of a quantized model's layers and then multiplies.

    Parameters
    ----------
    model
        The open folder; its `rounded_inputs`, `time_aware` and `spatial` say what to do.
    product
        Multiplies with the (dequantized) weights.
    activations
        stored: on the model's grids, a scale per token where a layer has none. per_token: a scale per token in every
        layer of `rounded_inputs`, the reference. float: inputs stay as they are.

    Notes
    -----
    A timestep outside what was calibrated takes the nearest group's grid; `model.time_aware.check_covers(times)`
    raises for such steps.

    """
    if activations not in ACTIVATIONS:
        raise ConfigurationError(f"activations {activations!r} is not one of {', '.join(ACTIVATIONS)}")
    if activations == "float" or not model.rounded_inputs:
        return product
    tables = model.time_aware if activations == "stored" else None
    tabled = frozenset() if tables is None else frozenset(tables.by_layer)
    transforms = _transforms(model)
    hook = product
    for bits in sorted(set(model.rounded_inputs.values())):
        rest = frozenset(name for name, own in model.rounded_inputs.items() if own == bits) - tabled
        if rest:  # a mean per time group needs groups; rows have none
            single = {name: _without_groups(transform) for name, transform in transforms.items() if name in rest}
            hook = ActivationQuantizer(hook, bits, rest, None, single)
    if tables is None:
        return hook
    return ActivationQuantizer(hook, tables.bit_width, tabled, tables, transforms)


def _transforms(model: QuantizedModel) -> dict[str, InputTransform]:
    """Return what precedes the rounding of each layer's input."""
    spatial = model.spatial
    # Folded scales are in the weights: what comes is divided already.
    scales = (
        {} if spatial is None else {k: v for k, v in spatial.equalization_scales.items() if k not in spatial.folded}
    )
    means = {} if spatial is None else spatial.activation_means
    found: dict[str, InputTransform] = {}
    for name in model.rounded_inputs:
        seed = model[name].rotation_seed
        found[name] = InputTransform(
            np.array(scales[name], np.float32) if name in scales else None,
            np.array(means[name], np.float32) if name in means else None,
            None if seed is None else HadamardRotation(seed),
        )
        for values in (found[name].equalization, found[name].means):
            if values is not None and values.shape[-1] != model[name].columns:
                raise ShapeMismatchError(
                    f"{model.path}: {name!r} has {model[name].columns} columns, its stored scales or means "
                    f"{values.shape[-1]}"
                )
    return found


def _without_groups(transform: InputTransform) -> InputTransform:
    means = transform.means
    return InputTransform(
        transform.equalization, None if means is None or len(means) > 1 else means, transform.rotation
    )


def quantized_sample(name: str, model: QuantizedModel, activations: str = "stored") -> Sample:
    """Return a bundled model that runs with a quantized folder's weights and input rounding; see `rounding_hook`.

    Raises
    ------
    ModelNotFoundError
        There is no such sample.
    ShapeMismatchError
        The folder holds another model.

    """
    weights = model.weights()
    return HookedSample(bundled(name, model, weights), rounding_hook(model, product_with(weights), activations))


def bundled(name: str, model: QuantizedModel, weights: Mapping[str, NDArray[np.float32]]) -> Sample:
    """Return a bundled model over a quantized folder's weights."""
    if name not in samples.names():
        raise ModelNotFoundError(f"there is no bundled sample {name!r}; there are: {', '.join(samples.names())}")
    try:
        return samples.runnable(name, weights)
    except ValueError as error:
        raise ShapeMismatchError(f"{model.path} is not a quantized {name!r}: {error}") from error


def product_with(weights: Mapping[str, NDArray[np.float32]]) -> Linear:
    """Return the hook that multiplies with given weights, whatever the time."""

    def product(name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:  # noqa: ARG001
        return own_product(weights[name], x)

    return product
