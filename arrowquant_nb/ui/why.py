"""Why a layer came out as it did: one plain sentence, the first rule that fires, or nothing at all."""

from statistics import median
from typing import Final

from arrowquant_nb.runs.layer_view import LayerView
from arrowquant_nb.runs.layer_viewer import OUTLIER_SPREADS
from arrowquant_nb.ui.layer_state import LayerState

__all__ = ["why"]

# Fewer groups than this share are no explanation.
OUTLIER_GROUP_SHARE: Final = 0.01
GROUP_DROP_DB: Final = 3.0
NEAR_MISS_DB: Final = 0.5


def why(layer: LayerState, view: LayerView) -> str:
    """Return the sentence of the first rule that fires: outliers, one bad timestep group, a tail, a near miss."""
    for rule in (_outliers, _time_group, _tail, _near_miss):
        sentence = rule(layer, view)
        if sentence:
            return sentence
    return ""


def _outliers(_: LayerState, view: LayerView) -> str:
    if view.outlier_groups < OUTLIER_GROUP_SHARE * view.n_groups or not view.outlier_groups:
        return ""
    return (
        f"{100 * view.outlier_share:.2g} % of the weights lie beyond {OUTLIER_SPREADS:g} x their row's spread; they "
        f"set the scale of {view.outlier_groups} of {view.n_groups} groups."
    )


def _time_group(_: LayerState, view: LayerView) -> str:
    groups = [] if view.ranges is None else [g for g in view.ranges.groups if g.sqnr_db is not None]
    if len(groups) < 3:
        return ""
    worst = min(groups, key=lambda g: g.sqnr_db or 0.0)
    below = median(g.sqnr_db or 0.0 for g in groups) - (worst.sqnr_db or 0.0)
    if below < GROUP_DROP_DB:
        return ""
    return f"Timesteps {worst.first_time} to {worst.last_time} come out {below:.1f} dB below the median time group."


def _tail(layer: LayerState, view: LayerView) -> str:
    if not view.tail:
        return ""
    columns = view.column_edges[-1]
    return (
        f"Rows of {columns} weights do not divide into groups of {view.group_size}: the last group of each row of "
        f"{layer.plan.shape[0]} has only {view.tail}."
    )


def _near_miss(layer: LayerState, _: LayerView) -> str:
    report = layer.report
    failed = [a for a in report.attempts if not a.passed] if report is not None else []
    gate = layer.gate_db
    for attempt in failed:
        missing = None if gate is None or isinstance(attempt.output_sqnr, str) else gate - attempt.output_sqnr
        if missing is not None and 0 < missing < NEAR_MISS_DB:
            return (
                f"INT{attempt.bit_width} missed its gate by {missing:.2f} dB: close; INT{attempt.bit_width} with a "
                f"group size of {max(16, attempt.group_size // 2)} may pass."
            )
    return ""
