"""Stored arrays back to float weights in torch operations: for devices without our kernels, for gradients, for tracing.

The same values as `QuantizedTensor.dequantize`, grid by grid; on processors the kernels do it faster. Knows tensors
and a `FolderLayer`; no module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from arrowquant_nb._kernels import k_format
from arrowquant_nb.quantizers.rotation import block_length, signs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.export.folder_settings import FolderLayer

__all__ = ["decode", "rotate", "unrotate"]


def decode(form: FolderLayer, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the values of the codes alone, float32 (rows, columns): still rotated, equalized, without the branch."""
    layout = form.layout
    codes = _unpack(arrays["packed"], form.bit_width, layout.columns)
    if form.grid == "levels":
        a1, a2 = (_spread(form, arrays["scales"][..., k].float()) for k in (0, 1))
        mu = _spread(form, arrays["zero_points"].float())
        high, low = (codes >= 2).float() * 2 - 1, (codes % 2) * 2 - 1
        return (mu + high * a1) + low * a2
    if form.grid == "k":
        scale, minimum = (_k_values(form, arrays[name]) for name in ("scales", "zero_points"))
        return codes * _spread(form, scale) - _spread(form, minimum)
    scale = _spread(form, arrays["scales"].float())
    if form.grid == "minimum":
        return codes * scale + _spread(form, arrays["zero_points"].float())
    return (codes - _spread(form, _unpack(arrays["zero_points"], form.bit_width, layout.n_groups))) * scale


def _unpack(packed: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """Return n codes a row, float32."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    codes = (packed.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return codes.reshape(len(packed), -1)[:, :n].float()


def _spread(form: FolderLayer, groups: torch.Tensor) -> torch.Tensor:
    """Repeat what each group has for its columns."""
    return groups.repeat_interleave(form.group_size, 1)[:, : form.layout.columns]


def _k_values(form: FolderLayer, rows: torch.Tensor) -> torch.Tensor:
    """Return the scales or minima of grid k per group, float32."""
    bits, n_groups = k_format.INTEGER_BITS[form.bit_width], form.layout.n_groups
    _, n_bytes = k_format.parts(form.layout.columns, form.bit_width, form.group_size)
    dtype = torch.float16 if form.scale_dtype == "float16" else torch.float32
    floats = rows[:, : rows.shape[1] - n_bytes].contiguous().view(dtype).float()
    planes = _unpack(rows[:, rows.shape[1] - n_bytes :], 1, n_groups * bits).reshape(len(rows), n_groups, bits)
    integers = planes @ (2.0 ** torch.arange(bits, device=rows.device))
    return floats.repeat_interleave(k_format.BLOCK // form.group_size, 1)[:, :n_groups] * integers


def rotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R for x (..., columns), see `arrowquant_nb.quantizers.rotation`."""
    return _hadamard(x * _factors(x, seed))


def unrotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R^T."""
    return _hadamard(x) * _factors(x, seed)


def _factors(x: torch.Tensor, seed: int) -> torch.Tensor:
    columns = int(x.shape[-1])  # a tensor while torch traces
    return torch.from_numpy(signs(seed, columns) / np.sqrt(block_length(columns))).to(x.device, x.dtype)


def _hadamard(x: torch.Tensor) -> torch.Tensor:
    shape, distance = x.shape, 1
    while distance < block_length(int(shape[-1])):
        pairs = x.reshape(*shape[:-1], -1, 2, distance)
        x = torch.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), -2)
        distance *= 2
    return x.reshape(shape)
