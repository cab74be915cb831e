"""Values worked out on paper, for every grid and width."""

import math

import numpy as np
import pytest

from arrowquant_nb.quantizers import quantize_array


def matrix(*rows):
    return np.array(rows, np.float32)


def test_rtn_int4_of_whole_numbers_is_exact():
    # lo = -5, hi = 10, s = 15 / 15 = 1, z = 5: every whole number from -5 to 10 has a code of its own.
    tensor = quantize_array(matrix([*range(-5, 11)]), 4, 16, "rtn")
    assert tensor.scales.tolist() == [[1.0]]
    assert tensor.zero_points.tolist() == [[5]]
    assert tensor.packed.tolist() == [[i * 2 | (i * 2 + 1) << 4 for i in range(8)]]
    assert tensor.dequantize().tolist() == [[float(i) for i in range(-5, 11)]]
    assert tensor.statistics.sqnr_db == math.inf
    assert tensor.statistics.cosine == 1.0


def test_rtn_int2_packs_four_codes_a_byte_lowest_first():
    # s = 3 / 3 = 1, z = 1: -1, 0, 1, 2 are codes 0, 1, 2, 3.
    tensor = quantize_array(matrix([-1, 0, 1, 2] * 4), 2, 16, "rtn")
    assert tensor.packed.tolist() == [[0b11100100] * 4]
    assert tensor.zero_points.tolist() == [[1]]
    assert tensor.dequantize().tolist() == [[-1.0, 0.0, 1.0, 2.0] * 4]


def test_rtn_int8_scale_is_rounded_up_to_float16():
    # 1 / 255 = 0.00392156...; its float16 neighbours are 0.00392151 and 0.00392532: the upper one is stored.
    tensor = quantize_array(matrix([0.0] * 15 + [1.0]), 8, 16, "rtn")
    assert float(tensor.scales[0, 0]) == 0.003925323486328125
    assert tensor.packed[0, 15] == 255  # 1 / s = 254.75 rounds to 255
    assert tensor.zero_points.tolist() == [[0]]


def test_rtn_of_positive_weights_keeps_zero_on_the_grid():
    # lo = min(w, 0) = 0: z = 0 and s = 6 / 3 = 2; 3 / 2 = 1.5 rounds to the even 2, 5 / 2 = 2.5 to 2.
    tensor = quantize_array(matrix([3.0, 5.0, 6.0, 1.0] * 4), 2, 16, "rtn")
    assert tensor.scales.tolist() == [[2.0]]
    assert tensor.dequantize()[0, :4].tolist() == [4.0, 4.0, 6.0, 0.0]


def test_rtn_of_negative_weights_puts_zero_at_the_top():
    tensor = quantize_array(matrix([-3.0, -5.0, -6.0, -1.0] * 4), 2, 16, "rtn")
    assert tensor.zero_points.tolist() == [[3]]
    assert tensor.dequantize()[0, :4].tolist() == [-4.0, -4.0, -6.0, 0.0]


def test_codes_are_clipped_where_both_ends_round_outwards():
    # s = 3 / 3 = 1; -lo / s = 1.5 rounds to z = 2, hi / s = 1.5 rounds to 2: 2 + 2 = 4 does not exist, code 3 is used.
    tensor = quantize_array(matrix([-1.5, 1.5] + [0.0] * 14), 2, 16, "rtn")
    assert tensor.zero_points.tolist() == [[2]]
    assert tensor.dequantize()[0, :3].tolist() == [-2.0, 1.0, 0.0]


def test_uls_int2_recovers_four_equidistant_levels():
    # Levels 10, 10.5, 11, 11.5: the plain range already is s = 0.5, m = 10 with no error; zero need not be on the grid.
    tensor = quantize_array(matrix([10.0, 10.5, 11.0, 11.5] * 4), 2, 16, "uls")
    assert (tensor.scales.tolist(), tensor.zero_points.tolist()) == ([[0.5]], [[10.0]])
    assert tensor.packed.tolist() == [[0b11100100] * 4]
    assert tensor.statistics.sum_ee == 0.0


def test_uls_int2_gives_up_an_outlier_where_that_is_cheaper():
    # 15 weights at +-1 and one at 1.8: the levels of the full range (s = 2.8 / 3) miss +-1, a fit does not.
    weights = matrix([-1.0, 1.0] * 7 + [-1.0, 1.8])
    plain = quantize_array(weights, 2, 16, "rtn").statistics.sum_ee
    fitted = quantize_array(weights, 2, 16, "uls", gain_correction=False).statistics.sum_ee
    assert fitted < 0.5 * plain


