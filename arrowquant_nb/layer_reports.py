"""What a run says of one layer: every attempt, what is done to its input, and what it became.

Frozen values with a JSON form; figures come from elsewhere. SQNR is in dB; an infinite one (bit-exact tensor) is
written as the string "inf" in JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from arrowquant_nb import layer_tables
from arrowquant_nb.costs import NOT_MEASURED, LayerCosts
from arrowquant_nb.json_form import JsonForm

__all__ = ["AttemptReport", "InputReport", "LayerReport"]


@dataclass(frozen=True)
class AttemptReport(JsonForm):
    """One attempt at one bit width.

    Attributes
    ----------
    bit_width, method, grid : what was tried.
    cosine, sqnr_db, mse : error of the weights, from the stored scales.
    min_cosine : threshold that gated this attempt.
    passed : verdict.
    output_sqnr, worst_output_sqnr : signal over error of the layer's output in dB on held-out inputs, over all of them
        and in the worst timestep group; "not_measured" without calibration.
    sentence : why, in plain words.
    group_size, scale_format : weights that share a scale, and how scales were stored (float16 or k).
    output_cosine, output_gain : cosine of the outputs, and how much of the output is kept; reported, never a gate.
    compared : error of every way that was tried at this width by its name: at the layer's output with calibration,
        else of the weights.
    """

    bit_width: int
    method: str
    grid: str
    cosine: float
    sqnr_db: float
    mse: float
    min_cosine: float
    passed: bool
    output_sqnr: float | str
    sentence: str
    group_size: int = 0
    worst_output_sqnr: float | str = "not_measured"
    output_cosine: float | str = "not_measured"
    output_gain: float | str = "not_measured"
    compared: dict[str, float] = field(default_factory=dict)
    scale_format: str = "float16"


@dataclass(frozen=True)
class InputReport(JsonForm):
    """What is done to one layer's input before the product.

    Attributes
    ----------
    mode : "float" (left as it is), "static" (one grid for all timesteps), "time groups" (a grid for each group), or
        "per token" (every row on a grid of its own range, found when the model runs).
    bit_width : bits of a rounded input; 16 for a float one.
    n_groups : grids; 0 where there are none to store.
    table_gain_db : expected input error of one static grid over that of the best grouping.
    alpha : exponent of the equalization that was kept; None = not equalized.
    folded : whether the equalization is in the weights before the layer, so that nothing divides when the model runs.
    equalization_gain_db : error at the layer's output without equalization over that with it, on calibration data, also
        where it was not kept because it gains less than the bits of its scales are worth; 0 where it was not tried.
    centred : whether the channels' means are taken off before rounding.
    smoothing_gain_db : error at the output without that over that with it; 0 where it was not tried.
    output_sqnr, worst_output_sqnr : signal over error of the layer's output in dB with rounded inputs and quantized
        weights, on held-out inputs: over all of them, and in the worst timestep group. Reported, never a gate: more
        bits for the weights do not make up for few bits of the inputs.
    """

    mode: str
    bit_width: int = 16
    n_groups: int = 0
    table_gain_db: float = 0.0
    alpha: float | None = None
    equalization_gain_db: float = 0.0
    centred: bool = False
    smoothing_gain_db: float = 0.0
    output_sqnr: float | str = "not_measured"
    worst_output_sqnr: float | str = "not_measured"
    folded: bool = False

    @property
    def sentence(self) -> str:
        """The same in plain words."""
        return layer_tables.input_sentence(self)


@dataclass(frozen=True)
class LayerReport(JsonForm):
    """One tensor of the model after the run.

    Attributes
    ----------
    name, shape, dtype : the source tensor.
    action : "quantized" or "kept" (bit-exact).
    role, reason, rule : what the tensor is, why it got its bit width, and which rule said so.
    requested_bit_width, bit_width : asked for and used; 16 means kept.
    method, grid, group_size : how it was quantized ("" and 0 when kept).
    n_weights, source_nbytes, nbytes : elements, source bytes, stored payload bytes (codes, scales, zero points).
    sqnr_db, cosine, mse, gain, w_absmax : error of the weights from the stored values; gain = <w, w'> / <w, w>.
    attempts : every attempt in order.
    rotation_seed : signs of the Hadamard rotation that was applied; None = not rotated.
    low_rank : rank of the float16 branch that is stored; 0 = none.
    scale_format : float16 or k ("" when kept).
    inputs : what is done to the layer's input; None = nothing, and nothing was tried.
    held : a size limit decided the width, so a missed gate is recorded and no wider one was tried.
    costs : what each way of storing it costs, where that was measured; None elsewhere.
    folding : what folding equalization did to the weights before they were stored, such as "its outputs are divided";
        empty where nothing. Errors are against the folded weights, and a kept tensor is bit-exact in that form.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: str
    role: str
    reason: str
    rule: str
    requested_bit_width: int
    bit_width: int
    method: str = field(default="", kw_only=True)
    grid: str = field(default="", kw_only=True)
    group_size: int = field(default=0, kw_only=True)
    n_weights: int
    source_nbytes: int
    nbytes: int
    sqnr_db: float = field(default=math.inf, kw_only=True)
    cosine: float = field(default=1.0, kw_only=True)
    mse: float = field(default=0.0, kw_only=True)
    gain: float = field(default=1.0, kw_only=True)
    w_absmax: float
    attempts: tuple[AttemptReport, ...] = ()
    rotation_seed: int | None = None
    low_rank: int = 0
    scale_format: str = ""
    inputs: InputReport | None = None
    held: bool = False
    costs: LayerCosts | None = None
    folding: str = ""

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"attempts": AttemptReport, "costs": LayerCosts, "inputs": InputReport}

    @property
    def output_sqnr(self) -> float | str:
        """Signal over error of the layer's output in dB, "not_measured" without calibration."""
        return self.attempts[-1].output_sqnr if self.attempts else NOT_MEASURED

    @property
    def worst_output_sqnr(self) -> float | str:
        """The same in the worst timestep group."""
        return self.attempts[-1].worst_output_sqnr if self.attempts else NOT_MEASURED

    @property
    def quality_db(self) -> float:
        """SQNR in dB at the layer's output where it was measured, else of the weights."""
        return self.sqnr_db if isinstance(self.output_sqnr, str) else self.output_sqnr

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, scales and zero points counted."""
        return 8 * self.nbytes / self.n_weights if self.n_weights else 0.0

    @property
    def fell_back(self) -> bool:
        """True when a wider format than requested had to be used."""
        return self.action == "quantized" and self.bit_width > self.requested_bit_width

    @property
    def passed(self) -> bool:
        """False when every attempt failed its gate and no size limit goes before it."""
        return not self.attempts or self.attempts[-1].passed or self.held

    @property
    def missed_gate(self) -> str:
        """Why the layer misses its gate, where a size limit leaves no more bytes for it; else empty."""
        return self.attempts[-1].sentence if self.held and self.attempts and not self.attempts[-1].passed else ""
