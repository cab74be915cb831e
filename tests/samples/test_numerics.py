"""The functions that the models share give the textbook values."""

import math

import numpy as np
import pytest

from arrowquant_nb.samples.numerics import (
    attend,
    erf,
    gelu,
    layer_norm,
    log_softmax,
    silu,
    softmax,
    split_heads,
    tanh_gelu,
)


def test_silu_gelu_and_softmax_match_values_worked_out_by_hand():
    x = np.array([-2.0, 0.0, 1.0], np.float32)
    np.testing.assert_allclose(silu(x), [-2 / (1 + math.e**2), 0, 1 / (1 + 1 / math.e)], rtol=1e-6)
    tanh = math.tanh(math.sqrt(2 / math.pi) * 1.044715)
    np.testing.assert_allclose(tanh_gelu(x)[1:], [0, 0.5 * (1 + tanh)], rtol=1e-6)
    np.testing.assert_allclose(softmax(np.array([0.0, math.log(3)], np.float32)), [0.25, 0.75], rtol=1e-6)


def test_silu_and_softmax_do_not_overflow():
    huge = np.array([-1e4, 1e4], np.float32)
    np.testing.assert_array_equal(silu(huge), [0, 1e4])
    np.testing.assert_array_equal(softmax(huge), [0, 1])


def test_gelu_leaves_its_argument_alone():
    x = np.arange(4, dtype=np.float32)
    tanh_gelu(x)
    np.testing.assert_array_equal(x, [0, 1, 2, 3])


def test_layer_norm_gives_mean_zero_and_variance_one():
    np.testing.assert_allclose(layer_norm(np.array([[1.0, 3.0]], np.float32), 0.0), [[-1, 1]])


def test_erf_is_within_a_millionth_of_the_standard_library_and_odd():
    x = np.linspace(-6, 6, 4001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in x.tolist()])
    assert np.abs(erf(x) - exact).max() <= 1e-6
    np.testing.assert_array_equal(erf(-x), -erf(x))
    assert erf(np.float32([np.inf])).item() == 1


def test_exact_gelu_weighs_by_the_normal_distribution():
    x = np.array([-40.0, -1.0, 0.0, 1.0, 3.0], np.float32)
    exact = [value * 0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()]
    np.testing.assert_allclose(gelu(x), exact, atol=1e-6)
    assert np.abs(gelu(x) - tanh_gelu(x)).max() > 1e-5  # they are not the same function


def test_log_softmax_sums_to_one_and_does_not_overflow():
    x = np.array([[0.0, math.log(3)], [1e4, -1e4]], np.float32)
    np.testing.assert_allclose(np.exp(log_softmax(x)), [[0.25, 0.75], [1, 0]], rtol=1e-6)


def test_heads_split_the_width_in_order():
    x = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    heads = split_heads(x, 2)
    assert heads.shape == (2, 2, 3, 2)
    np.testing.assert_array_equal(heads[1, 1], x[1, :, 2:])


def test_attention_to_one_position_copies_it_and_equal_scores_average():
    value = np.array([[[1.0, 10.0], [3.0, 30.0]]], np.float32)
    flat = np.zeros((1, 2, 2), np.float32)
    np.testing.assert_allclose(attend(flat, flat, value, 1), [[[2, 20], [2, 20]]])
    query = np.array([[[100.0, 0.0], [-100.0, 0.0]]], np.float32)
    key = np.array([[[1.0, 0.0], [-1.0, 0.0]]], np.float32)
    np.testing.assert_allclose(attend(query, key, value, 1), value, rtol=1e-6)


def test_heads_attend_apart():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 2, 5, 8), dtype=np.float32)
    both = attend(query, key, value, 2)
    np.testing.assert_allclose(both[..., :4], attend(query[..., :4], key[..., :4], value[..., :4], 1), atol=1e-6)
    assert pytest.approx(both[..., 4:], abs=1e-6) == attend(query[..., 4:], key[..., 4:], value[..., 4:], 1)
