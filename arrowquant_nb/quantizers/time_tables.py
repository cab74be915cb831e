"""Activation parameters per layer and group of timesteps: the values, their lookup and their JSON form.

Times are stored normalised (timestep over training timesteps, float32), so that a table serves every sampler of the
model. Knows nothing of how the groups and parameters were found.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from arrowquant_nb.errors import MetadataError, ValidationError
from arrowquant_nb.json_form import JsonForm
from arrowquant_nb.quantizers.activation_grid import ACTIVATION_BIT_WIDTHS
from arrowquant_nb.time_reading import UNKNOWN_READING, TimeReading

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["LayerTimeTable", "TimeAwareQuantMetadata", "TimeGroupParams", "normalised_time"]


def normalised_time(time: int, n_timesteps: int) -> float:
    """Return ``time / n_timesteps`` rounded to float32, the form in which times are stored and compared."""
    return float(np.float32(time) / np.float32(n_timesteps))


@dataclass(frozen=True)
class TimeGroupParams(JsonForm):
    """The grid of one layer's inputs for a group of timesteps."""

    _headline: ClassVar[tuple[str, ...]] = ("normalised_time_range",)

    time_range: tuple[int, int]
    """Training timesteps, half-open [first, last); the mask ratio x 1000 for a masked language model."""
    scale: float
    """Step of the grid, a float32 value."""
    zero_point: int
    """Code of zero, 0..2^b - 1."""
    group_size: int
    """Channels that share the scale."""
    n_timesteps: int = 1000
    """Training timesteps of the model."""

    def __post_init__(self) -> None:
        """Refuse what no grid can be."""
        first, last = self.time_range
        if not 0 <= first < last <= self.n_timesteps + 1:  # a mask ratio of 1 is timestep 1000 of 1000
            raise MetadataError(f"time_range {self.time_range} is not a half-open range in 0..{self.n_timesteps}")
        if not (math.isfinite(self.scale) and self.scale > 0 and float(np.float32(self.scale)) == self.scale):
            raise MetadataError(f"scale {self.scale!r} of timesteps {self.time_range} is not a positive float32 value")
        if not 0 <= self.zero_point < 2 ** max(ACTIVATION_BIT_WIDTHS) or self.group_size < 1:
            raise MetadataError(
                f"timesteps {self.time_range}: zero_point {self.zero_point} or group_size {self.group_size} is no "
                "code or number of channels"
            )

    @property
    def normalised_time_range(self) -> tuple[float, float]:
        """`time_range` over the number of training timesteps, float32 values."""
        return normalised_time(self.time_range[0], self.n_timesteps), normalised_time(
            self.time_range[1], self.n_timesteps
        )


@dataclass(frozen=True)
class LayerTimeTable(JsonForm):
    """One layer's grids, earliest timesteps first; a single one is a static grid."""

    layer: str
    """The weight's name."""
    boundaries: tuple[float, ...]
    """Where each group ends, in normalised time, float32 values, rising."""
    groups: tuple[TimeGroupParams, ...]
    """One grid per group."""
    gain_db: float = 0.0
    """Expected error of one static grid over that of the best grouping found."""
    skipped: bool = False
    """True when `gain_db` is too little to store a table for; the layer then has one static grid."""

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"groups": TimeGroupParams}

    def __post_init__(self) -> None:
        """Refuse groups that leave a gap, and boundaries that are not theirs."""
        if not self.groups or len(self.boundaries) != len(self.groups):
            raise MetadataError(
                f"{self.layer}: a time table needs one boundary per group, got {len(self.boundaries)} for "
                f"{len(self.groups)}"
            )
        for group, following in zip(self.groups, self.groups[1:], strict=False):
            if group.time_range[1] != following.time_range[0]:
                raise MetadataError(
                    f"{self.layer}: the time table covers no timestep between {group.time_range} and "
                    f"{following.time_range}; calibrate the layer again"
                )
        ends = tuple(group.normalised_time_range[1] for group in self.groups)
        if self.boundaries != ends or len({group.n_timesteps for group in self.groups}) > 1:
            raise MetadataError(f"{self.layer}: boundaries {self.boundaries} are not the ends {ends} of its groups")
        if self.skipped and len(self.groups) > 1:
            raise MetadataError(f"{self.layer}: a skipped time table cannot have {len(self.groups)} groups")

    @classmethod
    def of_groups(
        cls, layer: str, groups: tuple[TimeGroupParams, ...], gain_db: float = 0.0, skipped: bool = False
    ) -> LayerTimeTable:
        """Make the table of groups that follow one another."""
        return cls(layer, tuple(group.normalised_time_range[1] for group in groups), groups, gain_db, skipped)

    def with_groups(self, groups: tuple[TimeGroupParams, ...]) -> LayerTimeTable:
        """Return the table with other grids for the same time ranges."""
        return replace(self, groups=groups)

    def group_at(self, time: float) -> int:
        """Return the index of the group that holds a normalised time; a static grid holds every one.

        Raises
        ------
        ValidationError
            The table covers other times: it was found along a part of the trajectory.

        """
        if len(self.groups) == 1:
            return 0
        n_timesteps = self.groups[0].n_timesteps
        if not self.covers(round(time * n_timesteps)):
            raise ValidationError(self.not_covered(f"{time * n_timesteps:g}"))
        return min(bisect_right(self.boundaries, float(np.float32(time))), len(self.groups) - 1)

    def covers(self, time: int) -> bool:
        """Tell whether a training timestep lies inside the calibrated range; the noisiest is the last one trained."""
        first, end, n = self.groups[0].time_range[0], self.groups[-1].time_range[1], self.groups[0].n_timesteps
        return first <= (max(n, end) - 1 if time == n else time) < end

    @property
    def covered(self) -> str:
        """The timesteps that it covers, for people."""
        group = self.groups[-1]
        return f"{self.groups[0].time_range[0]}..{group.time_range[1] - 1} of {group.n_timesteps}"

    def not_covered(self, called_at: str) -> str:
        """Say that a model was called at a timestep outside the calibrated range, and what to do."""
        return (
            f"{self.layer}: the grids of its inputs cover timesteps {self.covered}, and the model was called at "
            f"{called_at}: calibrate along the sampler's own steps, or load with inputs='per_token'"
        )


