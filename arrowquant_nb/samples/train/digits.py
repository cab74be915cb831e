# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""The recipe of `digits-dit` and of its judge: scikit-learn's handwritten digits, 8x8 pixels.

It needs scikit-learn besides torch and diffusers. What it measures: losses, how the digits read to a classifier,
whether they are copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.samples import JUDGE
from arrowquant_nb.samples.dit import DiT
from arrowquant_nb.samples.judge import Judge

from .card import write_card
from .dit import (
    CARD_TRAINING,
    Pictures,
    Recipe,
    config,
    difference_from_diffusers,
    mean_loss,
    new_model,
    new_scheduler,
    save,
    train,
)

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

NAME = "digits-dit"
N_TRAIN = 1437
N_CLASSES = 10
IMAGE_SIZE, PATCH_SIZE = 8, 2

CARD = (
    """\
---
license: mit
library_name: diffusers
tags: [diffusion, class-conditional, digits]
---

# digits-dit

A class-conditional diffusion transformer that draws 8x8 grey-scale handwritten digits. It is small enough to train
in minutes on two CPU cores and real enough to show what quantization does to a diffusion model. Bundled with
arrowquant_nb.

## The model

diffusers' `DiTTransformer2DModel` with {n_parameters:,} parameters: 4 blocks, 4 heads, width 128, 2x2 patches (16
tokens), adaLN-Zero conditioning on the timestep and the class (10 digits; class 10 is the null class of
classifier-free guidance). v-prediction on a cosine schedule of 1000 timesteps. {megabytes:.2f} MB in float16.

```python
from diffusers import DDIMScheduler, DiTTransformer2DModel

model = DiTTransformer2DModel.from_pretrained(folder)
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
```

or, without torch, `arrowquant_nb.samples.runnable("digits-dit").sample(labels, seed)`: 25 DDIM steps, guidance 1.5.

## The data

The 1797 scans of `sklearn.datasets.load_digits`: the test part of "Optical Recognition of Handwritten Digits" by E.
Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49, which UCI
distributes under CC BY 4.0. scikit-learn, which ships the copy, is under the BSD 3-clause licence. No scan is
stored here. The scans were scaled from 0..16 to [-1, 1], shuffled with seed {seed} and split into 1437 for training
and 360 for testing, so both parts hold the same writers.

## Training

`python -m arrowquant_nb.samples.train digits-dit` \
"""
    + CARD_TRAINING
    + """\
## Measured

| Figure | Value |
|---|---|
| v loss (mean squared error), training scans, averaged weights | {held_in_loss:.4f} |
| v loss, test scans, averaged weights | {held_out_loss:.4f} |
| last running mean of the training loss | {train_loss:.4f} |
| judge's accuracy on the test scans | {judge_accuracy_test:.1%} |
| judge's accuracy on {n_samples} generated digits | {judge_accuracy_samples:.1%} |
| median RMS distance to the nearest training scan, generated digits | {nearest_samples:.3f} |
| the same, test scans | {nearest_test:.3f} |
| largest difference, NumPy forward pass against diffusers, 25 steps of 10 samples | {difference_diffusers:.1e} |

The judge is a small convolutional classifier trained on the same 1437 scans, stored beside this folder in
`digits-judge`. The generated digits are
50 of each class, drawn by the NumPy sampler from the stored float16 weights, 25 steps, guidance 1.5. The distances
are between pixels in [-1, 1]: generated digits that lay much nearer to the training scans than test scans do would
be copies.

Measured with {versions}.

## Limits

Digits of thirteen writers, 8x8 pixels. A demonstration and a test article: no source of training data, and of no
use for reading digits.

## Licence

The weights are under the MIT licence of arrowquant_nb.
"""
)


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


def read_digits(seed: int) -> Pictures:
    """Shuffle scikit-learn's 1797 scans with `seed` and split them 1437 / 360."""
    import torch
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.random.default_rng(seed).permutation(len(scans.target))
    images = torch.tensor(scans.images[order] / 8.0 - 1.0, dtype=torch.float32)[:, None]
    labels = torch.tensor(scans.target[order], dtype=torch.int64)
    return Pictures(images[:N_TRAIN], labels[:N_TRAIN], images[N_TRAIN:], labels[N_TRAIN:])


def train_judge(digits: Pictures, epochs: int = 20) -> Any:
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
            loss.backward()
            optimizer.step()
    return judge.eval()


def save_judge(judge: Any, path: Path) -> None:
    """Write the judge's weights in float16."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in judge.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors leaves it readable by its owner alone


def nearest_distance(images: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """Median over `images` of the root-mean-square distance to the nearest of `others`, in pixels of [-1, 1]."""
    a, b = images.reshape(len(images), -1), others.reshape(len(others), -1)
    squared = ((a[:, None] - b[None]) ** 2).mean(-1)
    return float(np.median(np.sqrt(squared.min(1))))


def measure(folder: Path, digits: Pictures, per_class: int = 50) -> Figures:
    """Measure the saved folder: losses with diffusers' class, NumPy samples with the stored judge."""
    import torch
    from diffusers import DiTTransformer2DModel

    stored: Any = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    stored.eval()
    scheduler = new_scheduler()
    labels = np.arange(N_CLASSES * per_class) % N_CLASSES
    samples = DiT.from_folder(folder).sample(labels, seed=1234)
    judge = Judge.from_file(JUDGE)
    train_images, test_images = digits.train_images.numpy()[:, 0], digits.test_images.numpy()[:, 0]
    return Figures(
        held_in_loss=mean_loss(stored, digits.train_images, digits.train_labels, scheduler),
        held_out_loss=mean_loss(stored, digits.test_images, digits.test_labels, scheduler),
        judge_accuracy_test=float((judge.read(test_images) == digits.test_labels.numpy()).mean()),
        judge_accuracy_samples=float((judge.read(samples) == labels).mean()),
        n_samples=len(samples),
        nearest_samples=nearest_distance(samples, train_images),
        nearest_test=nearest_distance(test_images, train_images),
        difference_diffusers=difference_from_diffusers(stored, DiT.from_folder(folder)),
    )


def finish(model: Any, loss: float, recipe: Recipe, digits: Pictures, folder: Path) -> None:
    """Write the folder of a trained model, its judge where there is none yet, and the card."""
    import torch

    if not JUDGE.exists():
        save_judge(train_judge(digits), JUDGE)
    metadata = {
        "modality": "image",
        "data": "scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        "licence": "MIT",
    }
    save(model, folder, recipe, metadata)
    facts = (
        vars(recipe)
        | vars(measure(folder, digits))
        | {
            "n_parameters": sum(p.numel() for p in model.parameters()),
            "train_loss": loss,
            "threads": torch.get_num_threads(),
        }
    )
    write_card(folder, CARD, facts, ("diffusers", "scikit-learn"))


def run(folder: Path, steps: int | None) -> None:
    """Train, save, measure, write the card; `steps` None takes the recipe's."""
    import torch

    recipe = Recipe() if steps is None else Recipe(steps=steps)
    torch.manual_seed(recipe.seed)
    digits = read_digits(recipe.seed)
    model = new_model(config(IMAGE_SIZE, PATCH_SIZE, N_CLASSES))
    average, loss = train(digits, model, recipe, new_scheduler())
    finish(average, loss, recipe, digits, folder)
