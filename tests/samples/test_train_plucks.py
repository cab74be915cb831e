"""The sounds that `plucks-dit` learns: split, repeatable, and told apart by their spectra."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from arrowquant_nb.samples.train import plucks  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def data():
    return plucks.synthesize(0, n_train=240, n_test=60)


def test_spectra_come_in_classes_in_range_and_from_their_seed(data):
    assert data.train_images.shape == (240, 1, 64, 64)
    assert data.test_images.shape == (60, 1, 64, 64)
    assert data.train_images.min() == -1
    assert data.train_images.max() <= 1
    assert data.train_labels.bincount().tolist() == [40] * 6
    again = plucks.synthesize(0, n_train=240, n_test=60)
    assert torch.equal(again.test_images, data.test_images)
    assert not torch.equal(plucks.synthesize(1, n_train=240, n_test=60).test_images, data.test_images)


def test_the_nearest_spectrum_is_of_the_same_class_mostly(data):
    train_images, test_images = data.train_images.numpy()[:, 0], data.test_images.numpy()[:, 0]
    found, distance = plucks.nearest(test_images, train_images)
    assert (data.train_labels.numpy()[found] == data.test_labels.numpy()).mean() > 0.8
    assert 1 < distance < 20
    own, none = plucks.nearest(train_images[:3], train_images)
    np.testing.assert_array_equal(own, [0, 1, 2])
    assert none == 0


def test_little_is_lost_in_sound(data):
    assert 0 < plucks.lost_in_sound(data.test_images.numpy()[:12, 0]) < 6
