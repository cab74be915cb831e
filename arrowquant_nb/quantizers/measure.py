"""What a quantized matrix costs: error sums against the original weights, and at the layer's output.

Works through fixed blocks of rows, one thread each, and joins their sums in order: the figures do not depend on the
number of threads. The caller pins BLAS to one thread. Knows nothing of how codes were chosen.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb.quantizers.blas import BLOCK_ROWS, single_threaded_blas
from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor

__all__ = ["measure", "over_rows", "tiles_of"]

Part = TypeVar("Part")


def over_rows(work: Callable[[slice], Part], rows: int, threads: int) -> list[Part]:
    """Apply `work` to every block of rows, `threads` at a time; return the parts in order."""
    blocks = [slice(start, min(start + BLOCK_ROWS, rows)) for start in range(0, rows, BLOCK_ROWS)]
    if min(threads, len(blocks)) == 1:
        return [work(block) for block in blocks]
    with ThreadPoolExecutor(min(threads, len(blocks))) as pool:
        return list(pool.map(work, blocks))


def tiles_of(
    tensor: QuantizedTensor, weight: NDArray[Any], step: int, n_threads: int
) -> list[tuple[int, QuantizedTensor]]:
    """Cut a tensor into tiles of `step` rows, each with its first row and its own statistics; one stays as it is."""
    if step >= tensor.rows:
        return [(0, tensor)]
    threads = _kernels.resolve_threads(n_threads, weight.size)
    cuts = [slice(start, min(start + step, tensor.rows)) for start in range(0, tensor.rows, step)]
    parts = [(cut, tensor.rows_of(cut)) for cut in cuts]
    with single_threaded_blas():
        return [(c.start, replace(p, statistics=measure(p, weight[c], None, threads)[1])) for c, p in parts]


def measure(
    tensor: QuantizedTensor, weight: NDArray[Any], hessian: NDArray[np.float64] | None, threads: int
) -> tuple[float, LayerStatistics]:
    """Return tr(E H E^T), or the sum of squares of E without a Hessian, and the error statistics of the weights.

    Parameters
    ----------
    tensor : the quantized matrix.
    weight : (rows, columns) float32, float16 or bfloat16; what it was made from.
    hessian : (columns, columns), or a diagonal (columns,), or None.

    """

    def part(rows: slice) -> tuple[float, NDArray[np.float64]]:
        w = weight[rows].astype(np.float64)
        q = tensor.rows_of(rows).dequantize(n_threads=1).astype(np.float64)
        sums = np.stack([(w * w).sum(axis=1), (w * q).sum(axis=1), np.empty(len(w)), np.abs(w).max(axis=1)], axis=1)
        error = np.subtract(q, w, out=q)
        sums[:, 2] = np.square(error).sum(axis=1)
        if hessian is None:
            return math.fsum(sums[:, 2].tolist()), sums
        costs = error @ hessian if hessian.ndim == 2 else error * hessian
        return float(np.einsum("ij,ij->", costs, error)), sums

    parts = over_rows(part, weight.shape[0], threads)
    statistics = LayerStatistics.from_rows(np.concatenate([sums for _, sums in parts]), weight.shape[1])
    return math.fsum(objective for objective, _ in parts), statistics
