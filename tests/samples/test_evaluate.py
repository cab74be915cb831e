"""The decibels say what they should: nothing lost, little lost, all lost."""

import json
import math

import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.samples.evaluate import decibels, evaluate, network_sqnr_db, sample_psnr_db

N = 4


@pytest.fixture(scope="module")
def model():
    return samples.runnable("digits-dit")


def rounded(model, bits):
    """Round every layer to symmetric integers with one scale per row."""
    weights = dict(model.weights)
    for name in model.layers():
        rows = weights[name].reshape(len(weights[name]), -1)
        scale = np.abs(rows).max(1, keepdims=True) / (2 ** (bits - 1) - 1)
        weights[name] = (np.rint(rows / scale) * scale).reshape(weights[name].shape)
    return weights


def test_decibels_of_a_hundredfold_power_are_twenty():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf


def test_psnr_is_the_median_over_samples():
    reference = np.zeros((3, 2, 2), np.float32)
    errors = np.array([0.02, 0.2, 2.0], np.float32)[:, None, None]
    assert sample_psnr_db(reference, reference + errors) == pytest.approx(20, abs=1e-4)  # 10 log10(4 / 0.04)


def test_identical_weights_lose_nothing(model):
    figures = evaluate("digits-dit", model.weights, n=N)
    assert figures == {"network_sqnr_db": math.inf, "sample_psnr_db": math.inf, "n": N, "steps": 25, "seed": 0}


def test_rounding_to_eight_bits_costs_little_and_fewer_bits_cost_more(model):
    eight, four, three = (evaluate("digits-dit", rounded(model, bits), n=N) for bits in (8, 4, 3))
    assert eight["network_sqnr_db"] > 40
    assert eight["sample_psnr_db"] > 40
    assert 8 < four["network_sqnr_db"] < eight["network_sqnr_db"] - 15
    assert three["network_sqnr_db"] < four["network_sqnr_db"] - 3
    assert four["sample_psnr_db"] < eight["sample_psnr_db"] - 10


def test_weights_without_their_signs_lose_everything(model):
    noise = {name: array if array.ndim == 1 else np.abs(array) for name, array in model.weights.items()}
    assert evaluate("digits-dit", noise, n=N)["network_sqnr_db"] < 3


def test_the_figure_of_a_damaged_output_layer_is_known_exactly(model):
    """Scaling the last layer and its bias by 1.1 scales the output: error power is 1 % of the signal, 20 dB."""
    scaled = dict(model.weights)
    for name in ("proj_out_2.weight", "proj_out_2.bias"):
        scaled[name] = scaled[name] * np.float32(1.1)
    other = samples.runnable("digits-dit", scaled)
    assert network_sqnr_db(model, other, n=2, seed=1) == pytest.approx(20, abs=1e-3)


def test_figures_repeat_and_depend_on_the_seed(model):
    weights = rounded(model, 4)
    first, again = (evaluate("digits-dit", weights, n=2, seed=3) for _ in range(2))
    assert first == again
    assert evaluate("digits-dit", weights, n=2, seed=4)["network_sqnr_db"] != first["network_sqnr_db"]
    assert json.loads(json.dumps(first)) == first


def test_bad_arguments_are_refused(model):
    with pytest.raises(ValueError, match="n is 0"):
        evaluate("digits-dit", model.weights, n=0)
    with pytest.raises(LookupError, match="digits-dit"):
        evaluate("cats", model.weights)
