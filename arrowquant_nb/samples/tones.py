"""Synthesized sounds in classes: plucked strings (Karplus and Strong 1983) and FM tones (Chowning 1973), by pitch.

Every sound is drawn from a seed. It knows nothing of models or spectra.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from .spectrogram import N_SAMPLES, SAMPLE_RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

BANDS: Final = ((220.0, 350.0), (350.0, 560.0), (560.0, 900.0))
"""Lowest and highest fundamental frequency in Hz."""
CLASSES: Final = ("pluck, low", "pluck, middle", "pluck, high", "FM, low", "FM, middle", "FM, high")
"""Kind of sound and band."""
PEAK: Final = 0.9
"""Largest absolute sample of every sound."""


def pluck(frequency: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Pluck a string: a burst of noise goes round a delay line and loses highs each time (Karplus and Strong 1983).

    The loss is a weighted mean of neighbours (Jaffe and Smith 1983); its weight says how long a string stays bright.
    """
    period = round(SAMPLE_RATE / frequency)
    line = rng.uniform(-1, 1, period)
    line -= line.mean()  # or else the string would start, and stay, off its rest
    decay, blend = rng.uniform(0.98, 0.999), rng.uniform(0.1, 0.5)
    rounds = []
    for _ in range(-(-N_SAMPLES // period)):
        rounds.append(line)
        first = decay * ((1 - blend) * line[0] + blend * line[1])
        line = decay * ((1 - blend) * line + blend * np.append(line[1:], first))
    return np.concatenate(rounds)[:N_SAMPLES]


def fm_tone(frequency: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Play a decaying tone whose phase a second tone modulates, brightest at its start (Chowning 1973)."""
    time = np.arange(N_SAMPLES) / SAMPLE_RATE
    ratio = rng.choice([1.0, 2.0, 3.0])
    index = rng.uniform(0.5, 4.0) * np.exp(-time * rng.uniform(2, 10))
    envelope = np.minimum(time / rng.uniform(0.002, 0.03), 1) * np.exp(-time * rng.uniform(1, 8))
    angle = 2 * math.pi * frequency * time
    tone: NDArray[np.float64] = envelope * np.sin(angle + index * np.sin(ratio * angle))
    return tone


def draw(label: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw one sound of class `label` in 0..5, float64 (`N_SAMPLES`,) with its peak at `PEAK`."""
    low, high = BANDS[label % len(BANDS)]
    frequency = low * (high / low) ** rng.random()
    sound = (pluck if label < len(BANDS) else fm_tone)(frequency, rng)
    sound *= PEAK / np.abs(sound).max()
    return sound
