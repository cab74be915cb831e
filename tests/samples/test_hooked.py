"""A model under a hook runs the hook, and a call's own hook goes first."""

import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.samples.hooked import HookedModel


@pytest.fixture(scope="module")
def model():
    return samples.runnable("digits-dit")


def test_the_models_own_product_changes_nothing(model):
    hooked = HookedModel(model, model.linear)
    step = next(iter(hooked.trajectories(1, 0)))
    np.testing.assert_array_equal(hooked.forward(step), model.forward(step))
    assert hooked.layers() == model.layers()
    assert hooked.weights is model.weights


def test_a_hook_sees_every_layer_and_gives_way_to_the_calls_own(model):
    seen = []

    def hook(name, x, time):
        seen.append(name)
        return model.linear(name, x, time)

    hooked = HookedModel(model, hook)
    step = next(iter(model.trajectories(1, 0)))
    hooked.forward(step)
    assert sorted(seen) == sorted(model.layers())
    seen.clear()
    hooked.forward(step, model.linear)
    assert not seen
