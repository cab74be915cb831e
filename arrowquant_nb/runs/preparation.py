"""A calibrated model as it will be quantized: equalization folded where that helps, its tasks and inputs to match.

Stands between calibration and whatever measures or quantizes layers, so that a forecast and a run see the same model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arrowquant_nb import samples
from arrowquant_nb.runs.folding import NOTHING_FOLDED, RunFolding, decide_folding
from arrowquant_nb.runs.layer_inputs import LayerInputSearch
from arrowquant_nb.runs.locating import SAMPLE_PREFIX, LocatedModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.runs.calibrating import RunCalibration
    from arrowquant_nb.runs.model_choice import OpenedModel
    from arrowquant_nb.samples import Sample
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint


@dataclass(frozen=True, eq=False)
class PreparedModel:
    """What is quantized, and what is known of its layers' inputs."""

    located: LocatedModel
    """Where the model is."""
    calibration: RunCalibration
    """What was seen of the float model."""
    folding: RunFolding
    """What was put into its weights before anything is quantized."""
    checkpoint: Checkpoint
    """The float model with that in it."""
    tasks: list[LayerTask]
    """One for each tensor, in order."""
    inputs: LayerInputSearch
    """What is known of the folded model's inputs."""

    @property
    def name(self) -> str:
        """What to call the model."""
        return self.located.name

    def runnable(self) -> Sample | None:
        """Return the folded float model where it can be run here: a bundled one."""
        argument = self.located.argument
        if not argument.startswith(SAMPLE_PREFIX):
            return None
        name = argument.removeprefix(SAMPLE_PREFIX)
        return self.folding.sample(samples.runnable(name), name)


def prepare(
    opened: OpenedModel,
    calibration: RunCalibration,
    config: DiffusionQuantConfig,
    cancelled: Callable[[], bool] = lambda: False,
) -> PreparedModel:
    """Decide what is folded, and fold it.

    Raises
    ------
    InterruptedError
        `cancelled` said so.
    """
    spatial = opened.decisions.strategy.spatial
    inputs = LayerInputSearch(calibration, opened.checkpoint, opened.tasks, config, spatial=spatial)
    folding = NOTHING_FOLDED
    if spatial and config.fold_equalization:
        folding = decide_folding(opened.checkpoint, opened.tasks, inputs, config.num_threads, cancelled)
    inputs.folded = folding.equalizations
    checkpoint = folding.checkpoint(opened.checkpoint)
    tasks = folding.tasks(opened.tasks, checkpoint)
    return PreparedModel(opened.located, calibration, folding, checkpoint, tasks, inputs)
