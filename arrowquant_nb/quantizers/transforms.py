"""What goes around a grid: the matrix is rotated, or a low-rank branch taken off it, before it is quantized.

The branch stands outside and the rotation inside: W = A B + Q(W' R) R^T with W' = W - A B, W equalized where scales
are given. Every choice is made by measured error: `auto` rotates where that lowers it, and a branch that does not
lower it is left out. Knows arrays and a Hessian; nothing of files or models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb import _kernels
from arrowquant_nb._kernels import k_format
from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.quantizers.affine import (
    checked_array,
    given_buffers,
    no_room_for_float32,
    quantize_matrices,
    unusable_message,
)
from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.quantizers.gptq import GptqReport, gptq_matrix
from arrowquant_nb.quantizers.hessian import DAMPING, LastFactor, checked_hessian
from arrowquant_nb.quantizers.layout import FLOAT32
from arrowquant_nb.quantizers.low_rank import add_product, effective_rank, factors_of
from arrowquant_nb.quantizers.matrix_job import LARGEST_WEIGHT, MatrixJob
from arrowquant_nb.quantizers.measure import measure
from arrowquant_nb.quantizers.rotation import rotatable, rotate, rotated_hessian, rotated_importance
from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["quantize_compensated", "quantize_rotated_array", "quantize_transformed"]

ALTERNATIONS = 3
"""Rounds of factors and codes; later ones change the third digit (DiTAS runs 10, arXiv 2409.07756)."""


@dataclass(frozen=True, eq=False)
class _Outcome:
    """One way to store a matrix, and the error by which it is compared with others."""

    tensor: QuantizedTensor
    objective: float
    report: GptqReport | None = None


class _CancelledError(Exception):
    """Leaves all loops; the caller returns None."""


# Quantizes a job that asks for no transform; told the seed it was rotated by, or None.
_Grid = Callable[[MatrixJob, int | None], _Outcome]


def quantize_transformed(jobs: Sequence[MatrixJob], n_threads: int = 0) -> list[QuantizedTensor]:
    """Quantize jobs without calibration: those that need only their grid in one parallel region, the others in turn.

    The bytes do not depend on `n_threads`; without a low-rank branch they are the same on every machine.

    Raises
    ------
    CheckpointError
        NaN, infinity or a weight beyond 2**125, naming tensor, count and first index.

    """

    def grid(job: MatrixJob, _seed: int | None) -> _Outcome:
        tensor = quantize_matrices([job], n_threads)[0]
        return _Outcome(tensor, tensor.statistics.sum_ee)

    plain = iter(quantize_matrices([job for job in jobs if not job.transformed], n_threads))
    return [_transformed(job, grid, n_threads) if job.transformed else next(plain) for job in jobs]


def _transformed(job: MatrixJob, grid: _Grid, n_threads: int) -> QuantizedTensor:
    """Rotate and branch the equalized matrix."""
    return _with_scales(_with_branch(job.equalized(), grid, None, n_threads).tensor, job, n_threads)


def _with_scales(tensor: QuantizedTensor, job: MatrixJob, n_threads: int) -> QuantizedTensor:
    """Give the tensor of an equalized matrix its scales, and the statistics of the weights themselves."""
    if job.equalization is None:
        return tensor
    return _measured(replace(tensor, dtype=job.weight.dtype.name, equalization=job.equalization), job, n_threads)


def quantize_rotated_array(
    array: NDArray[Any],
    settings: dict[str, Any],
    rotation: str,
    seed: int,
    name: str = "tensor",
    out: QuantizedTensor | None = None,
    n_threads: int = 0,
) -> QuantizedTensor:
    """Quantize one array as `quantize_array` does, rotated; takes a copy of the whole array.

    `settings` are its arguments from bit_width to importance, and scale_format, by name.
    """
    layout, dtype = checked_array(
        array, settings["bit_width"], settings["group_size"], settings["method"], name, settings["scale_format"]
    )
    weight = np.ascontiguousarray(array, dtype).reshape(layout.rows, layout.columns)
    job = MatrixJob(weight, name, array.shape, rotation=rotation, seed=seed, **settings)
    tensor = quantize_transformed([job], n_threads)[0]
    if out is None:
        return tensor
    buffers = given_buffers(out, layout, array, name)
    wide = layout.scale_dtype(out.scales) == FLOAT32
    if not wide and layout.scale_dtype(tensor.scales) == FLOAT32:
        raise no_room_for_float32(name)
    stored = [tensor.packed, tensor.scales, tensor.zero_points]
    if layout.grid == "k" and wide:
        sizes = (layout.columns, layout.bit_width, layout.group_size)
        stored[1:] = (k_format.widen(a.view(np.uint8), *sizes) for a in stored[1:])
    for buffer, values in zip(buffers, stored, strict=True):
        np.copyto(buffer, values)
    packed, scales, zero_points = buffers
    return replace(tensor, packed=packed, scales=scales, zero_points=zero_points)


def quantize_compensated(
    job: MatrixJob,
    hessian: NDArray[Any],
    *,
    n_threads: int = 0,
    cancelled: Callable[[], bool] = lambda: False,
    factors: LastFactor | None = None,
) -> tuple[QuantizedTensor, GptqReport] | None:
    """Quantize a job by GPTQ in the rotated basis, beside the branch, as the job asks; see `gptq_matrix`.

    `factors` remembers the last factor from call to call, for as long as the Hessian is the same array. The report is
    that of the attempt that was kept: its direct result is rotated and has a branch like the other.
    """

    @cache
    def basis(seed: int | None) -> NDArray[np.float64]:
        checked = checked_hessian(hessian, job.weight.shape[1], job.name)
        if job.equalization is not None:  # inputs come divided
            scales = job.equalization.astype(np.float64)
            checked = checked / scales / scales[:, None]
        return checked if seed is None else rotated_hessian(checked, seed)

    known = LastFactor() if factors is None else factors
    divisors = b"" if job.equalization is None else job.equalization.tobytes()

    def grid(plain: MatrixJob, seed: int | None) -> _Outcome:
        done = gptq_matrix(
            plain, basis(seed), n_threads=n_threads, cancelled=cancelled,
            factor_of=lambda checked: known(checked, hessian, (seed, divisors)),
        )  # fmt: skip
        if done is None:
            raise _CancelledError
        tensor, report = done
        return _Outcome(tensor, min(report.objective_direct, report.objective_gptq), report)

    diagonal = basis(None).diagonal()
    try:
        outcome = _with_branch(job.equalized(), grid, diagonal + DAMPING * diagonal.mean(), n_threads)
    except _CancelledError:
        return None
    if outcome.report is None:
        raise AssertionError(job.name)
    return _with_scales(outcome.tensor, job, n_threads), outcome.report


def _with_branch(job: MatrixJob, grid: _Grid, diagonal: NDArray[np.float64] | None, n_threads: int) -> _Outcome:
    """Alternate between the branch of what codes leave and the codes of what the branch leaves; keep the best.

    The first branch is that of the matrix itself; no branch at all is a candidate too.
    """
    best = _in_basis(job, grid, n_threads, calibrated=diagonal is not None)
    if not job.low_rank:
        return best
    weight = job.weight.astype(np.float32)
    rank = effective_rank(weight.shape[0], weight.shape[1], job.low_rank)
    if diagonal is None and job.importance is not None:
        diagonal = job.importance + DAMPING * job.importance.mean(dtype=np.float64)
    scale = None if diagonal is None or not diagonal.any() else np.sqrt(diagonal)
    codes: NDArray[np.float32] | None = None  # what the codes alone stand for; none at first
    for _ in range(ALTERNATIONS):
        factors = factors_of(weight if codes is None else weight - codes, rank, scale)
        if factors is None:
            break
        residual = weight.copy()
        add_product(*factors, residual, -1.0)
        trial = _in_basis(replace(job, weight=residual), grid, n_threads, calibrated=diagonal is not None)
        if trial.objective < best.objective:
            a, b = factors
            codes = trial.tensor.dequantize(n_threads=n_threads)
            best = replace(trial, tensor=replace(trial.tensor, low_rank_a=a, low_rank_b=b, dtype=job.weight.dtype.name))
        elif codes is None:
            codes = best.tensor.dequantize(n_threads=n_threads)
        else:
            break
    return replace(best, tensor=_measured(best.tensor, job, n_threads))


def _measured(tensor: QuantizedTensor, job: MatrixJob, n_threads: int) -> QuantizedTensor:
    """Take the statistics against the job's own weights."""
    threads = _kernels.resolve_threads(n_threads, job.weight.size)
    with single_threaded_blas():
        return replace(tensor, statistics=measure(tensor, job.weight, None, threads)[1])


