"""Log-spectra and back: known tones, exact inversion, and sound that has the spectrum it was made of."""

import math

import numpy as np
import pytest

from arrowquant_nb.samples.divergences import log_spectral_distance
from arrowquant_nb.samples.spectrogram import (
    DB_PER_UNIT,
    FRAME,
    N_SAMPLES,
    SAMPLE_RATE,
    griffin_lim,
    inverse_stft,
    log_spectrum,
    magnitudes,
    stft,
)
from arrowquant_nb.samples.tones import draw


def tone(frequency, amplitude=1.0):
    return amplitude * np.cos(2 * math.pi * frequency * np.arange(N_SAMPLES) / SAMPLE_RATE)


def test_a_tone_stands_in_the_row_of_its_frequency_with_its_power():
    spectrum = log_spectrum(tone(1000, 0.5))
    assert spectrum.shape == (64, 64)
    assert spectrum.dtype == np.float32
    assert (spectrum.argmax(0) == 1000 // 62.5).all()
    # The window sums to 64, half of it for a real tone: magnitude 16, 24.08 dB, which is 29.08 above the middle.
    np.testing.assert_allclose(spectrum[16], (20 * math.log10(0.5 * FRAME / 4) + 5) / 35, atol=1e-4)


def test_silence_is_the_floor_and_stays_silence():
    spectrum = log_spectrum(np.zeros(N_SAMPLES))
    assert (spectrum == -1).all()
    assert not griffin_lim(spectrum).any()


def test_ten_decibels_are_two_sevenths_and_loud_sound_is_clipped():
    loud, quiet = log_spectrum(tone(1000)), log_spectrum(tone(1000, math.sqrt(0.1)))
    assert loud.max() <= 1
    assert log_spectrum(tone(1000, 10)).max() == 1
    assert quiet[16, 5] - log_spectrum(tone(1000, 0.1))[16, 5] == pytest.approx(10 / 35, abs=1e-4)


def test_the_inverse_returns_band_limited_sound():
    sound = draw(1, np.random.default_rng(0))
    inner = slice(FRAME // 2, -FRAME // 2)
    assert np.abs(inverse_stft(stft(sound)) - sound)[inner].max() < 0.02  # what was at half the sample rate is missing
    np.testing.assert_allclose(inverse_stft(stft(tone(1000)))[inner], tone(1000)[inner], atol=1e-9)


def test_magnitudes_undo_the_decibels():
    sound = draw(4, np.random.default_rng(1))
    exact = np.abs(stft(sound))
    heard = exact > 0.02
    np.testing.assert_allclose(magnitudes(log_spectrum(sound))[heard], exact[heard], rtol=1e-4)


@pytest.mark.parametrize("label", range(6))
def test_griffin_lim_gives_sound_of_that_spectrum(label):
    spectrum = log_spectrum(draw(label, np.random.default_rng(label)))
    sound = griffin_lim(spectrum)
    assert sound.shape == (N_SAMPLES,)
    assert sound.dtype == np.float32
    once = griffin_lim(spectrum, rounds=0)
    lost, lost_at_once = (log_spectral_distance(spectrum, log_spectrum(s), DB_PER_UNIT) for s in (sound, once))
    assert lost < 6
    assert lost < lost_at_once / 2


def test_griffin_lim_repeats_with_its_seed_and_takes_batches():
    spectra = np.stack([log_spectrum(draw(label, np.random.default_rng(9))) for label in (0, 5)])
    first = griffin_lim(spectra, seed=3, rounds=5)
    assert first.shape == (2, N_SAMPLES)
    np.testing.assert_array_equal(first, griffin_lim(spectra, seed=3, rounds=5))
    assert np.abs(griffin_lim(spectra, seed=4, rounds=5) - first).max() > 1e-3
