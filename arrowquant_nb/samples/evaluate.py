"""What other weights cost a bundled model: decibels of its network output and of its samples, against its own weights.

Two figures, in the order of their worth: the network's output on the trained model's own trajectories (teacher-forced,
so errors do not pile up and the figure varies little), and the samples drawn from the same noise. It knows nothing of
how the other weights came about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from . import runnable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from .runnable import RunnableModel, Step

PEAK_TO_PEAK = 2.0
"""Width of the samples' value range [-1, 1]."""


class Evaluation(TypedDict):
    """Figures of one set of weights against the trained ones."""

    network_sqnr_db: float
    """Signal over error power of the network's output, over all trajectories, in dB; inf when nothing differs."""
    sample_psnr_db: float
    """Median over samples of the peak signal over error power, in dB; inf when at least half of them do not differ."""
    n: int
    """Samples."""
    steps: int
    """Sampling steps of a sample."""
    seed: int
    """Seed of the starting noise."""


def decibels(power: float, error: float) -> float:
    """Return ``10 log10(power / error)``, inf for no error and -inf for no power."""
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


@dataclass(frozen=True, eq=False)
class Recording:
    """A reference model's trajectories and what its network said at each step."""

    steps: tuple[Step, ...]
    """The network calls, in order."""
    outputs: tuple[NDArray[np.float32], ...]
    """The network's output at each of `steps`."""

    @classmethod
    def of(cls, model: RunnableModel, n: int, seed: int) -> Recording:
        """Follow `n` samples of `model` that start from the noise of `seed`."""
        steps = tuple(model.trajectories(n, seed))
        return cls(steps, tuple(model.forward(step) for step in steps))

    def sqnr_db(self, other: RunnableModel) -> float:
        """Return the signal over error power of `other` along these steps in dB; inf when no output differs."""
        power = error = 0.0
        for step, output in zip(self.steps, self.outputs, strict=True):
            expected = output.astype(np.float64)
            power += float(np.sum(expected**2))
            error += float(np.sum((other.forward(step) - expected) ** 2))
        return decibels(power, error)


def network_sqnr_db(reference: RunnableModel, other: RunnableModel, n: int = 20, seed: int = 0) -> float:
    """Return the signal over error power in dB of the network outputs of `other` on `n` trajectories of `reference`.

    Every sampling step counts with its own power; sums are float64; inf when no output differs.
    """
    return Recording.of(reference, n, seed).sqnr_db(other)


def sample_psnr_db(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Compare two sets of samples drawn from the same noise.

    Parameters
    ----------
    reference, other
        float32 (n, ...) in [-1, 1].

    Returns
    -------
    float
        Median over samples of the peak signal-to-noise ratio in dB. Not the mean: above 45 dB a few outliers rule that.

    """
    squared = (other.astype(np.float64) - reference) ** 2
    errors = squared.reshape(len(squared), -1).mean(1)
    return decibels(PEAK_TO_PEAK**2, float(np.median(errors)))


@lru_cache(maxsize=2)
def trained(name: str, n: int, seed: int) -> tuple[Recording, NDArray[np.float32]]:
    """Return trajectories and samples of the trained weights, kept for the next evaluation with the same seed."""
    model = runnable(name)
    return Recording.of(model, n, seed), model.sample(classes(n), seed)


def classes(n: int) -> NDArray[np.int64]:
    """Return the labels of `n` samples: the ten classes in turn."""
    return np.arange(n, dtype=np.int64) % 10


def evaluate(name: str, weights: Mapping[str, ArrayLike], n: int = 20, seed: int = 0) -> Evaluation:
    """Measure what `weights` cost the bundled model `name`; a few seconds for 20 samples.

    Parameters
    ----------
    name
        One of `samples.names()`.
    weights
        Every tensor of the model by its checkpoint name; see `samples.runnable`.
    n
        Samples; their classes go round.
    seed
        Of the starting noise.

    Returns
    -------
    Evaluation
        The figures and what they were measured on.

    Raises
    ------
    LookupError
        No bundled model has that name.
    ValueError
        A tensor is missing, unknown or misshapen, or `n` is below 1.

    """
    if n < 1:
        raise ValueError(f"n is {n}; at least one sample is needed to measure anything")
    other = runnable(name, weights)
    recording, samples = trained(name, n, seed)
    return {
        "network_sqnr_db": recording.sqnr_db(other),
        "sample_psnr_db": sample_psnr_db(samples, other.sample(classes(n), seed)),
        "n": n,
        "steps": len(recording.steps),
        "seed": seed,
    }
