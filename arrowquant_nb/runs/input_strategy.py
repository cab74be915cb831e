"""Which inputs a run quantizes and how, in words: before it, from settings alone, and after it, from what was applied.

Knows reports and settings; nothing of arrays or files.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from arrowquant_nb.calibration.channel_groups import has_groups
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.results import Strategy
    from arrowquant_nb.runs.calibrating import RunCalibration
    from arrowquant_nb.storage.policy import Assignment

# All others stay float: what modulation and embedders are given depends on time and class alone, so rounding it saves
# nothing and would move every channel; a vocabulary's head decides between tokens.
ROUNDED_ROLES: Final = ("linear", "convolution")
WEIGHTS_ONLY: Final = "none (weights only)"
PLANNED_EQUALIZATION: Final = "channels are equalized where a layer's output gains more than that costs"
_NAMED: Final = 3


def input_bit_width(assignment: Assignment, config: DiffusionQuantConfig) -> int:
    """Return the bits of a layer's rounded input; 16: it stays float."""
    rounded = assignment.role in ROUNDED_ROLES and assignment.bit_width != KEPT_BIT_WIDTH
    return config.activation_bit_width if rounded and config.activation_bit_width else KEPT_BIT_WIDTH


def planned_tables(config: DiffusionQuantConfig, has_calibration: bool) -> str:
    """Say what grids inputs will have."""
    if config.activation_bit_width is None:
        return WEIGHTS_ONLY
    if not has_calibration:
        return f"none: {config.activation_bit_width}-bit inputs get a scale per token, since there is no calibration"
    n = config.num_time_groups if config.enable_time_aware else 1
    groups = f"up to {n} timestep groups per layer" if n > 1 else "one static grid per layer"
    return f"{config.activation_bit_width}-bit inputs, {groups}"


def applied_strategy(planned: Strategy, reports: Sequence[LayerReport]) -> Strategy:
    """Return the strategy as it was carried out: `spatial` is true only where a layer's channels are evened out."""
    done = [r.inputs for r in reports if r.action == "quantized" and r.inputs is not None]
    equalized, centred = sum(i.alpha is not None for i in done), sum(i.centred for i in done)
    reason = planned.reason
    if planned.spatial:
        n = sum(r.action == "quantized" and r.role in ROUNDED_ROLES for r in reports)
        folded = sum(i.folded for i in done)
        applied = f"{equalized} of {n} layers equalized" + (f", {centred} centred" if centred else "")
        if equalized:
            applied += f" ({folded} folded into the weights before them, {equalized - folded} stored beside the codes)"
        reason = reason.replace(PLANNED_EQUALIZATION, f"{applied}, where a layer's output gains more than that costs")
    tables = planned.tables
    modes = {mode: sum(i.mode == mode for i in done) for mode in ("time groups", "static", "per token")}
    if any(modes.values()):
        bits = next(i.bit_width for i in done if i.mode in modes)
        words = {"time groups": "with timestep groups", "static": "with one static grid", "per token": "per token"}
        counts = ", ".join(f"{n} layers {words[mode]}" for mode, n in modes.items() if n)
        tables = f"{bits}-bit inputs: {counts}"
    return replace(planned, spatial=bool(equalized or centred), reason=reason, tables=tables)


def input_warnings(reports: Sequence[LayerReport], calibration: RunCalibration) -> tuple[str, ...]:
    """Say which layers have no stored grid though inputs are quantized."""
    statistics = calibration.statistics
    names = [r.name for r in reports if r.inputs is not None and r.inputs.mode == "per token"]
    if statistics is not None:  # of channel groups no calibration stores grids
        names = [name for name in names if not has_groups(statistics, name)]
    if not names:
        return ()
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    why = calibration.source.description if statistics is None else "calibration did not see them"
    sentence = (
        f"The inputs of {len(names)} layers have no stored grid ({why}) and get a scale per token when the model runs: "
        f"{shown}. Give a calibration to store static grids."
    )
    return (sentence,)
