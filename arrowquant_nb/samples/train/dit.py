# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""Train a class-conditional diffusion transformer on one-channel pictures: diffusers' own `DiTTransformer2DModel`.

v-prediction on a cosine schedule. It knows nothing of what the pictures show.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb.samples.dit import WEIGHTS_FILE, DiT
from arrowquant_nb.samples.runnable import GUIDANCE, STEPS

from .card import tidy_config, write_json
from .descent import descend

if TYPE_CHECKING:
    from pathlib import Path

    import torch

LABEL_DROPOUT = 0.1
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


CARD_TRAINING = """\
(extra `train`): {steps} steps of AdamW, batch {batch_size},
peak rate 1e-3 with 100 steps of warm-up and half a cosine down to zero, no weight decay, gradient norm clipped at 1,
betas 0.9 and 0.99; mean squared error of v at timesteps spread evenly over the schedule; labels dropped with
probability 0.1; saved is the moving average of the weights (decay 0.995). Seed {seed}, torch threads: {threads}.
Another machine or torch build gives other roundings, so other weights.

"""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Split pictures in classes, values in [-1, 1]."""

    train_images: torch.Tensor
    """float32 (n, 1, size, size)."""
    train_labels: torch.Tensor
    """int64 (n,)."""
    test_images: torch.Tensor
    """float32 (m, 1, size, size)."""
    test_labels: torch.Tensor
    """int64 (m,)."""


@dataclass(frozen=True)
class Recipe:
    """How a diffusion transformer is trained."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Pictures per step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate: linear warm-up, then half a cosine to zero."""
    warmup: int = 100
    """Steps of linear warm-up."""
    ema_decay: float = 0.995
    """Decay per step of the moving average whose weights are saved."""
    seed: int = 0
    """Seed of the data, of the initial weights and of every draw in training."""


def config(image_size: int, patch_size: int, n_classes: int) -> dict[str, Any]:
    """Return the settings of a small transformer: 4 blocks, 4 heads, width 128."""
    return {
        "num_attention_heads": 4,
        "attention_head_dim": 32,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers": 4,
        "sample_size": image_size,
        "patch_size": patch_size,
        "num_embeds_ada_norm": n_classes,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_zero",
    }


def new_model(settings: dict[str, Any]) -> Any:
    """Build the untrained transformer with the zero start of adaLN-Zero (Peebles and Xie 2023), absent in diffusers."""
    import torch
    from diffusers import DiTTransformer2DModel

    model: Any = DiTTransformer2DModel(**settings)
    starts_at_zero = [block.norm1.linear for block in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2]
    for layer in starts_at_zero:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    # The model's own label dropout draws once per block, so one image would be both labelled and unlabelled. There is
    # no other dropout: evaluation mode switches off just that, and `train` drops labels itself.
    return model.eval()


def new_scheduler() -> Any:
    """Build diffusers' DDIM scheduler on the cosine schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def noisy_batch(images: torch.Tensor, scheduler: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise `images` (n, 1, size, size) at n timesteps spread evenly over training time; return (noisy, v, times)."""
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


def train(data: Pictures, model: Any, recipe: Recipe, scheduler: Any) -> tuple[Any, float]:
    """Train `model` in place; return its moving average (float32) and the last running mean of the loss."""
    import torch
    from torch.nn import functional

    null_class = model.config.num_embeds_ada_norm

    def loss_of(_step: int) -> torch.Tensor:
        picked = torch.randint(len(data.train_images), (recipe.batch_size,))
        noisy, target, timesteps = noisy_batch(data.train_images[picked], scheduler)
        labels = data.train_labels[picked].clone()
        labels[torch.rand(recipe.batch_size) < LABEL_DROPOUT] = null_class
        return functional.mse_loss(model(noisy, timestep=timesteps, class_labels=labels).sample, target)

    return descend(model, recipe, loss_of, report_every=250)


def mean_loss(model: Any, images: torch.Tensor, labels: torch.Tensor, scheduler: Any, repeats: int = 20) -> float:
    """Mean v loss over `images` (n, 1, size, size) of classes `labels` (n,), `repeats` seeded draws of noise."""
    import torch
    from torch.nn import functional

    torch.manual_seed(1)
    losses: list[float] = []
    with torch.no_grad():
        for _ in range(repeats):
            noisy, target, timesteps = noisy_batch(images, scheduler)
            losses.append(
                functional.mse_loss(model(noisy, timestep=timesteps, class_labels=labels).sample, target).item()
            )
    return sum(losses) / repeats


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


def save(model: Any, folder: Path, recipe: Recipe, metadata: dict[str, Any]) -> None:
    """Write the diffusers component folder: config, float16 weights, scheduler, `metadata` and common facts."""
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(folder, safe_serialization=True)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it readable by its owner alone
    new_scheduler().save_pretrained(folder / "scheduler")
    tidy_config(folder / "config.json")
    tidy_config(folder / "scheduler" / "scheduler_config.json")
    size, n_classes = model.config.sample_size, model.config.num_embeds_ada_norm
    common = {
        "name": folder.name,
        "classes": n_classes,
        "null_class": n_classes,
        "image_shape": [size, size],
        "value_range": [-1.0, 1.0],
        "sampler": {"name": "ddim", "steps": STEPS, "guidance": GUIDANCE},
        "training_steps": recipe.steps,
        "seed": recipe.seed,
    }
    write_json(folder / "metadata.json", metadata | common)
