"""Which width each layer gets where measurement decides: sensitive layers, a size limit, the network's floor.

Turns the tasks that rules have made into the tasks of the run. Costs are measured once, when they are first asked for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from arrowquant_nb.core.candidates import candidate_formats
from arrowquant_nb.core.strategy import method_at
from arrowquant_nb.costs import NOT_MEASURED, LayerCosts, WayCost
from arrowquant_nb.errors import QuantizationError
from arrowquant_nb.network_quality import SizeOutcome
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH, Layout, grid_of
from arrowquant_nb.runs.costing import is_open, measure_model
from arrowquant_nb.runs.measuring import kept_nbytes
from arrowquant_nb.runs.size_budget import MEGABYTE, SizeBudget, least_cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint

logger = logging.getLogger("arrowquant_nb")

RULE: Final = "size allocation"
NETWORK_RULE: Final = "network gate"


class Widths:
    """The widths of one run.

    Attributes
    ----------
    costs : what was measured, by layer; empty until something asked.
    warnings : what was wrong with the cache.
    """

    def __init__(
        self,
        prepared: PreparedModel,
        config: DiffusionQuantConfig,
        progress: Callable[[float], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._prepared = prepared
        self._checkpoint = prepared.checkpoint
        self._name = prepared.located.name
        self._config = config
        self._planned = prepared.tasks
        self._progress = progress
        self._cancelled = cancelled
        self._budget: SizeBudget | None = None
        self._method = ""
        self.costs: Mapping[str, LayerCosts] = {}
        self.warnings: tuple[str, ...] = ()

    @property
    def measuring(self) -> bool:
        """Whether widths are chosen by measuring, so that one layer's width moves others."""
        return self._config.target_model_size_mb is not None or self._config.skip_sensitive_layers

    def decide(self) -> list[LayerTask]:
        """Return the tasks of the run, those of the plan where nothing is to be measured."""
        tasks = self._before_limit()
        if self._config.target_model_size_mb is not None:
            said = self._prepared.calibration.source.description
            self._budget = SizeBudget(self._name, tasks, self.measured(), self._config, said)
            tasks = self._allocated(tasks)
        return tasks

    def _before_limit(self) -> list[LayerTask]:
        """Return the plan's tasks, sensitive layers kept where asked for."""
        if not self._config.skip_sensitive_layers:
            return self._planned
        return keep_sensitive(self._planned, self.measured(), self._checkpoint)

    def measured(self) -> Mapping[str, LayerCosts]:
        """Return what every way of storing every layer costs."""
        if not self.costs:
            found = measure_model(self._prepared, self._config.num_threads, self._progress, self._cancelled)
            self.costs, self.warnings = found.by_name, found.warnings
        return self.costs

    def _allocated(self, tasks: Sequence[LayerTask]) -> list[LayerTask]:
        target = self._config.target_model_size_mb
        if self._budget is None or target is None:
            raise AssertionError(target)
        chosen = self._budget.choose(target)
        self._method = self._budget.solve(target).method
        return [
            held(task, chosen[task.name], self._config, self._checkpoint)
            if task.name in chosen
            else _held_as_it_is(task)
            for task in tasks
        ]

    def refit(self, tasks: Sequence[LayerTask], reports: Sequence[LayerReport]) -> list[LayerTask]:
        """Return the tasks to do again because more is stored than was counted on; none while the limit holds.

        A layer turns out larger where its channels are equalized, or a row that was not sampled needs float32 scales.
        """
        target = self._config.target_model_size_mb
        if target is None or sum(r.nbytes for r in reports) <= target * MEGABYTE:
            return []
        costs = dict(self.measured())
        for report in reports:
            layer = costs.get(report.name)
            way = None if layer is None else layer.way(report.bit_width, report.group_size, report.scale_format)
            if layer is not None and way is not None and report.nbytes > way.nbytes:
                more = report.nbytes - way.nbytes
                ways = tuple(replace(w, nbytes=w.nbytes + more) for w in layer.ways)
                costs[report.name] = replace(layer, ways=ways)
        self.costs = costs
        planned = self._before_limit()
        said = "" if self._budget is None else self._budget.calibration
        self._budget = SizeBudget(self._name, planned, costs, self._config, said)
        before = {task.name: task for task in tasks}
        after = self._allocated(planned)
        changed = [task for task in after if _form(task) != _form(before[task.name])]
        if not changed:
            raise QuantizationError(
                f"target_model_size_mb: {sum(r.nbytes for r in reports) / MEGABYTE:.6f} MB are stored and the limit of "
                f"{target:g} MB leaves nothing to change; raise it"
            )
        return changed

    def promoted(self, tasks: Sequence[LayerTask], reports: Sequence[LayerReport]) -> tuple[LayerTask, str] | None:
        """Return the layer to store in more bits next, with the reason: the largest gain of noise per byte.

        Only layers whose width no rule decides, and only as far as a size limit allows; None where there is none.
        """
        target = self._config.target_model_size_mb
        room = None if target is None else target * MEGABYTE - sum(r.nbytes for r in reports)
        best: tuple[float, LayerTask, WayCost | None] | None = None
        for task, report in zip(tasks, reports, strict=True):
            layer = self.measured().get(task.name)
            if layer is None or not layer.open or task.kept:
                continue
            now = layer.way(report.bit_width, report.group_size, report.scale_format) or layer.at(report.bit_width)
            wider = layer.at(report.bit_width * 2) if report.bit_width < 8 else None
            nbytes = layer.kept_nbytes if wider is None else wider.nbytes
            more = nbytes - report.nbytes
            saved = (0.0 if now is None else now.noise) - (0.0 if wider is None else wider.noise)
            if more <= 0 or saved <= 0.0 or (room is not None and more > room):
                continue
            if best is None or saved / more > best[0]:
                best = saved / more, task, wider
        if best is None:
            return None
        gain, task, wider = best
        name = "float" if wider is None else f"INT{wider.bit_width}"
        reason = f"Raised to {name} for the network's output: it gains most of all layers per byte."
        sentence = f"{name} saves {gain * 1e3:.3g} of noise to signal per kB here, most of all layers."
        promoted = _stored(task, wider, self._config, self._checkpoint, NETWORK_RULE, reason, held=task.held)
        return promoted, sentence

    def outcome(self, reports: Sequence[LayerReport]) -> SizeOutcome | None:
        """Return how the size limit was kept; None without one."""
        target = self._config.target_model_size_mb
        if self._budget is None or target is None:
            return None
        return SizeOutcome(
            target_mb=target,
            payload_mb=sum(r.nbytes for r in reports) / MEGABYTE,
            smallest_mb=self._budget.smallest_mb,
            largest_mb=self._budget.largest_mb,
            missed_gates=tuple(r.name for r in reports if r.missed_gate),
            method=self._method,
        )

    def predicted_noise(self, reports: Sequence[LayerReport]) -> float | None:
        """Return the sum of what the layers cost alone at the network's output; None where it was not measured."""
        if not self.costs:
            return None
        total = 0.0
        for report in reports:
            if report.action != "quantized":
                continue
            layer = self.costs.get(report.name)
            way = None if layer is None else layer.way(report.bit_width, report.group_size, report.scale_format)
            if way is None or isinstance(way.network_noise, str):
                return None
            total += way.network_noise
        return total

    def with_costs(self, reports: Sequence[LayerReport]) -> list[LayerReport]:
        """Return the reports with what was measured of each layer."""
        return [replace(r, costs=self.costs[r.name]) if r.name in self.costs else r for r in reports]


