"""The decibels say what they should: nothing lost, little lost, all lost."""

import json
import math

import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.samples import evaluate
from arrowquant_nb.samples.evaluation import network_sqnr_db
from arrowquant_nb.samples.vocabulary import MASK

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


def test_identical_weights_lose_nothing(model):
    figures = evaluate("digits-dit", model.weights, n=N)
    assert figures.pop("frechet_distance") == pytest.approx(0, abs=1e-6)
    assert figures == {"network_sqnr_db": math.inf, "sample_psnr_db": math.inf, "n": N, "steps": 25, "seed": 0}


@pytest.mark.parametrize("name", samples.names())
def test_the_trained_weights_lose_nothing_in_any_modality(name):
    figures = evaluate(name, None, n=2)
    exact = {
        "network_sqnr_db": math.inf,
        "sample_psnr_db": math.inf,
        "log_spectral_distance_db": 0,
        "kl": 0,
        "top1_agreement": 1,
        "n": 2,
        "steps": 25,
        "seed": 0,
    }
    for key in figures.keys() & exact.keys():
        assert figures[key] == exact[key]
    if "nelbo" in figures:
        assert figures["nelbo"] == figures["trained_nelbo"]
        assert {"kl", "top1_agreement"} <= figures.keys()
    else:
        assert {"frechet_distance", "log_spectral_distance_db"} & figures.keys()


@pytest.mark.parametrize("name", samples.names())
def test_more_noise_in_the_weights_makes_every_figure_worse(name):
    """Each figure against the same errors, scaled."""
    trained = samples.runnable(name)
    rng = np.random.default_rng(0)
    errors = {key: rng.standard_normal(shape) * trained.weights[key].std() for key, shape in trained.layers().items()}
    rows = [
        evaluate(name, {**trained.weights} | {k: trained.weights[k] + size * e for k, e in errors.items()}, n=2)
        for size in (0.02, 0.1, 0.5)
    ]
    better_if_higher = {"network_sqnr_db", "sample_psnr_db", "top1_agreement"}
    for key in rows[0].keys() - {"n", "steps", "seed", "trained_nelbo"}:
        figures = [row[key] if key in better_if_higher else -row[key] for row in rows]
        if key != "nelbo":  # the least noise may by chance suit the text
            assert figures == sorted(figures, reverse=True), key
        assert figures[0] > figures[-1], key


@pytest.mark.parametrize("name", samples.names())
def test_a_hook_is_measured_like_the_weights_it_multiplies_by(name):
    trained = samples.runnable(name)
    layer = list(trained.layers())[1]
    other = samples.runnable(name, {**trained.weights} | {layer: trained.weights[layer] * 0.5})
    by_weights = evaluate(name, other.weights, n=2)
    by_hook = evaluate(name, None, n=2, linear=other.linear)
    assert by_weights == pytest.approx(by_hook, rel=1e-6)
    assert by_weights["network_sqnr_db"] < 60


def test_text_is_measured_where_it_is_masked_and_nowhere_else():
    """A product hook that spoils only what is said of visible characters costs nothing."""
    model = samples.runnable("docs-mlm")
    steps = list(model.trajectories(2, 0, "evaluation"))
    calls = iter(steps)

    def hook(name, x, time):
        y = model.linear(name, x, time)
        if name == "bert.embeddings.word_embeddings.weight":
            y[next(calls).inputs["input_ids"] != MASK] += 7
        return y

    figures = evaluate("docs-mlm", None, n=2, linear=hook)
    assert figures["network_sqnr_db"] == math.inf
    assert figures["kl"] == 0
    assert figures["top1_agreement"] == 1


def test_kl_is_that_of_a_known_change_of_the_output():
    """A bias of b at one character of probability p: KL = log(1 - p + p e^b) - p b."""
    model = samples.runnable("docs-mlm")
    bias = model.weights["cls.predictions.bias"].copy()
    bias[40] += 1.5
    figures = evaluate("docs-mlm", {**model.weights} | {"cls.predictions.bias": bias}, n=2)
    each = []
    for step in model.trajectories(2, 0, "evaluation"):
        scores = model.forward(step).astype(np.float64)[step.inputs["input_ids"] == MASK]
        p = (np.exp(scores[:, 40]) / np.exp(scores).sum(-1)).astype(np.float64)
        each.append(np.log(1 - p + p * math.exp(1.5)) - 1.5 * p)
    assert figures["kl"] == pytest.approx(np.concatenate(each).mean(), rel=1e-4)


def test_the_bound_of_a_model_that_knows_nothing_is_the_log_of_its_choices():
    model = samples.runnable("stdlib-mlm")
    silent = evaluate("stdlib-mlm", {k: np.zeros_like(v) for k, v in model.weights.items()}, n=2)
    assert silent["nelbo"] == pytest.approx(math.log(99), rel=1e-6)
    assert silent["trained_nelbo"] < silent["nelbo"] - 1


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
    for n in (0, 1):
        with pytest.raises(ValueError, match=f"n is {n}; at least two"):
            evaluate("digits-dit", model.weights, n=n)
    with pytest.raises(LookupError, match="digits-dit"):
        evaluate("cats", model.weights)
