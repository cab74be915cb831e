"""Text and HTML tables, and the words that they share: pure functions from values to strings.

HTML is self-contained (no scripts, no styles from elsewhere), so that it reads on GitHub and in nbconvert;
every name that comes from a file is escaped.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.results import PlanRow

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


def headline_text(pairs: Sequence[tuple[str, str]]) -> str:
    """Labels and values, one pair a line."""
    width = max(len(label) for label, _ in pairs)
    return "\n".join(f"{label.ljust(width)}  {_printable(value, _SENTENCE)}" for label, value in pairs)


def headline_html(pairs: Sequence[tuple[str, str]]) -> str:
    """Label and value of each line, as an HTML table."""
    rows = "".join(
        f"<tr><th scope='row' style='text-align:left'>{html.escape(label)}</th>"
        f"<td style='text-align:left'>{html.escape(_printable(value, _SENTENCE))}</td></tr>"
        for label, value in pairs
    )
    return f"<table><tbody>{rows}</tbody></table>"


def width_counts(rows: Iterable[LayerReport | PlanRow]) -> str:
    """Say how many tensors got which width, as "24 INT4, 4 INT8, 31 kept"."""
    counts: dict[int, int] = {}
    for row in rows:
        key = row.bit_width if row.action == "quantized" else 16
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{counts[b]} {WIDTH_NAMES[b]}" for b in sorted(counts))
