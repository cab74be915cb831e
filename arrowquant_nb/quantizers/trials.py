"""One way of quantizing a layer, carried out and measured: the grid, GPTQ over it where asked, and the layer's output.

Where channels may be equalized or inputs rounded, each possibility is carried out and the one with the least error at
the output is kept. Joins the quantizers for whoever compares ways. Knows arrays, Hessians and input rows; nothing of
files or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.quantizers.channel_groups import quantize_compensated_groups
from arrowquant_nb.quantizers.input_treatment import NO_TREATMENT, InputTreatment
from arrowquant_nb.quantizers.layer_inputs import LayerInputs
from arrowquant_nb.quantizers.metrics import OutputStatistics, hessian_error, output_statistics
from arrowquant_nb.quantizers.scaled_columns import storable_scales
from arrowquant_nb.quantizers.transforms import quantize_compensated, quantize_transformed

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.quantizers.matrix_job import MatrixJob
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["LayerInputs", "Trial", "measure_output", "measure_rounded_output", "try_recipe"]

DB_PER_BIT = 20 * math.log10(2)
"""What one more bit per weight is worth: scales must gain more than the bits they take."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A matrix quantized in one way."""

    tensor: QuantizedTensor
    """Its codes."""
    objective: float
    """What ways are compared by: with rounded inputs the error of the output on calibration rows, else tr(E H E^T)
    with calibration, else the sum of squared weight errors."""
    note: str
    """What happened on the way, "" for nothing worth saying."""
    treatment: InputTreatment = NO_TREATMENT
    """What is done to the layer's input."""


def try_recipe(
    job: MatrixJob,
    inputs: LayerInputs | None,
    *,
    compensated: bool,
    n_threads: int,
    cancelled: Callable[[], bool],
    treatment: InputTreatment | None = None,
) -> Trial | None:
    """Quantize a matrix in one way; None when cancelled.

    `compensated` runs GPTQ over the job's grid and needs `inputs` and a whole matrix. Of the treatments that `inputs`
    allow the best is kept, unless the first tile of the layer has decided on one: `treatment`.
    """
    ways: tuple[Equalization | None, ...] = (None,) if inputs is None else (None, *inputs.equalizations)
    best: Trial | None = None
    for way in ways if treatment is None else (treatment.equalization,):
        trial = _quantized(job, way, inputs, compensated, n_threads, cancelled)
        if trial is None:
            return None
        if inputs is not None:
            trial = _with_rounding(job, trial, inputs, n_threads, treatment)
        best = trial if best is None else _better(best, trial)
    return best


def _better(plain: Trial, other: Trial) -> Trial:
    """Return the equalized one where it gains more than its bits are worth; either way say what it gains."""
    gain_db = _gain_db(plain.objective, other.objective)
    asked = DB_PER_BIT * (other.tensor.bits_per_weight - plain.tensor.bits_per_weight)
    kept = other if gain_db > asked else plain
    return replace(kept, treatment=replace(kept.treatment, equalization_gain_db=gain_db))


def _gain_db(before: float, after: float) -> float:
    if before > 0 and after > 0:
        return 10 * math.log10(before / after)
    return math.inf if before > after else 0.0


def _quantized(
    job: MatrixJob,
    way: Equalization | None,
    inputs: LayerInputs | None,
    compensated: bool,
    n_threads: int,
    cancelled: Callable[[], bool],
) -> Trial | None:
    treatment = InputTreatment(way)
    job = job if way is None else replace(job, equalization=storable_scales(way.scales))
    shared_branch = inputs is not None and bool(inputs.parts) and job.low_rank > 0
    if compensated and inputs is not None and not shared_branch:
        options: dict[str, Any] = {"n_threads": n_threads, "cancelled": cancelled, "factors": inputs.factors}
        if inputs.parts:
            hessians = [(rows, part.hessian) for rows, part in inputs.blocks(len(job.weight))]
            done = quantize_compensated_groups(job, hessians, **options)
        else:
            done = quantize_compensated(job, inputs.hessian, **options)
        if done is None:
            return None
        tensor, report = done
        objective = report.objective_gptq if report.compensated else report.objective_direct
        return Trial(tensor, objective, "" if report.compensated else report.reason, treatment)
    tensor = quantize_transformed([job], n_threads)[0]
    if inputs is None:
        return Trial(tensor, tensor.statistics.sum_ee, "", treatment)
    decoded = tensor.dequantize(n_threads=n_threads)
    errors = [hessian_error(job.weight[r], decoded[r], part.hessian).error for r, part in inputs.blocks(len(decoded))]
    note = "direct grid: channel groups share one low-rank branch" if compensated and shared_branch else ""
    return Trial(tensor, math.fsum(errors), note, treatment)


def _with_rounding(
    job: MatrixJob, trial: Trial, inputs: LayerInputs, n_threads: int, decided: InputTreatment | None
) -> Trial:
    """Choose among the input's grids by the error of the output on the rows that were calibrated on."""
    rounding, tensor = inputs.rounding, trial.tensor
    if rounding is None:
        return trial
    if decided is not None:
        return replace(trial, treatment=decided)
    weight = job.weight.reshape(len(job.weight), -1).astype(np.float32)
    decoded = tensor.dequantize(n_threads=n_threads).reshape(weight.shape)
    scales = None if tensor.equalization is None else tensor.equalization
    best, errors = trial, []
    with single_threaded_blas():
        targets = _products(rounding.rows, weight)
        for fitted in rounding.fits(scales, tensor.rotation_seed):
            outputs = _products(rounding.rounded(fitted, rounding.rows), decoded)
            errors.append(float(np.sum(np.square(outputs - targets, dtype=np.float64))))
            if errors[-1] == min(errors):
                treatment = replace(trial.treatment, fitted=rounding.named(fitted, job.name))
                best = replace(trial, objective=errors[-1], treatment=treatment)
    gain_db = _gain_db(errors[0], errors[-1])
    return replace(best, treatment=replace(best.treatment, smoothing_gain_db=gain_db))


def _products(rows: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    outputs: NDArray[np.float32] = rows.reshape(-1, rows.shape[-1]) @ weight.T
    return outputs


def measure_output(
    weight: NDArray[Any], tensor: QuantizedTensor, inputs: LayerInputs, n_threads: int
) -> OutputStatistics:
    """Measure the layer's output on held-out rows, for a matrix or a tile of its rows; inputs are not rounded."""
    decoded = tensor.dequantize(n_threads=n_threads)
    found = [
        output_statistics(weight[rows], decoded[rows], part.held_out, part.groups)
        for rows, part in inputs.blocks(len(decoded))
    ]
    return OutputStatistics.combine(found)


def measure_rounded_output(
    weight: NDArray[Any], tensor: QuantizedTensor, inputs: LayerInputs, treatment: InputTreatment, n_threads: int
) -> OutputStatistics | None:
    """Measure the same with rounded inputs; None where they stay float."""
    if inputs.rounding is None or treatment.fitted is None:
        return None
    rounded = inputs.rounding.rounded(treatment.fitted, inputs.held_out)
    decoded = tensor.dequantize(n_threads=n_threads)
    return output_statistics(weight, decoded, inputs.held_out, inputs.groups, rounded)
