"""The nine sections of a report, each a pure function from a result to a title and HTML that reads without scripts.

A section without anything to show says so in a sentence. Knows nothing of the page around it, nor of files.
"""

import math
from html import escape
from typing import Final

from arrowquant_nb import result_card, tables
from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.ui.figures import layer_quality
from arrowquant_nb.ui.layer_chart import short_name
from arrowquant_nb.ui.model_map import model_map_svg
from arrowquant_nb.ui.sample_pair import SamplePair
from arrowquant_nb.ui.style import FONT, INK, QUIET, WIDTHS

__all__ = ["sections"]

WORST: Final = 20
MOST_ROWS: Final = 5000
"""Rows of the longest table: more make a page that browsers cannot scroll."""
_LAYER_HEADER: Final = (
    "layer", "shape", "bits", "method", "SQNR", "worst timestep group", "gate", "state", "weight SQNR", "cosine",
    "bits/weight", "MB",
)  # fmt: skip


def sections(result: QuantizationResult, pair: SamplePair | None, no_samples: str) -> list[tuple[str, str]]:
    """Return title and HTML of every section, in order; `no_samples` says why there is no `pair`."""
    return [
        ("Worst layers", _worst(result)),
        ("Where in the model", _map(result)),
        ("Size", _size(result)),
        ("Over timesteps", _timesteps(result)),
        ("Samples", pair.html() if pair is not None else _sentence(no_samples)),
        ("Layers that fell back", _fell_back(result)),
        ("All layers", _all_layers(result)),
        ("Settings", _settings(result)),
        ("How to repeat", _repeat(result)),
    ]


def _sentence(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _worst(result: QuantizationResult) -> str:
    rows = result_card.worst_rows(result, WORST)
    if not rows:
        return _sentence("No layer was quantized.")
    return layer_quality(result, WORST).html(with_script=True) + tables.html_table(result_card.WORST_HEADER, rows)


def _map(result: QuantizationResult) -> str:
    drawn = model_map_svg(result.layers)
    return drawn or _sentence("A map is drawn of models with more than 40 quantized layers in numbered blocks.")


def _size(result: QuantizationResult) -> str:
    header = ("stored as", "tensors", "weights", "bits/weight", "source MB", "MB", "share")
    total = max(1, result.payload_nbytes)
    rows = []
    for width, name in tables.WIDTH_NAMES.items():
        part = [r for r in result.layers if (r.bit_width if r.action == "quantized" else 16) == width]
        if not part:
            continue
        n_weights, nbytes = sum(r.n_weights for r in part), sum(r.nbytes for r in part)
        rows.append([
            name, str(len(part)), f"{n_weights:,}", f"{8 * nbytes / max(1, n_weights):.2f}",
            f"{sum(r.source_nbytes for r in part) / 1e6:.3f}", f"{nbytes / 1e6:.3f}", f"{nbytes / total:.1%}",
        ])  # fmt: skip
    container = f"Files, statistics and texts around the weights take {result.container_nbytes / 1e6:.3f} MB more."
    return _size_svg(result) + tables.html_table(header, rows) + _sentence(container)


def _size_svg(result: QuantizationResult) -> str:
    """Draw two bars on one scale: the source, and what is stored, by bit width."""
    source: list[tuple[int | None, int]] = [(None, sum(r.source_nbytes for r in result.layers))]
    stored: list[tuple[int | None, int]] = []
    for width in (2, 4, 8):
        mine = [r.nbytes for r in result.layers if r.action == "quantized" and r.bit_width == width]
        stored += [(width, sum(mine))] if mine else []
    stored.append((None, sum(r.nbytes for r in result.layers if r.action != "quantized")))
    scale = 600 / max(1, source[0][1], result.payload_nbytes)
    parts = []
    for y, name, bars in ((8, "source", source), (40, "stored", stored)):
        x = 70.0
        parts.append(f'<text x="62" y="{y + 15}" text-anchor="end" fill="{INK}">{name}</text>')
        for bits, nbytes in bars:
            colour, word = (QUIET, "kept" if bars is stored else "float") if bits is None else _style(bits)
            title = f"<title>{word}: {nbytes / 1e6:.3f} MB</title>"
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{nbytes * scale:.1f}" height="22" fill="{colour}">{title}</rect>'
            )
            if nbytes * scale > 50:
                middle = x + nbytes * scale / 2
                parts.append(f'<text x="{middle:.1f}" y="{y + 15}" text-anchor="middle" fill="#ffffff">{word}</text>')
            x += nbytes * scale
        total = sum(nbytes for _, nbytes in bars) / 1e6
        parts.append(f'<text x="{x + 8:.1f}" y="{y + 15}" fill="{INK}">{total:.3f} MB</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 70" width="760" height="70" font-size="12" '
        f'font-family="{escape(FONT, quote=True)}" role="img"><title>Size before and after</title>'
        f"{''.join(parts)}</svg>"
    )


