"""The product of inputs with a stored weight: on the processor without a float copy of it, elsewhere by torch.

y = x W^T, where W = (Q R^T + A B) / e for codes Q, rotation R, branch A B and equalization e. So x is divided by e
first, the branch sees that, and the codes see it rotated; rounding of inputs happens last, on what meets the codes.
Knows tensors and a layer's arrays; nothing of modules' shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from arrowquant_nb import _kernels
from arrowquant_nb.quantizers.rotation import rotate as rotate_rows
from arrowquant_nb.runtime.decoding import decode, rotate
from arrowquant_nb.runtime.rounding import round_inputs

if TYPE_CHECKING:
    from arrowquant_nb.runtime.quantized_layer import QuantizedLayer

__all__ = ["multiply", "runs_kernels"]

PANEL_WEIGHTS = 1 << 18  # 1 MiB of float32: a panel of rows stays in the second-level cache


def runs_kernels(x: torch.Tensor) -> bool:
    """Tell whether the product of these inputs can take our kernels: plain processor tensors, nothing recorded."""
    recorded = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and type(x) is torch.Tensor and not recorded and not torch.compiler.is_compiling()


def multiply(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Return x W^T for x (..., columns), in float32 on the processor and else in the dtype of x; no bias added.

    The first axis of x is the batch, where the grid of inputs depends on a time per sample.
    """
    form = layer.form
    kernels = runs_kernels(x)
    if kernels:
        x = x.float()
    if form.equalization is not None:
        x = x / layer.weight.equalization.to(x.dtype)
    branch = None
    if form.low_rank:
        branch = (x @ layer.weight.low_rank_b.to(x.dtype).t()) @ layer.weight.low_rank_a.to(x.dtype).t()
    if form.rotation_seed is not None:
        x = _rotated(x, form.rotation_seed) if kernels else rotate(x, form.rotation_seed)
    if not layer.inputs.is_float:
        x = round_inputs(layer.inputs, x, layer.name)
    y = (
        _product(layer, x)
        if kernels
        else torch.nn.functional.linear(x, decode(form, layer.weight.arrays()).to(x.dtype))
    )
    return y if branch is None else y + branch


def _rotated(x: torch.Tensor, seed: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).clone(memory_format=torch.contiguous_format)
    if rows.numel():
        rotate_rows(rows.numpy(), seed, torch.get_num_threads())
    return rows.reshape(x.shape)


def _product(layer: QuantizedLayer, x: torch.Tensor) -> torch.Tensor:
    """Decode some rows of the weight at a time and multiply with them."""
    form = layer.form
    rows = x.reshape(-1, x.shape[-1])
    n_outputs, n_columns = form.layout.rows, form.layout.columns
    out = torch.empty(len(rows), n_outputs)
    packed, scales, zeros = (getattr(layer.weight, name).numpy() for name in ("packed", "scales", "zero_points"))
    step = max(16, PANEL_WEIGHTS // n_columns)
    panel = torch.empty(min(step, n_outputs), n_columns)
    for start in range(0, n_outputs, step):
        part = slice(start, min(start + step, n_outputs))
        weight = panel[: part.stop - start]
        _kernels.dequantize_rows(
            packed[part], scales[part], zeros[part], form.grid, form.bit_width, form.group_size, weight.numpy(),
            "float32", torch.get_num_threads(),
        )  # fmt: skip
        out[:, part] = rows @ weight.t()
    return out.reshape(*x.shape[:-1], n_outputs)
