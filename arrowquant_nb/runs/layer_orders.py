"""What a user orders of single layers while a run goes on, turned into settings, decisions and tasks.

Only `layer_bit_widths` and `layer_methods` are taken; everything else of a run stays as it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arrowquant_nb.events import LayersOrdered
from arrowquant_nb.runs.planning import Decisions, decide, make_plan, make_tasks
from arrowquant_nb.runs.record import changed_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.runs.locating import LocatedModel
    from arrowquant_nb.runs.sink import ModelSink
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint

__all__ = ["LayerOrders", "Revision"]


@dataclass(frozen=True)
class Revision:
    """A run's settings and what follows from them, after an order."""

    config: DiffusionQuantConfig
    decisions: Decisions
    tasks: list[LayerTask]
    """Of every tensor."""
    changed: list[LayerTask]
    """Those whose stored bytes, or what is said of them, become others."""

    @property
    def event(self) -> LayersOrdered:
        """What the run says of it."""
        rows = make_plan(self.decisions, self.changed, self.config).rows
        return LayersOrdered(rows=[row.to_record() for row in rows], config=changed_settings(self.config))


class LayerOrders:
    """Asks for newer settings.

    Parameters
    ----------
    newer_settings : returns the settings that are wanted from now on, None for no change.
    checkpoint, located, sink : of the run.
    """

    def __init__(
        self,
        newer_settings: Callable[[], DiffusionQuantConfig | None],
        checkpoint: Checkpoint,
        located: LocatedModel,
        sink: ModelSink,
    ) -> None:
        self._newer_settings = newer_settings
        self._checkpoint = checkpoint
        self._located = located
        self._sink = sink

    def revise(self, config: DiffusionQuantConfig, decisions: Decisions, tasks: list[LayerTask]) -> Revision | None:
        """Return what has changed since it was last asked, None for nothing.

        Raises
        ------
        ConfigurationError
            What is ordered does not fit the model.
        """
        newer = self._newer_settings()
        if newer is None:
            return None
        ordered = config.replace(layer_bit_widths=newer.layer_bit_widths, layer_methods=newer.layer_methods)
        if ordered == config:
            return None
        decisions = decide(self._checkpoint, self._located, ordered, decisions.calibration)
        before = {task.name: self._sink.settings_of(task) for task in tasks}
        revised = make_tasks(self._checkpoint, decisions, ordered)
        changed = [task for task in revised if self._sink.settings_of(task) != before[task.name]]
        return Revision(ordered, decisions, revised, changed)
