"""The distances say what they should: nothing lost, little lost, all lost."""

import math

import numpy as np
import pytest

from arrowquant_nb.samples.divergences import (
    cross_entropy,
    decibels,
    frechet_distance,
    kl_divergence,
    log_spectral_distance,
    sample_psnr_db,
)


def test_decibels_of_a_hundredfold_power_are_twenty():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf


def test_psnr_is_the_median_over_samples():
    reference = np.zeros((3, 2, 2), np.float32)
    errors = np.array([0.02, 0.2, 2.0], np.float32)[:, None, None]
    assert sample_psnr_db(reference, reference + errors) == pytest.approx(20, abs=1e-4)  # 10 log10(4 / 0.04)


def test_spectral_distance_is_a_root_mean_square_over_frequencies_and_a_mean_over_frames():
    reference = np.zeros((1, 4, 2), np.float32)
    other = reference.copy()
    other[0, 0, 0] = 1  # one of four frequencies off by 35 dB in the first frame: 35 / 2, and nothing in the second
    assert log_spectral_distance(reference, other, 35.0) == pytest.approx(35 / 4)
    assert log_spectral_distance(reference, reference, 35.0) == 0


def test_frechet_distance_of_equal_shapes_is_the_squared_shift():
    features = np.random.default_rng(0).standard_normal((200, 5))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features + np.array([3, 0, 0, 4, 0])) == pytest.approx(25)


def test_frechet_distance_of_one_feature_is_that_of_two_normal_distributions():
    a = np.array([-1.0, 1.0])[:, None]
    b = 3 * a + 2  # deviations s and 3 s with s = sqrt(2): 2^2 + (3 s - s)^2
    assert frechet_distance(a, b) == pytest.approx(4 + 8)


def test_frechet_distance_agrees_with_the_matrix_root_and_is_symmetric():
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((60, 4)), rng.standard_normal((70, 4)) @ rng.standard_normal((4, 4)) + 1
    first, second = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(first @ second)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second) - 2 * np.sqrt(values).real.sum()
    assert frechet_distance(a, b) == pytest.approx(expected)
    assert frechet_distance(b, a) == pytest.approx(expected)


def test_fewer_rows_than_features_are_no_error():
    rng = np.random.default_rng(2)
    assert frechet_distance(rng.standard_normal((2, 64)), rng.standard_normal((3, 64))) > 0


def test_kl_of_coins_by_hand_and_a_shift_of_scores_changes_nothing():
    fair, biased = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    assert kl_divergence(fair, biased)[0] == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    np.testing.assert_allclose(kl_divergence(fair, fair + 7), 0, atol=1e-12)
    assert kl_divergence(fair, fair)[0] == 0


def test_cross_entropy_is_minus_the_log_of_the_probability():
    scores = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    np.testing.assert_allclose(cross_entropy(scores, np.array([0, 1])), [math.log(4), math.log(2)])