def _in_basis(job: MatrixJob, grid: _Grid, n_threads: int, *, calibrated: bool) -> _Outcome:
    """Quantize as it is, rotated, or both ways and keep the better; equal errors stay as they are."""
    plain = replace(job, rotation="none", low_rank=0)
    rotated = job.rotation == "hadamard" or (job.rotation == "auto" and rotatable(job.weight.shape[1]))
    if not rotated:
        return grid(plain, None)
    other = _rotated(plain, job.seed, grid, n_threads)
    if job.rotation == "hadamard":
        return other
    straight = grid(plain, None)
    if job.importance is not None and not calibrated:  # in its own basis, each column weighs what it was given
        straight, other = (_weighed(outcome, job, n_threads) for outcome in (straight, other))
    return other if other.objective < straight.objective else straight


def _weighed(outcome: _Outcome, job: MatrixJob, n_threads: int) -> _Outcome:
    importance = None if job.importance is None else job.importance.astype(np.float64)
    threads = _kernels.resolve_threads(n_threads, job.weight.size)
    return replace(outcome, objective=measure(outcome.tensor, job.weight, importance, threads)[0])


def _rotated(plain: MatrixJob, seed: int, grid: _Grid, n_threads: int) -> _Outcome:
    """Quantize in the rotated basis; the error sums are the same in both."""
    values = plain.weight.astype(np.float32)
    largest = max(float(values.max()), -float(values.min()))  # NaN if any is
    if not largest <= LARGEST_WEIGHT:
        raise CheckpointError(unusable_message(plain))
    rotate(values, seed, n_threads)
    importance = None if plain.importance is None else rotated_importance(plain.importance)
    outcome = grid(replace(plain, weight=values, importance=importance), seed)
    statistics = replace(outcome.tensor.statistics, w_absmax=largest)
    kind = plain.weight.dtype.name
    return replace(outcome, tensor=replace(outcome.tensor, rotation_seed=seed, dtype=kind, statistics=statistics))
