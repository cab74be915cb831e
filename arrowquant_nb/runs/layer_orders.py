"""What a user orders of single layers while a run goes on, turned into settings, decisions and tasks.

Only `layer_bit_widths` and `layer_methods` are taken; everything else of a run stays as it began.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from arrowquant_nb.config.command import changed_settings
from arrowquant_nb.events import LayersOrdered
from arrowquant_nb.runs.planning import decide, make_plan, make_tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.runs.model_choice import OpenedModel
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.runs.sink import ModelSink

__all__ = ["LayerOrders", "Revision"]


@dataclass(frozen=True)
class Revision:
    """A run's settings and what follows from them, after an order."""

    config: DiffusionQuantConfig
    opened: OpenedModel
    """The model with what is decided of it now."""
    prepared: PreparedModel
    """The same with what is folded now."""
    changed: list[LayerTask]
    """Tensors whose stored bytes, or what is said of them, become others: the layers that were named, and their
    neighbours where folding reaches them."""

    @property
    def event(self) -> LayersOrdered:
        """What the run says of it."""
        rows = make_plan(self.opened.decisions, self.changed, self.config).rows
        return LayersOrdered(rows=[row.to_record() for row in rows], config=changed_settings(self.config))


class LayerOrders:
    """Asks for newer settings.

    Parameters
    ----------
    newer_settings : returns the settings that are wanted from now on, None for no change.
    prepare : decides what is folded, under other settings.
    sink : of the run; it takes what is prepared anew.
    """

    def __init__(
        self,
        newer_settings: Callable[[], DiffusionQuantConfig | None],
        prepare: Callable[[OpenedModel, DiffusionQuantConfig], PreparedModel],
        sink: ModelSink,
    ) -> None:
        self._newer_settings = newer_settings
        self._prepare = prepare
        self._sink = sink

    def revise(self, config: DiffusionQuantConfig, opened: OpenedModel, tasks: list[LayerTask]) -> Revision | None:
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
        decisions = decide(opened.checkpoint, opened.located, ordered, opened.decisions.calibration)
        opened = replace(opened, decisions=decisions, tasks=make_tasks(opened.checkpoint, decisions, ordered))
        before = {task.name: self._sink.settings_of(task) for task in tasks}
        prepared = self._prepare(opened, ordered)
        self._sink.take(prepared)
        changed = [task for task in prepared.tasks if self._sink.settings_of(task) != before[task.name]]
        return Revision(ordered, opened, prepared, changed)
