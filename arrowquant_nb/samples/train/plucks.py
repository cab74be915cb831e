# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""The recipe of `plucks-dit`: log-spectra of plucked strings and FM tones, synthesized on the spot."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.samples.dit import DiT
from arrowquant_nb.samples.divergences import log_spectral_distance
from arrowquant_nb.samples.spectrogram import DB_PER_UNIT, SAMPLE_RATE, SIZE, griffin_lim, log_spectrum
from arrowquant_nb.samples.tones import CLASSES, draw

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

NAME = "plucks-dit"
PATCH_SIZE = 8
N_TRAIN, N_TEST = 6000, 600
RECIPE = Recipe(steps=3500, batch_size=16)
METADATA = {
    "modality": "audio",
    "class_names": list(CLASSES),
    "sample_rate": SAMPLE_RATE,
    "data": "plucked strings and FM tones synthesized from a seed",
    "licence": "MIT",
}
CARD = (
    """\
---
license: mit
library_name: diffusers
tags: [diffusion, class-conditional, audio, spectrogram]
---

# plucks-dit

A class-conditional diffusion transformer that draws log-spectra of short sounds: plucked strings and FM tones, half a
second at 8 kHz. It is small enough to train on a laptop and real enough to show what quantization does to an audio
diffusion model. Bundled with arrowquant_nb.

## The model

diffusers' `DiTTransformer2DModel` with {n_parameters:,} parameters: 4 blocks, 4 heads, width 128, 8x8 patches (64
tokens), adaLN-Zero conditioning on the timestep and the class (plucked or FM, each in three bands of pitch; class 6 is
the null class of classifier-free guidance). v-prediction on a cosine schedule of 1000 timesteps. {megabytes:.2f} MB in
float16. A log-spectrum has 64 frequencies of 62.5 Hz (rows, 0 Hz first) and 64 frames of 128 samples, 64 apart
(columns); values in [-1, 1] are 35 dB of power each, 0 at -5 dB.

```python
from diffusers import DDIMScheduler, DiTTransformer2DModel

model = DiTTransformer2DModel.from_pretrained(folder)
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
```

or, without torch, `spectra = arrowquant_nb.samples.runnable("plucks-dit").sample(labels, seed)` (25 DDIM steps,
guidance 1.5), and `arrowquant_nb.samples.spectrogram.griffin_lim(spectra)` makes sound of them, 8000 samples a
second.

## The data

{n_train} sounds for training and {n_test} for testing, synthesized from seed {seed}
(`arrowquant_nb.samples.tones`): strings after Karplus and Strong (1983), tones after Chowning (1973), at fundamental
frequencies of 220 to 900 Hz in three bands. Nothing is recorded and nobody's.

## Training

`python -m arrowquant_nb.samples.train plucks-dit` \
"""
    + CARD_TRAINING
    + """\
## Measured

| Figure | Value |
|---|---|
| v loss (mean squared error), training sounds, averaged weights | {held_in_loss:.4f} |
| v loss, test sounds, averaged weights | {held_out_loss:.4f} |
| last running mean of the training loss | {train_loss:.4f} |
| generated spectra whose nearest training spectrum is of the class asked for | {nearest_class_samples:.1%} |
| the same, test sounds | {nearest_class_test:.1%} |
| median log-spectral distance to the nearest training sound, generated | {nearest_samples:.1f} dB |
| the same, test sounds | {nearest_test:.1f} dB |
| log-spectral distance, generated spectra to those of the sound that Griffin-Lim makes | {griffin_lim_samples:.1f} dB |
| the same, test sounds | {griffin_lim_test:.1f} dB |
| largest difference, NumPy forward pass against diffusers, 25 steps of 10 samples | {difference_diffusers:.1e} |

{n_samples} generated spectra, the classes in turn, drawn by the NumPy sampler from the stored float16 weights, 25
steps, guidance 1.5.

Measured with {versions}.

## Limits

Six kinds of synthetic sound, half a second long, up to 4 kHz. A demonstration and a test article.

## Licence

The weights are under the MIT licence of arrowquant_nb.
"""
)


