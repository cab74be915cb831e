"""What must hold for any weights: the invariants of the grids, with hypothesis."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb._kernels import numpy_search
from arrowquant_nb._kernels.numpy_search import Grid
from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.quantizers import quantize_array

METHODS = ["rtn", "mse", "uls", "hqq", "r2q"]
LEAST_SQUARES = ["mse", "uls", "r2q"]
few = settings(max_examples=40, deadline=None)
bits_of = st.sampled_from([2, 4, 8])
group_of = st.sampled_from([16, 32, 64, 256])


@st.composite
def matrices(draw, columns=None):
    """Rows of mixed shape and size: normal, heavy tailed, one sided, with an outlier, sparse."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 5)), columns or draw(st.integers(1, 300)))
    w = rng.standard_t(draw(st.sampled_from([2, 5, 100])), shape)
    w *= np.exp2(rng.uniform(-6, 4, (shape[0], 1)))
    match draw(st.sampled_from(["plain", "one sided", "sparse", "outlier", "offset"])):
        case "one sided":
            w = np.abs(w)
        case "sparse":
            w[rng.random(shape) < 0.7] = 0.0
        case "outlier":
            w[0, 0] = 300.0
        case "offset":
            w += 5.0
    return w.astype(np.float32)


def codes_of(tensor):
    per_byte = 8 // tensor.bit_width
    codes = np.stack([tensor.packed >> (i * tensor.bit_width) for i in range(per_byte)], axis=-1)
    return (codes & (2**tensor.bit_width - 1)).reshape(tensor.rows, -1)[:, : tensor.columns]


def per_weight(values, tensor):
    return np.repeat(values.astype(np.float64), tensor.group_size, axis=1)[:, : tensor.columns]


@given(matrices(), bits_of, group_of)
@few
def test_rtn_errs_by_half_a_step_at_most(w, bits, group_size):
    tensor = quantize_array(w, bits, group_size, "rtn")
    error = np.abs(tensor.dequantize().astype(np.float64) - w)
    assert (error <= 0.5 * per_weight(tensor.scales, tensor) * (1 + 2**-12)).all()


@given(matrices(), bits_of, group_of)
@few
def test_rtn_keeps_zero_exactly(w, bits, group_size):
    decoded = quantize_array(w, bits, group_size, "rtn").dequantize()
    assert (decoded[w == 0] == 0).all()


@given(matrices(), bits_of, group_of)
@few
def test_rtn_codes_of_its_own_values_are_the_same(w, bits, group_size):
    tensor = quantize_array(w, bits, group_size, "rtn")
    s = per_weight(tensor.scales, tensor)
    decoded = tensor.dequantize()
    zero = codes_of(tensor) - np.rint(decoded / s)  # z, from (code - z) * s
    assert np.array_equal(np.clip(np.rint(decoded / s) + zero, 0, 2**bits - 1), codes_of(tensor))


@given(matrices(), bits_of, group_of, st.integers(-2, 6))
@few
def test_rtn_scales_with_powers_of_two(w, bits, group_size, k):
    w = np.where(np.abs(w) < 2.0**-3, np.float32(0), w)  # keeps every scale a normal float16
    w[:, 0] = 8.0
    one, other = quantize_array(w, bits, group_size, "rtn"), quantize_array(w * 2.0**k, bits, group_size, "rtn")
    if float(one.scales.min()) > 2.0**-10:
        assert np.array_equal(one.packed, other.packed)
        assert np.array_equal(one.scales.astype(np.float64) * 2.0**k, other.scales)


@given(matrices(columns=192), bits_of, st.sampled_from(METHODS), st.randoms(use_true_random=False))
@few
def test_rows_and_groups_are_independent(w, bits, method, random):
    bits = 2 if method == "r2q" else bits
    rows, groups = list(range(len(w))), list(range(3))
    random.shuffle(rows)
    random.shuffle(groups)
    shuffled = np.ascontiguousarray(w.reshape(-1, 3, 64)[rows][:, groups].reshape(w.shape))
    one, other = (quantize_array(a, bits, 64, method, gain_correction=False).dequantize() for a in (w, shuffled))
    assert np.array_equal(one.reshape(-1, 3, 64)[rows][:, groups].reshape(w.shape), other)


@given(matrices(), bits_of, group_of)
@few
def test_mse_never_loses_to_rtn(w, bits, group_size):
    errors = [quantize_array(w, bits, group_size, m, gain_correction=False).statistics.sum_ee for m in ("mse", "rtn")]
    assert errors[0] <= errors[1] * (1 + 1e-5) + 1e-30


