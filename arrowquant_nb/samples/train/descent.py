# ruff: noqa: PLC0415  torch comes with the extra `train` and is imported where it is used
"""The optimizer's loop of every recipe: AdamW, its rate, and the moving average whose weights are saved.

It knows no data and no kind of model: a recipe gives the loss of a step.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

logger = logging.getLogger(__name__)


class Pace(Protocol):
    """What the loop takes of a recipe."""

    @property
    def steps(self) -> int:
        """Optimizer steps."""

    @property
    def learning_rate(self) -> float:
        """Peak of AdamW's rate: linear warm-up, then half a cosine to zero."""

    @property
    def warmup(self) -> int:
        """Steps of linear warm-up."""

    @property
    def ema_decay(self) -> float:
        """Decay per step of the moving average."""


def learning_rate(pace: Pace, step: int) -> float:
    """Rate of optimizer step `step`, counted from 0."""
    rise = min(1.0, (step + 1) / pace.warmup)
    return pace.learning_rate * rise * (0.5 + 0.5 * math.cos(math.pi * step / pace.steps))


def descend(
    model: Any, pace: Pace, loss_of: Callable[[int], torch.Tensor], *, weight_decay: float = 0.0, report_every: int
) -> tuple[Any, float]:
    """Train `model` in place; return its moving average (float32) and the last running mean of the loss.

    `loss_of` draws the batch of a step, counted from 0, and returns the loss of `model` on it.
    """
    import torch

    average = copy.deepcopy(model)
    kept, trained = list(average.parameters()), list(model.parameters())
    optimizer = torch.optim.AdamW(trained, pace.learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    running = math.nan
    for step in range(pace.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(pace, step)
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(kept, trained, 1 - min(pace.ema_decay, (step + 1) / (step + 10)))
        running = loss.item() if math.isnan(running) else 0.99 * running + 0.01 * loss.item()
        if step % report_every == 0 or step + 1 == pace.steps:
            logger.info("step %d of %d, loss %.4f", step + 1, pace.steps, running)
    return average, running
