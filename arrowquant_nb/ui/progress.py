"""One line in a notebook that moves while a run works and stays as its last word."""

import time
from collections.abc import Callable
from html import escape
from typing import Final

from IPython.display import HTML, DisplayHandle

__all__ = ["progress_line", "progress_markup"]

# Ten paints a second are smooth; more only fill the message queue.
SECONDS_BETWEEN_PAINTS: Final = 0.1


def progress_line() -> Callable[[str, float], None]:
    """Show an empty bar and return the `progress_callback` that fills it."""
    handle = DisplayHandle()  # type: ignore[no-untyped-call]
    handle.display(HTML(progress_markup("starting", 0.0)))  # type: ignore[no-untyped-call]
    began = time.monotonic()
    last = [began - SECONDS_BETWEEN_PAINTS]

    def move(message: str, fraction: float) -> None:
        now = time.monotonic()
        if fraction < 1.0 and now - last[0] < SECONDS_BETWEEN_PAINTS:
            return
        last[0] = now
        handle.update(HTML(progress_markup(f"{message}, {now - began:.1f} s", fraction)))  # type: ignore[no-untyped-call]

    return move


def progress_markup(message: str, fraction: float) -> str:
    """Return the bar as HTML: a native progress element and the words that say the same.

    Examples
    --------
    >>> progress_markup("proj_out", 0.5)
    "<progress value='0.500' max='1' style='width: 20em'></progress> <span role='status'>50 % proj_out</span>"
    """
    return (
        f"<progress value='{fraction:.3f}' max='1' style='width: 20em'></progress> "
        f"<span role='status'>{100 * fraction:.0f} % {escape(message)}</span>"
    )
