"""Text and HTML tables of plans, results and validations: pure functions from values to strings.

HTML is self-contained (no scripts, no styles from elsewhere), so that it reads on GitHub and in nbconvert;
every name that comes from a file is escaped.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from arrowquant_nb.comparisons import ReproductionReport, ValidationReport
    from arrowquant_nb.results import (
        AttemptReport,
        InputReport,
        LayerReport,
        Plan,
        PlanRow,
        QuantizationResult,
        Strategy,
    )

WIDTH_NAMES = {2: "INT2", 4: "INT4", 8: "INT8", 16: "kept"}
SHOWN_LAYERS = 12
IN_PLACE = "in place; its model folder was not kept, give output= to keep it"
"""Where a model went that has no folder."""
# Headlines hold our own sentences, which are not cut.
_SENTENCE = 1000


def decibels(value: float) -> str:
    """Format an SQNR: `inf` reads as "exact"."""
    return "exact" if math.isinf(value) and value > 0 else f"{value:.1f} dB"


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns under a rule; control characters in names are escaped."""
    cells = [list(header), *[[_printable(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def html_table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Escaped HTML table with an optional caption."""
    head = "".join(f"<th scope='col' style='text-align:left'>{html.escape(c)}</th>" for c in header)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(_printable(c))}</td>" for c in r) + "</tr>"
        for r in rows
    )
    title = f"<caption style='text-align:left'>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _printable(text: str, limit: int = 120) -> str:
    """Escape what would break a line; cut long names in the middle."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return shown if len(shown) <= limit else f"{shown[: limit - 40]}...{shown[-37:]}"


def _headline(rows: Iterable[tuple[str, str]], as_html: bool) -> str:
    pairs = list(rows)
    if as_html:
        return (
            "<table><tbody>"
            + "".join(
                f"<tr><th scope='row' style='text-align:left'>{html.escape(k)}</th>"
                f"<td style='text-align:left'>{html.escape(_printable(v, _SENTENCE))}</td></tr>"
                for k, v in pairs
            )
            + "</tbody></table>"
        )
    width = max(len(k) for k, _ in pairs)
    return "\n".join(f"{k.ljust(width)}  {_printable(v, _SENTENCE)}" for k, v in pairs)


def headline_text(pairs: Iterable[tuple[str, str]]) -> str:
    """Labels and values, one pair a line."""
    return _headline(pairs, as_html=False)


def headline_html(pairs: Iterable[tuple[str, str]]) -> str:
    """Label and value of each line, as an HTML table."""
    return _headline(pairs, as_html=True)


def width_counts(rows: Iterable[LayerReport | PlanRow]) -> str:
    """Say how many tensors got which width, as "24 INT4, 4 INT8, 31 kept"."""
    counts: dict[int, int] = {}
    for row in rows:
        key = row.bit_width if row.action == "quantized" else 16
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{counts[b]} {WIDTH_NAMES[b]}" for b in sorted(counts))


def _inputs_line(strategy: Strategy) -> list[tuple[str, str]]:
    """Headline on rounded inputs, none for weights only."""
    return [] if "weights only" in strategy.tables else [("layer inputs", strategy.tables)]


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


# -- plan ------------------------------------------------------------------------------------------------------------

PLAN_HEADER = ("tensor", "shape", "role", "planned", "bits/weight", "MB", "why")


def _plan_rows(plan: Plan) -> list[list[str]]:
    return [
        [
            r.name,
            "x".join(map(str, r.shape)) or "scalar",
            r.role,
            f"{WIDTH_NAMES[r.bit_width]} {r.method}".rstrip(),
            f"{r.bits_per_weight:.2f}",
            f"{r.nbytes / 1e6:.3f}",
            r.reason,
        ]
        for r in plan.rows
    ]


def _plan_headline(plan: Plan) -> list[tuple[str, str]]:
    return [
        ("model", plan.model),
        ("modality", f"{plan.modality}: {plan.modality_reason}"),
        ("strategy", plan.strategy.reason),
        *_inputs_line(plan.strategy),
        ("tensors", width_counts(plan.rows)),
        (
            "size",
            (
                f"{plan.source_size_mb:.3f} MB -> {plan.size_mb:.3f} MB planned "
                f"({plan.bits_per_weight:.2f} bits per weight, all tensors, scales counted)"
            ),
        ),
    ]


def plan_text(plan: Plan) -> str:
    """Return the plan as plain text: headline, then one line per tensor."""
    return _headline(_plan_headline(plan), as_html=False) + "\n\n" + text_table(PLAN_HEADER, _plan_rows(plan))


def plan_html(plan: Plan) -> str:
    """Return the plan as HTML."""
    table = html_table(PLAN_HEADER, _plan_rows(plan))
    return (
        _headline(_plan_headline(plan), as_html=True)
        + f"<details><summary>{len(plan.rows)} tensors</summary>{table}</details>"
    )


# -- result ----------------------------------------------------------------------------------------------------------

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


def _outputs(result: QuantizationResult) -> str:
    """Say how the worst layer's output came out, or why that is not known."""
    source = result.calibration.get("source", "no calibration data")
    measured = [(r.output_sqnr, r.name) for r in result.layers if not isinstance(r.output_sqnr, str)]
    if not measured:
        return f"not_measured ({source})"
    groups = [r.worst_output_sqnr for r in result.layers if not isinstance(r.worst_output_sqnr, str)]
    worst, name = min(measured)
    return f"worst layer {decibels(worst)} ({name}), worst timestep group {decibels(min(groups))}; {source}"


def _whole(result: QuantizationResult) -> list[tuple[str, str]]:
    """Say what was measured of the network's output, a size limit and sensitive layers, if anything was."""
    rows = []
    if result.network is not None:
        rows.append(("network output", result.network.words()))
    if result.size is not None:
        rows.append(("size limit", result.size.words()))
    sensitive = [r.name for r in result.layers if r.costs is not None and r.costs.sensitive]
    return [*rows, ("sensitive layers", ", ".join(sensitive))] if sensitive else rows


def result_headline(result: QuantizationResult) -> list[tuple[str, str]]:
    """Label and value of each headline figure."""
    overhead = result.container_nbytes / max(1, result.payload_nbytes)
    n_failed = len({name for name, _ in result.fallback_history})
    return [
        ("model", f"{result.model} -> {result.quantized_path or IN_PLACE}"),
        ("modality", f"{result.modality}: {result.modality_reason}"),
        ("strategy", result.strategy.reason),
        *_inputs_line(result.strategy),
        ("tensors", width_counts(result.layers)),
        (
            "size",
            (
                f"{result.source_size_mb:.3f} MB -> {result.model_size_mb:.3f} MB on disk, of which "
                f"{result.container_nbytes / 1000:.1f} kB container and text ({overhead:.1%} of the payload)"
            ),
        ),
        (
            "compression",
            (
                f"{result.compression_ratio:.2f}x all tensors, {result.compression_ratio_quantized:.2f}x the quantized "
                f"({result.bits_per_weight:.4f} bits per weight)"
            ),
        ),
        (
            "weights",
            f"cosine {result.cosine_similarity:.6f}, SQNR {decibels(result.sqnr_db)} (float original: 1.000000, exact)",
        ),
        (
            "fallback",
            (
                f"{result.fallback_rate:.1%} of the quantized layers needed a wider format "
                f"({n_failed} layers with a failed attempt)"
            ),
        ),
        ("layer outputs", _outputs(result)),
        *_whole(result),
        *(("warning", warning) for warning in result.warnings),
        (
            "time",
            f"{result.quantization_time_s:.2f} s"
            + (f", {result.reused} tensors reused from an earlier run" if result.reused else ""),
        ),
    ]


def result_text(result: QuantizationResult) -> str:
    """Headline figures and the worst layers as plain text."""
    rows = layer_rows(result.layers)
    more = f"\n... and {len(rows) - SHOWN_LAYERS} better layers" if len(rows) > SHOWN_LAYERS else ""
    return (
        _headline(result_headline(result), as_html=False)
        + "\n\n"
        + text_table(LAYER_HEADER, rows[:SHOWN_LAYERS])
        + more
    )


def result_html(result: QuantizationResult) -> str:
    """Headline figures, all layers worst first, kept tensors with reasons."""
    layers = html_table(LAYER_HEADER, layer_rows(result.layers), "Layers, worst first")
    kept = html_table(KEPT_HEADER, kept_rows(result.layers, result.bit_width))
    inputs = input_rows(result.layers)
    treated = html_table(INPUT_HEADER, inputs) if inputs else ""
    # The model's name without the folder it lies in: HTML is passed on.
    figures = [("model", result.model), *result_headline(result)[1:]]
    return (
        headline_html(figures)
        + layers
        + (f"<details><summary>Inputs of {len(inputs)} layers</summary>{treated}</details>" if inputs else "")
        + f"<details><summary>Kept in the source format or raised by policy</summary>{kept}</details>"
    )


# -- validation and reproduction -------------------------------------------------------------------------------------

TENSOR_HEADER = ("tensor", "status", "bits", "cosine", "SQNR", "largest error", "note")


def _validation_headline(report: ValidationReport) -> list[tuple[str, str]]:
    return [
        ("original", report.original),
        ("quantized", report.quantized),
        ("verdict", "passed" if report.passed else f"FAILED: {len(report.failures)} of {len(report.tensors)} tensors"),
        ("weights", f"cosine {report.cosine_similarity:.6f}, SQNR {decibels(report.sqnr_db)} over all tensors"),
        *([("network", _network(report.network))] if report.network else []),
    ]


def _network(figures: Mapping[str, Any]) -> str:
    """Say what was measured at the network's output."""
    rest = ", ".join(
        f"{name.removesuffix('_db').replace('_', ' ')} {value:.4g}{' dB' if name.endswith('_db') else ''}"
        for name, value in figures.items()
        if name not in ("network_sqnr_db", "n", "steps", "seed")
    )
    return f"SQNR {decibels(figures['network_sqnr_db'])} over {figures['n']} samples, rounded inputs included; {rest}"


def _validation_rows(report: ValidationReport) -> list[list[str]]:
    worst_first = sorted(report.tensors, key=lambda t: (t.passed, t.sqnr_db, t.name))
    return [
        [
            t.name,
            t.status,
            WIDTH_NAMES.get(t.bit_width, ""),
            f"{t.cosine:.5f}",
            decibels(t.sqnr_db),
            f"{t.max_abs_error:.3g}",
            t.sentence,
        ]
        for t in worst_first
    ]


def validation_text(report: ValidationReport) -> str:
    """Verdict and all tensors, failures and worst first."""
    return (
        _headline(_validation_headline(report), as_html=False)
        + "\n\n"
        + text_table(TENSOR_HEADER, _validation_rows(report))
    )


def validation_html(report: ValidationReport) -> str:
    """Return the same as HTML."""
    return _headline(_validation_headline(report), as_html=True) + html_table(TENSOR_HEADER, _validation_rows(report))


def reproduction_text(report: ReproductionReport) -> str:
    """One line per file, then the verdict."""
    lines = [f"identical  {n}" for n in report.identical]
    lines += [f"DIFFERENT  {n}" for n in report.different]
    lines += [f"MISSING    {n}" for n in report.missing]
    lines += [f"EXTRA      {n}" for n in report.extra]
    lines += [f"note       {n}" for n in report.environment_changes]
    verdict = "byte-identical" if report.passed else "NOT reproduced"
    return "\n".join([*lines, f"{report.folder}: {verdict} ({len(report.identical)} files compared equal)"])