def keep_sensitive(
    tasks: Sequence[LayerTask], costs: Mapping[str, LayerCosts], checkpoint: Checkpoint
) -> list[LayerTask]:
    """Return the tasks with every layer that measured as sensitive carried over."""
    return [
        task.stored_as(
            KEPT_BIT_WIDTH, 0, "", [], checkpoint.entries[task.name].kept_dtype, "sensitive",
            f"Measured sensitive, so it is carried over. {costs[task.name].sentence}", task.min_accuracy, task.held,
        )
        if task.name in costs and costs[task.name].sensitive
        else task
        for task in tasks
    ]  # fmt: skip


def held(task: LayerTask, way: WayCost | None, config: DiffusionQuantConfig, checkpoint: Checkpoint) -> LayerTask:
    """Return a task in the way that a size limit chose, None = kept."""
    name = "the source format" if way is None else f"INT{way.bit_width} with groups of {way.group_size}"
    return _stored(task, way, config, checkpoint, RULE, f"The size limit gives it {name}.", held=True)


def _held_as_it_is(task: LayerTask) -> LayerTask:
    """Return a task whose width a rule decided, which a size limit does not let fall back."""
    if task.kept:
        return task
    return task.stored_as(
        task.bit_width, task.group_size, task.scale_format, task.methods, task.dtype, task.rule, task.reason,
        task.min_accuracy, True,
    )  # fmt: skip


