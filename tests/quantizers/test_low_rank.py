"""The low-rank branch, and rotation, branch and compensation together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers import MatrixJob, QuantizedTensor, quantize_compensated, quantize_transformed
from arrowquant_nb.quantizers.hessian import LastFactor
from arrowquant_nb.quantizers.low_rank import factors_of
from arrowquant_nb.quantizers.measure import tiles_of

few = settings(max_examples=12)


def with_strong_directions(rows, columns, seed=0, rank=4):
    rng = np.random.default_rng(seed)
    strong = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    return (strong + rng.standard_t(5, (rows, columns))).astype(np.float32)


def correlated(columns, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2 * columns, max(1, columns // 4))) @ rng.standard_normal((max(1, columns // 4), columns))
    x += 0.3 * rng.standard_normal(x.shape)
    return x.T @ x / len(x)


def job_of(w, rank, bits=2, group=32, method="uls", **more):
    return MatrixJob(w, "blk.proj", w.shape, bits, group, method, low_rank=rank, **more)


def quantized(job, n_threads=0):
    return quantize_transformed([job], n_threads)[0]


def squared_error(tensor, w):
    return float(((tensor.dequantize().astype(np.float64) - w) ** 2).sum())


def objective(tensor, w, h):
    e = tensor.dequantize().astype(np.float64) - w
    return float(np.trace(e @ h @ e.T))


@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (200, 160)])
def test_factors_are_those_of_the_singular_value_decomposition(shape):
    w = with_strong_directions(*shape)
    a, b = (part.astype(np.float64) for part in factors_of(w, 4, None))
    u, s, vt = np.linalg.svd(w.astype(np.float64))
    best = (u[:, :4] * s[:4]) @ vt[:4]
    assert np.linalg.norm(a @ b - best) < 2e-3 * np.linalg.norm(best)


def test_weights_of_columns_enter_the_factors():
    w = with_strong_directions(60, 50)
    d = np.exp(np.random.default_rng(0).normal(0, 1, 50))
    a, b = (part.astype(np.float64) for part in factors_of(w, 3, d))
    u, s, vt = np.linalg.svd(w * d)
    best = (u[:, :3] * s[:3]) @ vt[:3] / d
    assert np.linalg.norm((a @ b - best) * d) < 3e-3 * np.linalg.norm(best * d)


@pytest.mark.parametrize("exponent", [-300, -40, 40, 300])
def test_the_size_of_all_weights_of_columns_together_changes_nothing(exponent):
    w, d = with_strong_directions(60, 50), np.exp(np.random.default_rng(0).normal(0, 1, 50))
    for found, expected in zip(factors_of(w, 3, np.ldexp(d, exponent)), factors_of(w, 3, d), strict=True):
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [1e-40, 1e-20, 1e20, 1e36])
def test_matrices_of_any_size_have_factors_or_none(size):
    w = with_strong_directions(60, 50) * np.float32(size)
    factors = factors_of(w, 3, None)
    assert (factors is None) == (size > 1e10)  # float16 ends at 65504
    h = correlated(50)
    for job in (job_of(w, 3), job_of(w, 0)):
        tensor, _ = quantize_compensated(job, h)
        assert objective(tensor, w, h) <= objective(quantized(job_of(w, 0)), w, h)


@given(st.integers(1, 80), st.integers(16, 120), st.sampled_from([2, 4, 8]), st.integers(1, 8), st.integers(0, 9))
@few
def test_a_branch_never_raises_the_error(rows, columns, bits, rank, seed):
    w = with_strong_directions(rows, columns, seed)
    without, tensor = (quantized(job_of(w, r, bits)) for r in (0, rank))
    assert squared_error(tensor, w) <= squared_error(without, w) * (1 + 1e-5)
    assert tensor.statistics.sum_ee == pytest.approx(squared_error(tensor, w), rel=1e-6)
    if tensor.low_rank_a is not None:
        stored = min(rank, rows, columns)
        assert (tensor.low_rank_a.shape, tensor.low_rank_b.shape) == ((rows, stored), (stored, columns))
        assert tensor.nbytes == without.nbytes + 2 * stored * (rows + columns)


def test_strong_directions_leave_the_codes():
    w = with_strong_directions(128, 256)
    without, tensor = (quantized(job_of(w, r)) for r in (0, 4))
    assert squared_error(tensor, w) < 0.5 * squared_error(without, w)
    assert "rank 4" in repr(tensor)


def test_a_branch_that_does_not_help_is_left_out():
    w = np.zeros((20, 64), np.float32)
    tensor = quantized(job_of(w, 4))
    assert (tensor.low_rank_a, tensor.low_rank_b) == (None, None)
    assert not tensor.dequantize().any()


def test_factors_beyond_float16_leave_the_matrix_to_the_codes():
    w = with_strong_directions(30, 64) * np.float32(1e12)
    tensor = quantized(job_of(w, 4, 8))
    assert tensor.low_rank_a is None
    assert tensor.statistics.sqnr_db > 30


@pytest.mark.parametrize("rotation", ["none", "hadamard", "auto"])
def test_bytes_do_not_depend_on_threads(rotation):
    job = job_of(with_strong_directions(600, 128), 4, rotation=rotation)
    one, two = quantized(job, 1), quantized(job, 3)
    for field in ("packed", "scales", "zero_points", "low_rank_a", "low_rank_b"):
        assert getattr(one, field).tobytes() == getattr(two, field).tobytes()
    assert one.statistics == two.statistics
    assert one.dequantize(n_threads=1).tobytes() == one.dequantize(n_threads=3).tobytes()


@given(st.integers(2, 60), st.sampled_from([32, 64, 96]), st.sampled_from([2, 4]), st.integers(0, 9))
@few
def test_compensation_with_rotation_and_branch(rows, columns, bits, seed):
    w, h = with_strong_directions(rows, columns, seed), correlated(columns, seed)
    plain, _ = quantize_compensated(job_of(w, 0, bits), h)
    base = objective(plain, w, h)
    for rotation, rank in (("auto", 0), ("none", 3), ("auto", 3)):
        tensor, report = quantize_compensated(job_of(w, rank, bits, rotation=rotation), h)
        found = objective(tensor, w, h)
        assert found <= base * (1 + 1e-4)
        # A millionth of the error of codes alone is the rounding of float32 sums: a branch of full rank leaves no more.
        expected = min(report.objective_gptq, report.objective_direct)
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6 * base)
        assert tensor.statistics.sum_ee == pytest.approx(squared_error(tensor, w), rel=1e-4)
    forced, _ = quantize_compensated(job_of(w, 0, bits, rotation="hadamard", seed=9), h)
    assert forced.rotation_seed == 9


def test_compensation_is_the_same_for_any_number_of_threads_and_can_be_stopped():
    w, h = with_strong_directions(300, 128), correlated(128)
    job = job_of(w, 2, rotation="auto")
    one, two = (quantize_compensated(job, h, n_threads=n) for n in (1, 4))
    assert one[1] == two[1]
    assert one[0].packed.tobytes() == two[0].packed.tobytes()
    assert quantize_compensated(job, h, cancelled=lambda: True) is None


def test_remembered_factors_change_no_byte():
    w, h, known = with_strong_directions(40, 64), correlated(64), LastFactor()
    scales = np.exp2(np.arange(64) % 3).astype(np.float16)
    for job in (
        job_of(w, 0), job_of(w, 2), job_of(w, 0, rotation="hadamard", seed=1), job_of(w, 0, rotation="auto", seed=2),
        replace(job_of(w, 0), equalization=scales), job_of(w, 0),
    ):  # fmt: skip
        (one, report), (other, again) = (quantize_compensated(job, h, factors=f) for f in (None, known))
        assert report == again
        assert one.packed.tobytes() == other.packed.tobytes()
        assert one.scales.tobytes() == other.scales.tobytes()


def test_importance_of_columns_guides_the_branch():
    w = with_strong_directions(80, 64, rank=20)
    v = np.where(np.arange(64) < 8, 100.0, 0.01).astype(np.float32)
    plain, weighed = (quantized(job_of(w, 4, importance=i)) for i in (None, v))
    errors = [((t.dequantize() - w)[:, :8] ** 2).sum() for t in (plain, weighed)]
    assert errors[1] < 0.5 * errors[0]


def test_tiles_know_their_own_error_and_share_the_second_factor():
    w = with_strong_directions(70, 64)
    tensor = quantized(job_of(w, 3, rotation="hadamard"))
    tiles = tiles_of(tensor, w, 32, 1)
    assert [start for start, _ in tiles] == [0, 32, 64]
    assert np.array_equal(np.concatenate([t.dequantize() for _, t in tiles]), tensor.dequantize())
    assert all(t.low_rank_b is tensor.low_rank_b for _, t in tiles)
    assert sum(t.statistics.sum_ee for _, t in tiles) == pytest.approx(tensor.statistics.sum_ee, rel=1e-6)
    assert tiles_of(tensor, w, 70, 1) == [(0, tensor)]


@pytest.mark.parametrize("rank", [-1, 129, 1.5, True])
def test_ranks_out_of_range_are_named(rank):
    with pytest.raises(ConfigurationError, match=rf"blk\.proj: low_rank {rank!r}"):
        job_of(with_strong_directions(4, 32), rank)


def test_a_matrix_too_large_to_hold_is_refused(monkeypatch):
    monkeypatch.setattr("arrowquant_nb.quantizers.low_rank.WHOLE_WEIGHTS", 100)
    with pytest.raises(ConfigurationError, match=r"blk\.proj: 128 weights are too many for low_rank"):
        job_of(with_strong_directions(4, 32), 1)


def test_factors_that_do_not_fit_are_refused():
    tensor = quantized(job_of(with_strong_directions(64, 64), 3))
    fields = {name: getattr(tensor, name) for name in tensor.__dataclass_fields__}
    for change in (
        {"low_rank_a": None},
        {"low_rank_b": None},
        {"low_rank_a": tensor.low_rank_a[:, :2]},
        {"low_rank_b": tensor.low_rank_b.astype(np.float32)},
        {"low_rank_a": tensor.low_rank_a[:-1]},
    ):
        with pytest.raises(ShapeMismatchError, match="low_rank_"):
            QuantizedTensor(**(fields | change))
    with pytest.raises(ConfigurationError, match="rotation_seed"):
        QuantizedTensor(**(fields | {"rotation_seed": -1}))
