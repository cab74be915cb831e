"""What is known of a run, built from its events alone: the same for a live run, a finished one and a crashed one.

`RunState.apply` is pure: it returns a new state and changes nothing. Knows nothing of widgets, figures, files or time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.core.gates import required_output_sqnr_db
from arrowquant_nb.events import (
    AttemptFinished,
    CalibrationProgress,
    Event,
    LayerFinished,
    LayerProgress,
    LayersOrdered,
    LayerStarted,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
)
from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.results import PlanRow
from arrowquant_nb.ui.layer_state import LayerState, quality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["CANCELLED", "FAILED", "FINISHED", "RUNNING", "WAITING", "RunState"]

WAITING: Final = "waiting"
RUNNING: Final = "running"
FINISHED: Final = "finished"
CANCELLED: Final = "cancelled"
FAILED: Final = "failed"
_COMPENSATED: Final = "gptq"


@dataclass(frozen=True, eq=False)
class RunState:
    """All that a dashboard shows of a run; made by applying its events one after the other to `RunState()`."""

    status: str = WAITING
    """waiting, running, finished, cancelled or failed."""
    model: str = ""
    given: Mapping[str, str | None] = field(default_factory=dict)
    """What the run was told to read: model, component, variant, calibration; empty in logs of older versions."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings as JSON values; empty in logs of older versions."""
    layers: Mapping[str, LayerState] = field(default_factory=dict)
    """Every tensor of the plan by name, in model order."""
    order: tuple[str, ...] = ()
    """Names of the decided layers that are quantized, in the order of decision."""
    current: str = ""
    """The layer that is worked on, "" for none."""
    fraction: float = 0.0
    """Part of the current layer that is done, 0 to 1."""
    phase: str = ""
    """What goes on besides layers: calibration, in words; "" for nothing."""
    t_s: float = 0.0
    """Time of the last event, in seconds since the run began."""
    layers_began_s: float = 0.0
    """When the layers began: after planning and calibration."""
    message: str = ""
    """Text of the error of a failed run."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Headline figures of a finished run."""

    @classmethod
    def of(cls, events: Iterable[Event]) -> RunState:
        """Return the state after these events."""
        state: RunState = cls()
        for event in events:
            state = state.apply(event)
        return state

    def apply(self, event: Event) -> RunState:
        """Return the state after one more event."""
        if isinstance(event, RunStarted):
            return _started(event)
        change = _CHANGES.get(type(event))
        return self if change is None else change(replace(self, t_s=max(self.t_s, event.t_s)), event)

    def method_of(self, name: str) -> str:
        """Return the method that the settings give a layer, such as "auto"."""
        return self.layers[name].plan.ordered_method or str(self.config.get("method", "auto"))

    def with_layer(self, layer: LayerState) -> RunState:
        """Return the state with one layer replaced."""
        return replace(self, layers=MappingProxyType({**self.layers, layer.name: layer}))

    # -- figures ----------------------------------------------------------------------------------------------------

    @cached_property
    def quantized(self) -> list[LayerState]:
        """The layers that are to be quantized, in model order."""
        return [layer for layer in self.layers.values() if layer.quantized]

    @cached_property
    def decided(self) -> list[LayerState]:
        """The quantized layers that are decided, in model order."""
        return [layer for layer in self.layers.values() if layer.quantized and layer.report is not None]

    @cached_property
    def planned_nbytes(self) -> int:
        """Payload of the whole plan."""
        return sum(layer.plan.nbytes for layer in self.layers.values())

    @cached_property
    def written_nbytes(self) -> int:
        """Payload of all decided tensors."""
        return sum(layer.report.nbytes for layer in self.layers.values() if layer.report is not None)

    @property
    def source_nbytes(self) -> int:
        """Source bytes of the tensors that this run has read, those taken over left out."""
        done = (layer for layer in self.layers.values() if layer.report is not None and not layer.reused)
        return sum(layer.plan.source_nbytes for layer in done)

    def median_db(self) -> float | None:
        """Median over the decided layers of their SQNR in dB; None before the first."""
        values = sorted(v for v in (layer.sqnr_db for layer in self.decided) if v is not None)
        if not values:
            return None
        middle = len(values) // 2
        low, high = values[(len(values) - 1) // 2], values[middle]
        return low if math.isinf(low) else (low + high) / 2

    def worst(self) -> LayerState | None:
        """Return the decided layer of least SQNR; None before the first."""
        decided = [layer for layer in self.decided if layer.sqnr_db is not None]
        return min(decided, key=quality, default=None)

    @property
    def n_fell_back(self) -> int:
        """Layers that needed more bits than asked for."""
        return sum(layer.report is not None and layer.report.fell_back for layer in self.decided)

    @property
    def n_below_gate(self) -> int:
        """Layers that failed at every width."""
        return sum(layer.report is not None and not layer.report.passed for layer in self.decided)

    @property
    def mb_per_s(self) -> float | None:
        """Source megabytes (10^6 bytes) per second since the layers began; None before anything is known."""
        seconds = self.t_s - self.layers_began_s
        return self.source_nbytes / 1e6 / seconds if self.source_nbytes and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the source bytes done per second; None before anything is known."""
        speed = self.mb_per_s
        if speed is None:
            return None
        left = sum(layer.plan.source_nbytes for layer in self.layers.values() if layer.report is None)
        return left / 1e6 / speed

    @property
    def share_done(self) -> float:
        """Part of the work that is done, 0 to 1, by source bytes of the quantized layers."""
        if self.status == FINISHED:
            return 1.0
        total = sum(layer.plan.n_weights for layer in self.quantized)
        done = sum(layer.plan.n_weights for layer in self.decided)
        if self.current in self.layers and self.layers[self.current].report is None:
            done += int(self.fraction * self.layers[self.current].plan.n_weights)
        return done / total if total else 0.0


def _started(event: RunStarted) -> RunState:
    rows = [PlanRow.from_dict(row) for row in event.rows]
    layers = MappingProxyType({row.name: LayerState(row) for row in rows})
    config = DiffusionQuantConfig.from_dict(event.config).to_dict() if event.config else {}
    return RunState(RUNNING, event.model, event.given, config, layers, t_s=event.t_s, layers_began_s=event.t_s)


def _ordered(state: RunState, event: LayersOrdered) -> RunState:
    """Take the new plan of some layers; what was reported of them stands until they are done again."""
    rows = [PlanRow.from_dict(row) for row in event.rows]
    changed = {row.name: replace(state.layers[row.name], plan=row) for row in rows if row.name in state.layers}
    config = DiffusionQuantConfig.from_dict(event.config).to_dict() if event.config else state.config
    return replace(state, config=config, layers=MappingProxyType({**state.layers, **changed}))


def _calibrated(state: RunState, event: CalibrationProgress) -> RunState:
    words = f"running the model to see what its layers are given: {event.source}"
    return replace(state, phase=words, fraction=event.fraction, layers_began_s=event.t_s)


def _judged(state: RunState, event: AttemptFinished) -> RunState:
    if event.name not in state.layers:
        return state
    gates = {str(g["gate"]): float(g["threshold"]) for g in event.gates if g.get("threshold") is not None}
    return state.with_layer(replace(state.layers[event.name], gates=gates))


def _decided(state: RunState, event: LayerFinished) -> RunState:
    if event.name not in state.layers:
        return state
    report = LayerReport.from_dict(event.report)
    layer = state.layers[event.name]
    gates = layer.gates or _table_gates(state, report)
    order = state.order if layer.report is not None or not layer.quantized else (*state.order, event.name)
    after = state.with_layer(replace(layer, report=report, reused=event.reused, gates=gates))
    current = _first_open(after) if state.current in ("", event.name) else state.current
    return replace(after, order=order, phase="", current=current, fraction=0.0)


def _begun(state: RunState, _: LayerStarted) -> RunState:
    """Small layers are begun together and decided one by one: the first that is open is the one to name."""
    return replace(state, phase="", current=state.current or _first_open(state), fraction=0.0)


def _first_open(state: RunState) -> str:
    return next((layer.name for layer in state.layers.values() if layer.quantized and layer.report is None), "")


def _table_gates(state: RunState, report: LayerReport) -> dict[str, float]:
    """Gates of a layer that was taken over: no attempt was made, so none was told."""
    floor = state.config.get("min_output_sqnr_db")
    compensated = report.method.startswith(_COMPENSATED)
    mean, worst = required_output_sqnr_db(report.bit_width, compensated, None if floor is None else float(floor))
    return {"output_sqnr_db": mean, "output_worst_group_sqnr_db": worst}


_CHANGES: Final[Mapping[type[Event], Callable[[RunState, Any], RunState]]] = {
    LayersOrdered: _ordered,
    CalibrationProgress: _calibrated,
    LayerStarted: _begun,
    LayerProgress: lambda state, event: replace(state, current=event.name, fraction=event.fraction),
    AttemptFinished: _judged,
    LayerFinished: _decided,
    RunFinished: lambda state, event: replace(state, status=FINISHED, current="", phase="", summary=event.summary),
    RunCancelled: lambda state, _: replace(state, status=CANCELLED, current="", phase=""),
    RunFailed: lambda state, event: replace(state, status=FAILED, current="", phase="", message=event.message),
}
