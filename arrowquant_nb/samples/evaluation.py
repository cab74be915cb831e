"""What other weights, or another product hook, cost a bundled model at its output, against its own weights.

The first figure is the same for all: the network's output along the trained model's own trajectories (teacher-forced,
so errors do not pile up and the figure varies little). The others fit the modality: pictures and sounds are compared as
drawn from the same noise, text by the probabilities of masked characters. It knows nothing of how the other weights
came about.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias, TypedDict

import numpy as np

from . import JUDGE, load, modality, runnable, vocabulary
from .divergences import (
    cross_entropy,
    decibels,
    frechet_distance,
    kl_divergence,
    log_spectral_distance,
    sample_psnr_db,
)
from .judge import Judge
from .masked_lm import MaskedLM
from .runnable import EVALUATION
from .spectrogram import DB_PER_UNIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

    from .runnable import Linear, RunnableModel, Sample, Step


class Evaluation(TypedDict):
    """What every modality has."""

    network_sqnr_db: float
    """Signal over error power of the network's output along all trajectories, in dB; inf when nothing differs. Of a
    language model, its output at masked characters: what it says of visible ones is never used."""
    n: int
    """Samples: pictures, sounds, windows of text."""
    steps: int
    """Steps of a trajectory."""
    seed: int
    """Seed of the starting noise, or of the windows and masks."""


class ImageEvaluation(Evaluation):
    """Figures of a model of pictures."""

    sample_psnr_db: float
    """Median over samples of the peak signal over error power, in dB; inf when at least half of them do not differ."""
    frechet_distance: float
    """Squared Frechet distance between the trained model's samples and these, drawn from the same noise, in the 64
    features of a small classifier. It falls with n; compare equal n, and trust it from some 500."""


class AudioEvaluation(Evaluation):
    """Figures of a model of log-spectra."""

    sample_psnr_db: float
    """As for pictures, of the log-spectra."""
    log_spectral_distance_db: float
    """Mean over frames of the root-mean-square difference of the spectra in dB, drawn from the same noise."""


class TextEvaluation(Evaluation):
    """Figures of a masked language model, on text held out of training and of calibration."""

    kl: float
    """Mean over masked characters of the divergence from the trained model's probabilities to these, in nats."""
    top1_agreement: float
    """Share of masked characters at which both find the same one likeliest."""
    nelbo: float
    """Bound on the negative log-likelihood in nats per character: the mean over steps of the cross entropy at masked
    characters (Sahoo et al. 2024)."""
    trained_nelbo: float
    """The same of the trained weights."""


AnyEvaluation: TypeAlias = ImageEvaluation | AudioEvaluation | TextEvaluation


@dataclass(frozen=True, eq=False)
class Recording:
    """A reference model's trajectories and what its network said at each step."""

    steps: tuple[Step, ...]
    """The network calls, in order."""
    outputs: tuple[NDArray[np.float32], ...]
    """The network's output at each of `steps`."""

    @classmethod
    def of(cls, model: Sample, n: int, seed: int) -> Recording:
        """Follow `n` samples of `model` in the evaluation part of its data."""
        steps = tuple(model.trajectories(n, seed, EVALUATION))
        return cls(steps, tuple(model.forward(step) for step in steps))

    def outputs_of(self, other: RunnableModel, linear: Linear | None) -> list[NDArray[np.float32]]:
        """Return what `other` says at each of these steps."""
        return [other.forward(step, linear) for step in self.steps]

    def sqnr_db(self, other: RunnableModel, linear: Linear | None = None) -> float:
        """Return the signal over error power of `other` along these steps in dB; inf when no output differs."""
        return _sqnr_db(self.outputs, self.outputs_of(other, linear))


def network_sqnr_db(reference: Sample, other: RunnableModel, n: int = 20, seed: int = 0) -> float:
    """Return the signal over error power in dB of the network outputs of `other` on `n` trajectories of `reference`.

    Every sampling step counts with its own power; sums are float64; inf when no output differs.
    """
    return Recording.of(reference, n, seed).sqnr_db(other)


