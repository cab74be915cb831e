"""`aq.dashboard`: a run that something else does or did, finished, still running, or cut off, from its log alone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from arrowquant_nb.ui.frame import Frame
from arrowquant_nb.ui.run_replay import RunReplay
from arrowquant_nb.ui.run_words import headline

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ReplayedRun", "dashboard"]


class ReplayedRun(RunReplay):
    """A run's dashboard in a frame of its own; a notebook shows it as what a cell returns."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(path, clock)
        self._frame = Frame("Run", self.folder.name, self.dashboard.dress, self.dashboard.renew)
        self._frame.content.children = (self.dashboard.widget,)
        self.follow()

    @property
    def widget(self) -> Any:
        """What the notebook shows."""
        return self._frame.widget

    def __repr__(self) -> str:
        return headline(self.state, self.folder.name)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def dashboard(path: str | Path) -> ReplayedRun:
    """Show the dashboard of a run from its `events.jsonl`: finished, still running elsewhere, or cut off.

    Parameters
    ----------
    path : the log, or the folder that holds it.

    Raises
    ------
    ModelNotFoundError
        There is no log.
    MetadataError
        The log is not one of ours; the message names the line.

    Examples
    --------
    In a notebook cell: `aq.dashboard("out/events.jsonl")`.
    """
    return ReplayedRun(path)
