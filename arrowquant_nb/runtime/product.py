"""The product of inputs with a stored weight: on the processor without a float copy of it, elsewhere by torch.

y = x W^T + b, where W = (Q R^T + A B) / e for codes Q, rotation R, branch A B and equalization e. So x is divided by e
first, the branch sees that, and the codes see it rotated; rounding of inputs happens last, on what meets the codes.
Where inputs are centred before rounding, the product with their means is added again. Knows a layer's arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from arrowquant_nb.errors import CheckpointError, ConfigurationError
from arrowquant_nb.runtime.decoding import decode, rotate
from arrowquant_nb.runtime.input_format import GROUP_SIZE
from arrowquant_nb.runtime.kernel_calls import GraphMatrix, code_product, float_product, rotated
from arrowquant_nb.runtime.rounding import input_means, round_inputs, static_grids
from arrowquant_nb.runtime.stored_weight import StoredWeight, kernels_take
from arrowquant_nb.runtime.tracing import is_exporting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb import _kernels
    from arrowquant_nb.runtime.input_format import InputFormat
    from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

    Arrays = Mapping[str, torch.Tensor]

__all__ = ["multiply", "multiply_groups"]


def multiply(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Return x W^T + b for x (..., columns), in float32 on the processor and else in the dtype of x.

    The first axis of x is the batch, where the grid of inputs depends on a time per sample.
    """
    bias = layer.bias
    arrays = _arrays(layer, x)
    recorded = x.requires_grad and torch.is_grad_enabled()
    matrix = None if recorded else _matrix(layer, arrays, x)
    if matrix is None:
        return _with_bias(layer, _multiply_by_torch(layer, arrays, x))
    trained = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    given = None if trained or bias is None else _plain(bias)
    y = _dressed_product(layer, arrays, matrix, _plain(x), given)
    if isinstance(layer, torch.nn.Linear) and not isinstance(matrix, GraphMatrix):  # convolutions never ask for it
        _make_ready(layer)
    return _with_bias(layer, y) if trained else y


def _make_ready(layer: QuantizedLayer) -> None:
    """Have the weight keep what the next call multiplies with at once, unless it does."""
    weight, inputs = layer.weight, layer.inputs
    if weight.ready_product is None and inputs.table is None and not layer.form.activation_means:
        weight.prepare(inputs, _codes(inputs, layer.form.layout.columns), layer.bias)


def _matrix(layer: QuantizedLayer, arrays: Arrays, x: torch.Tensor) -> _kernels.Matrix | GraphMatrix | None:
    """Return the codes for the kernels, called now or as an operator of a graph; None where torch multiplies.

    What is exported shall run without our operators.
    """
    if kernels_take(x):
        return layer.weight.matrix(arrays)
    compiled = torch.compiler.is_compiling() and not is_exporting()
    on_processor = x.device.type == "cpu" and arrays["packed"].device.type == "cpu"
    return GraphMatrix.of(layer.form, arrays) if compiled and on_processor else None


def _plain(x: torch.Tensor) -> torch.Tensor:
    """Return x as float32 without a gradient."""
    x = x.detach() if x.requires_grad else x
    return x if x.dtype == torch.float32 else x.float()


def _dressed_product(
    layer: QuantizedLayer,
    arrays: Arrays,
    matrix: _kernels.Matrix | GraphMatrix,
    x: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply with all that is around codes and inputs."""
    seed = layer.form.rotation_seed
    x, branch = _divided(layer, arrays, x)
    means = _means(layer, arrays, x)
    if means is not None:
        x = x - means
    x = x if seed is None else rotated(x, seed)
    y = float_product(matrix, x, bias) if layer.inputs.is_float else _rounded_product(layer, matrix, x, bias)
    if means is not None:
        y = y + float_product(matrix, means if seed is None else rotated(means, seed), None)
    return y if branch is None else y + branch


def multiply_groups(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Return the outputs (..., outputs) of inputs (batch, ..., groups, columns), each group with its own rows of W."""
    return _with_bias(layer, _multiply_by_torch(layer, _arrays(layer, x), x.float(), x.shape[-2]))


def _arrays(layer: QuantizedLayer, x: torch.Tensor) -> Arrays:
    """Return what is stored, brought to where it is computed with if it was offloaded.

    Raises
    ------
    CheckpointError
        It has no values: torch would go on with whatever lies in memory.
    ConfigurationError
        Inputs are no floats, or something else was put in the place of the codes.

    """
    layer.check_floats(x)
    if not isinstance(layer.weight, StoredWeight):
        raise ConfigurationError(
            f"{layer.name}: its weight is {type(layer.weight).__name__}, which holds no codes: put a float layer there"
        )
    arrays: Arrays = layer.weight.brought()
    if arrays["packed"].is_meta and not x.is_meta:
        raise CheckpointError(
            f"{layer.name}: its codes are on the meta device, without values: load them, or take its offloading back"
        )
    return arrays


def _multiply_by_torch(layer: QuantizedLayer, arrays: Arrays, x: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Do the same with the codes decoded for this call."""
    form, weight = layer.form, decode(layer.form, arrays).to(x.dtype)
    x, branch = _divided(layer, arrays, x, groups)
    means = _means(layer, arrays, x)
    if means is not None:
        x = x - means
    x = x if form.rotation_seed is None else rotate(x, form.rotation_seed)
    y = _product(round_inputs(layer.inputs, x, layer.name), weight, groups)
    if means is not None:
        y = y + _product(means if form.rotation_seed is None else rotate(means, form.rotation_seed), weight, groups)
    return y if branch is None else y + branch


def _product(x: torch.Tensor, weight: torch.Tensor, groups: int) -> torch.Tensor:
    if groups == 1:
        return functional.linear(x, weight)
    x = x.expand(*x.shape[:-2], groups, x.shape[-1])  # means are the same for all of them
    return torch.einsum("...gc,goc->...go", x, weight.reshape(groups, -1, weight.shape[-1])).flatten(-2)


def _with_bias(layer: QuantizedLayer, y: torch.Tensor) -> torch.Tensor:
    return y if layer.bias is None else y + layer.bias.to(y.dtype)


def _divided(
    layer: QuantizedLayer, arrays: Arrays, x: torch.Tensor, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Divide by the equalization, and return the low-rank branch's part of the product too."""
    if layer.form.equalization is not None:
        x = x / arrays["equalization"].to(x.dtype)
    if not layer.form.low_rank:
        return x, None
    a, b = (arrays[part].to(x.dtype) for part in ("low_rank_a", "low_rank_b"))
    return x, _product(functional.linear(x, b), a, groups)


def _means(layer: QuantizedLayer, arrays: Arrays, x: torch.Tensor) -> torch.Tensor | None:
    """Return what is taken off inputs before they are rounded; float inputs need no centring."""
    means = arrays.get("activation_means")
    return None if means is None or layer.inputs.is_float else input_means(layer.inputs, means, x, layer.name)


def _rounded_product(
    layer: QuantizedLayer, matrix: _kernels.Matrix | GraphMatrix, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Round inputs to codes by the layer's rule and multiply as integers."""
    inputs = layer.inputs
    grids = None if inputs.table is None else static_grids(inputs.table, x, layer.name)
    return code_product(matrix, x, bias, *_codes(inputs, x.shape[-1]), grids)


def _codes(inputs: InputFormat, columns: int) -> tuple[int, int]:
    """Return the bits of codes of inputs, and the columns that share a scale."""
    if inputs.is_float:
        return 0, 0
    return inputs.bit_width, GROUP_SIZE if inputs.rule == "per_group" else max(columns, 16)
