"""Each class sounds at its pitch, decays, and comes back from its seed."""

import numpy as np
import pytest

from arrowquant_nb.samples.spectrogram import N_SAMPLES, SAMPLE_RATE
from arrowquant_nb.samples.tones import BANDS, CLASSES, PEAK, draw, fm_tone, pluck


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_a_sound_is_loud_finite_and_repeats_with_its_seed(label):
    sound = draw(label, np.random.default_rng(label))
    assert sound.shape == (N_SAMPLES,)
    assert np.abs(sound).max() == pytest.approx(PEAK)
    np.testing.assert_array_equal(sound, draw(label, np.random.default_rng(label)))
    assert not np.array_equal(sound, draw(label, np.random.default_rng(label + 99)))
    quarter = N_SAMPLES // 4
    assert np.std(sound[-quarter:]) < np.std(sound[:quarter])


@pytest.mark.parametrize("frequency", [250.0, 400.0, 800.0])
def test_a_string_repeats_with_the_period_of_its_pitch(frequency):
    sound = pluck(frequency, np.random.default_rng(2))
    period = round(SAMPLE_RATE / frequency)
    head = sound[: 10 * period]
    lags = np.arange(2, 2 * period - 2)
    alike = [np.corrcoef(head[:-lag], head[lag:])[0, 1] for lag in lags]
    assert abs(int(lags[int(np.argmax(alike))]) - period) <= 1
    assert abs(sound.mean()) < 0.01


def test_one_round_of_a_string_is_the_last_one_averaged():
    sound = pluck(400.0, np.random.default_rng(3))
    period = 20
    before, after = sound[:period], sound[period : 2 * period]
    (own, neighbour), *_ = np.linalg.lstsq(np.stack([before[:-1], before[1:]], 1), after[:-1], rcond=None)
    np.testing.assert_allclose(after[:-1], own * before[:-1] + neighbour * before[1:], atol=1e-12)
    assert 0.98 <= own + neighbour <= 0.999
    assert after[-1] == pytest.approx(own * before[-1] + neighbour * after[0])


def test_an_fm_tone_has_its_pitch_and_multiples_of_it():
    sound = fm_tone(500.0, np.random.default_rng(4))
    power = np.abs(np.fft.rfft(sound * np.hanning(N_SAMPLES))) ** 2
    frequencies = np.arange(len(power)) * SAMPLE_RATE / N_SAMPLES
    off = np.abs(frequencies / 500 - np.round(frequencies / 500)) * 500
    assert power[off < 20].sum() > 0.98 * power.sum()


def test_the_bands_touch_and_name_the_classes():
    assert [high for _, high in BANDS[:-1]] == [low for low, _ in BANDS[1:]]
    assert len(CLASSES) == 2 * len(BANDS)
