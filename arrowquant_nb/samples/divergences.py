"""How far one set of outputs lies from another: decibels, Frechet distance, Kullback-Leibler divergence.

Sums are float64. It knows arrays only, no models.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .numerics import log_softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

PEAK_TO_PEAK = 2.0
"""Width of the samples' value range [-1, 1]."""


def decibels(power: float, error: float) -> float:
    """Return ``10 log10(power / error)``, inf for no error and -inf for no power."""
    if error == 0:
        return math.inf
    return 10 * math.log10(power / error) if power > 0 else -math.inf


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


def log_spectral_distance(reference: NDArray[np.float32], other: NDArray[np.float32], db_per_unit: float) -> float:
    """Compare two sets of log-spectra.

    Parameters
    ----------
    reference, other
        float32 (n, frequencies, frames).
    db_per_unit
        Decibels that a difference of 1 stands for.

    Returns
    -------
    float
        Mean over frames of the root-mean-square difference over frequencies (Gray and Markel 1976), in dB.

    """
    squared = (other.astype(np.float64) - reference) ** 2
    return db_per_unit * float(np.mean(np.sqrt(squared.mean(-2))))


def frechet_distance(reference: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Compare two sets of features by the normal distributions that have their means and covariances.

    Parameters
    ----------
    reference, other
        (n, features) and (m, features), at least two rows each.

    Returns
    -------
    float
        Squared Frechet distance (Dowson and Landau 1982; Heusel et al. 2017), at least 0. Fewer rows than features
        give covariances of too low a rank, and the figure is then too small: compare equal n only.

    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    apart = a.mean(0) - b.mean(0)
    centred_a, centred_b = ((x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b))
    # The trace of the root of C_a C_b is the sum of the singular values of A B^T, for C_a = A^T A and C_b = B^T B.
    common = np.linalg.svd(centred_a @ centred_b.T, compute_uv=False).sum()
    spread = float(np.sum(centred_a**2) + np.sum(centred_b**2) - 2 * common)
    return float(apart @ apart) + max(spread, 0.0)


def kl_divergence(reference: NDArray[np.floating], other: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the divergence of `other` from `reference` in nats, at least 0.

    Parameters
    ----------
    reference, other
        Unnormalized log-probabilities (..., choices).

    Returns
    -------
    NDArray[np.float64]
        (...): the sum over choices of p (log p - log q).

    """
    p, q = log_softmax(reference), log_softmax(other)
    divergences: NDArray[np.float64] = np.maximum(np.sum(np.exp(p) * (p - q), axis=-1), 0.0)
    return divergences


def cross_entropy(scores: NDArray[np.floating], truth: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return minus the log-probability in nats that `scores` (..., choices) give to `truth` (...), float64 (...)."""
    logarithms = log_softmax(scores)
    losses: NDArray[np.float64] = -np.take_along_axis(logarithms, truth[..., None], -1)[..., 0]
    return losses
