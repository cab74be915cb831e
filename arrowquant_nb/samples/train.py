# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""Train the bundled `digits-dit` model and write its folder: `python -m arrowquant_nb.samples.train`.

It needs torch, diffusers and scikit-learn (extra `train`), each imported where it is used. It trains diffusers' own
`DiTTransformer2DModel` on the handwritten digits that come with scikit-learn, saves the moving average of the weights
in float16, and measures the saved folder with the NumPy forward pass that users run. It knows nothing of quantization.
Every draw is seeded; another machine or torch build still gives other roundings, so other weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import WEIGHTS
from .card import TrainingFacts, write_card
from .dit import WEIGHTS_FILE
from .judge import N_CLASSES, Digits, measure, noisy_batch, read_digits
from .runnable import GUIDANCE, STEPS

logger = logging.getLogger(__name__)

LABEL_DROPOUT = 0.1
MODEL = {
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 4,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": N_CLASSES,
    "activation_fn": "gelu-approximate",
    "norm_type": "ada_norm_zero",
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "set_alpha_to_one": True,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True)
class Recipe:
    """How the model is trained."""

    steps: int = 5000
    """Optimizer steps."""
    batch_size: int = 64
    """Images per step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's rate: linear warm-up, then half a cosine to zero."""
    warmup: int = 100
    """Steps of linear warm-up."""
    ema_decay: float = 0.995
    """Decay per step of the moving average whose weights are saved."""
    seed: int = 0
    """Seed of the split, of the initial weights and of every draw in training."""


def new_model() -> Any:
    """Build the untrained transformer with the zero start of adaLN-Zero (Peebles and Xie 2023), absent in diffusers."""
    import torch
    from diffusers import DiTTransformer2DModel

    model: Any = DiTTransformer2DModel(**MODEL)  # type: ignore[no-untyped-call]
    starts_at_zero = [block.norm1.linear for block in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2]
    for layer in starts_at_zero:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    # The model's own label dropout draws once per block, so one image would be both labelled and unlabelled. There is
    # no other dropout: evaluation mode switches off just that, and `train` drops labels itself.
    return model.eval()


def learning_rate(recipe: Recipe, step: int) -> float:
    """Rate of optimizer step `step`, counted from 0."""
    return (
        recipe.learning_rate
        * min(1.0, (step + 1) / recipe.warmup)
        * (0.5 + 0.5 * math.cos(math.pi * step / recipe.steps))
    )


def train(digits: Digits, recipe: Recipe, scheduler: Any) -> tuple[Any, float]:
    """Train from scratch; return the averaged model (float32) and the last running mean of the loss."""
    import torch
    from torch.nn import functional

    model = new_model()
    average = copy.deepcopy(model)
    kept, trained = list(average.parameters()), list(model.parameters())
    optimizer = torch.optim.AdamW(trained, recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    running = math.nan
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        picked = torch.randint(len(digits.train_images), (recipe.batch_size,))
        noisy, target, timesteps = noisy_batch(digits.train_images[picked], scheduler)
        labels = digits.train_labels[picked].clone()
        labels[torch.rand(recipe.batch_size) < LABEL_DROPOUT] = N_CLASSES
        loss = functional.mse_loss(model(noisy, timestep=timesteps, class_labels=labels).sample, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, trained, 1 - min(recipe.ema_decay, (step + 1) / (step + 10)))
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if step % 250 == 0 or step + 1 == recipe.steps:
            logger.info("step %d of %d, loss %.4f", step + 1, recipe.steps, running)
    return average, running


def save(model: Any, scheduler: Any, folder: Path, recipe: Recipe) -> None:
    """Write the diffusers component folder: config, float16 weights, scheduler, metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    half = copy.deepcopy(model).half()
    half.save_pretrained(folder, safe_serialization=True)
    (folder / WEIGHTS_FILE).chmod(0o644)  # safetensors leaves it readable by its owner alone
    scheduler.save_pretrained(folder / "scheduler")
    for path in (folder / "config.json", folder / "scheduler" / "scheduler_config.json"):
        entries = json.loads(path.read_text(encoding="utf-8"))
        entries.pop("_name_or_path", None)  # would be a path of the training machine
        path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    metadata = {
        "modality": "image",
        "name": folder.name,
        "classes": N_CLASSES,
        "null_class": N_CLASSES,
        "image_shape": [MODEL["sample_size"], MODEL["sample_size"]],
        "value_range": [-1.0, 1.0],
        "sampler": {"name": "ddim", "steps": STEPS, "guidance": GUIDANCE},
        "data": "scikit-learn load_digits (UCI Optical Recognition of Handwritten Digits)",
        "licence": "MIT",
        "training_steps": recipe.steps,
        "seed": recipe.seed,
    }
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train, save, measure, write the card."""
    import torch
    from diffusers import DDIMScheduler

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m arrowquant_nb.samples.train", description="Train digits-dit.")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS / "digits-dit", help="folder to write (default: the package's)"
    )
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch threads; the result depends on it (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(mode=True)

    recipe = Recipe(steps=options.steps)
    torch.manual_seed(recipe.seed)
    digits = read_digits(recipe.seed)
    scheduler = DDIMScheduler(**SCHEDULER)  # type: ignore[no-untyped-call]
    started = time.perf_counter()
    model, loss = train(digits, recipe, scheduler)
    logger.info("trained in %.0f s", time.perf_counter() - started)
    save(model, scheduler, options.out, recipe)
    figures = measure(options.out, digits, scheduler)
    logger.info("%s", json.dumps(vars(figures), indent=2))
    facts = TrainingFacts(
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        threads=options.threads,
        n_parameters=sum(p.numel() for p in model.parameters()),
        train_loss=loss,
        figures=figures,
    )
    write_card(options.out, facts)


if __name__ == "__main__":
    main()
