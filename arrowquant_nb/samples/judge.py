# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""What the trained `digits-dit` is worth: its loss, how its digits read to a classifier, whether they are copies.

It needs torch, diffusers and scikit-learn (extra `train`), each imported where it is used, and serves `train.py` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .dit import DiT

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from numpy.typing import NDArray

N_TRAIN = 1437
N_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Digits:
    """The split scans, scaled from 0..16 to [-1, 1]."""

    train_images: torch.Tensor
    """float32 (1437, 1, 8, 8)."""
    train_labels: torch.Tensor
    """int64 (1437,)."""
    test_images: torch.Tensor
    """float32 (360, 1, 8, 8)."""
    test_labels: torch.Tensor
    """int64 (360,)."""


@dataclass(frozen=True)
class Figures:
    """What a trained folder measures."""

    held_in_loss: float
    """Mean v loss of the saved weights on the training scans."""
    held_out_loss: float
    """The same on the test scans."""
    judge_accuracy_test: float
    """Share of the test scans that the judge reads correctly."""
    judge_accuracy_samples: float
    """Share of the generated digits that the judge reads as asked for."""
    n_samples: int
    """Generated digits."""
    nearest_samples: float
    """Median RMS distance from a generated digit to the nearest training scan, pixels in [-1, 1]."""
    nearest_test: float
    """The same from a test scan."""
    difference_diffusers: float
    """Largest absolute difference between the NumPy forward pass and diffusers' class."""


def read_digits(seed: int) -> Digits:
    """Shuffle scikit-learn's 1797 scans with `seed` and split them 1437 / 360."""
    import torch
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.random.default_rng(seed).permutation(len(scans.target))
    images = torch.tensor(scans.images[order] / 8.0 - 1.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(scans.target[order], dtype=torch.int64)
    return Digits(images[:N_TRAIN], labels[:N_TRAIN], images[N_TRAIN:], labels[N_TRAIN:])


def noisy_batch(images: torch.Tensor, scheduler: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise `images` (n, 1, 8, 8) at n timesteps spread evenly over training time; return (noisy, v, times)."""
    import torch

    n = len(images)
    spread = (torch.rand(1) + torch.arange(n) / n) % 1
    timesteps = (spread * scheduler.config.num_train_timesteps).long()
    noise = torch.randn_like(images)
    return (
        scheduler.add_noise(images, noise, timesteps),
        scheduler.get_velocity(images, noise, timesteps),
        timesteps,
    )


def mean_loss(model: Any, images: torch.Tensor, labels: torch.Tensor, scheduler: Any, repeats: int = 20) -> float:
    """Mean v loss over `images` (n, 1, 8, 8) with their `labels` (n,), `repeats` draws of noise and time (seeded)."""
    import torch
    from torch.nn import functional

    torch.manual_seed(1)
    losses = []
    with torch.no_grad():
        for _ in range(repeats):
            noisy, target, timesteps = noisy_batch(images, scheduler)
            losses.append(
                functional.mse_loss(model(noisy, timestep=timesteps, class_labels=labels).sample, target).item()
            )
    return sum(losses) / repeats


def train_judge(digits: Digits, epochs: int = 20) -> Any:
    """Train the classifier that reads generated digits: a small convolutional network on the training split."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    judge = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 64),
        nn.GELU(),
        nn.Linear(64, N_CLASSES),
    )
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    for _ in range(epochs):
        for picked in torch.split(torch.randperm(len(digits.train_images)), 128):
            images = digits.train_images[picked]
            scores = judge(images + 0.1 * torch.randn_like(images))
            loss = nn.functional.cross_entropy(scores, digits.train_labels[picked])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return judge.eval()


def accuracy(judge: Any, images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of `images` (n, 8, 8) that the judge reads as `labels` (n,)."""
    import torch

    with torch.no_grad():
        read = judge(torch.from_numpy(images)[:, None]).argmax(1).numpy()
    return float((read == labels).mean())


def difference_from_diffusers(theirs: Any, ours: DiT) -> float:
    """Largest absolute difference of the two forward passes along the 25 steps of 10 samples."""
    import torch

    worst = 0.0
    for step in ours.trajectories(10, seed=0):
        images, labels = (torch.from_numpy(step.inputs[name]) for name in ("hidden_states", "class_labels"))
        with torch.no_grad():
            expected = theirs(images, timestep=torch.full((len(images),), step.time), class_labels=labels).sample
        worst = max(worst, float(np.abs(ours.forward(step) - expected.numpy()).max()))
    return worst


def nearest_distance(images: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Median over `images` of the root-mean-square distance to the nearest of `others`, in pixels of [-1, 1]."""
    a, b = images.reshape(len(images), -1), others.reshape(len(others), -1)
    squared = ((a[:, None] - b[None]) ** 2).mean(-1)
    return float(np.median(np.sqrt(squared.min(1))))


def measure(folder: Path, digits: Digits, scheduler: Any, per_class: int = 50) -> Figures:
    """Measure the saved folder: losses with diffusers' class, samples of the NumPy forward pass with the judge."""
    import torch
    from diffusers import DiTTransformer2DModel

    stored: Any = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)  # type: ignore[no-untyped-call]
    stored.eval()
    labels = np.arange(N_CLASSES * per_class) % N_CLASSES
    samples = DiT.from_folder(folder).sample(labels, seed=1234)
    judge = train_judge(digits)
    train_images, test_images = digits.train_images.numpy()[:, 0], digits.test_images.numpy()[:, 0]
    return Figures(
        held_in_loss=mean_loss(stored, digits.train_images, digits.train_labels, scheduler),
        held_out_loss=mean_loss(stored, digits.test_images, digits.test_labels, scheduler),
        judge_accuracy_test=accuracy(judge, test_images, digits.test_labels.numpy()),
        judge_accuracy_samples=accuracy(judge, samples, labels),
        n_samples=len(samples),
        nearest_samples=nearest_distance(samples, train_images),
        nearest_test=nearest_distance(test_images, train_images),
        difference_diffusers=difference_from_diffusers(stored, DiT.from_folder(folder)),
    )