@dataclass(frozen=True)
class TimeAwareQuantMetadata(JsonForm):
    """The activation grids of a model, as they are stored with it."""

    bit_width: int
    """Bits of an activation, 4 or 8."""
    n_timesteps: int
    """Training timesteps; a step's normalised time is its timestep over this."""
    range_rule: str
    """How ranges were chosen: minmax, percentile or mse."""
    tables: tuple[LayerTimeTable, ...]
    """One per layer with quantized inputs, in model order."""
    reading: TimeReading = UNKNOWN_READING
    """How the model's calls say their time."""

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"reading": TimeReading, "tables": LayerTimeTable}

    def __post_init__(self) -> None:
        """Refuse tables of another width or time scale, and two of one layer."""
        if self.bit_width not in ACTIVATION_BIT_WIDTHS:
            raise MetadataError(f"activation bit_width {self.bit_width!r} is not one of 4, 8")
        if len({table.layer for table in self.tables}) != len(self.tables):
            raise MetadataError("the time tables name a layer twice")
        for table in self.tables:
            for group in table.groups:
                if group.n_timesteps != self.n_timesteps or group.zero_point >= 2**self.bit_width:
                    raise MetadataError(
                        f"{table.layer}: timesteps {group.time_range} have zero_point {group.zero_point} and "
                        f"{group.n_timesteps} training timesteps; the model has {self.bit_width} bits and "
                        f"{self.n_timesteps}"
                    )

    @cached_property
    def by_layer(self) -> dict[str, LayerTimeTable]:
        """The tables by layer name."""
        return {table.layer: table for table in self.tables}

    def of_layer(self, layer: str) -> TimeAwareQuantMetadata | None:
        """Return the part that belongs into the data file of one layer, None when it has no table."""
        if layer not in self.by_layer:
            return None
        return replace(self, tables=(self.by_layer[layer],))

    def groups_at(self, time: int) -> dict[str, int]:
        """Return every layer's group for a model call at a training timestep; call it once per model call."""
        normalised = normalised_time(time, self.n_timesteps)
        return {table.layer: table.group_at(normalised) for table in self.tables}

    def check_covers(self, times: Iterable[int], layers: Iterable[str] | None = None) -> None:
        """Raise ValidationError unless each layer has a table that was calibrated around every timestep.

        Parameters
        ----------
        times
            Training timesteps of a sampler.
        layers
            Names that need a table; None asks for those there are.

        """
        wanted = list(times)
        for layer in self.by_layer if layers is None else layers:
            table = self.by_layer.get(layer)
            if table is None:
                raise ValidationError(f"{layer}: there is no time table; calibrate the layer or leave its inputs float")
            missed = [time for time in wanted if not table.covers(time)]
            if missed:
                raise ValidationError(
                    f"{layer}: the time table covers timesteps {table.covered}, not {missed[0]} "
                    f"({len(missed)} of {len(wanted)} steps); calibrate with the sampler's own steps"
                )
