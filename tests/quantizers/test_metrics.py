"""Output metrics: figures worked out by hand, a plain oracle, and what must hold for any weight."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arrowquant_nb import MetadataError, ShapeMismatchError, quantize_tensor
from arrowquant_nb.quantizers import metrics
from arrowquant_nb.quantizers.metrics import OutputStatistics, hessian_error, output_statistics

VALUES = st.floats(-8, 8, width=32)
WEIGHTS = hnp.arrays(np.float32, (5, 4), elements=VALUES)
ROWS = hnp.arrays(np.float32, (3, 2, 4), elements=VALUES)
STEPS = [slice(0, 1), slice(1, 3)]


def test_figures_worked_out_by_hand():
    weight, dequantized = np.array([[1.0, 2.0]]), np.array([[1.0, 1.0]])
    hessian = np.array([[2.0, 1.0], [1.0, 3.0]])
    found = hessian_error(weight, dequantized, hessian)
    assert (found.error, found.power) == (3.0, 18.0)  # (0, -1) H (0, -1)^T; (1, 2) H (1, 2)^T
    assert found.relative == pytest.approx(1 / 6)
    # One row per step: y = 2, then y = 3; y' = 1, then y' = 2.
    rows = np.array([[[0.0, 1.0]], [[1.0, 1.0]]], np.float32)
    output = output_statistics(weight, dequantized, rows, [slice(0, 1), slice(1, 2)])
    assert (output.sum_yy, output.sum_ye, output.sum_ee) == ((4.0, 9.0), (-2.0, -3.0), (1.0, 1.0))
    assert output.group_sqnr_db == pytest.approx((10 * math.log10(4), 10 * math.log10(9)))
    assert output.worst_sqnr_db == pytest.approx(10 * math.log10(4))
    assert output.worst_group == 0
    assert output.sqnr_db == pytest.approx(10 * math.log10(13 / 2))
    assert output.cosine == pytest.approx(8 / math.sqrt(13 * 5))
    assert output.gain == pytest.approx(8 / 13)


@given(WEIGHTS, WEIGHTS, ROWS)
def test_against_the_plain_definition(weight, dequantized, rows):
    x = rows.astype(float)
    y, e = x @ weight.astype(float).T, x @ (dequantized.astype(float) - weight).T
    found = output_statistics(weight, dequantized, rows, STEPS)
    for k, group in enumerate(STEPS):
        expected = (np.sum(y[group] ** 2), np.sum(y[group] * e[group]), np.sum(e[group] ** 2))
        assert (found.sum_yy[k], found.sum_ye[k], found.sum_ee[k]) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    flat = x.reshape(-1, 4)
    error = hessian_error(weight, dequantized, flat.T @ flat)
    assert error.error == pytest.approx(np.sum(e**2), rel=1e-9, abs=1e-6)
    assert error.power == pytest.approx(np.sum(y**2), rel=1e-9, abs=1e-6)


@given(WEIGHTS, ROWS)
def test_no_error_is_infinite_sqnr_full_cosine_and_gain(weight, rows):
    found = output_statistics(weight, weight, rows, STEPS)
    assert found.sqnr_db == found.worst_sqnr_db == math.inf
    assert (found.cosine, found.gain) == (1.0, 1.0)
    assert hessian_error(weight, weight, np.eye(4)).relative == 0.0


@given(WEIGHTS, ROWS, st.floats(0.25, 1.75))
def test_a_scaled_weight_keeps_its_cosine_and_shows_in_the_gain(weight, rows, scale):
    found = output_statistics(weight.astype(float), weight.astype(float) * scale, rows, [slice(0, 3)])
    if found.sum_yy[0] > 1e-6 and abs(scale - 1) > 1e-6:
        assert found.gain == pytest.approx(scale)
        assert found.cosine == pytest.approx(1.0)
        assert found.sqnr_db == pytest.approx(-20 * math.log10(abs(scale - 1)))


@given(WEIGHTS, WEIGHTS, ROWS, st.integers(1, 4))
def test_row_tiles_joined_give_the_whole(weight, dequantized, rows, cut):
    tiles = [slice(0, cut), slice(cut, 5)]
    whole = output_statistics(weight, dequantized, rows, STEPS)
    joined = OutputStatistics.combine([output_statistics(weight[t], dequantized[t], rows, STEPS) for t in tiles])
    for a, b in ((whole.sum_yy, joined.sum_yy), (whole.sum_ye, joined.sum_ye), (whole.sum_ee, joined.sum_ee)):
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9)
    hessian = np.diag([1.0, 2.0, 3.0, 4.0])
    parts = [hessian_error(weight[t], dequantized[t], hessian) for t in tiles]
    assert metrics.HessianError.combine(parts).error == pytest.approx(
        hessian_error(weight, dequantized, hessian).error, rel=1e-9, abs=1e-9
    )


@settings(max_examples=20)
@given(st.integers(1, 7), st.integers(1, 5))
def test_the_block_sizes_change_only_the_last_bits(block_rows, block_weights):
    rng = np.random.default_rng(3)
    weight, rows = rng.standard_normal((6, 4)).astype(np.float32), rng.standard_normal((4, 9, 4)).astype(np.float32)
    dequantized = np.round(weight)
    expected = output_statistics(weight, dequantized, rows, [slice(0, 4)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "_BLOCK_ROWS", block_rows)
        patch.setattr(metrics, "_BLOCK_WEIGHTS", 4 * block_weights)
        found = output_statistics(weight, dequantized, rows, [slice(0, 4)])
    assert found.sqnr_db == pytest.approx(expected.sqnr_db, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_weights_of_every_dtype_and_convolutions_are_measured_as_matrices(dtype):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((8, 4, 3, 3)).astype(np.float32).astype(dtype)
    dequantized = quantize_tensor(weight, bit_width=4, group_size=32).dequantize()
    rows = rng.standard_normal((2, 16, 36)).astype(np.float32)
    found = output_statistics(weight, dequantized, rows, [slice(0, 1), slice(1, 2)])
    assert 15 < found.worst_sqnr_db <= found.sqnr_db < 30
    assert abs(found.gain - 1) < 0.02
    relative = hessian_error(weight, dequantized, np.eye(36)).relative
    assert -10 * math.log10(relative) == pytest.approx(found.sqnr_db, abs=1.5)


@pytest.mark.parametrize(
    "groups",
    [[], [slice(0, 2)], [slice(0, 1), slice(2, 3)], [slice(0, 2), slice(1, 3)], [slice(0, 3), slice(3, 3)],
     [slice(0, 4)], [slice(1, 3), slice(0, 1)]],
)  # fmt: skip
def test_groups_must_cut_the_steps(groups):
    weight = np.ones((2, 4), np.float32)
    with pytest.raises(ShapeMismatchError, match="do not cut 3 steps"):
        output_statistics(weight, weight, np.ones((3, 1, 4), np.float32), groups)


def test_shapes_that_do_not_fit_are_refused():
    weight = np.ones((2, 4), np.float32)
    with pytest.raises(ShapeMismatchError, match="must be the same"):
        hessian_error(weight, weight[:1], np.eye(4))
    with pytest.raises(ShapeMismatchError, match="square Hessian"):
        hessian_error(weight, weight, np.eye(5))
    for rows in (np.ones((3, 1, 5)), np.ones((3, 4)), np.ones((0, 1, 4))):
        with pytest.raises(ShapeMismatchError, match="held-out rows"):
            output_statistics(weight, weight, rows.astype(np.float32), [slice(0, 3)])


def test_a_nan_weight_is_an_error_and_never_a_figure():
    weight = np.ones((2, 4), np.float32)
    broken = np.full((2, 4), np.nan, np.float32)
    with pytest.raises(MetadataError, match="finite"):
        output_statistics(weight, broken, np.ones((1, 1, 4), np.float32), [slice(0, 1)])
