"""Rows of layers for the tables of results: pure functions from reports to strings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from arrowquant_nb.tables import WIDTH_NAMES, decibels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from arrowquant_nb.layer_reports import AttemptReport, InputReport, LayerReport

__all__ = ["INPUT_HEADER", "KEPT_HEADER", "LAYER_HEADER", "input_rows", "input_sentence", "kept_rows", "layer_rows"]

LAYER_HEADER = ("layer", "bits", "method", "SQNR", "cosine", "output SQNR", "bits/weight", "why")
INPUT_HEADER = ("layer", "what is done to its input")
KEPT_HEADER = ("kept or raised", "bits", "role", "reason")


def layer_rows(layers: Iterable[LayerReport]) -> list[list[str]]:
    """Rows of quantized layers, worst SQNR first."""
    done = sorted((r for r in layers if r.action == "quantized"), key=lambda r: (r.sqnr_db, r.name))
    return [
        [
            r.name,
            WIDTH_NAMES[r.bit_width] + (f" (asked INT{r.requested_bit_width})" if r.fell_back else ""),
            r.method,
            decibels(r.sqnr_db),
            f"{r.cosine:.5f}",
            "-" if isinstance(r.output_sqnr, str) else decibels(r.output_sqnr),
            f"{r.bits_per_weight:.4f}",
            _why(r.attempts[-1]) if r.attempts else "",
        ]
        for r in done
    ]


def _why(attempt: AttemptReport) -> str:
    """Return why an attempt was taken: what it beats first, where ways were compared, and then what its gate says."""
    least = min(attempt.compared.values(), default=0.0)
    rivals = [f"{way} by {10 * math.log10(e / least):.2f} dB" for way, e in attempt.compared.items() if e > least > 0]
    if not rivals:
        return attempt.sentence
    return f"Beats {' and '.join(rivals)}; {attempt.sentence.split(';')[0].split('. ')[0].rstrip('.')}."


def input_rows(layers: Iterable[LayerReport]) -> list[list[str]]:
    """Rows of the layers whose inputs are rounded, or whose channels were to be equalized, in model order."""
    return [[r.name, r.inputs.sentence] for r in layers if r.inputs is not None]


def kept_rows(layers: Iterable[LayerReport], bit_width: int) -> list[list[str]]:
    """Rows of the tensors that policy or the user kept, or raised above `bit_width`."""
    return [
        [r.name, WIDTH_NAMES[r.bit_width], r.role, r.reason]
        for r in layers
        if r.action == "kept" or r.requested_bit_width > bit_width
    ]


def input_sentence(inputs: InputReport) -> str:
    """Say in words what is done to a layer's input, and what it gains."""
    words = []
    if inputs.mode != "float":
        grids = {"time groups": f"on {inputs.n_groups} timestep groups", "static": "on one grid"}
        gain = f", {inputs.table_gain_db:.1f} dB over one" if inputs.mode == "time groups" else ""
        words.append(f"{inputs.bit_width}-bit {grids.get(inputs.mode, 'with a scale per token')}{gain}")
    if inputs.alpha is not None:
        where = ", folded" if inputs.folded else ", stored"
        gain = f"{inputs.equalization_gain_db:+.2f} dB at the output"
        words.append(f"equalized (exponent {inputs.alpha:g}{where}): {gain}")
    elif inputs.equalization_gain_db:
        words.append(f"not equalized: {inputs.equalization_gain_db:+.2f} dB would not pay for the scales")
    if inputs.centred:
        words.append(f"centred: {inputs.smoothing_gain_db:+.2f} dB")
    if not isinstance(inputs.output_sqnr, str):
        words.append(f"output {decibels(inputs.output_sqnr)} with these inputs")
    return "; ".join(words)
