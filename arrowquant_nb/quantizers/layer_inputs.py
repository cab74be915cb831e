"""What calibration knows of one layer's inputs, and the ways in which they could be treated before they are rounded.

Knows arrays of one layer; nothing of calibration files, models or of which way is taken.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.quantizers.activation_fit import FittedInput, fit_input
from arrowquant_nb.quantizers.activation_grid import round_to_grid
from arrowquant_nb.quantizers.activations import HadamardRotation
from arrowquant_nb.quantizers.hessian import LastFactor
from arrowquant_nb.quantizers.time_tables import normalised_time

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.quantizers.time_aware import TimeAwareQuantizer

__all__ = ["InputRounding", "LayerInputs"]


@dataclass(frozen=True, eq=False)
class InputRounding:
    """Rows of one input at every step, and the grids that could round it; layers that share the input share this."""

    quantizer: TimeAwareQuantizer
    """Width, number of time groups and rules."""
    times: NDArray[np.int64]
    """Training timesteps (T,) of `rows`."""
    channel_min: NDArray[np.float32]
    """Smallest input per step and channel, (T, columns), of all inputs seen."""
    channel_max: NDArray[np.float32]
    """Largest, likewise."""
    rows: NDArray[np.float32]
    """(T, R, columns): a sample of what was calibrated on."""
    smoothing: bool = False
    """Whether taking the channels' means off is tried."""
    _fits: dict[tuple[bytes, int | None], tuple[FittedInput, ...]] = field(default_factory=dict, repr=False)

    def fits(self, scales: NDArray[np.floating] | None, rotation_seed: int | None) -> tuple[FittedInput, ...]:
        """Return the grids over the input divided by `scales` and rotated: as it is, and centred where that may help.

        Parameters
        ----------
        scales
            Divisor per channel (columns,); None: 1.
        rotation_seed
            Signs of the rotation that the weights are stored in; None: not rotated.

        """
        key = (b"" if scales is None else scales.astype(np.float32).tobytes(), rotation_seed)
        if key not in self._fits:
            rotation = None if rotation_seed is None else HadamardRotation(rotation_seed)
            divisor = None if scales is None else scales.astype(np.float32)
            given = (self.quantizer, "input", self.times, self.channel_min, self.channel_max, self.rows, divisor)
            found: tuple[FittedInput, ...] = (fit_input(*given, smoothing=False, rotation=rotation),)
            if self.smoothing:
                centred = fit_input(*given, smoothing=True, rotation=rotation)
                found += (centred,) if centred.transform.means is not None else ()
            self._fits[key] = found
        return self._fits[key]

    def divided(self, scales: NDArray[np.float32]) -> InputRounding:
        """Return the same for an input that comes divided by `scales` (columns,)."""
        return InputRounding(
            self.quantizer, self.times, self.channel_min / scales, self.channel_max / scales, self.rows / scales,
            self.smoothing,
        )  # fmt: skip

    @property
    def plain_groups(self) -> list[tuple[int, int]]:
        """Steps that share a grid when nothing is done to the input: index ranges, earliest timesteps first."""
        table = self.fits(None, None)[0].table
        groups = [table.group_at(self._normalised(time)) for time in np.sort(self.times)]
        edges = [0, *(k for k in range(1, len(groups)) if groups[k] != groups[k - 1]), len(groups)]
        return list(itertools.pairwise(edges))

    def _normalised(self, time: int) -> float:
        return normalised_time(int(time), self.quantizer.n_timesteps)

    def named(self, fitted: FittedInput, layer: str) -> FittedInput:
        """Return grids under a layer's own name."""
        return replace(fitted, table=replace(fitted.table, layer=layer))

    def rounded(self, fitted: FittedInput, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Round rows (T, R, columns) of the steps `times`, each on its group's grid; in the layer's own coordinates."""
        bits, table, found = self.quantizer.bit_width, fitted.table, np.empty_like(rows)
        for step, time in enumerate(self.times):
            group = table.group_at(self._normalised(time))
            params = table.groups[group]
            values = fitted.transform.apply(rows[step], group)
            values = round_to_grid(values, params.scale, params.zero_point, bits)
            found[step] = fitted.transform.undo(values, group)
        return found


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """What calibration knows of one layer's inputs."""

    hessian: NDArray[np.float64]
    """Mean of x x^T, (columns, columns)."""
    held_out: NDArray[np.float32]
    """Input rows that did not enter the Hessian, (steps, rows, columns)."""
    groups: tuple[slice, ...]
    """Timestep groups whose output is measured apart, as slices of the steps."""
    equalizations: tuple[Equalization, ...] = ()
    """What the channels may be divided by; not at all is always one more way."""
    rounding: InputRounding | None = None
    """How the input is rounded; None leaves it float."""
    folded: Equalization | None = None
    """What the input comes divided by already, in the weights before the layer; all of the above is of that input."""
    factors: LastFactor = field(default_factory=LastFactor, repr=False)
    """The last factor of a Hessian, one memory for all layers of a run."""
    parts: tuple[LayerInputs, ...] = ()
    """Of a convolution in channel groups the inputs of each, which its own rows of the weight meet; the above is of all
    groups together."""

    @staticmethod
    def of_groups(parts: tuple[LayerInputs, ...]) -> LayerInputs:
        """Return the inputs of a layer with so many channel groups; a single one is the layer's."""
        if len(parts) == 1:
            return parts[0]
        hessian = np.mean([part.hessian for part in parts], axis=0)
        held_out = np.concatenate([part.held_out for part in parts], axis=1)
        return LayerInputs(hessian, held_out, parts[0].groups, factors=parts[0].factors, parts=parts)

    def blocks(self, n_rows: int) -> list[tuple[slice, LayerInputs]]:
        """Return which rows of the whole weight meet which inputs: all of them these, or each group its own."""
        if not self.parts:
            return [(slice(0, n_rows), self)]
        n = n_rows // len(self.parts)
        return [(slice(k * n, (k + 1) * n), part) for k, part in enumerate(self.parts)]

    def divided(self, equalization: Equalization) -> LayerInputs:
        """Return the same of an input that comes divided by an equalization's scales."""
        scales = equalization.scales
        rounding = self.rounding
        return LayerInputs(
            self.hessian / np.outer(scales, scales).astype(np.float64),
            self.held_out / scales,
            self.groups,
            (),
            None if rounding is None else rounding.divided(scales),
            equalization,
            self.factors,
        )

    @property
    def treated(self) -> bool:
        """Whether there is more than one way, an input to round, or something to say of it."""
        return bool(self.equalizations) or self.rounding is not None or self.folded is not None
