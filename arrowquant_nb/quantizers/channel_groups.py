"""GPTQ over a convolution in channel groups: the rows of each by its own Hessian, as if it were a layer of its own.

Knows jobs and Hessians; nothing of convolutions or calibration.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from arrowquant_nb.quantizers.gptq import GptqReport
from arrowquant_nb.quantizers.joined_rows import join_rows
from arrowquant_nb.quantizers.rotation import rotatable
from arrowquant_nb.quantizers.transforms import quantize_compensated

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.hessian import LastFactor
    from arrowquant_nb.quantizers.matrix_job import MatrixJob
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

    Parts = Sequence[tuple[slice, NDArray[np.float64]]]

__all__ = ["quantize_compensated_groups"]


def quantize_compensated_groups(
    job: MatrixJob,
    parts: Parts,
    *,
    n_threads: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    factors: LastFactor | None = None,
) -> tuple[QuantizedTensor, GptqReport] | None:
    """Quantize the rows of every channel group by `quantize_compensated`, and join them.

    Parameters
    ----------
    job : the whole matrix, without a low-rank branch, which would be another for every group.
    parts : rows of each group and the Hessian of its inputs, float64 (columns, columns).
    n_threads, cancelled, factors : as there.

    Returns
    -------
    (QuantizedTensor, GptqReport), or None when cancelled
        All groups are rotated or none, whichever leaves the smaller sum of their errors.

    """
    both = job.rotation == "auto" and rotatable(job.weight.shape[1])
    best: tuple[QuantizedTensor, GptqReport] | None = None
    for rotation in ("none", "hadamard") if both else (job.rotation,):
        done = _in_one_basis(replace(job, rotation=rotation), parts, n_threads, cancelled, factors)
        if done is None:
            return None
        if best is None or done[1].objective_gptq < best[1].objective_gptq:
            best = done
    return best


def _in_one_basis(
    job: MatrixJob, parts: Parts, n_threads: int, cancelled: Callable[[], bool], factors: LastFactor | None
) -> tuple[QuantizedTensor, GptqReport] | None:
    tensors, reports = [], []
    for rows, hessian in parts:
        weight: NDArray[Any] = job.weight[rows]
        part = replace(job, weight=weight, shape=weight.shape, row_start=job.row_start + rows.start)
        done = quantize_compensated(part, hessian, n_threads=n_threads, cancelled=cancelled, factors=factors)
        if done is None:
            return None
        tensors.append(done[0])
        reports.append(done[1])
    return join_rows(tensors, job.shape), _joined(reports)


def _joined(reports: list[GptqReport]) -> GptqReport:
    """Join the reports of the groups; of a group that is not compensated the direct error is the one it has."""
    left = [r for r in reports if not r.compensated]
    return GptqReport(
        compensated=len(left) < len(reports),
        reason=left[0].reason if left else reports[0].reason,
        objective_direct=math.fsum(r.objective_direct for r in reports),
        objective_gptq=math.fsum(r.objective_gptq if r.compensated else r.objective_direct for r in reports),
        damping=max(r.damping for r in reports),
        retries=max(r.retries for r in reports),
        dead_columns=sum(r.dead_columns for r in reports),
    )
