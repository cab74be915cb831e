"""Every layer once, batch by batch; what the user orders of single layers meanwhile is done before the next batch.

Knows what differs between two sets of tasks; not where orders come from.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from arrowquant_nb.core.batches import batches

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.runs.sink import ModelSink

__all__ = ["LayerPass"]


class LayerPass:
    """One pass over the layers of a run.

    Parameters
    ----------
    quantize : runs the loop over some tasks, all or nothing.
    sink : forgets what is to be done again.
    revised : returns the tasks that have become others since it was last asked.

    Attributes
    ----------
    tasks : of every tensor, in order, as they stand.
    """

    def __init__(
        self,
        quantize: Callable[[list[LayerTask]], list[LayerReport]],
        sink: ModelSink,
        revised: Callable[[], list[LayerTask]],
        tasks: list[LayerTask],
    ) -> None:
        self._quantize = quantize
        self._sink = sink
        self._revised = revised
        self.tasks = tasks

    def run(self) -> list[LayerReport]:
        """Do every layer and return the reports in the order of the tasks."""
        done: dict[str, LayerReport] = {}
        queue = deque([task.name for task in batch] for batch in batches(self.tasks))
        while queue:
            by_name = {task.name: task for task in self.tasks}
            reports = self._quantize([by_name[name] for name in queue.popleft()])
            done |= {report.name: report for report in reports}
            again = [task.name for task in self._take(self._revised()) if task.name in done]
            if again:
                queue.appendleft(again)
        return [done[task.name] for task in self.tasks]

    def _take(self, revised: list[LayerTask]) -> list[LayerTask]:
        """Put revised tasks in the place of those they revise, and forget what was stored of them."""
        by_name = {task.name: task for task in revised}
        self.tasks = [by_name.get(task.name, task) for task in self.tasks]
        for task in revised:
            self._sink.forget(task)
        return revised
