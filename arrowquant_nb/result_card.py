"""A finished run on a card: verdict, five figures, the worst layers against their gates, settings, how to repeat it.

Tables and words only, because viewers of notebooks strip styles and scripts; bars are drawn in block characters. Holds
no path, host or user: a card is passed on. Knows nothing of files.
"""

from __future__ import annotations

import math
import re
from html import escape
from statistics import median
from typing import TYPE_CHECKING

from arrowquant_nb import result_tables, tables
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.core.gates import required_output_sqnr_db
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.run_source import RunSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arrowquant_nb.layer_reports import AttemptReport, LayerReport
    from arrowquant_nb.results import QuantizationResult

__all__ = [
    "WORST_HEADER", "by_quality", "card_html", "command", "figures", "gate_words", "measured_at", "settings",
    "verdict", "without_folders", "worst_rows",
]  # fmt: skip

SHOWN = 10
_BAR_DB = 2.5
"""Decibels that one block of a bar stands for."""
_BAR_LENGTH = 20
WORST_HEADER = ("Worst first", "SQNR dB", "", "Bits", "Method", "Gate", "State")
_FOLDERS = re.compile(r"(?:~|\b[A-Za-z]:)?(?:[\\/][^\s\\/'\":;,()]+)+[\\/](?=[^\s\\/])")


def by_quality(layers: Sequence[LayerReport]) -> list[LayerReport]:
    """Return the quantized layers, the worst first: by the error at their output where it was measured."""
    return sorted((r for r in layers if r.action == "quantized"), key=lambda r: (r.quality_db, r.name))


def measured_at(layers: Sequence[LayerReport]) -> str:
    """Say what `quality_db` of these layers is: "Layer-output SQNR" or "Weight SQNR"."""
    outputs = [r for r in layers if r.action == "quantized" and not isinstance(r.output_sqnr, str)]
    return "Layer-output SQNR" if outputs else "Weight SQNR"


def figures(result: QuantizationResult) -> list[tuple[str, str]]:
    """Return the five figures of a run, label and value."""
    done = by_quality(result.layers)
    values = [r.quality_db for r in done]
    quality = f"{tables.decibels(median(values))} median, {tables.decibels(values[0])} worst" if done else "-"
    fell_back = sum(r.fell_back for r in done)
    return [
        (
            "Stored size",
            (
                f"{result.payload_nbytes / 1e6:.3f} MB of tensors (were {result.source_size_mb:.3f}, "
                f"{result.compression_ratio:.2f}x smaller); {result.model_size_mb:.3f} MB on disk"
            ),
        ),
        ("Bits per weight", f"{result.bits_per_weight:.2f}"),
        (measured_at(result.layers), quality),
        ("Fell back", f"{fell_back} of {len(done)}"),
        ("Kept", str(len(result.layers) - len(done))),
    ]


def verdict(result: QuantizationResult) -> str:
    """Say in one sentence what became of the model."""
    profile = result.config.get("deployment_profile")
    named = f", profile {profile}" if profile else ""
    return f"{result.model} -> INT{result.bit_width}{named}, finished in {result.quantization_time_s:.1f} s"


def worst_rows(result: QuantizationResult, limit: int = SHOWN) -> list[list[str]]:
    """Return the rows under `WORST_HEADER` of the worst layers."""
    rows = []
    for report in by_quality(result.layers)[:limit]:
        gate, state = gate_words(report, result.config.get("min_output_sqnr_db"))
        value = "exact" if math.isinf(report.quality_db) else f"{report.quality_db:.1f}"
        n_blocks = _BAR_LENGTH if math.isinf(report.quality_db) else round(report.quality_db / _BAR_DB)
        bar = "\u2588" * min(max(n_blocks, 0), _BAR_LENGTH)
        rows.append([report.name, value, bar, tables.WIDTH_NAMES[report.bit_width], report.method, gate, state])
    return rows


def gate_words(report: LayerReport, min_output_sqnr_db: object = None) -> tuple[str, str]:
    """Return what a layer was held to, and how it stands to that."""
    if not report.attempts:
        return "-", ""
    accepted = report.attempts[-1]
    gate, spare = _gate(accepted, min_output_sqnr_db)
    verb = f"fell back from INT{report.requested_bit_width}" if report.fell_back else "passed"
    if accepted.passed:
        return gate, f"{verb}, {spare}"
    return gate, f"held by the size limit, {spare}" if report.held else f"FAILED, {spare}"


def settings(result: QuantizationResult) -> DiffusionQuantConfig | None:
    """Return the settings of a run; None where the result does not hold them."""
    try:
        return DiffusionQuantConfig.from_dict(result.config) if result.config else None
    except ConfigurationError:  # of another version of this package
        return None


def command(result: QuantizationResult) -> str:
    """Return the command that makes the model again, "" where the settings or the folder are not known."""
    config = settings(result)
    if config is None or result.quantized_path is None:
        return ""
    return (result.source or RunSource(result.model)).command(config)


def without_folders(text: str) -> str:
    """Shorten every path in a sentence to its last part.

    Examples
    --------
    >>> without_folders("/home/ada/models/m.safetensors: cannot be read")
    'm.safetensors: cannot be read'
    """
    return _FOLDERS.sub("", text)


def card_html(result: QuantizationResult) -> str:
    """Return the card as HTML that needs neither styles nor scripts."""
    n_more = len(by_quality(result.layers)) - SHOWN
    more = f"and {n_more} more: result.layers, full report: " if n_more > 0 else "Full report: "
    repeat = command(result)
    config = settings(result)
    warnings = [("warning", without_folders(warning)) for warning in result.warnings]
    folder = [("model folder", tables.IN_PLACE)] if result.quantized_path is None else []
    parts = [
        tables.headline_html([("", verdict(result)), *figures(result), *folder, *warnings]),
        tables.html_table(WORST_HEADER, worst_rows(result)),
        tables.headline_html([("", f'{more}aq.report(result, "report.html")')]),
        tables.headline_html([("Run again", repeat)]) if repeat else "",
        _folded("Settings", config._repr_html_()) if config is not None else "",
        _folded("All figures and layers", result_tables.result_html(result)),
    ]
    return "".join(parts)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _gate(attempt: AttemptReport, min_output_sqnr_db: object) -> tuple[str, str]:
    """Return the gate that stands for an attempt and its distance; the output's where it was measured."""
    if isinstance(attempt.output_sqnr, str):
        return f"cosine >= {attempt.min_cosine:g}", f"cosine {attempt.cosine:.5f}"
    asked = min_output_sqnr_db if isinstance(min_output_sqnr_db, int | float) else None
    mean_db, worst_db = required_output_sqnr_db(attempt.bit_width, attempt.method.startswith("gptq"), asked)
    spare = [attempt.output_sqnr - mean_db]
    if not isinstance(attempt.worst_output_sqnr, str):
        spare.append(attempt.worst_output_sqnr - worst_db)
    left = min(spare)
    words = f"{left:.1f} dB to spare" if left >= 0 else f"{-left:.1f} dB short"
    return f">= {mean_db:g}", words