def _stored(
    task: LayerTask,
    way: WayCost | None,
    config: DiffusionQuantConfig,
    checkpoint: Checkpoint,
    rule: str,
    reason: str,
    *,
    held: bool,
) -> LayerTask:
    if way is None:
        dtype = checkpoint.entries[task.name].kept_dtype
        return task.stored_as(KEPT_BIT_WIDTH, 0, "", [], dtype, rule, reason, task.min_accuracy, held)
    methods = [method_at(task.methods[0], way.bit_width), *task.methods[1:]]
    return task.stored_as(
        way.bit_width, way.group_size, way.scale_format, methods, checkpoint.entries[task.name].dtype, rule, reason,
        least_cosine(config, way.bit_width), held,
    )  # fmt: skip


def _form(task: LayerTask) -> tuple[int, int, str]:
    return task.bit_width, task.group_size, task.scale_format


def provisional(tasks: Sequence[LayerTask], checkpoint: Checkpoint, config: DiffusionQuantConfig) -> list[LayerTask]:
    """Return the tasks as a size limit might divide them, from headers alone: every bit is worth 6 dB in every layer.

    Raises
    ------
    ConfigurationError
        The limit cannot be reached; the message states the smallest size that can.
    """
    target = config.target_model_size_mb
    if target is None:
        return list(tasks)
    costs = {task.name: _assumed(task, checkpoint) for task in tasks if not task.kept}
    chosen = SizeBudget("the model", tasks, costs, config, "not calibrated").choose(target)
    reason = "Provisional, from headers alone: the run measures every layer and chooses what fits the size limit."
    return [
        _stored(task, chosen[task.name], config, checkpoint, RULE, reason, held=True) if task.name in chosen else task
        for task in tasks
    ]


def _assumed(task: LayerTask, checkpoint: Checkpoint) -> LayerCosts:
    forms = set(candidate_formats(task.scale_format, task.columns)) if is_open(task) else set()
    forms.add(_form(task))
    ways = []
    for bits, size, scales in sorted(forms):
        grid = grid_of(method_at(task.methods[0], bits), scales, task.name)
        nbytes = Layout(task.rows, task.columns, bits, size, grid).nbytes() + 2 * task.low_rank * (
            task.rows + task.columns
        )
        noise = 4.0**-bits * (1.0 + size / 256.0)
        unknown = (NOT_MEASURED, NOT_MEASURED, 0.0, 0.0, 1.0, NOT_MEASURED, NOT_MEASURED, False)
        ways.append(WayCost(bits, size, scales, "", nbytes, noise, *unknown))
    kept = kept_nbytes(task, checkpoint.entries[task.name].kept_dtype)
    return LayerCosts(task.name, is_open(task), "weights", False, "", tuple(ways), kept, 1.0)
