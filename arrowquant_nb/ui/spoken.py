"""What is said aloud in the page: an error as an alert, anything else as a status. Pure functions."""

from html import escape

__all__ = ["error_html", "said"]


def error_html(what: str, message: str, traceback: str = "") -> str:
    """Return an alert: the message's first line in view, the rest and the traceback folded."""
    first, _, rest = message.partition("\n")
    folded = _fold("Show all of it", rest) + _fold("Show traceback", traceback)
    return f"<div class='aq-error' role='alert'><b>{escape(what)}:</b> {escape(first)}{folded}</div>"


def said(words: str) -> str:
    """Return words that a screen reader speaks when it comes to them."""
    return f"<span role='status' aria-live='polite'>{escape(words)}</span>"


def _fold(title: str, text: str) -> str:
    if not text.strip():
        return ""
    return f"<details><summary>{title}</summary><pre class='aq-scroll'>{escape(text)}</pre></details>"