def evaluate(
    name: str,
    weights: Mapping[str, ArrayLike] | None = None,
    n: int = 20,
    seed: int = 0,
    linear: Linear | None = None,
    model: Sample | None = None,
) -> AnyEvaluation:
    """Measure what `weights`, `linear` or another way to run it cost the bundled model `name`, in seconds.

    Parameters
    ----------
    name
        One of `samples.names()`.
    weights
        Every tensor of the model by its checkpoint name, see `samples.runnable`; None takes the trained ones.
    n
        Samples; of classes, they go round. The trajectories stay in memory: about 0.6 MB a window of text, 1.6 MB a
        log-spectrum, 26 kB a digit.
    seed
        Of the starting noise; for text, of the places and masks.
    linear
        The hook that stands for every product with a weight matrix (`samples.Linear`), for example one that rounds
        activations; None multiplies by `weights`.
    model
        The model run by other means, such as torch, instead of `weights`.

    Returns
    -------
    ImageEvaluation, AudioEvaluation or TextEvaluation
        The figures and what they were measured on.

    Raises
    ------
    LookupError
        No bundled model has that name.
    ValueError
        A tensor is missing, unknown or misshapen, or `n` is below 2.

    """
    if n < 2:
        raise ValueError(f"n is {n}; at least two samples are needed to measure anything")
    other = runnable(name, weights) if model is None else model
    recording = _recorded(name, n, seed)
    if modality(name) in {"text", "code"}:
        return _text_evaluation(name, recording, recording.outputs_of(other, linear), n, seed)
    drawn, others = _drawn(name, n, seed), np.asarray(other.sample(n, seed, linear=linear), np.float32)
    sqnr_db, psnr_db = recording.sqnr_db(other, linear), sample_psnr_db(drawn, others)
    steps = len(recording.steps)
    if modality(name) == "audio":
        return AudioEvaluation(
            network_sqnr_db=sqnr_db,
            sample_psnr_db=psnr_db,
            log_spectral_distance_db=log_spectral_distance(drawn, others, DB_PER_UNIT),
            n=n,
            steps=steps,
            seed=seed,
        )
    judge = Judge.from_file(JUDGE)
    return ImageEvaluation(
        network_sqnr_db=sqnr_db,
        sample_psnr_db=psnr_db,
        frechet_distance=frechet_distance(judge.features(drawn), judge.features(others)),
        n=n,
        steps=steps,
        seed=seed,
    )


def _text_evaluation(
    name: str, recording: Recording, others: list[NDArray[np.float32]], n: int, seed: int
) -> TextEvaluation:
    """Compare what two language models say of masked characters."""
    windows = MaskedLM.from_folder(load(name)).windows(n, seed, EVALUATION)
    masks = [step.inputs["input_ids"] == vocabulary.MASK for step in recording.steps]
    reference, outputs = (
        [output[mask] for output, mask in zip(whole, masks, strict=True)] for whole in (recording.outputs, others)
    )
    truths = [windows[mask] for mask in masks]
    pairs = list(zip(reference, outputs, strict=True))
    return TextEvaluation(
        network_sqnr_db=_sqnr_db(reference, outputs),
        kl=float(np.concatenate([kl_divergence(a, b) for a, b in pairs]).mean()),
        top1_agreement=float(np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in pairs]).mean()),
        nelbo=_mean_cross_entropy(outputs, truths),
        trained_nelbo=_mean_cross_entropy(reference, truths),
        n=n,
        steps=len(recording.steps),
        seed=seed,
    )


def nelbo(model: MaskedLM, windows: NDArray[np.int64], seed: int) -> float:
    """Return `model`'s bound on the negative log-likelihood of `windows` (n, characters), in nats per character."""
    outputs, truths = [], []
    for step in model.masked_steps(windows, seed):
        mask = step.inputs["input_ids"] == vocabulary.MASK
        outputs.append(model.forward(step)[mask])
        truths.append(windows[mask])
    return _mean_cross_entropy(outputs, truths)


def _mean_cross_entropy(outputs: list[NDArray[np.float32]], truths: list[NDArray[np.int64]]) -> float:
    """Average over steps, not characters: the steps' shares of masked characters are spread evenly over [0, 1]."""
    return float(np.mean([cross_entropy(a, b).mean() for a, b in zip(outputs, truths, strict=True)]))


def _sqnr_db(
    reference: tuple[NDArray[np.float32], ...] | list[NDArray[np.float32]], others: list[NDArray[np.float32]]
) -> float:
    power = error = 0.0
    for output, other in zip(reference, others, strict=True):
        expected = output.astype(np.float64)
        power += float(np.sum(expected**2))
        error += float(np.sum((other - expected) ** 2))
    return decibels(power, error)


@lru_cache(maxsize=2)
def _recorded(name: str, n: int, seed: int) -> Recording:
    """Return the trajectories of the trained weights, kept for the next evaluation with the same seed."""
    return Recording.of(runnable(name), n, seed)


@lru_cache(maxsize=2)
def _drawn(name: str, n: int, seed: int) -> NDArray[np.float32]:
    """Return the samples of the trained weights, likewise; float32 (n, size, size)."""
    return np.asarray(runnable(name).sample(n, seed), np.float32)
