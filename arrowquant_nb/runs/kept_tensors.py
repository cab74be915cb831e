"""Tensors that are carried over: how they lie in tiles, and what is said of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.parquet_v2 import Tile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.core.task import LayerTask

# Kept tensors below this share one file; larger ones get a file of their own, in tiles of this many bytes.
KEPT_TOGETHER_NBYTES: Final = 1 << 20
KEPT_TILE_NBYTES: Final = 1 << 24
# Elements looked at together for the largest one.
KEPT_CHUNK: Final = 1 << 18


def kept_tile(task: LayerTask, number: int, start: int, count: int, data: NDArray[np.uint8], absmax: float) -> Tile:
    """Return one tile of a tensor, its bytes as they are."""
    return Tile(
        layer_name=task.name,
        tile=number,
        row_start=start,
        row_count=count,
        bit_width=KEPT_BIT_WIDTH,
        group_size=0,
        quant_type="kept",
        method="",
        grid="",
        data=data,
        scales=None,
        zero_points=None,
        sqnr_db=math.inf,
        cosine=1.0,
        mse=0.0,
        w_absmax=absmax,
    )


def absolute_maximum(raw: NDArray[np.uint8], dtype: str) -> float:
    """Return the largest absolute finite value of stored bytes, 0 when there is none; a few megabytes at a time."""
    array = raw.view(numpy_dtype(dtype))
    if array.dtype.kind not in "fVbiu":
        return 0.0
    largest = 0.0
    for start in range(0, array.size, KEPT_CHUNK):
        values = np.abs(array[start : start + KEPT_CHUNK].astype(np.float64))
        largest = max(largest, float(values.max(initial=0.0, where=np.isfinite(values))))
    return largest


def kept_report(task: LayerTask, w_absmax: float) -> LayerReport:
    """Report of a tensor that is stored bit-exactly."""
    return LayerReport(
        name=task.name,
        shape=task.shape,
        dtype=task.dtype,
        action="kept",
        role=task.role,
        reason=task.reason,
        rule=task.rule,
        requested_bit_width=KEPT_BIT_WIDTH,
        bit_width=KEPT_BIT_WIDTH,
        method="",
        grid="",
        group_size=0,
        n_weights=task.n_weights,
        source_nbytes=task.source_nbytes,
        nbytes=task.n_weights * numpy_dtype(task.dtype).itemsize,
        sqnr_db=math.inf,
        cosine=1.0,
        mse=0.0,
        gain=1.0,
        w_absmax=w_absmax,
        folding=task.folding,
    )
