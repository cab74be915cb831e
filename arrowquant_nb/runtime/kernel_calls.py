"""The product kernels on tensors: called as they are, and as operators in the graphs of `torch.compile`.

A compiled model would otherwise decode every weight for every call. Knows rows and stored matrices; no layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from arrowquant_nb import _kernels
from arrowquant_nb.quantizers.rotation import rotate as rotate_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.export.folder_settings import FolderLayer

__all__ = ["GraphMatrix", "code_product", "float_product", "rotated"]

HAS_KERNELS = _kernels.active_isa() not in {"numpy", "scalar"}
PANEL_WEIGHTS = 1 << 20  # 4 MiB of float32: large enough for torch's product, small enough for the third-level cache
_MATRIX = "Tensor packed, Tensor scales, Tensor zero_points, str grid, int bit_width, int group_size"


class GraphMatrix(NamedTuple):
    """A stored matrix as an operator of a graph is given it; a call is given the `_kernels.Matrix` made of it."""

    packed: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    grid: str
    bit_width: int
    group_size: int

    @classmethod
    def of(cls, form: FolderLayer, arrays: Mapping[str, torch.Tensor]) -> GraphMatrix:
        """Choose from what a layer holds."""
        packed, scales, zero_points = (arrays[part] for part in ("packed", "scales", "zero_points"))
        return cls(packed, scales, zero_points, form.grid, form.bit_width, form.group_size)

    def made(self, columns: int) -> _kernels.Matrix:
        """Return what the kernels are given, over the same memory."""
        packed, scales, zero_points = self.packed.numpy(), self.scales.numpy(), self.zero_points.numpy()
        sizes = (len(packed), columns)
        return _kernels.Matrix.of(
            _kernels.StoredMatrix(packed, scales, zero_points, self.grid, self.bit_width, self.group_size, sizes)
        )


Grids = tuple[torch.Tensor, torch.Tensor]


def float_product(matrix: _kernels.Matrix | GraphMatrix, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x W^T + b, float32 (..., rows), for float32 x (..., columns) and the bias (rows,)."""
    rows = _rows(x)
    if isinstance(matrix, GraphMatrix):
        out: torch.Tensor = _float_operator(rows, *matrix, bias)
    else:
        out = _float_rows(matrix, rows, bias)
    return out if x.ndim == 2 else out.reshape(*x.shape[:-1], out.shape[1])


def code_product(
    matrix: _kernels.Matrix | GraphMatrix,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    bits: int,
    span: int,
    grids: Grids | None,
) -> torch.Tensor:
    """Round x to codes and multiply as integers; shapes as in `float_product`.

    Parameters
    ----------
    matrix, x, bias : as there.
    bits : of the codes, 4 or 8.
    span : columns that share a scale.
    grids : scale and zero point, float32, each to be spread over the tokens (..., 1); None = by each token's range.

    """
    rows = _rows(x)
    if grids is not None:
        scale, zero = (g.broadcast_to((*x.shape[:-1], 1)).reshape(-1).contiguous() for g in grids)
        grids = scale, zero
    if isinstance(matrix, GraphMatrix):
        out: torch.Tensor = _code_operator(rows, *matrix, bias, bits, span, *(grids or (None, None)))
    else:
        out = _multiply_codes(matrix, rows, bias, bits, span, grids)
    return out.reshape(*x.shape[:-1], out.shape[1])


def rotated(x: torch.Tensor, seed: int) -> torch.Tensor:
    """Return x R, see `arrowquant_nb.quantizers.rotation`, in new memory."""
    y: torch.Tensor = (_rotation_operator if torch.compiler.is_compiling() else _rotate)(x, seed)
    return y


def _rows(x: torch.Tensor) -> torch.Tensor:
    x = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    return x if x.is_contiguous() else x.contiguous()


