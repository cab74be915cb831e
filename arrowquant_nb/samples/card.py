"""The model card of `digits-dit`: the facts of a training run as text.

It formats; `judge.py` measures.
"""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .dit import WEIGHTS_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from .judge import Figures

PACKAGES = ("torch", "diffusers", "scikit-learn", "numpy", "safetensors")


@dataclass(frozen=True)
class TrainingFacts:
    """What a training run did and measured."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    seed: int
    """Seed of the split, the initial weights and every draw."""
    threads: int
    """torch threads."""
    n_parameters: int
    """All of it: weights, biases, class tables."""
    train_loss: float
    """Running mean of the v loss at the end of training (the trained, not the averaged weights)."""
    figures: Figures
    """What the saved folder measures."""


CARD = """\
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

`python -m arrowquant_nb.samples.train` (extra `train`): {steps} steps of AdamW, batch {batch_size}, peak rate 1e-3
with 100 steps of warm-up and half a cosine down to zero, no weight decay, gradient norm clipped at 1, betas 0.9 and
0.99; mean squared error of v at timesteps spread evenly over the schedule; labels dropped with probability 0.1;
saved is the moving average of the weights (decay 0.995). Seed {seed}, {threads} threads. Another machine or torch
build gives other roundings, so other weights.

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

The judge is a small convolutional classifier trained on the same 1437 scans (not stored). The generated digits are
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


def write_card(folder: Path, facts: TrainingFacts) -> None:
    """Write README.md beside the weights in `folder`."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    megabytes = (folder / WEIGHTS_FILE).stat().st_size / 1e6
    text = CARD.format(**vars(facts) | vars(facts.figures), megabytes=megabytes, versions=", ".join(versions))
    (folder / "README.md").write_text(text, encoding="utf-8")