def _style(width: int) -> tuple[str, str]:
    return WIDTHS[width].colour, WIDTHS[width].word


def _timesteps(result: QuantizationResult) -> str:
    header = ("layer", "bits", "SQNR over all timesteps", "in the worst group", "dB lower")
    measured = [
        (r, r.output_sqnr, r.worst_output_sqnr)
        for r in result.layers
        if not isinstance(r.output_sqnr, str) and not isinstance(r.worst_output_sqnr, str)
    ]
    if not measured:
        return _sentence("No calibration: nothing measured over time.")
    gaps = sorted(measured, key=lambda found: (found[2] - found[1], found[0].name))[:WORST]
    rows = [
        [r.name, tables.WIDTH_NAMES[r.bit_width], tables.decibels(mean), tables.decibels(worst), _less(mean - worst)]
        for r, mean, worst in gaps
    ]
    source = str(result.calibration.get("source", "calibration"))
    words = f"Layers that suffer most in one phase of denoising. Measured on held-out inputs ({source})."
    return _sentence(words) + tables.html_table(header, rows)


def _less(gap: float) -> str:
    return "-" if math.isnan(gap) else f"{gap:.1f}"


def _fell_back(result: QuantizationResult) -> str:
    header = ("layer", "attempt", "bits", "method", "result")
    rows = [
        [r.name, str(number), tables.WIDTH_NAMES[a.bit_width], a.method, a.sentence]
        for r in result.layers
        if len(r.attempts) > 1
        for number, a in enumerate(r.attempts, 1)
    ]
    return (
        tables.html_table(header, rows) if rows else _sentence("None: every layer passed at the width it was to have.")
    )


def _all_layers(result: QuantizationResult) -> str:
    done = result_card.by_quality(result.layers)
    kept = [r for r in result.layers if r.action != "quantized"]
    asked = result.config.get("min_output_sqnr_db")
    table = tables.html_table(_LAYER_HEADER, [_layer_cells(r, asked) for r in (done + kept)[:MOST_ROWS]])
    left_out = len(result.layers) - MOST_ROWS
    more = _sentence(f"{left_out} better layers are left out.") if left_out > 0 else ""
    summary = f"{len(done)} quantized layers, worst first, then {len(kept)} kept tensors"
    return f"<details><summary>{summary}</summary>{table}{more}</details>"


def _layer_cells(report: LayerReport, min_output_sqnr_db: object) -> list[str]:
    shape = " x ".join(map(str, report.shape))
    size = f"{report.nbytes / 1e6:.4f}"
    if report.action != "quantized":
        return [
            report.name,
            shape,
            "kept",
            "",
            "exact",
            "",
            "",
            report.reason,
            "exact",
            "1",
            f"{report.bits_per_weight:.2f}",
            size,
        ]
    worst = report.worst_output_sqnr
    return [
        report.name, shape, tables.WIDTH_NAMES[report.bit_width], report.method, tables.decibels(report.quality_db),
        "not measured" if isinstance(worst, str) else tables.decibels(worst),
        *result_card.gate_words(report, min_output_sqnr_db), tables.decibels(report.sqnr_db), f"{report.cosine:.5f}",
        f"{report.bits_per_weight:.2f}", size,
    ]  # fmt: skip


def _settings(result: QuantizationResult) -> str:
    config = result_card.settings(result)
    return f"<pre>{escape(config.to_yaml())}</pre>" if config is not None else _sentence("They were not recorded.")


def _repeat(result: QuantizationResult) -> str:
    command = result_card.command(result)
    if not command:
        if result.quantized_path is None:
            return _sentence(f"{result.model} was quantized {tables.IN_PLACE}: call quantize_pipeline again.")
        return _sentence("The settings were not recorded.")
    words = (
        "OUTPUT is a new folder; model and files are named without theirs: run it beside them. Equal sources and "
        "settings give equal bytes; arrowquant reproduce checks that."
    )
    return f"<pre>{escape(command)}</pre>{_sentence(words)}"


def heading(number: int, title: str) -> str:
    """Return a section's heading.

    Examples
    --------
    >>> heading(3, "Size")
    '<h2 id="s3">3 Size</h2>'
    """
    return f'<h2 id="s{number}">{number} {escape(short_name(title, 80))}</h2>'