def test_mse_int2_shrinks_a_range_with_an_outlier():
    # One weight of 4 among +-1: the full range has s = 5 / 3. The search must do no worse, and here much better.
    weights = matrix([-1.0, 1.0] * 31 + [0.9, 4.0])
    full = quantize_array(weights, 2, 64, "rtn")
    best = quantize_array(weights, 2, 64, "mse", gain_correction=False)
    assert best.statistics.sum_ee < 0.7 * full.statistics.sum_ee
    assert best.scales[0, 0] < full.scales[0, 0]


def test_r2q_recovers_four_symmetric_levels():
    # mu = 10, a1 = 2, a2 = 0.5: levels 7.5, 8.5, 11.5, 12.5, codes 0, 1, 2, 3 = two sign bits, a1's above a2's.
    tensor = quantize_array(matrix([7.5, 8.5, 11.5, 12.5] * 4), 2, 16, "r2q")
    assert (tensor.scales.tolist(), tensor.zero_points.tolist()) == ([[[2.0, 0.5]]], [[10.0]])
    assert tensor.packed.tolist() == [[0b11100100] * 4]
    assert tensor.dequantize()[0, :4].tolist() == [7.5, 8.5, 11.5, 12.5]
    assert tensor.statistics.sum_ee == 0.0


def test_r2q_recovers_two_levels_of_unequal_number():
    # Twelve weights of 0.25 and four of 1.25: every pair of planes with two levels there is exact.
    tensor = quantize_array(matrix([0.25] * 12 + [1.25] * 4), 2, 16, "r2q")
    assert tensor.dequantize().tolist() == [[0.25] * 12 + [1.25] * 4]


def test_r2q_codes_are_the_nearest_levels():
    # Outer levels: mean of fourteen 3 and two 2.1 = 2.8875; inner: of fourteen 1 and two 1.9 = 1.1125. So mu = 0,
    # a1 = (2.8875 + 1.1125) / 2 = 2 and a2 = 0.8875: 1.9 is nearer to the inner level, 2.1 to the outer.
    weights = matrix([-3.0, -1.0, 1.0, 3.0] * 14 + [1.9, 2.1, -1.9, -2.1] * 2)
    tensor = quantize_array(weights, 2, 64, "r2q", gain_correction=False)
    assert tensor.zero_points.tolist() == [[0.0]]
    assert tensor.scales[0, 0].tolist() == [2.0, pytest.approx(0.8875, rel=2**-11)]
    assert tensor.packed[0, -1] == 0b00011110  # 1.9 -> 2, 2.1 -> 3, -1.9 -> 1, -2.1 -> 0


def test_hqq_int2_moves_the_minimum_towards_the_many():
    # s = 3 / 3 = 1 stays. From the plain minimum 0, fourteen weights err by 0.2 and two by 0; 0.2 is below the
    # threshold 1 / (10 sqrt(0.2)) = 0.22, so the minimum moves by the mean 14 * 0.2 / 16 = 0.175. There the next mean
    # is (14 * 0.025 - 2 * 0.175) / 16 = 0: it stays.
    weights = matrix([0.0] + [1.2, 2.2] * 7 + [3.0])
    tensor = quantize_array(weights, 2, 16, "hqq")
    assert tensor.scales.tolist() == [[1.0]]
    assert float(tensor.zero_points[0, 0]) == pytest.approx(0.175, rel=2**-11)
    assert np.abs(tensor.dequantize() - weights).mean() == pytest.approx((14 * 0.025 + 2 * 0.175) / 16, rel=2**-8)


@pytest.mark.parametrize(("bits", "grid_bits"), [(2, 16 + 2), (4, 16 + 4), (8, 16 + 8)])
def test_bits_per_weight_counts_every_stored_byte(bits, grid_bits):
    weights = np.ones((4, 64 * 8), np.float32)
    assert quantize_array(weights, bits, 64, "rtn").bits_per_weight == bits + grid_bits / 64
    assert quantize_array(weights, bits, 64, "uls").bits_per_weight == bits + 32 / 64
    assert quantize_array(weights, bits, 64, "hqq").bits_per_weight == bits + 32 / 64
    if bits == 2:
        assert quantize_array(weights, bits, 64, "r2q").bits_per_weight == bits + 48 / 64


def test_gain_correction_multiplies_every_scale_of_a_row_by_one_factor():
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 128)).astype(np.float32)
    plain = quantize_array(weights, 2, 32, "uls", gain_correction=False)
    fixed = quantize_array(weights, 2, 32, "uls", gain_correction=True)
    decoded = plain.dequantize().astype(np.float64)
    expected = (weights.astype(np.float64) ** 2).sum(1) / (weights * decoded).sum(1)
    assert np.array_equal(plain.packed, fixed.packed)
    ratio = fixed.scales.astype(np.float64) / plain.scales.astype(np.float64)
    assert np.allclose(ratio, expected[:, None], rtol=2**-10)
