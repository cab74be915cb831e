"""A layer that the loop has begun and not decided: its fallback chain, and what is tried at each width.

Compiled by mypyc with the loop; plain decisions, no arrays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.core.gates import HELD, fallback_chain
from arrowquant_nb.core.recipes import Recipe, recipes

if TYPE_CHECKING:
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import AttemptReport, LayerReport
    from arrowquant_nb.quantizers.trials import LayerInputs


class Pending:
    """A layer on its way through the fallback chain; `report` is set once it is decided."""

    def __init__(self, task: LayerTask, inputs: LayerInputs | None) -> None:
        self.task = task
        self.inputs = inputs
        self.chain = [task.bit_width] if task.held else fallback_chain(task.bit_width)
        self.attempts: list[AttemptReport] = []
        self.report: LayerReport | None = None

    @property
    def bit_width(self) -> int:
        """Width to try now."""
        return self.chain[len(self.attempts)]

    @property
    def next_bit_width(self) -> int:
        """Width to try after this one; 0 where nothing is left, `HELD` where a size limit allows no other."""
        if self.task.held:
            return HELD
        n = len(self.attempts) + 1
        return self.chain[n] if n < len(self.chain) else 0

    def recipes(self) -> list[Recipe]:
        """Ways to compare at this width."""
        task = self.task
        compensated = task.compensated and self.inputs is not None
        return recipes(task.methods, self.bit_width, task.group_size, compensated, task.scale_format, task.columns)

    @property
    def batchable(self) -> bool:
        """Whether the attempt is one call of a grid's kernel, which may serve other layers at the same time."""
        found = self.recipes()
        treated = self.inputs is not None and self.inputs.treated
        return len(found) == 1 and not found[0].compensated and not treated
