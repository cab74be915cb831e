"""The product kernels on tensors: called as they are, and as operators in the graphs of `torch.compile`.

A compiled model would otherwise decode every weight for every call. Knows rows and stored arrays; no layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from arrowquant_nb import _kernels
from arrowquant_nb.quantizers.rotation import rotate as rotate_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.export.folder_settings import FolderLayer

__all__ = ["StoredArrays", "code_product", "float_product", "rotated"]

PANEL_WEIGHTS = 1 << 20  # 4 MiB of float32: large enough for torch's product, small enough for the third-level cache
_ARRAYS = "Tensor x, Tensor packed, Tensor scales, Tensor zero_points, str grid, int bit_width, int group_size"


class StoredArrays(NamedTuple):
    """What kernels are told of a stored weight."""

    packed: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    grid: str
    bit_width: int
    group_size: int

    @classmethod
    def of(cls, form: FolderLayer, arrays: Mapping[str, torch.Tensor]) -> StoredArrays:
        """Choose from what a layer holds."""
        packed, scales, zero_points = (arrays[part] for part in ("packed", "scales", "zero_points"))
        return cls(packed, scales, zero_points, form.grid, form.bit_width, form.group_size)

    def matrix(self, columns: int) -> _kernels.StoredMatrix:
        """Return the arrays as NumPy's, over the same memory."""
        packed, scales, zero_points = self.packed.numpy(), self.scales.numpy(), self.zero_points.numpy()
        sizes = (len(packed), columns)
        return _kernels.StoredMatrix(packed, scales, zero_points, self.grid, self.bit_width, self.group_size, sizes)


def float_product(x: torch.Tensor, weight: StoredArrays, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + b, float32 (..., rows), for float32 x (..., columns) and the bias (rows,)."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    multiply = _float_operator if torch.compiler.is_compiling() else _multiply_floats
    return multiply(rows, *weight, bias).reshape(*x.shape[:-1], len(weight.packed))


def code_product(
    x: torch.Tensor,
    weight: StoredArrays,
    bias: torch.Tensor | None,
    bits: int,
    span: int,
    grids: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Round x to codes and return the integers' product with W, transposed, as `float_product` does.

    Parameters
    ----------
    x : float32 (..., columns).
    weight, bias : as there.
    bits : of the codes, 4 or 8.
    span : columns that share a scale.
    grids : scale and zero point, float32, each to be spread over the tokens (..., 1); None = of each token's range.
    """
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    given: tuple[torch.Tensor | None, torch.Tensor | None] = (None, None)
    if grids is not None:
        scale, zero = (g.broadcast_to((*x.shape[:-1], 1)).reshape(-1).contiguous() for g in grids)
        given = scale, zero
    multiply = _code_operator if torch.compiler.is_compiling() else _multiply_codes
    return multiply(rows, *weight, bias, bits, span, *given).reshape(*x.shape[:-1], len(weight.packed))


def rotated(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R, see `arrowquant_nb.quantizers.rotation`, in new memory."""
    return (_rotation_operator if torch.compiler.is_compiling() else _rotate)(x, seed)


def _multiply_floats(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    grid: str,
    bit_width: int,
    group_size: int,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Multiply by kernels; without any for this machine, decode some rows at a time for torch to multiply with."""
    weight = StoredArrays(packed, scales, zero_points, grid, bit_width, group_size).matrix(x.shape[1])
    out = torch.empty(len(x), len(packed))
    if not out.numel():
        pass
    elif _kernels.active_isa() not in {"numpy", "scalar"}:
        given = None if bias is None else bias.numpy()
        _kernels.multiply_floats(x.numpy(), weight, given, out.numpy(), torch.get_num_threads())
    else:
        _multiply_panels(x, weight, out)
        if bias is not None:
            out += bias
    return out


def _multiply_codes(
    x: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    grid: str,
    bit_width: int,
    group_size: int,
    bias: torch.Tensor | None,
    bits: int,
    span: int,
    input_scale: torch.Tensor | None,
    input_zero: torch.Tensor | None,
) -> torch.Tensor:
    weight = StoredArrays(packed, scales, zero_points, grid, bit_width, group_size).matrix(x.shape[1])
    out = torch.empty(len(x), len(packed))
    if out.numel():
        grids = None if input_scale is None or input_zero is None else (input_scale.numpy(), input_zero.numpy())
        given = None if bias is None else bias.numpy()
        _kernels.multiply_codes(
            x.numpy(), weight, given, out.numpy(), bits, span, grids, torch.get_num_threads()
        )  # fmt: skip
    return out


def _rotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).clone(memory_format=torch.contiguous_format)
    if rows.numel():
        rotate_rows(rows.numpy(), seed, torch.get_num_threads())
    return rows.reshape(x.shape)


def _multiply_panels(rows: torch.Tensor, weight: _kernels.StoredMatrix, out: torch.Tensor) -> None:
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


def _operator(name: str, function: Any, arguments: str, like: Any) -> Any:
    """Make a function an operator that a graph holds as one step; `like` gives the shape of what it returns."""
    operator = torch.library.custom_op(
        f"arrowquant_nb::{name}", function, mutates_args=(), schema=f"({arguments}) -> Tensor"
    )
    operator.register_fake(like)
    return operator


def _like_product(x: torch.Tensor, packed: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], packed.shape[0])


def _like_rotation(x: torch.Tensor, seed: int) -> torch.Tensor:
    del seed
    return x.new_empty(x.shape)


_float_operator = _operator("float_product", _multiply_floats, f"{_ARRAYS}, Tensor? bias", _like_product)
_code_operator = _operator(
    "code_product",
    _multiply_codes,
    f"{_ARRAYS}, Tensor? bias, int bits, int span, Tensor? input_scale, Tensor? input_zero",
    _like_product,
)
_rotation_operator = _operator("rotated", _rotate, "Tensor x, int seed", _like_rotation)
