"""What a run says in words above its figure: the bar and what it is at, quality and size, the spoken status."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from arrowquant_nb.ui.run_state import RUNNING, RunState
from arrowquant_nb.ui.run_words import ending, facts, progress, waiting

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["StatusLine"]


class StatusLine:
    """Writes only what has changed.

    Attributes
    ----------
    parts : status, bar and facts, from top to bottom.
    """

    def __init__(self) -> None:
        self.bar = widgets.HTML()
        self.facts = widgets.HTML()
        self.status = widgets.HTML()
        self._told = RunState()
        self._spoken: tuple[Any, ...] = ()

    @property
    def parts(self) -> Sequence[widgets.Widget]:
        """The widgets, from top to bottom."""
        return (self.status, self.bar, self.facts)

    def restart(self) -> None:
        """Forget what was said: another run begins."""
        self._spoken = ()

    def tell(self, state: RunState, silent_s: float) -> None:
        """Write bar, figures and status; the status changes at the start, each quarter, and the end.

        Parameters
        ----------
        silent_s : seconds since the run was last heard of.
        """
        if not state.layers and state.status != RUNNING:
            return
        share = state.share_done
        words = waiting(state, silent_s) or progress(state)
        bar = (
            f"<progress value='{share:.4f}' max='1' aria-label='layers done'></progress> &nbsp; "
            f"{escape(words).replace('   ', ' &nbsp; ')}"
        )
        if self.bar.value != bar:
            self.bar.value = bar
        if state is not self._told:
            self._told = state
            pairs = "".join(f"<div><span>{escape(a)}</span><br>{escape(b)}</div>" for a, b in facts(state))
            self.facts.value = f"<div class='aq-facts'>{pairs}</div>"
        final = state.written_nbytes if state.status != RUNNING else 0
        spoken = (state.status, int(4 * share), len(state.layers), final)
        if spoken != self._spoken:
            self._spoken = spoken
            done, n = len(state.decided), len(state.quantized)
            self.say(ending(state) or f"Running: {done} of {n} layers are done, {state.n_fell_back} fell back.")

    def say(self, text: str, *, alert: bool = False) -> None:
        """Say something, until the run's state changes."""
        role = "alert" if alert else "status"
        live = "" if alert else " aria-live='polite'"
        said = f"<span role='{role}'{live}>{escape(text)}</span>"
        if self.status.value != said:
            self.status.value = said
