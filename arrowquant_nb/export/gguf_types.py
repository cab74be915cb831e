"""Which GGUF type each tensor becomes, decided from what is stored, before a byte is written.

Codes are taken over where a type decodes them alike: grid k as Q4_K and Q2_K (as Q4_1 where rows are no whole blocks of
256), a scale and a minimum per group as Q4_1, centred zero points as Q4_0 and Q8_0. Everything else is rounded again,
to a type of more bits unless the user asks for another. Reads scales, not codes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb._kernels import k_format
from arrowquant_nb._kernels.numpy_rows import unpack_codes
from arrowquant_nb.export.gguf_blocks import BLOCK_BITS, BLOCK_WEIGHTS, CENTRE, code_parameters, row_nbytes
from arrowquant_nb.runs.dequantization import float_dtype
from arrowquant_nb.storage.dtypes import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.storage.lazy_tensor import LazyTensor

__all__ = ["GgufTensor", "gguf_tensor"]

MAX_DIMENSIONS = 4
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
# What GGUF has no type for, and what holds each of its values.
WIDER = {
    "float8_e4m3fn": "float16", "float8_e5m2": "float16",
    "bool": "int8", "uint8": "int16", "uint16": "int32", "uint32": "int64",
}  # fmt: skip
INTEGERS = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
# Where codes cannot be taken over: the next type by its bits, the first whose block divides the row.
ROUNDED = {2: ("Q4_K", "Q8_0"), 4: ("Q6_K", "Q8_0"), 8: ("Q8_0",)}


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    name: str
    """Name in the file."""
    kind: str
    """GGUF type."""
    shape: tuple[int, ...]
    """Shape in the file, outermost first."""
    source: str
    """codes: taken over; values: rounded; floats: written as `dtype`."""
    dtype: str
    """NumPy name of what is written where source is floats."""
    nbytes: int
    """Bytes of its data."""
    exact: bool
    """Whether a reader gets the very float32 values that dequantizing gives."""
    reason: str
    """Why not."""
    original_shape: tuple[int, ...] | None = None
    """Shape in the model where the file has another one."""


def gguf_tensor(tensor: LazyTensor, weight_type: str | None = None, convolutions: bool = False) -> GgufTensor | None:
    """Decide what becomes of a tensor; None where GGUF has nothing that holds it.

    Parameters
    ----------
    tensor : of an open model.
    weight_type : round tensors of at most its bits to this type, unless it takes their codes over.
    convolutions : write quantized convolutions as blocks too, as matrices with their shape recorded beside them.
    """
    if math.prod(tensor.shape) == 0:
        return None
    if tensor.kept:
        return _floats(tensor, tensor.dtype, "")
    if len(tensor.shape) != 2 and not convolutions:
        return _floats(tensor, float_dtype(tensor), "convolutions stay float: most readers have no blocks for them")
    found = None if _transformed(tensor) else _codes_kind(tensor)
    asked = weight_type is not None and BLOCK_BITS[weight_type] >= tensor.bit_width
    if weight_type is not None and asked and (found is None or found[0] != weight_type):
        return _rounded(tensor, (weight_type,), f"weight_type {weight_type} was asked for")
    if found is not None:
        return _blocks(tensor, found[0], "codes", found[1])
    return _rounded(tensor, ROUNDED[tensor.bit_width], _why_rounded(tensor))


def _transformed(tensor: LazyTensor) -> bool:
    return bool(tensor.rotation_seed is not None or tensor.low_rank or "equalization" in tensor.references[0].ranges)


def _why_rounded(tensor: LazyTensor) -> str:
    parts = []
    if tensor.rotation_seed is not None:
        parts.append("a rotation")
    if tensor.low_rank:
        parts.append("a low-rank branch")
    if "equalization" in tensor.references[0].ranges:
        parts.append("column scales")
    if parts:
        return f"GGUF cannot hold {' and '.join(parts)}"
    if tensor.grid == "levels":
        return "GGUF has no type with levels"
    if tensor.bit_width == 8:
        return "GGUF has no 8-bit type with minima"
    block = 256 if tensor.grid == "k" else 32
    if tensor.columns % block or tensor.group_size % min(block, 32):
        return f"groups of {tensor.group_size} in rows of {tensor.columns} are no whole blocks of {block}"
    return "its scales are beyond float16"


def _codes_kind(tensor: LazyTensor) -> tuple[str, str] | None:
    """Type that decodes the stored codes alike, and what is not exact about it ("" when nothing); None without one."""
    tiles = [tile for _, tile in tensor.tiles()]
    if tensor.grid == "k" and tensor.columns % BLOCK_WEIGHTS["Q4_K"] == 0:
        kind = "Q4_K" if tensor.bit_width == 4 else "Q2_K"
        parameters = [_k_floats(tile) for tile in tiles]
    elif tensor.grid != "levels" and tensor.group_size % 32 == 0 and tensor.columns % 32 == 0:
        centred = tensor.grid == "zero_point" and all(_centred(tile) for tile in tiles)
        if tensor.bit_width == 8 and not centred:
            return None
        kind = "Q4_1" if not centred else ("Q8_0" if tensor.bit_width == 8 else "Q4_0")
        found = [code_parameters(tile) for tile in tiles]
        parameters = [np.stack(pair if kind == "Q4_1" else pair[:1]) for pair in found]
    else:
        return None
    with np.errstate(over="ignore"):
        halves = [p.astype(np.float16).astype(np.float32) for p in parameters]
    if not all(np.isfinite(h).all() for h in halves):
        return None
    same = all(np.array_equal(p, h) for p, h in zip(parameters, halves, strict=True))
    return kind, "" if same else "codes taken over, scales or minima rounded to float16"


def _k_floats(tile: QuantizedTensor) -> NDArray[np.float32]:
    sizes = (tile.columns, tile.bit_width, tile.group_size)
    pair = (k_format.block_floats(part.view(np.uint8), *sizes) for part in (tile.scales, tile.zero_points))
    return np.stack([*pair])


def _centred(tile: QuantizedTensor) -> bool:
    zeros = unpack_codes(tile.zero_points.view(np.uint8), tile.bit_width, tile.layout.n_groups)
    return bool((zeros == CENTRE["Q8_0"] >> (8 - tile.bit_width)).all())


def _rounded(tensor: LazyTensor, kinds: tuple[str, ...], reason: str) -> GgufTensor | None:
    for kind in kinds:
        if tensor.columns % BLOCK_WEIGHTS[kind] == 0:
            return _blocks(tensor, kind, "values", reason)
    if tensor.columns % 32 == 0:
        return _blocks(tensor, "Q8_0", "values", f"{reason}; rows of {tensor.columns} fill no blocks of {kinds[0]}")
    return _floats(tensor, float_dtype(tensor), f"rows of {tensor.columns} are no whole blocks")


def _blocks(tensor: LazyTensor, kind: str, source: str, reason: str) -> GgufTensor:
    rows = tensor.n_weights // tensor.columns
    matrix = (rows, tensor.columns)
    nbytes = rows * row_nbytes(kind, tensor.columns)
    original = None if tensor.shape == matrix else tensor.shape
    return GgufTensor(tensor.name, kind, matrix, source, "uint8", nbytes, not reason, reason, original)


def _floats(tensor: LazyTensor, dtype: str, reason: str) -> GgufTensor | None:
    """Write as `dtype`; vectors as F32 and convolutions never as BF16, as readers of GGUF expect."""
    wanted = WIDER.get(dtype, dtype)
    is_float = wanted in FLOATS
    if is_float and (len(tensor.shape) < 2 or (wanted == "bfloat16" and len(tensor.shape) > 2)):
        wanted = "float64" if wanted == "float64" else "float32"
    kind = {**FLOATS, **INTEGERS}.get(wanted)
    if kind is None:
        return None
    shape = tensor.shape or (1,)
    if len(shape) > MAX_DIMENSIONS:
        shape = (math.prod(shape[: -MAX_DIMENSIONS + 1]), *shape[-MAX_DIMENSIONS + 1 :])
    nbytes = tensor.n_weights * numpy_dtype(wanted).itemsize
    if not tensor.kept and wanted != "float32":
        reason = reason or f"rows of {tensor.columns} are no whole blocks"
    exact = tensor.kept or wanted == "float32"
    original = None if shape == tensor.shape else tensor.shape
    return GgufTensor(tensor.name, kind, shape, "floats", wanted, nbytes, exact, "" if exact else reason, original)