@given(matrices(), bits_of, group_of)
@few
def test_uls_never_loses_to_its_own_plain_range(w, bits, group_size):
    tensor = quantize_array(w, bits, group_size, "uls", gain_correction=False)
    n = 2**bits - 1
    total = 0.0
    for row in w:
        for start in range(0, len(row), group_size):
            g = row[start : start + group_size]
            m = np.float32(np.float16(g.min()))
            s = np.float32(max(np.float16((g.max() - g.min()) / np.float32(n)), np.float16(2.0**-24)))
            q = np.clip(np.rint((g - m) / s), 0, n).astype(np.float32)
            total += ((q * s + m).astype(np.float64) - g).__pow__(2).sum()
    assert tensor.statistics.sum_ee <= total * (1 + 1e-4) + 1e-12


@given(matrices(columns=64), bits_of, st.sampled_from([0.25, 2.0, 8.0]))
@few
def test_uls_follows_a_change_of_scale(w, bits, a):
    w = np.ascontiguousarray(w * np.float32(8.0) + np.float32(1.0))
    one, other = (quantize_array(x, bits, 64, "uls", gain_correction=False) for x in (w, w * np.float32(a)))
    if float(one.scales.min()) > 2.0**-11 and float(other.scales.min()) > 2.0**-11:  # normal float16 in both
        assert other.statistics.sum_ee == pytest.approx(one.statistics.sum_ee * a * a, rel=1e-2, abs=1e-9)


@given(matrices(), bits_of, group_of, st.sampled_from(LEAST_SQUARES))
@few
def test_gain_correction_makes_the_table_unbiased(w, bits, group_size, method):
    bits = 2 if method == "r2q" else bits
    plain = quantize_array(w, bits, group_size, method, gain_correction=False)
    fixed = quantize_array(w, bits, group_size, method, gain_correction=True)
    for row in range(len(w)):
        x = w[row].astype(np.float64)
        before, after = (x @ t.dequantize()[row].astype(np.float64) for t in (plain, fixed))
        if before > 0 and 0.5 < (x @ x) / before < 2.0 and float(plain.scales[row, ..., :1].min()) > 2.0**-14:
            assert after == pytest.approx(x @ x, rel=2**-9)


@given(matrices(), bits_of, group_of, st.sampled_from(METHODS), st.booleans())
@few
def test_statistics_are_those_of_the_decoded_weights(w, bits, group_size, method, gain):
    bits = 2 if method == "r2q" else bits
    tensor = quantize_array(w, bits, group_size, method, gain)
    x, q = w.astype(np.float64), tensor.dequantize().astype(np.float64)
    found = tensor.statistics
    assert found.n == w.size
    assert found.sum_ww == pytest.approx((x * x).sum(), rel=1e-5)
    assert found.sum_wq == pytest.approx((x * q).sum(), rel=1e-5, abs=1e-5 * (x * x).sum() + 1e-30)
    assert found.sum_ee == pytest.approx(((q - x) ** 2).sum(), rel=1e-5, abs=1e-12 * (x * x).sum())
    assert found.w_absmax == np.abs(w).max()


@given(matrices(), bits_of, group_of, st.sampled_from(LEAST_SQUARES))
@few
def test_equal_importance_changes_nothing(w, bits, group_size, method):
    bits = 2 if method == "r2q" else bits
    flat = np.full(w.shape[1], 0.37, np.float32)
    one, other = (quantize_array(w, bits, group_size, method, importance=v) for v in (None, flat * 0 + 1))
    third = quantize_array(w, bits, group_size, method, importance=np.full(w.shape[1], 4.0, np.float32))
    assert one.packed.tobytes() == other.packed.tobytes() == third.packed.tobytes()
    assert one.scales.tobytes() == other.scales.tobytes() == third.scales.tobytes()


@pytest.mark.parametrize("method", LEAST_SQUARES)
def test_importance_moves_the_error_to_columns_that_do_not_matter(method):
    w = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    v = np.where(np.arange(64) < 16, 100.0, 0.01).astype(np.float32)
    plain, weighted = (
        quantize_array(w, 2, 64, method, gain_correction=False, importance=i).dequantize() for i in (None, v)
    )
    assert ((weighted - w)[:, :16] ** 2).sum() < 0.8 * ((plain - w)[:, :16] ** 2).sum()


@given(matrices(), bits_of, group_of)
@few
def test_hqq_errs_by_no_more_than_its_plain_range(w, bits, group_size):
    """The mean absolute error of every group is at most that of the first iterate, the range's scale and minimum."""
    found = quantize_array(w, bits, group_size, "hqq").dequantize().astype(np.float64)
    n = 2**bits - 1
    for row, decoded in zip(w, found, strict=True):
        for start in range(0, len(row), group_size):
            g = row[start : start + group_size]
            m = np.float32(np.float16(g.min()))
            s = np.float32(max(np.float16((g.max() - g.min()) / np.float32(n)), np.float16(2.0**-24)))
            first = np.clip(np.rint((g - m) / s), 0, n).astype(np.float32) * s + m
            error = np.abs(decoded[start : start + group_size] - g).sum()
            assert error <= np.abs(first.astype(np.float64) - g).sum() * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_gain_correction_leaves_what_is_no_least_squares_grid_alone(method):
    w = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    one, other = (quantize_array(w, 2, 32, method, gain_correction=g) for g in (False, True))
    assert one.scales.tobytes() == other.scales.tobytes()
    assert one.zero_points.tobytes() == other.zero_points.tobytes()


