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


@pytest.mark.parametrize(("bits", "grid_bits"), [(2, 16 + 2), (4, 16 + 4), (8, 16 + 8)])
def test_bits_per_weight_counts_every_stored_byte(bits, grid_bits):
    weights = np.ones((4, 64 * 8), np.float32)
    assert quantize_array(weights, bits, 64, "rtn").bits_per_weight == bits + grid_bits / 64
    assert quantize_array(weights, bits, 64, "uls").bits_per_weight == bits + 32 / 64


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
