"""Layers that are done again in another width: to keep a size limit, or to reach the floor of the network's output.

Each round changes as little as it can and is bounded; what was stored of a layer before is forgotten.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.network_quality import Promotion
from arrowquant_nb.runs.network_gate import ROUNDS, NetworkGate
from arrowquant_nb.runs.record import network_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.network_quality import NetworkQuality
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.runs.sink import ModelSink
    from arrowquant_nb.runs.widths import Widths
    from arrowquant_nb.storage.output import ModelFolder

logger = logging.getLogger("arrowquant_nb")


class Rounds:
    """The layers of a run as they stand.

    Attributes
    ----------
    tasks, reports : of every tensor, in order.
    """

    def __init__(
        self,
        quantize: Callable[[list[LayerTask]], list[LayerReport]],
        sink: ModelSink,
        widths: Widths,
        tasks: list[LayerTask],
        reports: list[LayerReport],
    ) -> None:
        self._quantize = quantize
        self._sink = sink
        self._widths = widths
        self.tasks = tasks
        self.reports = reports

    def _again(self, changed: list[LayerTask]) -> None:
        """Do some layers again in another width."""
        for task in changed:
            self._sink.forget(task)
        done = {r.name: r for r in self._quantize(changed)}
        by_name = {task.name: task for task in changed}
        self.tasks = [by_name.get(task.name, task) for task in self.tasks]
        self.reports = [done.get(r.name, r) for r in self.reports]

    def keep_limit(self, config: DiffusionQuantConfig) -> None:
        """Choose anew while more is stored than a size limit allows.

        Raises
        ------
        QuantizationError
            The limit still does not hold after `ROUNDS` rounds.
        """
        for _ in range(ROUNDS):
            changed = self._widths.refit(self.tasks, self.reports)
            if not changed:
                return
            self._again(changed)
        if self._widths.refit(self.tasks, self.reports):
            raise QuantizationError(
                f"target_model_size_mb: {sum(r.nbytes for r in self.reports) / 1e6:.6f} MB are stored, more than the "
                f"limit of {config.target_model_size_mb:g} MB, after {ROUNDS} rounds of choosing anew; raise it"
            )

    def reach_floor(
        self, prepared: PreparedModel, folder: ModelFolder, config: DiffusionQuantConfig
    ) -> NetworkQuality | None:
        """Measure the network's output and promote layers while its floor is missed; None where it cannot be run.

        Raises
        ------
        QuantizationError
            The floor is still missed after `ROUNDS` layers, or with `fail_fast` at once.
        """
        model = prepared.runnable()
        if model is None:
            return None
        gate = NetworkGate(model, config)
        promotions: list[Promotion] = []
        while True:
            measured = gate.measure(folder, self.tasks, self.reports, self._widths.predicted_noise(self.reports))
            found = replace(measured, promotions=tuple(promotions))
            logger.info("%s: network output %s", prepared.located.name, found.words())
            if found.passed:
                return found
            allowed = len(promotions) < ROUNDS and not config.fail_fast
            following = self._widths.promoted(self.tasks, self.reports) if allowed else None
            if following is None:
                raise QuantizationError(network_failure(found, config))
            promotions.append(self._promote(*following, found.sqnr_db))

    def _promote(self, task: LayerTask, sentence: str, sqnr_db: float) -> Promotion:
        before = next(r for r in self.reports if r.name == task.name)
        self._again([task])
        after = next(r for r in self.reports if r.name == task.name)
        more = after.nbytes - before.nbytes
        return Promotion(task.name, before.bit_width, after.bit_width, more, sqnr_db, sentence)


def floor_warnings(network: NetworkQuality | None, config: DiffusionQuantConfig) -> tuple[str, ...]:
    """Say that a floor was not checked, where there was nothing to measure it on."""
    if network is not None or config.min_network_sqnr_db is None:
        return ()
    return ("min_network_sqnr_db was not checked: the model cannot be run here.",)