@given(st.floats(-6e4, 6e4, width=32), st.integers(1, 90), bits_of, st.sampled_from(METHODS))
@few
def test_a_group_of_one_value_has_a_scale_that_can_be_divided_by(value, columns, bits, method):
    bits = 2 if method == "r2q" else bits
    tensor = quantize_array(np.full((2, columns), value, np.float32), bits, 32, method)
    scales = tensor.scales.astype(np.float64)
    assert np.isfinite(scales).all()
    assert method == "r2q" or (scales > 0).all()
    assert np.isfinite(tensor.dequantize()).all()
    if value == 0:
        assert not tensor.dequantize().any()


@given(matrices(), bits_of, st.sampled_from(METHODS), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
@few
def test_a_weight_that_is_no_number_is_named_wherever_it_stands(w, bits, method, bad, data):
    bits = 2 if method == "r2q" else bits
    row, column = (data.draw(st.integers(0, n - 1)) for n in w.shape)
    w[row, column] = bad
    with pytest.raises(CheckpointError, match=rf"1 of {w.size} weights .* at index \({row}, {column}\)"):
        quantize_array(w, bits, 32, method, name="some.weight")


@given(matrices(), bits_of, group_of, st.integers(0, 2**32 - 1))
@few
def test_mse_never_loses_to_rtn_by_the_importance_it_is_given(w, bits, group_size, seed):
    v = np.random.default_rng(seed).exponential(1.0, w.shape[1]).astype(np.float32) + np.float32(1e-3)
    mse = quantize_array(w, bits, group_size, "mse", gain_correction=False, importance=v).dequantize()
    rtn = quantize_array(w, bits, group_size, "rtn").dequantize()
    errors = [(v * (x.astype(np.float64) - w) ** 2).sum() for x in (mse, rtn)]
    assert errors[0] <= errors[1] * (1 + 1e-4) + 1e-30


@given(matrices(columns=64), bits_of, st.booleans())
@few
def test_more_refits_never_raise_the_error_of_uls(w, bits, weighted):
    u = np.ascontiguousarray(w.T)
    v = np.ones_like(u) * (np.linspace(0.1, 3, 64, dtype=np.float32)[:, None] if weighted else np.float32(1))
    before = None
    for refits in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(numpy_search, "ULS_REFITS", refits)
            found = numpy_search.uls(u, v, Grid(2**bits - 1, wide=True))
        decoded = found.scale.astype(np.float64) * found.codes + found.zero
        sse = (v * (decoded - u) ** 2).sum(axis=0)
        if before is not None:
            assert (sse <= before * (1 + 1e-3) + 1e-10 * (v * u.astype(np.float64) ** 2).sum(axis=0)).all()
        before = sse


@given(matrices(columns=64), bits_of, st.sampled_from([-64.0, -8.0, 16.0, 128.0]))
@few
def test_uls_follows_a_shift(w, bits, shift):
    """Weights on a grid of 1/64 stay exact when they are shifted, and so do minima that float16 can hold."""
    w = np.clip(np.round(w * 64), -512, 512).astype(np.float32) / np.float32(64)
    one, other = (quantize_array(x, bits, 64, "uls", gain_correction=False) for x in (w, w + np.float32(shift)))
    n = w.size
    slack = n * (2.0**-11 * (abs(shift) + 8.0)) ** 2  # a float16 minimum is as coarse as it is large
    assert other.statistics.sum_ee <= one.statistics.sum_ee * 1.05 + slack
    assert one.statistics.sum_ee <= other.statistics.sum_ee * 1.05 + slack


@given(matrices(), group_of, st.sampled_from(LEAST_SQUARES), bits_of)
@few
def test_least_squares_grids_shrink_a_row_and_are_stretched_back(w, group_size, method, bits):
    """What is fitted by least squares has <w, w'> <= |w|^2, so the correction only ever stretches; at 8 bits hardly."""
    bits = 2 if method == "r2q" else bits
    plain = quantize_array(w, bits, group_size, method, gain_correction=False)
    x = w.astype(np.float64)
    q = plain.dequantize().astype(np.float64)
    powers, products = (x * x).sum(1), (x * q).sum(1)
    live = (powers > 0) & (plain.scales.reshape(len(w), -1).astype(np.float64).min(1) > 2.0**-12)
    shrunk = products[live] / powers[live]
    if method != "mse":  # whose zero point is an integer: no exact fit
        assert (shrunk <= 1 + 2e-3).all()
    if bits == 8 and method == "uls":
        assert np.abs(shrunk - 1).max(initial=0) < 2e-3
