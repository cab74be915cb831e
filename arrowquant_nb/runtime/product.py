"""The product of inputs with a stored weight: on the processor without a float copy of it, elsewhere by torch.

y = x W^T + b, where W = (Q R^T + A B) / e for codes Q, rotation R, branch A B and equalization e. So x is divided by e
first, the branch sees that, and the codes see it rotated; rounding of inputs happens last, on what meets the codes.
Where inputs are centred before rounding, the product with their means is added again. Knows a layer's arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from arrowquant_nb import _kernels
from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.quantizers.rotation import rotate as rotate_rows
from arrowquant_nb.runtime.decoding import decode, rotate
from arrowquant_nb.runtime.input_format import GROUP_SIZE
from arrowquant_nb.runtime.rounding import input_means, round_inputs, static_grids
from arrowquant_nb.runtime.stored_weight import kernels_take

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

    Arrays = Mapping[str, torch.Tensor]

__all__ = ["multiply", "multiply_groups"]

PANEL_WEIGHTS = 1 << 20  # 4 MiB of float32: large enough for torch's product, small enough for the third-level cache


def multiply(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Return x W^T + b for x (..., columns), in float32 on the processor and else in the dtype of x.

    The first axis of x is the batch, where the grid of inputs depends on a time per sample.
    """
    arrays = _arrays(layer, x)
    recorded = x.requires_grad and torch.is_grad_enabled()
    matrix = None if recorded or not kernels_take(x) else layer.weight.matrix(arrays)
    if matrix is None:
        return _with_bias(layer, _multiply_by_torch(layer, arrays, x))
    bias = layer.bias
    trained = bias is not None and bias.requires_grad and torch.is_grad_enabled()
    given = None if trained or bias is None else _plain(bias)
    x = _plain(x)
    if layer.inputs.is_float and layer.form.is_plain:
        y = _float_product(matrix, x, given)
    else:
        y = _dressed_product(layer, arrays, matrix, x, given)
    return _with_bias(layer, y) if trained else y


def _plain(x: torch.Tensor) -> torch.Tensor:
    """Return x as float32 without a gradient. Of one token, each call into torch costs a hundredth of the product."""
    x = x.detach() if x.requires_grad else x
    return x if x.dtype == torch.float32 else x.float()


def _rows(x: torch.Tensor) -> torch.Tensor:
    x = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return x if x.is_contiguous() else x.contiguous()


def _dressed_product(
    layer: QuantizedLayer, arrays: Arrays, matrix: _kernels.Matrix, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Multiply with all that is around codes and inputs."""
    seed = layer.form.rotation_seed
    x, branch = _divided(layer, arrays, x)
    means = _means(layer, arrays, x)
    if means is not None:
        x = x - means
    x = x if seed is None else _rotated(x, seed)
    y = _float_product(matrix, x, bias) if layer.inputs.is_float else _rounded_product(layer, matrix, x, bias)
    if means is not None:
        y += _float_product(matrix, means if seed is None else _rotated(means, seed), None)
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

    """
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


def _rotated(x: torch.Tensor, seed: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).clone(memory_format=torch.contiguous_format)
    if rows.numel():
        rotate_rows(rows.numpy(), seed, torch.get_num_threads())
    return rows.reshape(x.shape)


def _rounded_product(
    layer: QuantizedLayer, matrix: _kernels.Matrix, x: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Round inputs to codes and multiply as integers."""
    inputs, columns = layer.inputs, x.shape[-1]
    rows = _rows(x)
    out = torch.empty(len(rows), matrix.stored.shape[0])
    if out.numel():
        grid = None
        if inputs.table is not None:
            per_token = (
                g.broadcast_to((*x.shape[:-1], 1)).reshape(-1) for g in static_grids(inputs.table, x, layer.name)
            )
            scale, zero = (g.contiguous().numpy() for g in per_token)
            grid = scale, zero
        span = GROUP_SIZE if inputs.rule == "per_group" else max(columns, 16)
        given = None if bias is None else bias.numpy()
        threads = torch.get_num_threads()
        _kernels.multiply_codes(rows.numpy(), matrix, given, out.numpy(), inputs.bit_width, span, grid, threads)
    return out.reshape(*x.shape[:-1], out.shape[1])


def _float_product(matrix: _kernels.Matrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Multiply by kernels; without any for this machine, decode some rows at a time for torch to multiply with."""
    rows = _rows(x)
    out = torch.empty(len(rows), matrix.stored.shape[0])
    if not len(rows):
        pass
    elif _kernels.active_isa() not in {"numpy", "scalar"}:
        given = None if bias is None else bias.numpy()
        _kernels.multiply_floats(rows.numpy(), matrix, given, out.numpy(), torch.get_num_threads())
    else:
        _multiply_panels(matrix.stored, rows, out)
        if bias is not None:
            out += bias
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], out.shape[1])


def _multiply_panels(weight: _kernels.StoredMatrix, rows: torch.Tensor, out: torch.Tensor) -> None:
    n_outputs, n_columns = weight.shape
    step = max(16, PANEL_WEIGHTS // n_columns)
    panel = torch.empty(min(step, n_outputs), n_columns)
    for start in range(0, n_outputs, step):
        part = slice(start, min(start + step, n_outputs))
        decoded = panel[: part.stop - start]
        _kernels.dequantize_rows(
            weight.packed[part], weight.scales[part], weight.zero_points[part], weight.grid, weight.bit_width,
            weight.group_size, decoded.numpy(), "float32", torch.get_num_threads(),
        )  # fmt: skip
        out[:, part] = rows @ decoded.t()
