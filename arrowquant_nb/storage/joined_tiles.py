"""A stored tensor as one: its tiles joined, so that a format without tiles can take it.

A tensor of one tile, as nearly all are, is handed over as it lies in the mapped file. Knows nothing of other formats.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.errors import ValidationError
from arrowquant_nb.quantizers.joined_rows import with_scales
from arrowquant_nb.quantizers.layout import FLOAT16, FLOAT32, Layout
from arrowquant_nb.storage.fresh_memory import fresh_memory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.storage.lazy_tensor import LazyTensor

__all__ = ["equalization_dtype", "join_tiles", "row_blocks", "scale_dtype"]

BLOCK_WEIGHTS = 1 << 21
"""Weights that are worked on at a time: 8 MiB of float32, whatever the size of a tile."""


def scale_dtype(tensor: LazyTensor) -> np.dtype[Any]:
    """Dtype that holds the scales of every tile: float32 where any tile has it. No payload is read."""
    for reference in tensor.references:
        layout = Layout(reference.row_count, tensor.columns, tensor.bit_width, tensor.group_size, tensor.grid)
        shape, dtype = layout.parameters(FLOAT16)[0]
        if reference.ranges["scales"][1] != dtype.itemsize * int(np.prod(shape)):
            return FLOAT32
    return FLOAT16


def equalization_dtype(tensor: LazyTensor) -> np.dtype[Any] | None:
    """Dtype that holds the stored equalization of every tile, None without one. No payload is read."""
    widths = {r.ranges.get("equalization", (0, 0))[1] // tensor.columns for r in tensor.references}
    if widths <= {0}:
        return None
    return FLOAT32 if 4 in widths else FLOAT16


def row_blocks(tensor: LazyTensor) -> Iterator[QuantizedTensor]:
    """Yield a quantized tensor in runs of rows, in order, small enough to dequantize one at a time."""
    step = max(1, BLOCK_WEIGHTS // tensor.columns)
    for _, tile in tensor.tiles():
        for start in range(0, tile.rows, step):
            yield tile.rows_of(slice(start, start + step))


def join_tiles(tensor: LazyTensor) -> QuantizedTensor:
    """Return the whole tensor in its original shape, buffers joined; views of the file where there is one tile.

    Float16 scales become float32 where another tile needs that, which changes no value.

    Raises
    ------
    ShapeMismatchError
        The tensor is kept, not quantized.
    ValidationError
        Its tiles differ in what must be one, such as the equalization.
    """
    tiles = [tile for _, tile in tensor.tiles()]
    first, wanted = tiles[0], scale_dtype(tensor)
    scales = [with_scales(tile, wanted) for tile in tiles]
    return replace(
        first,
        packed=_joined([tile.packed for tile in tiles]),
        scales=_joined([pair[0] for pair in scales]),
        zero_points=_joined([pair[1] for pair in scales]),
        shape=tensor.shape,
        low_rank_a=None if first.low_rank_a is None else _joined([_present(tile.low_rank_a) for tile in tiles]),
        equalization=_equalization(tensor, tiles),
    )


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    """Join parts along their first axis."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    memory = fresh_memory(sum(part.nbytes for part in parts))
    joined = np.frombuffer(memory, parts[0].dtype, math.prod(shape)).reshape(shape)
    return np.concatenate(parts, out=joined)


def _present(part: NDArray[np.float16] | None) -> NDArray[np.float16]:
    if part is None:
        raise ValidationError("some tiles of a tensor have a low-rank branch and some have none")
    return part


def _equalization(tensor: LazyTensor, tiles: list[QuantizedTensor]) -> NDArray[np.float16] | NDArray[np.float32] | None:
    dtype = equalization_dtype(tensor)
    if dtype is None:
        return None
    found: list[NDArray[Any]] = [np.ones(0) if t.equalization is None else t.equalization.astype(dtype) for t in tiles]
    if any(not np.array_equal(found[0], other) for other in found[1:]):
        raise ValidationError(f"{tensor.name!r}: its tiles are equalized differently: quantize the model again")
    return found[0]
