"""Where runs are shown, one at a time and so with one figure: the app's own run, or an earlier one from its log."""

from __future__ import annotations

import importlib
from html import escape
from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

from arrowquant_nb.ui.live_figure import load_plotly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from arrowquant_nb.runs.model_choice import ModelChoice
    from arrowquant_nb.ui.run_replay import RunReplay
    from arrowquant_nb.ui.run_view import RunView
    from arrowquant_nb.ui.worker import Worker

__all__ = ["RunPlace", "load_ahead", "taken_up"]

_AHEAD: Final = "arrowquant_nb.ui.run_view"


class RunPlace:
    """Empty before the first run. What it shows is loaded when it is needed: it takes longer than a first paint may.

    Parameters
    ----------
    worker : where the app's own run is done.
    on_change, on_settings : see `RunView`.

    Attributes
    ----------
    widget : the place.
    view : the app's own runs; None until there are some, or may be.
    replay : an earlier run that is shown, None for none.
    """

    def __init__(self, worker: Worker, on_change: Callable[[], None], on_settings: Callable[[], None]) -> None:
        self._worker, self._on_change, self._on_settings = worker, on_change, on_settings
        self._dress = ("light", 0)
        self.widget = widgets.VBox([])
        self.view: RunView | None = None
        self.replay: RunReplay | None = None

    @property
    def running(self) -> bool:
        """Whether a run of the app's own goes on."""
        return self.view is not None and self.view.session.running

    @property
    def selection(self) -> str:
        """Full name of the layer that is looked at, "" for none; may be set while a run is shown."""
        shown = self.replay or self.view
        return "" if shown is None else shown.dashboard.selection

    @selection.setter
    def selection(self, name: str) -> None:
        shown = self.replay or self.view
        if shown is not None:
            shown.dashboard.selection = name

    def show_run(self) -> RunView:
        """Show the app's own runs."""
        self._end_replay()
        view = self._made()
        self.widget.children = (view.widget,)
        return view

    def prepare(self) -> None:
        """Make what the first run will be shown in, so that it need not be made while that goes on."""
        self._made().dashboard.figure.prepare()

    def _made(self) -> RunView:
        from arrowquant_nb.ui.run_view import RunView  # noqa: PLC0415 - loads plotly, after the first paint

        if self.view is None:
            self.view = RunView(self._worker, self._on_change, self._on_settings)
            self.view.dashboard.dress(*self._dress)
        return self.view

    def show_earlier(self, folder: Path) -> RunReplay:
        """Show what the run of a folder did, or does.

        Raises
        ------
        ArrowQuantError
            The folder holds no log of a run, or one that cannot be read.
        """
        from arrowquant_nb.ui.run_replay import RunReplay  # noqa: PLC0415 - see above

        self._end_replay()
        replay = RunReplay(folder)
        replay.dashboard.dress(*self._dress)
        replay.follow()
        self.replay = replay
        title = widgets.HTML(f"<h3>Earlier run: {escape(str(folder))}</h3>")
        shown = widgets.VBox([title, replay.dashboard.widget])
        shown.add_class("aq-section")
        self.widget.children = (shown,)
        return replay

    def dress(self, theme: str, width: int) -> None:
        """Follow the page's theme and the cell's width in pixels."""
        self._dress = (theme, width)
        for shown in (self.view, self.replay):
            if shown is not None:
                shown.dashboard.dress(theme, width)

    def renew(self) -> None:
        """Draw anew what a page that was loaded again may have missed."""
        for shown in (self.view, self.replay):
            if shown is not None:
                shown.dashboard.renew()

    def tick(self) -> bool:
        """Paint what is due of the app's own run; a replay goes by itself."""
        return self.view is not None and self.view.tick()

    def close(self) -> None:
        """Let go of the files of runs."""
        self._end_replay()
        if self.view is not None:
            self.view.dashboard.close_up.close()

    def _end_replay(self) -> None:
        if self.replay is not None:
            self.replay.close()
            self.replay = None
            self.widget.children = ()


def taken_up(choice: ModelChoice | None, unrecorded: Sequence[str]) -> str:
    """Say what of an earlier run has come into the form, and what its record does not say.

    Parameters
    ----------
    choice : what it was told to open; None where its record names no model that can be opened.
    unrecorded : names of what the record does not say.

    Examples
    --------
    >>> from arrowquant_nb.runs.model_choice import ModelChoice
    >>> taken_up(ModelChoice("/models/flux", "vae"), ())
    'The earlier run is shown below. In the form: its settings, its model, component vae.'
    """
    parts = [] if choice is None else [f"{name} {value}" for name, value in choice.parts.items() if value]
    words = ["its settings", *(["its model"] if choice is not None else []), *parts]
    sentence = f"The earlier run is shown below. In the form: {', '.join(words)}."
    if not unrecorded:
        return sentence
    *most, last = unrecorded
    lacking = f"{', '.join(most)} and {last}" if most else last
    return f"{sentence} Its record does not say its {lacking}: choose what it was given, where it was given any."


def load_ahead(_: object) -> None:
    """Load what a run needs, plotly above all: for a thread, after the first paint."""
    importlib.import_module(_AHEAD)
    load_plotly()
