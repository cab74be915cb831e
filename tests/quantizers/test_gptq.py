"""GPTQ: compensation worked out slowly, and what must hold for any weights and any Hessian."""

import itertools

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb.errors import CheckpointError, ShapeMismatchError
from arrowquant_nb.quantizers import MatrixJob, quantize_array, quantize_matrices
from arrowquant_nb.quantizers.gptq import GptqReport, gptq_matrix

few = settings(max_examples=15, deadline=None)
# Every grid with every width it has.
GRIDS = [*itertools.product(["rtn", "mse", "uls", "hqq"], [2, 4, 8]), ("r2q", 2)]
grids = st.sampled_from(GRIDS)


def weights(rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(5, (rows, columns)) * np.exp(rng.normal(0, 0.3, (rows, 1)))).astype(np.float32)


def correlated(columns, seed=0, samples=None):
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((max(1, columns // 4), columns))
    x = rng.standard_normal((samples or 2 * columns, len(mix))) @ mix
    x += 0.3 * rng.standard_normal(x.shape)
    x *= np.exp(rng.normal(0, 0.5, columns))
    return x.T @ x / len(x)


def job_of(w, bits=2, group=32, method="uls", **more):
    return MatrixJob(w, "blk.proj", w.shape, bits, group, method, **more)


def objective(tensor, w, h):
    e = tensor.dequantize().astype(np.float64) - w
    return float(np.trace(e @ h @ e.T))


def bytes_of(tensor):
    return tensor.packed.tobytes() + tensor.scales.tobytes() + tensor.zero_points.tobytes()


def slow_gptq(w, h, bits, group, method):
    """Column after column over the whole row, the inverse itself updated (Frantar et al., algorithm 1): no factor."""
    n, last, shifts = w.shape[1], np.float32(2**bits - 1), bits == 4 and group == 32
    damping = 0.01 * h.diagonal().mean()
    diagonal = h.diagonal() + damping
    importance = (diagonal / diagonal.mean()).astype(np.float32)
    inverse = np.linalg.inv(h + np.eye(n) * damping)
    work, out = w.astype(np.float64).copy(), np.empty(w.shape, np.float32)
    for j in range(n):
        if j % group == 0:
            part = slice(j, min(j + group, n))
            v = [np.float32(1)] * group if method == "rtn" else list(importance[part])
            tables = [
                reference.GRIDS[method](list(row.astype(np.float32)), v, 2**bits - 1, False, shifts)
                for row in work[:, part]
            ]
        for row, (scale, zero) in enumerate(tables):
            x = np.float32(work[row, j])
            steps = reference.rint((x - zero) / scale) if method == "uls" else reference.rint(x / scale) + zero
            code = reference.clip(steps, np.float32(0), last)
            out[row, j] = reference.decode_one(code, scale, zero, method)
        error = (work[:, j] - out[:, j]) / inverse[j, j]
        work -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return out


def test_two_columns_worked_out_by_hand():
    # The error of the first weight is passed on by -H01 / H11 (damped), whatever the factor looks like.
    w = np.array([[0.9, 0.4, 0.0, 3.0]], np.float32)
    h = np.diag([1.0, 1.0, 1.0, 1.0])
    h[0, 1] = h[1, 0] = 0.8
    tensor, report = gptq_matrix(job_of(w, 2, 16, "rtn"), h)
    # rtn of [0.9, 0.4, 0, 3]: scale 1, zero point 0. 0.9 -> 1, error -0.1; 0.4 - 0.1 * 0.8 / 1.01 = 0.32 -> 0.
    assert tensor.dequantize().tolist() == [[1.0, 0.0, 0.0, 3.0]]
    w[0, :2] = 1.4, 0.4
    # 1.4 -> 1, error 0.4; 0.4 + 0.4 * 0.8 / 1.01 = 0.717 -> 1, where direct rounding gives 0.
    tensor, report = gptq_matrix(job_of(w, 2, 16, "rtn"), h)
    assert tensor.dequantize().tolist() == [[1.0, 1.0, 0.0, 3.0]]
    assert report.objective_direct == pytest.approx(0.4**2 + 0.4**2 + 2 * 0.8 * 0.16)
    assert report.objective_gptq == pytest.approx(0.4**2 + 0.6**2 - 2 * 0.8 * 0.24)
    assert report.compensated


@pytest.mark.parametrize("method", ["rtn", "mse", "uls"])
@pytest.mark.parametrize(("bits", "columns", "group"), [(2, 64, 16), (4, 72, 32)])
def test_the_values_are_those_of_the_slow_algorithm(method, bits, columns, group):
    w, h = weights(5, columns), correlated(columns)
    tensor, report = gptq_matrix(job_of(w, bits, group, method, gain_correction=False), h)
    assert report.compensated
    assert np.array_equal(tensor.dequantize(), slow_gptq(w, h, bits, group, method))


@given(st.integers(1, 300), st.integers(1, 200), grids, st.sampled_from([16, 48, 64, 256]), st.integers(0, 9))
@few
def test_never_worse_than_the_direct_grid(rows, columns, grid, group, seed):
    method, bits = grid
    w, h = weights(rows, columns, seed), correlated(columns, seed)
    job = job_of(w, bits, group, method)
    tensor, report = gptq_matrix(job, h)
    found, direct = objective(tensor, w, h), objective(quantize_matrices([job])[0], w, h)
    assert report.objective_direct == pytest.approx(direct, rel=1e-9)
    assert found <= direct * (1 + 1e-9)
    if report.compensated:
        assert report.objective_gptq == pytest.approx(found, rel=1e-9)
        assert tensor.method == f"gptq-{method}"


def test_correlated_inputs_lose_half_the_error():
    w, h = weights(96, 256), correlated(256)
    for method, bits in GRIDS:
        _, report = gptq_matrix(job_of(w, bits, 32, method), h)
        assert report.objective_gptq < 0.5 * report.objective_direct


@given(st.integers(1, 40), st.integers(1, 300), grids, st.sampled_from([16, 64, 128]), st.floats(1e-6, 1e6))
@few
def test_uncorrelated_equal_inputs_give_the_direct_grid(rows, columns, grid, group, scale):
    method, bits = grid
    w = weights(rows, columns)
    job = job_of(w, bits, group, method, gain_correction=False)
    tensor, report = gptq_matrix(job, np.eye(columns) * scale)
    direct = quantize_matrices([job])[0]
    assert bytes_of(tensor) == bytes_of(direct)
    assert report.objective_gptq == report.objective_direct
    assert tensor.statistics.sum_ee == pytest.approx(direct.statistics.sum_ee, rel=1e-5, abs=1e-20)


@given(st.integers(1, 200), grids, st.integers(-12, 12))
@few
def test_the_scale_of_the_hessian_does_not_matter(columns, grid, exponent):
    method, bits = grid
    w, h = weights(9, columns), correlated(columns)
    one, other = (gptq_matrix(job_of(w, bits, 32, method), x)[0] for x in (h, h * 4.0**exponent))
    assert bytes_of(one) == bytes_of(other)


@given(st.integers(1, 120), grids, st.randoms(use_true_random=False))
@few
def test_rows_are_independent(columns, grid, random):
    method, bits = grid
    w, h = weights(30, columns), correlated(columns)
    order = list(range(30))
    random.shuffle(order)
    one, other = (gptq_matrix(job_of(x, bits, 32, method), h) for x in (w, np.ascontiguousarray(w[order])))
    if one[1].compensated and other[1].compensated:
        assert np.array_equal(one[0].dequantize()[order], other[0].dequantize())


def test_any_number_of_threads_gives_the_same_bytes():
    w, h = weights(600, 200), correlated(200)  # three blocks of rows
    for method in ("mse", "uls", "r2q"):
        one, two, five = (gptq_matrix(job_of(w, 2, 32, method), h, n_threads=n) for n in (1, 2, 5))
        assert bytes_of(one[0]) == bytes_of(two[0]) == bytes_of(five[0])
        assert one[1] == two[1] == five[1]
        assert one[0].statistics == two[0].statistics == five[0].statistics


@pytest.mark.parametrize("method", ["rtn", "mse", "uls"])
def test_duplicated_and_dependent_inputs_do_no_harm(method):
    w, h = weights(20, 96), correlated(96)
    duplicated = np.repeat(np.repeat(h[:48, :48], 2, axis=0), 2, axis=1)
    thin = correlated(96, samples=3)  # rank 3
    for singular in (duplicated, thin, np.ones((96, 96))):
        tensor, report = gptq_matrix(job_of(w, 2, 32, method), singular)
        assert np.isfinite(tensor.dequantize()).all()
        assert objective(tensor, w, singular) <= report.objective_direct * (1 + 1e-9)


def test_dead_columns_are_rounded_like_any_other():
    w, h = weights(20, 64), correlated(64)
    silent = [5, 6, 40]
    h[silent] = 0
    h[:, silent] = 0
    tensor, report = gptq_matrix(job_of(w, 4, 32), h)
    assert report.dead_columns == 3
    error = np.abs(tensor.dequantize() - w)[:, silent]
    step = np.repeat(tensor.scales.astype(np.float32), 32, axis=1)[:, silent]
    inside = np.abs(w[:, silent]) < 1  # beyond, the table may clip
    assert (error <= 0.51 * step)[inside].all()


def test_a_layer_without_input_is_quantized_directly():
    w = weights(4, 64)
    tensor, report = gptq_matrix(job_of(w), np.zeros((64, 64)))
    assert bytes_of(tensor) == bytes_of(quantize_matrices([job_of(w)])[0])
    assert report == GptqReport(False, "direct grid: the layer saw no input", 0.0, np.inf, 0.0, 0, 0)
    assert GptqReport.from_dict(report.to_dict()) == report


def test_an_indefinite_hessian_is_named():
    h = np.eye(64)
    h[0, 1] = h[1, 0] = 1000.0
    tensor, report = gptq_matrix(job_of(weights(4, 64)), h)
    assert (report.compensated, tensor.method) == (False, "uls")
    assert "no damping" in report.reason


@given(st.integers(17, 200), st.sampled_from([("mse", 2), ("mse", 4), ("uls", 2), ("uls", 4), ("r2q", 2)]))
@few
def test_groups_are_unbiased_after_compensation(columns, grid):
    method, bits = grid
    w, h = weights(40, columns), correlated(columns)
    plain, fixed = (gptq_matrix(job_of(w, bits, 16, method, gain_correction=g), h) for g in (False, True))
    if plain[1].compensated and fixed[1].compensated:
        assert abs(fixed[0].statistics.gain - 1) <= abs(plain[0].statistics.gain - 1) + 0.02


def test_statistics_are_those_of_the_original_weights():
    w, h = weights(300, 90), correlated(90)
    tensor, _ = gptq_matrix(job_of(w, 4, 32), h)
    x, q = w.astype(np.float64), tensor.dequantize().astype(np.float64)
    found = tensor.statistics
    assert (found.n, found.w_absmax) == (w.size, np.abs(w).max())
    assert found.sum_ww == pytest.approx((x * x).sum(), rel=1e-12)
    assert found.sum_wq == pytest.approx((x * q).sum(), rel=1e-12)
    assert found.sum_ee == pytest.approx(((q - x) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("method", ["rtn", "mse", "uls"])
def test_a_huge_weight_makes_float32_scales_for_the_whole_tensor(method):
    w, h = weights(300, 64), correlated(64)
    w[299, 3] = 3e6
    tensor, _ = gptq_matrix(job_of(w, 4, 32, method), h)
    assert tensor.scales.dtype == np.float32
    assert tensor.dequantize()[299, 3] == pytest.approx(3e6, rel=0.35)
    alone, _ = gptq_matrix(job_of(w, 4, 32, method, gain_correction=False), np.eye(64))
    assert bytes_of(alone) == bytes_of(quantize_matrices([job_of(w, 4, 32, method, gain_correction=False)])[0])


def test_compensation_out_of_range_keeps_the_direct_grid():
    w = np.full((2, 64), 2.0**124, np.float32) * np.linspace(0.5, 1.9, 64, dtype=np.float32)
    h = np.full((64, 64), 1.0) + np.eye(64) * 1e-9
    tensor, report = gptq_matrix(job_of(w, 2, 16), h)
    assert np.isfinite(tensor.dequantize()).all()
    assert report.objective_direct > 0


def test_nan_is_refused_as_by_the_direct_grids():
    w = weights(4, 64)
    w[2, 7] = np.nan
    with pytest.raises(CheckpointError, match=r"blk\.proj: 1 of 256 weights .* at index \(2, 7\)") as compensated:
        gptq_matrix(job_of(w), correlated(64))
    with pytest.raises(CheckpointError) as direct:
        quantize_array(w, 2, 32, name="blk.proj")
    assert str(compensated.value) == str(direct.value)


def test_a_hessian_of_another_width_is_refused():
    with pytest.raises(ShapeMismatchError, match=r"blk\.proj: the Hessian has shape \(32, 32\), the layer 64"):
        gptq_matrix(job_of(weights(4, 64)), correlated(32))


def test_cancelling_stops_between_blocks_of_columns():
    w, h = weights(8, 384), correlated(384)
    asked = []

    def stop_at(n):
        asked.clear()
        return lambda: asked.append(0) or len(asked) >= n

    assert gptq_matrix(job_of(w), h, n_threads=1, cancelled=stop_at(1)) is None
    assert gptq_matrix(job_of(w), h, n_threads=1, cancelled=stop_at(3)) is None
    assert len(asked) == 3
    assert gptq_matrix(job_of(w), h, n_threads=1, cancelled=stop_at(9)) is not None
    assert len(asked) == 4  # before the factor, then one per 128 columns


def test_convolutions_and_half_precision():
    w = weights(6, 36).reshape(6, 4, 3, 3).astype(np.float16)
    job = MatrixJob(w.reshape(6, 36), "conv", w.shape, 4, 16, "uls")
    tensor, _ = gptq_matrix(job, correlated(36))
    assert (tensor.shape, tensor.dtype) == ((6, 4, 3, 3), "float16")


K_FORMATS = [(2, 16), (2, 32), (4, 32), (4, 64)]


@pytest.mark.parametrize(("bits", "group"), K_FORMATS)
@pytest.mark.parametrize("columns", [300, 512])
def test_double_quantized_scales_lose_error_and_decode_as_stored(bits, group, columns):
    w, h = weights(40, columns), correlated(columns)
    job = job_of(w, bits, group, scale_format="k")
    tensor, report = gptq_matrix(job, h)
    assert report.compensated
    assert report.objective_gptq < 0.5 * report.objective_direct
    assert (tensor.method, tensor.grid) == ("gptq-uls", "k")
    assert tensor.nbytes == job.layout.nbytes()
    assert report.objective_gptq == pytest.approx(objective(tensor, w, h), rel=1e-9)


@given(st.integers(1, 60), st.integers(1, 300), st.sampled_from(K_FORMATS), st.integers(0, 9))
@few
def test_double_quantized_scales_are_never_worse_than_direct(rows, columns, sizes, seed):
    w, h = weights(rows, columns, seed), correlated(columns, seed)
    job = job_of(w, *sizes, scale_format="k")
    tensor, report = gptq_matrix(job, h)
    assert objective(tensor, w, h) <= objective(quantize_matrices([job])[0], w, h) * (1 + 1e-9)
    assert report.objective_gptq == pytest.approx(objective(tensor, w, h), rel=1e-9) or not report.compensated


def test_double_quantized_scales_of_tiny_weights_have_float32_blocks():
    w, h = weights(5, 300) * np.float32(1e-9), correlated(300)
    w[3] *= np.float32(1e9)
    w[4] = 0
    tensor, report = gptq_matrix(job_of(w, 4, 32, scale_format="k"), h)
    assert report.compensated
    assert tensor.layout.scale_dtype(tensor.scales) == np.float32
    assert objective(tensor, w, h) < report.objective_direct
    assert not tensor.dequantize()[4].any()


def test_double_quantized_scales_with_any_number_of_threads():
    w, h = weights(600, 300), correlated(300)
    one, two = (gptq_matrix(job_of(w, 2, 16, scale_format="k"), h, n_threads=n) for n in (1, 2))
    assert bytes_of(one[0]) == bytes_of(two[0])


@given(st.integers(2, 120), grids, st.floats(1e-4, 1e4))
@few
def test_any_factor_of_the_hessian_leaves_the_result_as_good(columns, grid, factor):
    """Powers of two change no bit; other factors move roundings, and the result is as good as it was."""
    method, bits = grid
    w, h = weights(9, columns), correlated(columns)
    one, other = (objective(gptq_matrix(job_of(w, bits, 32, method), x)[0], w, h) for x in (h, h * factor))
    assert other == pytest.approx(one, rel=0.05, abs=1e-12)


@given(st.integers(4, 90), grids, st.data())
@few
def test_silent_inputs_keep_their_weights_and_the_others_do_not_notice(columns, grid, data):
    method, bits = grid
    dead = data.draw(st.sets(st.integers(0, columns - 1), min_size=1, max_size=columns - 1))
    w, h = weights(5, columns), correlated(columns)
    h[list(dead)] = 0.0
    h[:, list(dead)] = 0.0
    tensor, _ = gptq_matrix(job_of(w, bits, 32, method), h)
    decoded, direct = tensor.dequantize(), quantize_matrices([job_of(w, bits, 32, method)])[0].dequantize()
    assert np.isfinite(decoded).all()
    kept = sorted(dead)
    assert np.abs(decoded[:, kept] - w[:, kept]).max() <= 4 * np.abs(direct - w).max() + 1e-6
