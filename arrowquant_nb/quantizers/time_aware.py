"""Time-aware activation grids: group the timesteps by what their inputs look like, then one grid per group.

Activations of a diffusion model drift with the timestep, so one static range wastes codes (TDQ, So et al. 2023;
TQ-DiT). Works on captured arrays; never applied to weights, which do not depend on time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.core.time_groups import Grouping, choose_groups, cost_table, range_costs, uniform_groups
from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.activation_grid import check_activation_bit_width, grid_of_range
from arrowquant_nb.quantizers.activation_ranges import RANGE_RULES, StepRanges, rounding_error, union_range
from arrowquant_nb.quantizers.time_tables import (
    LayerTimeTable,
    TimeAwareQuantMetadata,
    TimeGroupParams,
)
from arrowquant_nb.time_reading import UNKNOWN_READING, TimeReading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

__all__ = ["TimeAwareQuantMetadata", "TimeAwareQuantizer", "TimeGroupParams", "grid_error", "grouping_cost"]

LEAST_GAIN_DB = 0.2
"""A table that promises less over one static grid is not stored."""
HISTOGRAM_STEPS = 128
"""Above so many steps the cost is the noise of rounding alone: the exact one takes steps^2 / 2 looks at 2048 bins."""
WIDENING = 0.05
"""A range seen in one step only is widened by this in all, one seen in k steps by 1 / k of it: a group's extremes are
those of the calibration rows, and the fewer those are the more inputs lie outside."""


@dataclass(frozen=True)
class TimeAwareQuantizer:
    """Finds timestep groups and their activation grids, layer by layer."""

    bit_width: int = 8
    """Bits of an activation, 4 or 8."""
    num_time_groups: int = 10
    """At most so many groups; never more than 16, nor than there are steps."""
    n_timesteps: int = 1000
    """Training timesteps of the model."""
    range_rule: str = "minmax"
    """minmax, percentile or mse; see `union_range`."""
    reading: TimeReading = UNKNOWN_READING
    """How the model's calls say their time; stored with the tables."""
    grouping: str = "optimal"
    """optimal: as few groups as cost at most 2 % more than a grid per step. uniform: equally many steps each."""

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_activation_bit_width(self.bit_width)
        if self.num_time_groups < 1 or self.n_timesteps < 1:
            raise ConfigurationError(
                f"num_time_groups {self.num_time_groups} and n_timesteps {self.n_timesteps} must be at least 1"
            )
        if self.range_rule not in RANGE_RULES or self.grouping not in ("optimal", "uniform"):
            raise ConfigurationError(
                f"range_rule {self.range_rule!r} is not one of {', '.join(RANGE_RULES)}, or grouping "
                f"{self.grouping!r} not optimal or uniform"
            )

    def group_timesteps(self, steps: StepRanges) -> Grouping:
        """Cut the captured steps of one layer into groups that will share a grid.

        Parameters
        ----------
        steps
            The layer's ranges, and histograms where there are.

        Returns
        -------
        Grouping
            The smallest number of groups whose cost is within 2 % of one grid per step, at most `num_time_groups`;
            with uniform grouping exactly that many.

        """
        cost = grouping_cost(steps, self.range_rule, self.bit_width)
        if self.grouping == "optimal":
            return choose_groups(cost, self.num_time_groups)
        ranges = uniform_groups(len(steps), self.num_time_groups)
        return Grouping(ranges, sum(cost[i][j - i - 1] for i, j in ranges), cost[0][-1])

    def compute_params_per_group(
        self, steps: StepRanges, ranges: Sequence[tuple[int, int]], group_size: int
    ) -> tuple[TimeGroupParams, ...]:
        """Fit a grid to every group.

        Parameters
        ----------
        steps
            The layer's ranges.
        ranges
            Half-open index ranges into `steps` that follow one another from the first to the last step.
        group_size
            Channels that share the scale: the layer's columns.

        Returns
        -------
        tuple of TimeGroupParams
            Their time ranges meet half-way between two captured steps. The outer ones reach one step's distance
            beyond the captured ones, within the training timesteps: what a sampler of more steps asks for.

        """
        edges = [first for first, _ in ranges]
        if edges[:1] != [0] or [last for _, last in ranges] != [*edges[1:], len(steps)]:
            raise ShapeMismatchError(f"{steps.layer}: groups {list(ranges)} do not cut {len(steps)} steps in order")
        if int(steps.times[-1]) > self.n_timesteps:
            raise ConfigurationError(
                f"{steps.layer}: captured timestep {steps.times[-1]} is beyond the {self.n_timesteps} of the model"
            )
        begin, end = _reach(steps.times, self.n_timesteps)
        borders = [begin, *(int(steps.times[i - 1] + steps.times[i] + 1) // 2 for i in edges[1:]), end]
        params = []
        for k, (first, last) in enumerate(ranges):
            low, high = self._group_range(steps, first, last)
            scale, zero_point = grid_of_range(low, high, self.bit_width)
            params.append(
                TimeGroupParams((borders[k], borders[k + 1]), scale, zero_point, group_size, self.n_timesteps)
            )
        return tuple(params)

    def _group_range(self, steps: StepRanges, first: int, last: int) -> tuple[float, float]:
        low, high = union_range(steps, first, last, self.range_rule, self.bit_width)
        if self.range_rule != "minmax":
            return low, high
        margin = WIDENING / 2 / (last - first) * (max(high, 0.0) - min(low, 0.0))
        return (low - margin if low < 0 else low), (high + margin if high > 0 else high)

    def layer_table(self, steps: StepRanges, group_size: int) -> LayerTimeTable:
        """Group the steps and fit the grids; one static grid where groups would gain less than 0.2 dB."""
        return self.grouped_table(steps, group_size)[0]

    def grouped_table(self, steps: StepRanges, group_size: int) -> tuple[LayerTimeTable, list[tuple[int, int]]]:
        """Return the table of `layer_table` and its groups as index ranges into `steps`."""
        grouping = self.group_timesteps(steps)
        skipped = self.num_time_groups > 1 and grouping.gain_db < LEAST_GAIN_DB
        groups = [(0, len(steps))] if skipped else grouping.groups
        params = self.compute_params_per_group(steps, groups, group_size)
        return LayerTimeTable.of_groups(steps.layer, params, grouping.gain_db, skipped), groups

    def metadata(self, tables: Iterable[LayerTimeTable]) -> TimeAwareQuantMetadata:
        """Join the tables of a model's layers."""
        return TimeAwareQuantMetadata(self.bit_width, self.n_timesteps, self.range_rule, tuple(tables), self.reading)


def _reach(times: NDArray[np.int64], n_timesteps: int) -> tuple[int, int]:
    """Half-open range of timesteps that captured ones speak for; a single one does so for all."""
    first, last = int(times[0]), int(times[-1])
    if len(times) == 1:
        return 0, max(n_timesteps, last + 1)
    before, after = int(times[1]) - first, last - int(times[-2])
    return max(0, first - before), max(last + 1, min(n_timesteps, last + after + 1))


def grouping_cost(steps: StepRanges, rule: str, bit_width: int) -> list[list[float]]:
    """Return what it costs that the steps [i, j) share a grid, at [i][j - i - 1].

    The cost is the expected squared error per input, summed over the steps, each with the same weight: from the
    histograms, or, without them or for very many steps, the noise of rounding, ``scale ** 2 / 12``.
    """
    if steps.histogram is None or len(steps) > HISTOGRAM_STEPS:
        return range_costs(steps.low.tolist(), steps.high.tolist(), bit_width)
    sums = np.concatenate([np.zeros((1, steps.histogram.shape[1])), np.cumsum(steps.histogram, 0)])
    centres = steps.bin_centres
    errors: dict[tuple[float, float], NDArray[np.float64]] = {}

    def cost(i: int, j: int) -> float:
        ends = union_range(steps, i, j, rule, bit_width)
        if ends not in errors:
            errors[ends] = rounding_error(centres, *grid_of_range(*ends, bit_width), bit_width)
        return max(0.0, float(errors[ends] @ (sums[j] - sums[i])))

    return cost_table(len(steps), cost)


def grid_error(
    steps: StepRanges, groups: Sequence[tuple[int, int]], params: Sequence[TimeGroupParams], bit_width: int
) -> float:
    """Return the expected squared error per input, summed over the steps, with the grids that their groups have."""
    if steps.histogram is None:
        raise ConfigurationError(f"{steps.layer}: the error of a grid needs histograms")
    centres = steps.bin_centres
    return sum(
        float(steps.histogram[i:j].sum(0) @ rounding_error(centres, group.scale, group.zero_point, bit_width))
        for (i, j), group in zip(groups, params, strict=True)
    )
