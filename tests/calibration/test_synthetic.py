"""Noise through a model: which timesteps, which inputs, and models that take none."""

import dataclasses

import numpy as np
import pytest
from tiny_model import SETTINGS, Tiny

from arrowquant_nb import ConfigurationError
from arrowquant_nb.calibration.synthetic import calibrate_on_noise, spread_timesteps
from arrowquant_nb.samples.runnable import Step


class Watched(Tiny):
    """Remembers the steps it ran."""

    def forward(self, step, linear=None):
        self.steps = [*getattr(self, "steps", []), step]
        return super().forward(step, linear)


def test_timesteps_are_spread_evenly_from_the_last_one_down():
    assert spread_timesteps(1000, 5) == [999, 799, 599, 399, 199]
    assert spread_timesteps(1000, 25) == [999 - 40 * i for i in range(25)]
    assert spread_timesteps(10, 3) == [9, 5, 2]
    assert spread_timesteps(3, 25) == [2, 1, 0]


def test_float_inputs_are_standard_normal_noise_and_classes_stay(tiny):
    model = Watched()
    calibration = calibrate_on_noise(model, dataclasses.replace(SETTINGS, n_samples=64, batch_samples=32, n_steps=4))
    assert calibration.source == "synthetic"
    assert calibration["q.weight"].times.tolist() == [999, 749, 499, 249]
    noise = np.concatenate([s.inputs["hidden_states"].ravel() for s in model.steps])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    labels = next(iter(tiny.trajectories(32, 0))).inputs["class_labels"]
    assert all(np.array_equal(s.inputs["class_labels"], labels) for s in model.steps)
    assert len({s.inputs["hidden_states"].tobytes() for s in model.steps}) == (2 + 1) * 4


def test_equal_seeds_give_equal_bytes_and_the_key_says_that_it_is_noise(calibration):
    a, b = (calibrate_on_noise(Tiny(), SETTINGS) for _ in range(2))
    assert a.data_hash == b.data_hash
    assert a.key == b.key != calibration.key


def test_a_template_stands_in_for_a_model_without_trajectories(tiny):
    class Still(Tiny):
        def trajectories(self, n, seed):
            raise NotImplementedError

    template = next(iter(tiny.trajectories(2, 0)))
    assert len(calibrate_on_noise(Still(), SETTINGS, template=template)) == 5


def test_token_ids_cannot_be_noise():
    class Tokens(Tiny):
        def trajectories(self, n, seed):
            yield Step({"input_ids": np.zeros((n, 4), np.int64)}, 999)

    with pytest.raises(ConfigurationError, match="input_ids, and none of it is noise"):
        calibrate_on_noise(Tokens(), SETTINGS)
