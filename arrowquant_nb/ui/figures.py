"""The pictures of a finished run, each one call: interactive where scripts run, still everywhere else."""

from collections.abc import Mapping

from numpy.typing import ArrayLike

from arrowquant_nb.activation_comparison import ActivationComparison
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.storage.quantized import QuantizedModel
from arrowquant_nb.ui.layer_chart import SHOWN_ROWS, layer_quality_figure, layer_quality_svg
from arrowquant_nb.ui.picture import Picture
from arrowquant_nb.ui.sample_grid import sample_grid_figure, sample_grid_svg
from arrowquant_nb.ui.time_chart import drift_of, grouping_figure, grouping_svg, input_drift_figure, input_drift_svg

__all__ = [
    "activation_grouping",
    "input_drift",
    "layer_quality",
    "layer_quality_figure",
    "layer_quality_svg",
    "sample_grid",
    "sample_grid_figure",
    "sample_grid_svg",
]


def layer_quality(result: QuantizationResult, limit: int = SHOWN_ROWS) -> Picture:
    """Show the quality of the quantized layers, worst first: at most `limit` of them."""
    words = "Quality of each layer, worst first; the table of the result lists the same layers."
    return Picture(layer_quality_figure(result, limit), layer_quality_svg(result, limit), words)


def sample_grid(images: Mapping[str, ArrayLike]) -> Picture:
    """Show images drawn from several models, one row each; see `sample_grid_figure`."""
    words = f"Images in {len(images)} rows: {'; '.join(label.replace(chr(10), ', ') for label in images)}."
    return Picture(sample_grid_figure(images), sample_grid_svg(images), words)


def input_drift(model: QuantizedModel, layer: str | None = None) -> Picture:
    """Show how a layer's inputs drift over the timesteps, with its grids; None takes the layer that gains most."""
    drift = drift_of(model, layer)
    return Picture(input_drift_figure(drift), input_drift_svg(drift), f"{drift.title}.")


def activation_grouping(comparison: ActivationComparison) -> Picture:
    """Show what each way of rounding inputs leaves of the network's output."""
    words = "; ".join(f"{r.bit_width} bits, {r.name}: {r.network_sqnr_db:.1f} dB" for r in comparison.runs)
    return Picture(grouping_figure(comparison), grouping_svg(comparison), f"Network SQNR: {words}.")
