"""Square log-spectra of sound and back: the short-time Fourier transform, its decibels in [-1, 1], and Griffin-Lim.

64 frames of 64 frequencies, half a second at 8 kHz. It knows nothing of models or of where a sound comes from.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE_RATE: Final = 8000
"""Samples of sound per second."""
FRAME: Final = 128
"""Samples under one Hann window; a frequency is 62.5 Hz wide."""
HOP: Final = 64
"""Samples from one frame to the next."""
SIZE: Final = 64
"""Frames, and frequencies from 0 Hz upwards; the one at half the sample rate is left out to make a square."""
N_SAMPLES: Final = (SIZE - 1) * HOP + FRAME
"""Samples of sound that the frames cover: 0.52 s."""
MIDDLE_DB: Final = -5.0
"""Power that a value of 0 stands for."""
DB_PER_UNIT: Final = 35.0
"""Decibels per unit: values in [-1, 1] span 70 dB."""
GRIFFIN_LIM_ROUNDS: Final = 60

_WINDOW: Final = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(FRAME) / FRAME)
_STARTS: Final = HOP * np.arange(SIZE)[:, None] + np.arange(FRAME)


def stft(sound: NDArray[np.floating]) -> NDArray[np.complex128]:
    """Return the spectrum of each frame: sound (..., `N_SAMPLES`) to complex128 (..., frames, frequencies)."""
    return np.fft.rfft(sound[..., _STARTS] * _WINDOW)[..., :SIZE]


def inverse_stft(spectra: NDArray[np.complexfloating]) -> NDArray[np.float64]:
    """Return the sound whose spectra are nearest to `spectra`, float64 (..., `N_SAMPLES`): overlap and add, weighted.

    Griffin and Lim 1984, equation 6. The frequency at half the sample rate is taken as silent.
    """
    with_last = np.concatenate([spectra, np.zeros_like(spectra[..., :1])], axis=-1)
    frames = np.fft.irfft(with_last, FRAME) * _WINDOW
    sound = np.zeros((*spectra.shape[:-2], N_SAMPLES))
    weight = np.zeros(N_SAMPLES)
    for i in range(SIZE):
        sound[..., i * HOP : i * HOP + FRAME] += frames[..., i, :]
        weight[i * HOP : i * HOP + FRAME] += _WINDOW**2
    return sound / np.maximum(weight, 1e-3)


def log_spectrum(sound: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the log-spectrum of `sound`, (..., `N_SAMPLES`) in [-1, 1].

    Returns
    -------
    NDArray[np.float32]
        (..., frequencies, frames) in [-1, 1]: `DB_PER_UNIT` decibels of power per unit, clipped below -40 and above
        +30 dB. Low frequencies come first.

    """
    power = np.abs(stft(sound)) ** 2
    values = (10 * np.log10(np.maximum(power, 1e-10)) - MIDDLE_DB) / DB_PER_UNIT
    clipped: NDArray[np.float32] = np.clip(values, -1, 1).swapaxes(-1, -2).astype(np.float32)
    return clipped


def magnitudes(log_spectra: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return magnitudes: values (..., frequencies, frames) to float64 (..., frames, frequencies).

    What lies at the floor of the scale is silence.
    """
    values = np.asarray(log_spectra, np.float64).swapaxes(-1, -2)
    return np.where(values <= -1, 0.0, 10 ** ((values * DB_PER_UNIT + MIDDLE_DB) / 20))


def griffin_lim(
    log_spectra: NDArray[np.floating], seed: int = 0, rounds: int = GRIFFIN_LIM_ROUNDS
) -> NDArray[np.float32]:
    """Return sound that has these log-spectra, as near as its phases can be found (Griffin and Lim 1984).

    Parameters
    ----------
    log_spectra
        (..., frequencies, frames) in [-1, 1], see `log_spectrum`.
    seed
        Of the phases it starts from.
    rounds
        Times that the phases are taken from the sound of the last round.

    Returns
    -------
    NDArray[np.float32]
        (..., `N_SAMPLES`) at `SAMPLE_RATE`; loudness as in the spectra, so it may leave [-1, 1].

    """
    wanted = magnitudes(log_spectra)
    spectra = wanted * np.exp(2j * math.pi * np.random.default_rng(seed).random(wanted.shape))
    for _ in range(rounds):
        found = stft(inverse_stft(spectra))
        spectra = wanted * found / np.maximum(np.abs(found), 1e-12)
    return inverse_stft(spectra).astype(np.float32)
