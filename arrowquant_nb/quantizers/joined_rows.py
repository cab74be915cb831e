"""Tensors quantized row block by row block, as one.

Float16 scales become float32 where another block needs that, which changes no value. Knows arrays; no files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb._kernels import k_format
from arrowquant_nb.quantizers.layout import FLOAT16, FLOAT32
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["join_rows", "with_scales"]


def join_rows(parts: Sequence[QuantizedTensor], shape: tuple[int, ...]) -> QuantizedTensor:
    """Return blocks of rows of one layout and rotation, without a low-rank branch or equalization, as one tensor.

    The method is that of a compensated block where there is one: what is left direct decodes alike.
    """
    wide = any(part.layout.scale_dtype(part.scales) == FLOAT32 for part in parts)
    pairs = [with_scales(part, FLOAT32 if wide else FLOAT16) for part in parts]
    return replace(
        parts[0],
        packed=np.concatenate([part.packed for part in parts]),
        scales=np.concatenate([scales for scales, _ in pairs]),
        zero_points=np.concatenate([zero_points for _, zero_points in pairs]),
        shape=shape,
        method=max((part.method for part in parts), key=lambda method: method.startswith("gptq-")),
        statistics=LayerStatistics.combine([part.statistics for part in parts]),
    )


def with_scales(part: QuantizedTensor, dtype: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return scales and zero points of a tensor in the dtype that all blocks have room in."""
    if part.layout.scale_dtype(part.scales) == dtype:
        return part.scales, part.zero_points
    if part.grid != "k":
        zeros = part.zero_points if part.grid == "zero_point" else part.zero_points.astype(dtype)
        return part.scales.astype(dtype), zeros
    sizes = (part.columns, part.bit_width, part.group_size)
    return k_format.widen(part.scales.view(np.uint8), *sizes), k_format.widen(part.zero_points.view(np.uint8), *sizes)