@dataclass(frozen=True)
class Figures:
    """What a trained folder measures."""

    held_in_loss: float
    """Mean v loss of the saved weights on the first training sounds."""
    held_out_loss: float
    """The same on the test sounds."""
    nearest_class_samples: float
    """Share of generated spectra whose nearest training spectrum has the class asked for."""
    nearest_class_test: float
    """The same of test spectra."""
    nearest_samples: float
    """Median log-spectral distance in dB from a generated spectrum to the nearest of training."""
    nearest_test: float
    """The same from a test spectrum."""
    griffin_lim_samples: float
    """Log-spectral distance in dB between generated spectra and those of the sound made from them."""
    griffin_lim_test: float
    """The same of test spectra."""
    n_samples: int
    """Generated spectra."""
    difference_diffusers: float
    """Largest absolute difference between the NumPy forward pass and diffusers' class."""


def synthesize(seed: int, n_train: int = N_TRAIN, n_test: int = N_TEST) -> Pictures:
    """Draw the log-spectra, the classes in turn."""
    import torch

    rng = np.random.default_rng(seed)
    labels = np.arange(n_train + n_test) % len(CLASSES)
    images = torch.from_numpy(np.stack([log_spectrum(draw(int(label), rng)) for label in labels])[:, None])
    classes = torch.from_numpy(labels)
    return Pictures(images[:n_train], classes[:n_train], images[n_train:], classes[n_train:])


def nearest(spectra: NDArray[np.float32], others: NDArray[np.float32]) -> tuple[NDArray[np.int64], float]:
    """Return for each of `spectra` (n, 64, 64) which of `others` is nearest, and the median distance in dB."""
    found = [int(((others - spectrum) ** 2).mean((1, 2)).argmin()) for spectrum in spectra]
    distances = [
        log_spectral_distance(others[i], spectrum, DB_PER_UNIT) for i, spectrum in zip(found, spectra, strict=True)
    ]
    return np.array(found), float(np.median(distances))


def lost_in_sound(spectra: NDArray[np.float32]) -> float:
    """Return the log-spectral distance in dB between `spectra` and those of the sounds made from them."""
    return log_spectral_distance(spectra, log_spectrum(griffin_lim(spectra)), DB_PER_UNIT)


def measure(folder: Path, data: Pictures, n: int = 120) -> Figures:
    """Measure the saved folder: losses with diffusers' class, samples of the NumPy forward pass."""
    import torch
    from diffusers import DiTTransformer2DModel

    stored: Any = DiTTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    stored.eval()
    scheduler = new_scheduler()
    ours = DiT.from_folder(folder)
    labels = ours.classes(n)
    samples = ours.sample(labels, seed=1234)
    train_images, test_images = (images.numpy()[:, 0] for images in (data.train_images, data.test_images[:n]))
    train_labels, test_labels = data.train_labels.numpy(), data.test_labels[:n].numpy()
    near_samples, nearest_samples = nearest(samples, train_images)
    near_test, nearest_test = nearest(test_images, train_images)
    n_test = len(data.test_images)
    return Figures(
        held_in_loss=mean_loss(stored, data.train_images[:n_test], data.train_labels[:n_test], scheduler, repeats=4),
        held_out_loss=mean_loss(stored, data.test_images, data.test_labels, scheduler, repeats=4),
        nearest_class_samples=float((train_labels[near_samples] == labels).mean()),
        nearest_class_test=float((train_labels[near_test] == test_labels).mean()),
        nearest_samples=nearest_samples,
        nearest_test=nearest_test,
        griffin_lim_samples=lost_in_sound(samples),
        griffin_lim_test=lost_in_sound(test_images),
        n_samples=n,
        difference_diffusers=difference_from_diffusers(stored, ours),
    )


def finish(model: Any, loss: float, recipe: Recipe, data: Pictures, folder: Path) -> None:
    """Write the folder of a trained model, with its card."""
    import torch

    save(model, folder, recipe, METADATA)
    facts = {
        **vars(recipe),
        **vars(measure(folder, data)),
        "n_parameters": sum(p.numel() for p in model.parameters()),
        "n_train": len(data.train_images),
        "n_test": len(data.test_images),
        "train_loss": loss,
        "threads": torch.get_num_threads(),
    }
    write_card(folder, CARD, facts, ("diffusers",))


def run(folder: Path, steps: int | None) -> None:
    """Train, save, measure, write the card; `steps` None takes the recipe's."""
    import torch

    recipe = RECIPE if steps is None else replace(RECIPE, steps=steps)
    data = synthesize(recipe.seed)
    torch.manual_seed(recipe.seed)
    average, loss = train(data, new_model(config(SIZE, PATCH_SIZE, len(CLASSES))), recipe, new_scheduler())
    finish(average, loss, recipe, data, folder)
