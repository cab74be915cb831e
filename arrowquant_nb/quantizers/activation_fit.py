"""Everything that quantizing one layer's inputs takes, from a capture: the transform, the time groups, the grids.

Knows arrays of one layer; nothing of models or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.quantizers.activation_ranges import StepRanges
from arrowquant_nb.quantizers.activations import InputTransform
from arrowquant_nb.quantizers.time_aware import LEAST_GAIN_DB, TimeAwareQuantizer, grid_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.activations import Rotation
    from arrowquant_nb.quantizers.time_tables import LayerTimeTable

__all__ = ["FittedInput", "fit_input", "group_means"]


@dataclass(frozen=True, eq=False)
class FittedInput:
    """How one layer's inputs are quantized."""

    table: LayerTimeTable
    """Grids per time group."""
    transform: InputTransform
    """What is done to the input before rounding."""
    smoothing_gain_db: float
    """Expected input error without centring over that with it; centring is left off below 0.2 dB."""


def group_means(rows: NDArray[np.float32], groups: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
    """Return the mean of every channel over the steps of each group: rows (T, R, columns) -> float32 (G, columns)."""
    return np.stack([rows[i:j].mean((0, 1), dtype=np.float64).astype(np.float32) for i, j in groups])


def fit_input(
    quantizer: TimeAwareQuantizer,
    layer: str,
    times: NDArray[np.int64],
    channel_min: NDArray[np.float32],
    channel_max: NDArray[np.float32],
    rows: NDArray[np.float32],
    equalization: NDArray[np.float32] | None = None,
    smoothing: bool = False,
    rotation: Rotation | None = None,
) -> FittedInput:
    """Fit the grids of one layer's inputs as they are after the transform.

    Parameters
    ----------
    quantizer
        Width, number of groups and rules.
    layer
        The weight's name.
    times
        Training timesteps (T,), in any order.
    channel_min, channel_max
        float32 (T, columns), of all inputs seen.
    rows
        float32 (T, R, columns), a sample of them.
    equalization
        Divisor per channel (columns,).
    smoothing
        Try to take each channel's mean off: one for all steps where that gains 0.2 dB or more, one per time group
        where those gain 0.2 dB more again.
    rotation
        Mixing of the channels; the ranges are then those of the rows alone.

    """
    order = np.argsort(times, kind="stable")
    scales = np.float32(1) if equalization is None else equalization
    low, high, x = channel_min[order] / scales, channel_max[order] / scales, rows[order] / scales
    steps = _ranges(layer, times[order], x, low, high, rotation)
    columns = rows.shape[-1]
    table, groups = quantizer.grouped_table(steps, columns)
    plain = FittedInput(table, InputTransform(equalization, None, rotation), 0.0)
    if not smoothing:
        return plain
    before = grid_error(steps, groups, table.groups, quantizer.bit_width)
    best, needed = plain, LEAST_GAIN_DB
    for spans in (((0, len(steps)),), tuple(groups))[: len(groups)]:  # one mean for all takes a row, one per group G
        means = _short(group_means(x, spans))
        of_step = np.repeat(means, [j - i for i, j in spans], 0)
        centred = _ranges(layer, times[order], x - of_step[:, None], low - of_step, high - of_step, rotation)
        params = quantizer.compute_params_per_group(centred, groups, columns)
        after = grid_error(centred, groups, params, quantizer.bit_width)
        gain_db = 10 * math.log10(before / after) if before > 0 and after > 0 else 0.0
        if gain_db >= needed:
            best = FittedInput(table.with_groups(params), InputTransform(equalization, means, rotation), gain_db)
            needed = gain_db + LEAST_GAIN_DB
    return best


def _short(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round to three digits: any value near the mean serves as well, and the fewer digits are the ones stored."""
    exponents = np.floor(np.log10(np.maximum(np.abs(means), 1e-30).astype(np.float64)))
    units = 10.0 ** (exponents - 2)
    return (np.rint(means / units) * units).astype(np.float32)


def _ranges(
    layer: str,
    times: NDArray[np.int64],
    x: NDArray[np.float32],
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    rotation: Rotation | None,
) -> StepRanges:
    if rotation is not None:
        return StepRanges.of_rows(layer, times, rotation.rotate(x))
    return StepRanges.of_rows(layer, times, x, low, high)
