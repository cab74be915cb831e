"""Which float model a call is about: where it lies, which part of it, and what it is calibrated on.

One value for what `plan`, `forecast`, `budget` and a run are all told; opening it decides what a run would do. Reads
headers, no weight.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from arrowquant_nb.runs.calibrating import find_source
from arrowquant_nb.runs.locating import LocatedModel, locate_model
from arrowquant_nb.runs.planning import Decisions, decide, make_tasks
from arrowquant_nb.storage.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """An open model, and what a run would do to it."""

    located: LocatedModel
    """Where it is."""
    checkpoint: Checkpoint
    """Its tensors."""
    decisions: Decisions
    """Modality, strategy, calibration and widths."""
    tasks: list[LayerTask]
    """One for each tensor, in order."""


class ModelParts(TypedDict):
    """What is chosen beside a model, by the names of a call's arguments; None is left open."""

    component: str | None
    variant: str | None
    calibration: str | None


@dataclass(frozen=True)
class ModelChoice:
    """A float model as a caller names it."""

    model: str | Path
    """A path, or the name of a bundled sample."""
    component: str | None = None
    """Part of a pipeline; None: the denoiser."""
    variant: str | None = None
    """Variant of its files, such as fp16; None: the plain ones."""
    requantize: bool = False
    """Whether it may be quantized already."""
    calibration: str | Path | None = None
    """A calibration file, "none" to go without, or None: what lies beside the model, else its own trajectories."""

    @property
    def parts(self) -> ModelParts:
        """What a call is told of it beside the model."""
        calibration = None if self.calibration is None else str(self.calibration)
        return {"component": self.component, "variant": self.variant, "calibration": calibration}

    @contextlib.contextmanager
    def opened(self, config: DiffusionQuantConfig) -> Iterator[OpenedModel]:
        """Open the model and decide what a run under `config` would do.

        Raises
        ------
        ArrowQuantError
            The model, its files or the settings cannot be used; the message names which.
        """
        located = locate_model(self.model)
        with open_checkpoint(located.path, self.component, self.variant, requantize=self.requantize) as checkpoint:
            decisions = decide(checkpoint, located, config, find_source(located, config, self.calibration))
            yield OpenedModel(located, checkpoint, decisions, make_tasks(checkpoint, decisions, config))
