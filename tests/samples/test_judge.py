"""The NumPy classifier is the one that was trained, and it reads digits."""

import numpy as np
import pytest

from arrowquant_nb.samples import JUDGE, runnable
from arrowquant_nb.samples.judge import SHAPES, Judge


@pytest.fixture(scope="module")
def judge():
    return Judge.from_file(JUDGE)


def test_it_reads_real_digits_and_generated_ones(judge):
    scans = pytest.importorskip("sklearn.datasets").load_digits()
    assert (judge.read(scans.images / 8 - 1) == scans.target).mean() > 0.98
    labels = np.arange(20) % 10
    assert (judge.read(runnable("digits-dit").sample(labels, 3)) == labels).mean() > 0.9


def test_features_are_64_and_each_image_has_its_own(judge):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 8, 8))
    features = judge.features(images)
    assert features.shape == (3, 64)
    np.testing.assert_allclose(judge.features(images[1:2]), features[1:2], atol=1e-4)


def test_the_committed_file_is_small_and_half_precision():
    assert JUDGE.stat().st_size < 200_000
    assert sum(np.prod(shape) for shape in SHAPES.values()) * 2 < JUDGE.stat().st_size


@pytest.mark.torch
def test_it_agrees_with_torch(judge):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    images = np.random.default_rng(1).uniform(-1, 1, (5, 8, 8)).astype(np.float32)
    weights = {name: torch.from_numpy(array.copy()) for name, array in judge.weights.items()}
    x = torch.from_numpy(images)[:, None]
    x = functional.gelu(functional.conv2d(x, weights["0.weight"], weights["0.bias"], padding=1))
    x = functional.gelu(functional.conv2d(x, weights["2.weight"], weights["2.bias"], padding=1, stride=2))
    x = functional.gelu(functional.linear(x.flatten(1), weights["5.weight"], weights["5.bias"]))
    np.testing.assert_allclose(judge.features(images), x.numpy(), atol=1e-3)