def _float_rows(matrix: _kernels.Matrix, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return `float_product` of contiguous rows (tokens, columns), called now.

    Without kernels for this machine some rows of W at a time are decoded for torch to multiply with.
    """
    out = _outputs(rows, matrix)
    if not len(rows):
        pass
    elif HAS_KERNELS:
        given = None if bias is None else bias.numpy()
        _kernels.multiply_floats(rows.numpy(), matrix, given, out.numpy(), torch.get_num_threads())
    else:
        _multiply_panels(matrix.stored, rows, out)
        if bias is not None:
            out += bias
    return out


def _outputs(rows: torch.Tensor, matrix: _kernels.Matrix) -> torch.Tensor:
    return torch.empty(len(rows), matrix.stored.shape[0], dtype=torch.float32, device="cpu")


def _multiply_codes(
    matrix: _kernels.Matrix, rows: torch.Tensor, bias: torch.Tensor | None, bits: int, span: int, grids: Grids | None
) -> torch.Tensor:
    out = _outputs(rows, matrix)
    if out.numel():
        grid = None if grids is None else (grids[0].numpy(), grids[1].numpy())
        given, threads = None if bias is None else bias.numpy(), torch.get_num_threads()
        _kernels.multiply_codes(rows.numpy(), matrix, given, out.numpy(), bits, span, grid, threads)
    return out


def _rotate(x: torch.Tensor, seed: int) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1]).clone(memory_format=torch.contiguous_format)
    if rows.numel():
        rotate_rows(rows.numpy(), seed, torch.get_num_threads())
    return rows.reshape(x.shape)


def _multiply_panels(weight: _kernels.StoredMatrix, rows: torch.Tensor, out: torch.Tensor) -> None:
    n_outputs, n_columns = weight.shape
    step = max(16, PANEL_WEIGHTS // n_columns)
    panel = torch.empty(min(step, n_outputs), n_columns, dtype=torch.float32)
    for start in range(0, n_outputs, step):
        part = slice(start, min(start + step, n_outputs))
        decoded = panel[: part.stop - start]
        _kernels.dequantize_rows(
            weight.packed[part], weight.scales[part], weight.zero_points[part], weight.grid, weight.bit_width,
            weight.group_size, decoded.numpy(), "float32", torch.get_num_threads(),
        )  # fmt: skip
        out[:, part] = rows @ decoded.t()


def _floats_in_graph(rows: torch.Tensor, *given: Any) -> torch.Tensor:
    *matrix, bias = given
    return _float_rows(GraphMatrix(*matrix).made(rows.shape[1]), rows, bias)


def _codes_in_graph(rows: torch.Tensor, *given: Any) -> torch.Tensor:
    *matrix, bias, bits, span, scale, zero = given
    grids = None if scale is None else (scale, zero)
    return _multiply_codes(GraphMatrix(*matrix).made(rows.shape[1]), rows, bias, bits, span, grids)


def _like_product(rows: torch.Tensor, packed: torch.Tensor, *_: object) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], packed.shape[0])


def _operator(name: str, function: Any, arguments: str, like: Any) -> Any:
    """Make a function an operator that a graph holds as one step; `like` has the shape of what it returns."""
    schema = f"({arguments}) -> Tensor"
    operator = torch.library.custom_op(f"arrowquant_nb::{name}", function, mutates_args=(), schema=schema)
    operator.register_fake(like)
    return operator


_float_operator = _operator("float_product", _floats_in_graph, f"Tensor rows, {_MATRIX}, Tensor? bias", _like_product)
_code_operator = _operator(
    "code_product",
    _codes_in_graph,
    f"Tensor rows, {_MATRIX}, Tensor? bias, int bits, int span, Tensor? scale, Tensor? zero",
    _like_product,
)
_rotation_operator = _operator(
    "rotated",
    _rotate,
    "Tensor x, int seed",
    lambda x, seed: x.new_empty(x.shape),  # noqa: ARG005 - torch says what is given
)
