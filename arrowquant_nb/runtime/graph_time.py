"""The time of a model call that is recorded into a graph: a tensor, whose values are there when the graph runs.

What `torch.export` and `torch.jit.trace` make of a model reads its timestep by the arithmetic of `ModelTime`, so that
it chooses the same grids at every timestep. Knows no layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from arrowquant_nb.runtime.time import TOLERANCE
from arrowquant_nb.runtime.tracing import is_exporting

if TYPE_CHECKING:
    from arrowquant_nb.quantizers.time_tables import LayerTimeTable

__all__ = ["GraphTime", "is_recording"]


def is_recording() -> bool:
    """Tell whether operations on tensors are recorded, to be done again with other values."""
    return torch.jit.is_tracing() or is_exporting()


@dataclass(frozen=True)
class GraphTime:
    """When a model will be called: normalised time, 0 clean to 1 noise."""

    values: torch.Tensor
    """float32 (1,) for the whole batch, or one per sample."""

    @classmethod
    def of(cls, times: torch.Tensor, n_timesteps: int) -> GraphTime:
        """Return the time of training timesteps (samples,), float64."""
        return cls((times / n_timesteps).float())

    @classmethod
    def between(cls, times: torch.Tensor, ends: tuple[float, float], said: str) -> GraphTime:
        """Return the time of timesteps, of which each sample's noisiest counts.

        Parameters
        ----------
        times : of one element, (samples,) or (samples, ...).
        ends : values at the clean and at the noisy end.
        said : what the program says where it lies further.

        """
        raw = times.detach().double()
        raw = raw.flatten(1).amax(1) if raw.ndim > 1 else raw.reshape(-1)
        low, high = ends
        unit = (raw - low) / (high - low)
        _hold(((unit > -TOLERANCE) & (unit < 1 + TOLERANCE)).all(), said)
        return cls(unit.clamp(0, 1).float())

    def groups_in(self, table: LayerTimeTable) -> torch.Tensor:
        """Return the group of a layer's table for each value, int64; the program ends at a time not covered."""
        first, end, n = table.groups[0].time_range[0], table.groups[-1].time_range[1], table.groups[0].n_timesteps
        steps = (self.values.double() * n).round()
        steps = torch.where(steps == n, max(n, end) - 1, steps)
        _hold(((steps >= first) & (steps < end)).all(), table.not_covered("another timestep"))
        ends = torch.tensor(table.boundaries, dtype=torch.float32).to(self.values.device)
        return torch.bucketize(self.values, ends, right=True).clamp(max=len(table.groups) - 1)


def _hold(condition: torch.Tensor, said: str) -> None:
    """Have the program of `torch.export` end with a message unless a condition holds; a trace holds no such step."""
    if not torch.jit.is_tracing():
        torch.ops.aten._assert_async.msg(condition, said)  # noqa: SLF001 - the operator that torch.export keeps
