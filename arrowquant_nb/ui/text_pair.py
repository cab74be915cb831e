"""Two lines of text from the same noise, one under the other: the characters that differ are underlined."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import Final

__all__ = ["differences_html", "text_table"]

_LEFT: Final = "style='text-align:left'"


def differences_html(characters: Sequence[str], other: Sequence[str]) -> str:
    r"""Return the characters as HTML on one line, underlined where `other` has another one in the same place.

    Examples
    --------
    >>> differences_html("a<b", "a>b")
    "a<u class='aq-diff'>&lt;</u>b"
    """
    parts = []
    for differs, run in groupby(zip(characters, other, strict=True), lambda pair: pair[0] != pair[1]):
        text = escape("".join(_visible(character) for character, _ in run))
        parts.append(f"<u class='aq-diff'>{text}</u>" if differs else text)
    return "".join(parts)


def text_table(labels: tuple[str, str], pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> str:
    """Return a table of pairs of texts, one row each, in letters of one width so that the places compare."""
    rows = []
    for first, second in pairs:
        n = sum(a != b for a, b in zip(first, second, strict=True))
        told = ("", f"{n} of {len(second)}")
        for label, mine, other, count in zip(labels, (first, second), (second, first), told, strict=True):
            words = f"<code style='white-space:pre-wrap'>{differences_html(mine, other)}</code>"
            rows.append(f"<tr><td {_LEFT}>{escape(label)}</td><td {_LEFT}>{words}</td><td {_LEFT}>{count}</td></tr>")
    head = "".join(f"<th scope='col' {_LEFT}>{h}</th>" for h in ("model", "what it writes", "characters that differ"))
    caption = f"<caption {_LEFT}>Written from the same seed; what differs is underlined</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _visible(character: str) -> str:
    """Write what would break the line, or cannot be seen, as Python does."""
    return character if character.isprintable() else repr(character)[1:-1]
