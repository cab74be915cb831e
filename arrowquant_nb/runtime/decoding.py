"""Stored arrays back to float weights in torch operations: for devices without our kernels, for gradients, for tracing.

The same values as `QuantizedTensor.dequantize`, grid by grid; on processors the kernels do it faster. Knows tensors
and a `FolderLayer`; no module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from arrowquant_nb._kernels import k_format
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.quantizers.rotation import block_length, signs
from arrowquant_nb.runtime.tracing import constant_in_graphs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.export.folder_settings import FolderLayer

__all__ = ["decode", "rotate", "unrotate"]


def decode(form: FolderLayer, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the values of the codes alone, float32 (rows, columns): still rotated, equalized, without the branch."""
    n_groups = form.layout.n_groups
    codes = _grouped(form, _unpack(arrays["packed"], form.bit_width, form.layout.columns))
    if form.grid == "levels":
        a1, a2 = (arrays["scales"][..., k, None].float() for k in (0, 1))
        high, low = (codes >> 1).float() * 2 - 1, (codes & 1).float() * 2 - 1
        values = (arrays["zero_points"][..., None].float() + high * a1) + low * a2
    elif form.grid == "k":
        scale, minimum = (_k_values(form, arrays[name])[..., None] for name in ("scales", "zero_points"))
        values = codes.float().mul_(scale).sub_(minimum)
    else:
        scale = arrays["scales"][..., None].float()
        if form.grid == "minimum":
            values = codes.float().mul_(scale).add_(arrays["zero_points"][..., None].float())
        else:
            zero = _unpack(arrays["zero_points"], form.bit_width, n_groups)[..., None]
            values = codes.float().sub_(zero).mul_(scale)
    return values.flatten(1)[:, : form.layout.columns]


def _unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """Return n codes a row, uint8."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.flatten(1)[:, :n]


def _grouped(form: FolderLayer, codes: torch.Tensor) -> torch.Tensor:
    """Return the codes as (rows, groups, group), the last group filled up."""
    layout = form.layout
    missing = layout.n_groups * form.group_size - layout.columns
    return functional.pad(codes, (0, missing)).unflatten(1, (layout.n_groups, form.group_size))


def _k_values(form: FolderLayer, rows: torch.Tensor) -> torch.Tensor:
    """Return the scales or minima of grid k per group, float32.

    Raises
    ------
    ConfigurationError
        `torch.jit.trace` is at work.

    """
    if torch.jit.is_tracing():
        raise ConfigurationError(
            "torch.jit.trace cannot read the float16 of k scales from their bytes: use torch.export or torch.compile, "
            "or quantize with scale_format float16"
        )
    bits, n_groups = k_format.INTEGER_BITS[form.bit_width], form.layout.n_groups
    _, n_bytes = k_format.parts(form.layout.columns, form.bit_width, form.group_size)
    dtype = torch.float16 if form.scale_dtype == "float16" else torch.float32
    floats = rows[:, : rows.shape[1] - n_bytes].contiguous().view(dtype).float()
    planes = _unpack(rows[:, rows.shape[1] - n_bytes :], 1, n_groups * bits).unflatten(1, (n_groups, bits))
    integers = (planes << torch.arange(bits, dtype=torch.uint8, device=rows.device)).sum(-1, dtype=torch.float32)
    return floats.repeat_interleave(k_format.BLOCK // form.group_size, 1)[:, :n_groups] * integers


def rotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R for x (..., columns), see `arrowquant_nb.quantizers.rotation`."""
    return _hadamard(x * _factors(seed, int(x.shape[-1]), x.device, x.dtype))  # a tensor while torch traces


def unrotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R^T."""
    return _hadamard(x) * _factors(seed, int(x.shape[-1]), x.device, x.dtype)


@constant_in_graphs
def _factors(seed: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(signs(seed, columns) / np.sqrt(block_length(columns))).to(device, dtype)


def _hadamard(x: torch.Tensor) -> torch.Tensor:
    shape, distance = x.shape, 1
    while distance < block_length(int(shape[-1])):
        pairs = x.reshape(*shape[:-1], -1, 2, distance)
        x = torch.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), -2)
        distance *= 2
    return x.reshape(shape)
