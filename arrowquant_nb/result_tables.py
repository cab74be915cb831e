"""Plans and results as text and HTML: pure functions from values to strings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.layer_tables import (
    INPUT_HEADER,
    KEPT_HEADER,
    LAYER_HEADER,
    input_rows,
    kept_rows,
    layer_rows,
)
from arrowquant_nb.tables import (
    IN_PLACE,
    SHOWN_LAYERS,
    WIDTH_NAMES,
    decibels,
    headline_html,
    headline_text,
    html_table,
    text_table,
    width_counts,
)

if TYPE_CHECKING:
    from arrowquant_nb.results import Plan, QuantizationResult, Strategy

__all__ = ["PLAN_HEADER", "plan_html", "plan_text", "result_headline", "result_html", "result_text"]

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
            "planned size",
            (
                f"{plan.source_size_mb:.3f} MB -> {plan.size_mb:.3f} MB of tensors, before any fallback "
                f"({plan.bits_per_weight:.2f} bits per weight, all tensors, scales counted); nothing is written yet"
            ),
        ),
    ]


def plan_text(plan: Plan) -> str:
    """Return the plan as plain text: headline, then one line per tensor."""
    return headline_text(_plan_headline(plan)) + "\n\n" + text_table(PLAN_HEADER, _plan_rows(plan))


def plan_html(plan: Plan) -> str:
    """Return the plan as HTML."""
    table = html_table(PLAN_HEADER, _plan_rows(plan))
    return (
        headline_html(_plan_headline(plan)) + f"<details><summary>{len(plan.rows)} tensors</summary>{table}</details>"
    )


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
            "stored size",
            (
                f"{result.source_size_mb:.3f} MB -> {result.payload_nbytes / 1e6:.3f} MB of tensors, as written; "
                f"{result.model_size_mb:.3f} MB on disk with {result.container_nbytes / 1000:.1f} kB container and "
                f"text ({overhead:.1%} of the tensors)"
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
    return headline_text(result_headline(result)) + "\n\n" + text_table(LAYER_HEADER, rows[:SHOWN_LAYERS]) + more


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


def _inputs_line(strategy: Strategy) -> list[tuple[str, str]]:
    """Headline on rounded inputs, none for weights only."""
    return [] if "weights only" in strategy.tables else [("layer inputs", strategy.tables)]
