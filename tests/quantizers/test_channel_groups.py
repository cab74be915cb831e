"""A convolution in channel groups is so many convolutions: GPTQ over the whole equals GPTQ over each."""

import numpy as np
import pytest

from arrowquant_nb.quantizers.channel_groups import quantize_compensated_groups
from arrowquant_nb.quantizers.layer_inputs import LayerInputs
from arrowquant_nb.quantizers.matrix_job import MatrixJob
from arrowquant_nb.quantizers.transforms import quantize_compensated
from arrowquant_nb.quantizers.trials import measure_output, try_recipe

ROWS, COLUMNS, GROUPS = 24, 96, 3


def matrices(seed=0):
    """A weight and, for each group, 200 correlated input rows."""
    rng = np.random.default_rng(seed)
    inputs = [rng.standard_normal((200, COLUMNS)) @ rng.standard_normal((COLUMNS, COLUMNS)) for _ in range(GROUPS)]
    return rng.standard_normal((ROWS, COLUMNS)).astype(np.float32), [x.astype(np.float32) for x in inputs]


def job_of(weight, method="uls", scale_format="float16", **settings):
    given = {"name": "w", "shape": weight.shape, "bit_width": 4, "group_size": 32}
    return MatrixJob(weight, method=method, scale_format=scale_format, **given, **settings)


def hessian_of(x):
    return x.astype(np.float64).T @ x / len(x)


def cut(weight):
    return [(slice(k * 8, k * 8 + 8), weight[k * 8 : k * 8 + 8]) for k in range(GROUPS)]


@pytest.mark.parametrize("method", ["uls", "rtn", "k"])
@pytest.mark.parametrize("rotation", ["none", "hadamard"])
@pytest.mark.parametrize("largest", [1.0, 1e9], ids=["float16", "float32"])
def test_every_group_is_quantized_as_by_itself(method, rotation, largest):
    """One group with large weights needs float32 scales; those of the others become so without another value."""
    weight, inputs = matrices()
    weight[8:16] *= largest
    hessians = [hessian_of(x) for x in inputs]
    settings = {"method": "uls", "scale_format": "k"} if method == "k" else {"method": method}
    settings["rotation"] = rotation
    parts = [(rows, hessian) for (rows, _), hessian in zip(cut(weight), hessians, strict=True)]
    tensor, report = quantize_compensated_groups(job_of(weight, **settings), parts)
    alone = [quantize_compensated(job_of(w, **settings), h) for (_, w), h in zip(cut(weight), hessians, strict=True)]
    assert np.array_equal(tensor.packed, np.concatenate([one.packed for one, _ in alone]))
    assert np.array_equal(tensor.dequantize(), np.concatenate([one.dequantize() for one, _ in alone]))
    assert report.objective_gptq == pytest.approx(sum(min(r.objective_direct, r.objective_gptq) for _, r in alone))
    assert tensor.statistics.sum_ee == pytest.approx(sum(one.statistics.sum_ee for one, _ in alone))


def test_rotation_is_chosen_for_all_groups_by_the_sum_of_their_errors():
    weight, inputs = matrices()
    parts = [(rows, hessian_of(x)) for (rows, _), x in zip(cut(weight), inputs, strict=True)]
    found = {r: quantize_compensated_groups(job_of(weight, rotation=r), parts) for r in ("none", "hadamard", "auto")}
    better = min(("none", "hadamard"), key=lambda r: found[r][1].objective_gptq)
    assert np.array_equal(found["auto"][0].packed, found[better][0].packed)


def inputs_of(inputs):
    parts = tuple(LayerInputs(hessian_of(x), x[None, :20], (slice(0, 1),)) for x in inputs)
    return LayerInputs.of_groups(parts)


@pytest.mark.parametrize("compensated", [True, False])
def test_errors_are_measured_where_each_group_has_its_outputs(compensated):
    weight, inputs = matrices()
    known = inputs_of(inputs)
    trial = try_recipe(job_of(weight), known, compensated=compensated, n_threads=1, cancelled=lambda: False)
    decoded = trial.tensor.dequantize().astype(np.float64)
    expected, power, noise = 0.0, 0.0, 0.0
    for (rows, w), x in zip(cut(weight), inputs, strict=True):
        error = decoded[rows] - w
        expected += np.trace(error @ hessian_of(x) @ error.T)
        power += np.square(x[:20].astype(np.float64) @ w.T).sum()
        noise += np.square(x[:20].astype(np.float64) @ error.T).sum()
    assert trial.objective == pytest.approx(expected, rel=1e-9)
    output = measure_output(weight, trial.tensor, known, 1)
    assert output.sqnr_db == pytest.approx(10 * np.log10(power / noise), rel=1e-9)


def test_a_low_rank_branch_serves_all_groups_and_nothing_is_compensated():
    weight, inputs = matrices()
    trial = try_recipe(
        job_of(weight, low_rank=2), inputs_of(inputs), compensated=True, n_threads=1, cancelled=lambda: False
    )
    assert trial.tensor.low_rank_a is not None
    assert "channel groups" in trial.note


def test_cancelling_between_groups_gives_nothing():
    weight, inputs = matrices()
    asked = iter([False, False, True])
    known = inputs_of(inputs)
    assert try_recipe(job_of(weight), known, compensated=True, n_threads=1, cancelled=lambda: next(asked, True)) is None
