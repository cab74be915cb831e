"""The plan in a few lines: from what size to what size, at how many bits, and what the last change did. Pure functions.

A plan says what will be stored; what it will cost in quality is a forecast and called one.
"""

from collections.abc import Mapping
from html import escape
from typing import Final

from arrowquant_nb.results import Plan
from arrowquant_nb.tables import WIDTH_NAMES
from arrowquant_nb.ui.palette import palette
from arrowquant_nb.ui.run_words import megabytes

__all__ = ["NO_MODEL", "detection_words", "plan_html", "width_nbytes"]

_WHITE_ON: Final = (4, 16)
"""Widths on whose colour of the light theme white words have a contrast of 4.5 to 1; on the others black ones have."""
NO_MODEL: Final = "Open a model to see what it would become. Nothing to hand? Pick a sample."


def width_nbytes(plan: Plan) -> dict[int, tuple[int, int]]:
    """Return bit width (16 = kept) -> number of tensors and stored bytes."""
    found: dict[int, tuple[int, int]] = {}
    for row in plan.rows:
        bits = row.bit_width if row.action == "quantized" else 16
        n, nbytes = found.get(bits, (0, 0))
        found[bits] = (n + 1, nbytes + row.nbytes)
    return dict(sorted(found.items()))


def plan_html(plan: Plan, change: str, forecast: str, theme: str) -> str:
    """Return the panel beside the form."""
    source, stored = plan.source_size_mb * 1e6, plan.size_mb * 1e6
    by_rule = sum(row.rule == "class policy" and row.action == "quantized" for row in plan.rows)
    widths = width_nbytes(plan)
    counts = [f"{n} {'layers ' if bits != 16 else ''}{WIDTH_NAMES[bits]}" for bits, (n, _) in widths.items()]
    policy = f" ({by_rule} by rule of the model's class)" if by_rule else ""
    quantized = [row for row in plan.rows if row.action == "quantized"]
    weights = sum(row.n_weights for row in quantized)
    bits = 8 * sum(row.nbytes for row in quantized) / weights if weights else 0.0
    smaller = f"{source / max(stored, 1):.2f}x smaller"
    lines = [
        f"<span class='big'>{megabytes(source)} &rarr; {megabytes(stored)}</span> &nbsp; planned, {smaller}",
        f"{bits:.2f} bits per weight in the quantized layers, scales counted; {plan.bits_per_weight:.2f} over all",
        _bar(widths, theme),
        escape(", ".join(counts)) + policy,
        f"Method: {escape(plan.strategy.reason)}",
    ]
    if forecast:
        lines.append(f"<b>Forecast</b> {escape(forecast)}")
    if change:
        lines.append(f"<span class='aq-quiet'>last change: {escape(change)}</span>")
    return "<div class='aq-plan'>" + "".join(f"<div>{line}</div>" for line in lines) + "</div>"


def _bar(widths: Mapping[int, tuple[int, int]], theme: str) -> str:
    """Return the shares of the stored bytes by width; each part carries its word, and its size as a tooltip."""
    total = max(1, sum(nbytes for _, nbytes in widths.values()))
    colours = palette(theme).widths

    def ink(bits: int) -> str:
        return "#FFFFFF" if theme != "dark" and bits in _WHITE_ON else "#111111"

    parts = [
        f"<span style='width:{100 * nbytes / total:.2f}%;background:{colours[bits]};color:{ink(bits)}' "
        f"title='{WIDTH_NAMES[bits]}: {megabytes(nbytes)}'>{WIDTH_NAMES[bits]}</span>"
        for bits, (_, nbytes) in widths.items()
    ]
    return f"<div class='aq-bar' role='img' aria-label='shares of the size'>{''.join(parts)}</div>"


def detection_words(plan: Plan) -> str:
    """Say what was recognised and by what."""
    quantized = sum(row.action == "quantized" for row in plan.rows)
    kept = len(plan.rows) - quantized
    dtypes = ", ".join(sorted({row.dtype for row in plan.rows if row.action == "quantized"}))
    article = "Audio" if plan.modality == "audio" else plan.modality.capitalize()
    size = megabytes(plan.source_size_mb * 1e6)
    return (
        f"{article} model: {quantized} layers to quantize, {kept} tensors kept. {dtypes}, {size}. "
        f"Recognised: {plan.modality_reason}."
    )
