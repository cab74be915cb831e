"""One way of quantizing a layer, carried out and measured: the grid, GPTQ over it where asked, and the layer's output.

Joins the quantizers for whoever compares ways. Knows arrays, Hessians and input rows; nothing of files or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arrowquant_nb.quantizers.gptq import gptq_matrix
from arrowquant_nb.quantizers.metrics import hessian_error, output_statistics
from arrowquant_nb.quantizers.transforms import quantize_transformed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.matrix_job import MatrixJob
    from arrowquant_nb.quantizers.metrics import OutputStatistics
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["LayerInputs", "Trial", "measure_output", "try_recipe"]


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What calibration knows of one layer's inputs."""

    hessian: NDArray[np.float64]
    """Mean of x x^T, (columns, columns)."""
    held_out: NDArray[np.float32]
    """Input rows that did not enter the Hessian, (steps, rows, columns)."""
    groups: tuple[slice, ...]
    """Timestep groups whose output is measured apart, as slices of the steps."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A matrix quantized in one way."""

    tensor: QuantizedTensor
    """Its codes."""
    objective: float
    """What ways are compared by: tr(E H E^T) with calibration, else the sum of squared weight errors."""
    note: str
    """What happened on the way, "" for nothing worth saying."""


def try_recipe(
    job: MatrixJob,
    inputs: LayerInputs | None,
    *,
    compensated: bool,
    n_threads: int,
    cancelled: Callable[[], bool],
) -> Trial | None:
    """Quantize a matrix in one way; None when cancelled.

    `compensated` runs GPTQ over the job's grid and needs `inputs` and a whole matrix.
    """
    if compensated and inputs is not None:
        done = gptq_matrix(job, inputs.hessian, n_threads=n_threads, cancelled=cancelled)
        if done is None:
            return None
        tensor, report = done
        objective = report.objective_gptq if report.compensated else report.objective_direct
        return Trial(tensor, objective, "" if report.compensated else report.reason)
    tensor = quantize_transformed([job], n_threads)[0]
    if inputs is None:
        return Trial(tensor, tensor.statistics.sum_ee, "")
    return Trial(tensor, hessian_error(job.weight, tensor.dequantize(n_threads=n_threads), inputs.hessian).error, "")


def measure_output(
    weight: NDArray[Any], tensor: QuantizedTensor, inputs: LayerInputs, n_threads: int
) -> OutputStatistics:
    """Measure the layer's output on held-out rows, for a matrix or a tile of its rows."""
    return output_statistics(weight, tensor.dequantize(n_threads=n_threads), inputs.held_out, inputs.groups)
