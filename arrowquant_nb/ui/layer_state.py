"""One layer of a run and what has become of it. Pure values: knows nothing of widgets, figures, files or time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.results import PlanRow

__all__ = ["LayerState", "quality"]


@dataclass(frozen=True, eq=False)
class LayerState:
    """One tensor of the plan and what has become of it."""

    plan: PlanRow
    report: LayerReport | None = None
    """None until it is decided."""
    reused: bool = False
    """Taken over from an earlier run of the same output."""
    gates: Mapping[str, float] = field(default_factory=dict)
    """Threshold of each gate of the last attempt, by the gate's name."""

    @property
    def name(self) -> str:
        """Full name of the tensor."""
        return self.plan.name

    @cached_property
    def quantized(self) -> bool:
        """Whether it is quantized, or kept as it is."""
        return self.plan.action == "quantized"

    @property
    def measured_output(self) -> bool:
        """Whether the figures are of the layer's output, not of its weights."""
        return self.report is not None and not isinstance(self.report.output_sqnr, str)

    @cached_property
    def sqnr_db(self) -> float | None:
        """SQNR in dB of the layer's output where that was measured, else of its weights; None until decided."""
        if self.report is None:
            return None
        output = self.report.output_sqnr
        return self.report.sqnr_db if isinstance(output, str) else output

    @cached_property
    def worst_db(self) -> float | None:
        """SQNR in dB of the output in the worst timestep group; None where it was not measured."""
        worst = self.report.worst_output_sqnr if self.report is not None else ""
        return None if isinstance(worst, str) else worst

    @property
    def gate_db(self) -> float | None:
        """What the output's SQNR must reach, in dB; None where it was not measured."""
        return self.gates.get("output_sqnr_db") if self.measured_output else None

    @property
    def worst_gate_db(self) -> float | None:
        """What the worst timestep group must reach, in dB."""
        return self.gates.get("output_worst_group_sqnr_db") if self.measured_output else None

    @property
    def margin_db(self) -> float | None:
        """Distance in dB to the nearer of the two output gates; negative when missed; None without gates."""
        pairs = ((self.sqnr_db, self.gate_db), (self.worst_db, self.worst_gate_db))
        found = [value - gate for value, gate in pairs if value is not None and gate is not None]
        return min(found) if found else None

    @property
    def overridden(self) -> bool:
        """Whether the user ordered this layer's width or method."""
        return self.plan.rule == "layer_bit_widths" or bool(self.plan.ordered_method)

    @property
    def words(self) -> str:
        """The state in words."""
        if self.report is None:
            return "waiting"
        if not self.quantized:
            return "kept"
        words = ["fell back"] if self.report.fell_back else []
        words += ["override"] if self.overridden else []
        words.append("passed" if self.report.passed else "below its gate")
        if self.margin_db is not None and self.report.passed:
            words[-1] += f", {self.margin_db:.1f} dB to spare"
        return ", ".join(words)


def quality(layer: LayerState) -> tuple[float, float, str]:
    """Order of layers from worst to best: by SQNR, ties by the worst timestep group; undecided ones last."""
    value, worst = layer.sqnr_db, layer.worst_db
    return (math.inf if value is None else value, math.inf if worst is None else worst, layer.name)
