"""What each way of storing a layer costs: bytes, and error in the weights, at the layer's output and at the network's.

Frozen values with a JSON form. Knows nothing of how the figures came about. Errors are noise-to-signal ratios of
energies (0 = exact, 1 = as much error as signal), because these add up over layers; in decibels they read as SQNR.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from arrowquant_nb.json_form import JsonForm

NOT_MEASURED = "not_measured"

__all__ = ["NOT_MEASURED", "LayerCosts", "WayCost", "sqnr_db"]


def sqnr_db(noise_to_signal: float) -> float:
    """Return a noise-to-signal ratio of energies as signal over noise in dB; inf without noise."""
    return -10.0 * math.log10(noise_to_signal) if noise_to_signal > 0.0 else math.inf


@dataclass(frozen=True)
class WayCost(JsonForm):
    """One way of storing a layer.

    Attributes
    ----------
    bit_width, group_size, scale_format, method : the way.
    nbytes : every stored byte of the whole layer.
    weight_noise : noise to signal of the weights.
    output_noise : tr(dW H dW^T) / tr(W H W^T), noise to signal of the layer's output over the inputs that calibration
        saw; "not_measured" without calibration.
    network_noise : noise to signal of the network's output when this layer alone is stored in this way and the model
        runs along its own float trajectories; "not_measured" where the model cannot be run.
    spread, weight_spread : relative standard error of the noise at outputs and in the weights, from the rows that were
        sampled; 0 when all were.
    cosine : weight cosine.
    held_out_sqnr_db, worst_group_sqnr_db : the layer's output on held-out inputs in dB, over all of them and in the
        worst timestep group: what the gates look at; "not_measured" without calibration.
    compensated : whether GPTQ ran.
    """

    bit_width: int
    group_size: int
    scale_format: str
    method: str
    nbytes: int
    weight_noise: float
    output_noise: float | str
    network_noise: float | str
    spread: float
    weight_spread: float
    cosine: float
    held_out_sqnr_db: float | str
    worst_group_sqnr_db: float | str
    compensated: bool

    @property
    def noise(self) -> float:
        """The best figure there is of what this way costs: at the network's output, the layer's, or of the weights."""
        for figure in (self.network_noise, self.output_noise):
            if not isinstance(figure, str):
                return figure
        return self.weight_noise

    @property
    def form(self) -> tuple[int, int, str]:
        """Bit width, group size and scale format."""
        return self.bit_width, self.group_size, self.scale_format


@dataclass(frozen=True)
class LayerCosts(JsonForm):
    """One layer, and what each way of storing it costs.

    Attributes
    ----------
    name : the weight.
    open : whether its width may be chosen to fit a size; False where a rule decides.
    measured : where its sensitivity was measured: "network", "hessian" (tr(dW H dW^T)) or "weights".
    sensitive : whether it costs more than median + 3 MAD of all layers at the narrowest width, in log scale.
    sentence : the same in words.
    ways : by rising width.
    kept_nbytes : bytes when it is carried over.
    power : estimate of the sum of squares of its weights.
    """

    name: str
    open: bool
    measured: str
    sensitive: bool
    sentence: str
    ways: tuple[WayCost, ...]
    kept_nbytes: int
    power: float

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"ways": WayCost}

    def way(self, bit_width: int, group_size: int, scale_format: str) -> WayCost | None:
        """Return the way of this form, None where it was not tried."""
        return next((w for w in self.ways if w.form == (bit_width, group_size, scale_format)), None)

    def at(self, bit_width: int) -> WayCost | None:
        """Return the first way of a width: the one with the shortest groups."""
        return next((w for w in self.ways if w.bit_width == bit_width), None)
