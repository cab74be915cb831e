"""The asymmetric grid of activations: hand-worked values, an independent oracle, and what holds for any input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowquant_nb import ConfigurationError
from arrowquant_nb.quantizers.activation_grid import (
    check_activation_bit_width,
    grid_of_range,
    round_rows,
    round_to_grid,
)

few = settings(max_examples=60)
ends = st.floats(-1e4, 1e4, width=32)


def test_a_grid_worked_by_hand():
    """[-1, 2] at 4 bits: steps of 3/15 = 0.2, zero at code 5; 0.31 lies nearest to 0.4, 9 clips to 2, -9 to -1."""
    scale, zero_point = grid_of_range(-1.0, 2.0, 4)
    assert scale == np.float32(0.2)
    assert zero_point == 5
    rounded = round_to_grid(np.array([0.0, 0.31, 9.0, -9.0, 0.29], np.float32), scale, zero_point, 4)
    np.testing.assert_allclose(rounded, [0.0, 0.4, 2.0, -1.0, 0.2], rtol=1e-6)


def test_a_range_beside_zero_is_widened_to_hold_it():
    assert grid_of_range(3.0, 15.0, 4) == (1.0, 0)
    assert grid_of_range(-15.0, -3.0, 4) == (1.0, 15)


def test_halves_go_to_the_even_code():
    np.testing.assert_array_equal(round_to_grid(np.float32([0.5, 1.5, 2.5]), 1.0, 0, 4), [0, 2, 2])


def test_zeros_alone_stay_zeros():
    scale, zero_point = grid_of_range(0.0, 0.0, 8)
    assert scale > 0
    assert (round_to_grid(np.zeros(3, np.float32), scale, zero_point, 8) == 0).all()
    assert (round_rows(np.zeros((2, 3), np.float32), 4) == 0).all()


@given(ends, ends, st.sampled_from([4, 8]))
@few
def test_zero_is_exact_and_the_error_is_half_a_step_inside_the_range(a, b, bits):
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    scale, zero_point = grid_of_range(low, high, bits)
    assert 0 <= zero_point < 2**bits
    assert float(np.float32(scale)) == scale
    x = np.linspace(low, high, 101).astype(np.float32)
    # The zero point is rounded too, so an end may lie half a step outside the grid.
    assert (np.abs(round_to_grid(x, scale, zero_point, bits) - x) <= scale * (1 + 1e-4)).all()
    assert round_to_grid(np.zeros(1, np.float32), scale, zero_point, bits)[0] == 0


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]))
@few
def test_rounding_equals_the_textbook_formula(seed, bits):
    x = np.random.default_rng(seed).standard_t(3, 200).astype(np.float32)
    scale, zero_point = grid_of_range(float(x.min()), float(x.max()), bits)
    codes = np.clip(np.rint(x / np.float32(scale)) + zero_point, 0, 2**bits - 1)
    np.testing.assert_array_equal(round_to_grid(x, scale, zero_point, bits), (codes - zero_point) * np.float32(scale))


@given(st.integers(0, 2**32 - 1), st.sampled_from([4, 8]))
@few
def test_rows_are_rounded_on_their_own_grids(seed, bits):
    x = np.random.default_rng(seed).standard_normal((3, 2, 40)).astype(np.float32) * np.float32([[1], [50]])
    for part, rounded in zip(x.reshape(-1, 40), round_rows(x, bits).reshape(-1, 40), strict=True):
        low, high = min(part.min(), np.float32(0)), max(part.max(), np.float32(0))
        scale = (high - low) / np.float32(2**bits - 1)  # in float32, as the kernels take it
        np.testing.assert_array_equal(rounded, round_to_grid(part, scale, int(np.rint(-low / scale)), bits))
        near, _ = grid_of_range(float(low), float(high), bits)
        assert abs(near - scale) <= np.spacing(scale)


def test_other_widths_are_refused():
    for bits in (2, 16, 0):
        with pytest.raises(ConfigurationError, match="4, 8"):
            check_activation_bit_width(bits)
