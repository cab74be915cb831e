"""Validations and reproductions as text and HTML: pure functions from values to strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb.tables import WIDTH_NAMES, decibels, headline_html, headline_text, html_table, text_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.comparisons import ReproductionReport, ValidationReport

__all__ = ["reproduction_text", "validation_html", "validation_text"]

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
    return headline_text(_validation_headline(report)) + "\n\n" + text_table(TENSOR_HEADER, _validation_rows(report))


def validation_html(report: ValidationReport) -> str:
    """Return the same as HTML."""
    return headline_html(_validation_headline(report)) + html_table(TENSOR_HEADER, _validation_rows(report))


def reproduction_text(report: ReproductionReport) -> str:
    """One line per file, then the verdict."""
    lines = [f"identical  {n}" for n in report.identical]
    lines += [f"DIFFERENT  {n}" for n in report.different]
    lines += [f"MISSING    {n}" for n in report.missing]
    lines += [f"EXTRA      {n}" for n in report.extra]
    lines += [f"note       {n}" for n in report.environment_changes]
    verdict = "byte-identical" if report.passed else "NOT reproduced"
    return "\n".join([*lines, f"{report.folder}: {verdict} ({len(report.identical)} files compared equal)"])
