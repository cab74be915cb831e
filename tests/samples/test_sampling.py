"""Guided DDIM sampling: diffusers' schedule and steps, repeatable noise, checked arguments."""

import numpy as np
import pytest

from arrowquant_nb import samples
from arrowquant_nb.samples.ddim import DDIM, cosine_alphas_cumprod

SCHEDULER = samples.WEIGHTS / "digits-dit" / "scheduler"


@pytest.fixture(scope="module")
def model():
    return samples.runnable("digits-dit")


@pytest.fixture(scope="module")
def sampler():
    return DDIM.from_file(SCHEDULER / "scheduler_config.json")


def test_the_signal_falls_from_almost_one_to_almost_nothing():
    power = cosine_alphas_cumprod(1000)
    assert power[0] > 0.9999
    assert 0 < power[-1] < 1e-5
    assert (np.diff(power) < 0).all()


def test_trailing_timesteps_start_at_the_noisiest(sampler):
    assert sampler.timesteps(4) == [999, 749, 499, 249]
    assert sampler.timesteps(1) == [999]
    assert len(sampler.timesteps(25)) == 25


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(sampler, model, steps):
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        sampler.timesteps(steps)
    with pytest.raises(ValueError, match=r"1\.\.1000"):
        model.sample(np.array([1]), 0, steps=steps)


def test_a_perfect_prediction_recovers_the_clean_image_in_one_step(sampler):
    rng = np.random.default_rng(0)
    clean = rng.uniform(-1, 1, (2, 1, 8, 8)).astype(np.float32)
    noise = rng.standard_normal(clean.shape, dtype=np.float32)
    signal = sampler.alphas_cumprod[499]
    a, s = np.float32(np.sqrt(signal)), np.float32(np.sqrt(1 - signal))
    x, v = a * clean + s * noise, a * noise - s * clean
    np.testing.assert_allclose(sampler.step(v, 499, x, steps=1), clean, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize("steps", [3, 25])
def test_steps_agree_with_diffusers_ddim_scheduler(sampler, steps):
    torch = pytest.importorskip("torch")
    theirs = pytest.importorskip("diffusers").DDIMScheduler.from_pretrained(SCHEDULER)
    theirs.set_timesteps(steps)
    assert sampler.timesteps(steps) == theirs.timesteps.tolist()
    np.testing.assert_allclose(sampler.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
    rng = np.random.default_rng(1)
    ours = expected = rng.standard_normal((3, 1, 8, 8), dtype=np.float32)
    for time in sampler.timesteps(steps):
        v = rng.standard_normal(ours.shape, dtype=np.float32)
        ours = sampler.step(v, time, ours, steps)
        expected = theirs.step(torch.from_numpy(v), time, torch.from_numpy(expected)).prev_sample.numpy()
        np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.torch
def test_a_guided_sample_agrees_with_diffusers_model_and_scheduler(model):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.DiTTransformer2DModel.from_pretrained(SCHEDULER.parent, torch_dtype=torch.float32).eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(SCHEDULER)
    scheduler.set_timesteps(5)
    labels = np.array([2, 7])
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((2, 1, 8, 8), dtype=np.float32))
    both = torch.tensor([2, 7, 10, 10])
    with torch.no_grad():
        for time in scheduler.timesteps:
            out = network(torch.cat([x, x]), timestep=time.repeat(4), class_labels=both).sample
            v = out[2:] + 1.5 * (out[:2] - out[2:])
            x = scheduler.step(v, time, x).prev_sample
    np.testing.assert_allclose(model.sample(labels, 3, steps=5), x[:, 0].numpy(), atol=1e-3)


def test_samples_are_images_in_range_and_repeat_with_their_seed(model):
    labels = np.array([4, 0, 8])
    first, again = model.sample(labels, 5), model.sample(labels, 5)
    assert first.shape == (3, 8, 8)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(model.sample(labels, 6) - first).mean() > 0.05


def test_a_shorter_list_of_labels_starts_from_the_same_noise(model):
    np.testing.assert_allclose(model.sample(np.array([4]), 5), model.sample(np.array([4, 0, 8]), 5)[:1], atol=1e-4)


def test_other_classes_give_other_images_from_the_same_noise(model):
    images = model.sample(np.arange(10), 0)
    same_noise = model.sample(np.full(10, 3), 0)
    apart = np.abs(images - same_noise).mean((1, 2))
    assert apart[3] < 1e-5
    assert np.delete(apart, 3).min() > 0.1


def test_guidance_one_is_the_conditional_prediction_and_more_changes_the_image(model):
    plain, guided = (model.sample(np.array([5]), 0, guidance=g) for g in (1.0, 4.0))
    assert np.abs(plain - guided).max() > 1e-2


def test_the_hook_serves_sampling_too(model):
    silent = model.sample(np.array([5]), 0, steps=2, linear=lambda name, x, time: 0 * model.linear(name, x, time))
    assert np.abs(silent - model.sample(np.array([5]), 0, steps=2)).max() > 1e-2


@pytest.mark.parametrize("labels", [[10], [-1], [[1]], [0.5]])
def test_labels_that_are_no_classes_are_refused(model, labels):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        model.sample(np.array(labels), 0)


def test_a_number_in_place_of_labels_takes_the_classes_in_turn(model):
    np.testing.assert_array_equal(model.sample(12, 3, steps=2), model.sample(np.arange(12) % 10, 3, steps=2))
    assert samples.runnable("plucks-dit").classes(8).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]


def test_generated_spectra_are_of_the_class_asked_for():
    """High tones keep their power above low ones, and FM tones last longer than plucked strings."""
    spectra = samples.runnable("plucks-dit").sample(12, 0)
    assert spectra.shape == (12, 64, 64)
    assert np.abs(spectra).max() <= 1
    sounding = spectra > -0.9
    assert sounding[3::6].mean() + sounding[4::6].mean() > sounding[0::6].mean() + sounding[1::6].mean() + 0.05
    lowest = [int(np.argmax(spectrum[:, 4])) for spectrum in spectra]
    assert max(lowest[0], lowest[6]) * 62.5 < 450
    assert min(lowest[2], lowest[8]) * 62.5 > 450


def test_no_labels_give_no_images(model):
    assert model.sample(np.array([], dtype=np.int64), 0, steps=1).shape == (0, 8, 8)


def test_trajectories_are_the_calls_that_sampling_makes(model):
    steps = list(model.trajectories(2, 9))
    assert [step.time for step in steps] == model.sampler.timesteps(25)
    for step in steps:
        assert step.inputs["hidden_states"].shape == (4, 1, 8, 8)
        np.testing.assert_array_equal(step.inputs["class_labels"], [0, 1, 10, 10])
    last = steps[-1]
    with_class, without = np.split(model.forward(last), 2)
    image = model.sampler.step(without + 1.5 * (with_class - without), last.time, last.inputs["hidden_states"][:2], 25)
    np.testing.assert_array_equal(image[:, 0], model.sample(np.array([0, 1]), 9))
