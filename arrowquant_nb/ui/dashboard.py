"""The dashboard of one run: words, one figure, its table twin, and the selected layer from near.

Shows a `RunState` and nothing else; whoever has newer events shows a newer one. Everything that takes time is done by
the worker.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

from arrowquant_nb.tables import html_table
from arrowquant_nb.ui.charts.block_map import BlockMap
from arrowquant_nb.ui.close_up import NO_RANGES, NOT_AT_HAND, NOT_LOOKED, CloseUp
from arrowquant_nb.ui.figure_box import FigureBox
from arrowquant_nb.ui.layer_card import LayerCard
from arrowquant_nb.ui.layer_list import ListView, list_page, ordered, page_rows, ranks
from arrowquant_nb.ui.layer_name import list_name
from arrowquant_nb.ui.list_controls import ListControls
from arrowquant_nb.ui.live_figure import Scene
from arrowquant_nb.ui.run_folds import RunFolds
from arrowquant_nb.ui.run_state import FINISHED, RUNNING, RunState
from arrowquant_nb.ui.run_words import TABLE_HEADER, layer_cells
from arrowquant_nb.ui.status_line import StatusLine
from arrowquant_nb.ui.why import why

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.runs.layer_viewer import LayerViewer
    from arrowquant_nb.ui.layer_change import LayerChange
    from arrowquant_nb.ui.worker import Worker

__all__ = ["Dashboard"]

FIGURE_S: Final = 0.25
"""A redraw costs the browser about 0.1 s; four a second leave it time for clicks."""
SETTLE_S: Final = 0.3
"""So long after the last letter typed the list takes its new height, and "Open" takes its first row."""
LATE_S: Final = 3.0
"""Letters that come so long after "Open" were typed before it: a page holds them back while the kernel is busy."""
SORT_S: Final = 1.0
REST_AFTER_CLICK_S: Final = 5.0
_LEGEND: Final = (
    "<span class='aq-quiet'>&#9660; INT2 &nbsp; &#9679; INT4 &nbsp; &#9632; INT8 &nbsp; &mdash; "
    "down to the worst time group &nbsp; | gate "
    "(short: of the worst group) &nbsp; &#9650; fell back &nbsp; &#9633; kept &nbsp; "
    "on Gaussian weights: &#10005; NF4, + Q4_K, &#9671; bound. Click a layer for its weights and error.</span>"
)


class Dashboard:
    """A run on show.

    Parameters
    ----------
    worker : does what takes time.
    open_viewer : opens the run's files for the panels of one layer; None where they are not at hand.
    change : the row that changes the selected layer; None to offer no change.
    extra : folded parts to show below, title -> widget.

    Attributes
    ----------
    widget : everything.
    state : what is shown.
    selection : full name of the selected layer, "" for none; may be set.
    """

    def __init__(
        self,
        worker: Worker,
        open_viewer: Callable[[], LayerViewer] | None = None,
        change: LayerChange | None = None,
        extra: dict[str, widgets.Widget] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = RunState()
        self._worker, self._clock = worker, clock
        self._places = BlockMap((), (), {})
        self._selected = ""
        self._chosen_by_user = False
        self._order: tuple[str, ...] = ()
        self._heard_s = self._painted_s = self._sorted_s = self._clicked_s = -math.inf
        self._typed_s = self._opened_s = -math.inf
        self._dirty = self._first_due = False
        self._n_rows = 0
        self._trouble = ("", "")
        self.close_up = CloseUp(worker, open_viewer, self._viewed)
        self.line = StatusLine()
        self.legend = widgets.HTML(_LEGEND)
        self.controls = ListControls(self._controls_changed, self._want_first)
        self.figure = FigureBox(self._clicked)
        self.table = widgets.HTML(layout={"display": "none"})
        self.table.add_class("aq-scroll")
        self.card = LayerCard(self.step, lambda: self._choose(""), change)
        self.folds = RunFolds(extra or {})
        self.widget = widgets.VBox([
            *self.line.parts, self.controls.widget, self.legend, self.figure.widget, self.table, self.card.widget,
            self.folds.widget,
        ])  # fmt: skip

    # -- what is shown -----------------------------------------------------------------------------------------------

    def show(self, state: RunState) -> None:
        """Show a newer state: its words now, its figure at the next turn."""
        if list(state.layers) != list(self.state.layers):
            self._places = BlockMap.of(state)
            self._order = ()
        self._heard_s = self._clock()
        self.state = state
        self._dirty = True

    def tick(self) -> bool:
        """Paint what is due; return True while something is left for later."""
        now = self._clock()
        self.line.tell(self.state, now - self._heard_s)
        if self.state.status == FINISHED and not self._selected and not self._chosen_by_user:
            worst = self.state.worst()
            if worst is not None:
                self._select(worst.name)
        if self._first_due and now - self._typed_s >= SETTLE_S:
            self._choose_first()
        begun = bool(self.state.order)
        self._reveal(begun)
        if self._dirty and begun and (now - self._painted_s >= FIGURE_S or self.state.status != RUNNING):
            self._paint(now)
        return (self._dirty and begun) or self._first_due

    def announce(self, text: str, *, alert: bool = False) -> None:
        """Say something in the status line, until the run's state changes."""
        self.line.say(text, alert=alert)

    def _reveal(self, begun: bool) -> None:
        """Show list and figure from the first layer on: before it there are words, not empty axes."""
        display = "" if begun else "none"
        if self.controls.widget.layout.display != display:
            for part in (self.controls.widget, self.legend):
                part.layout.display = display

    def dress(self, theme: str, width: int) -> None:
        """Follow the page's theme and the cell's width in pixels."""
        if (theme, width) != (self.figure.theme, self.figure.width):
            self.figure.theme, self.figure.width = theme, width
            self._dirty = True
            self._worker.pump()

    def renew(self) -> None:
        """Draw a new figure: a page that was loaded anew may have missed changes of this one."""
        self.figure.renew()
        self._dirty = True
        self._worker.pump()

    def restart(self) -> None:
        """Forget the run that was shown: another one begins."""
        self.state = RunState()
        self._selected, self._chosen_by_user = "", False
        self.close_up.forget()
        self._order, self._n_rows = (), 0
        self.line.restart()
        self._dirty = False
        self.figure.clear()
        self._card()

    # -- selecting ---------------------------------------------------------------------------------------------------

    @property
    def selection(self) -> str:
        """Full name of the selected layer, "" for none."""
        return self._selected

    @selection.setter
    def selection(self, name: str) -> None:
        if name and name not in self.state.layers:
            raise KeyError(f"there is no layer {name!r} in this run")
        self._choose(name)

    def step(self, by: int) -> None:
        """Select the layer that many places better (worse where negative) than the selected one."""
        places = ranks(self.state)
        names = list(places)
        place = places.get(self._selected, -1) + by
        if 0 <= place < len(names):
            self._choose(names[place])

    def read_again(self) -> None:
        """Read the selected layer anew: its run has changed it."""
        self.close_up.close()
        if self._selected:
            self._select(self._selected)

    def _want_first(self) -> None:
        self._first_due = True
        self._opened_s = self._clock()
        self._worker.pump()

    def _choose_first(self) -> None:
        """Select the first layer that filter and search let through."""
        self._first_due = False
        found = ordered(self.state, replace(self.view(), order=()))
        if found:
            self._chosen_by_user = True
            self._select(found[0].name)

    def _clicked(self, name: str) -> None:
        self._clicked_s = self._clock()
        self._choose("" if name == self._selected else name)

    def _choose(self, name: str) -> None:
        self._chosen_by_user = True
        self._opened_s = -math.inf
        self._select(name)

    def _select(self, name: str) -> None:
        self._selected = name
        layer = self.state.layers.get(name)
        readable = layer is not None and layer.report is not None and layer.quantized
        self.close_up.want(name if readable else "")
        self._dirty = True
        self._card()
        self._worker.pump()

    def _viewed(self, name: str, error: BaseException | None) -> None:
        self._trouble = (name, "" if error is None else str(error))
        self._dirty = True
        self._card()

    # -- painting ----------------------------------------------------------------------------------------------------

    def _controls_changed(self) -> None:
        self._typed_s = self._clock()
        self._first_due = self._first_due or self._typed_s - self._opened_s < LATE_S
        self._order = ()
        self._sorted_s = -math.inf
        self._dirty = True
        self._worker.pump()

    def view(self) -> ListView:
        """Return what the list shows and in which order, as of now."""
        return self.controls.view(self._selected, self._order)

    def _paint(self, now: float) -> None:
        self._dirty = False
        held = self.controls.hold.value or now - self._clicked_s < REST_AFTER_CLICK_S or now - self._sorted_s < SORT_S
        running = self.state.status == RUNNING
        if not (self._order and held and running):
            fresh = replace(self.view(), order=())
            self._order = tuple(layer.name for layer in ordered(self.state, fresh))
            self._sorted_s = now
        elif now - self._sorted_s < SORT_S:
            self._dirty = True  # new rows stand at the end until the list may be sorted again
        view = self.view()
        self._make_room(view, now)
        self.controls.tell(list_page(self.state, view, self._n_rows), self._n_rows)
        as_table = self.controls.table.value
        self.table.layout.display = "" if as_table else "none"
        self.figure.widget.layout.display = "none" if as_table else ""
        if as_table:
            places = ranks(self.state)
            rows = [layer_cells(layer, places.get(layer.name, 0)) for layer in ordered(self.state, view)]
            self.table.value = html_table(TABLE_HEADER, rows, "Layers, in the order of the list")
        else:
            self.figure.draw(self._scene(view))
        self._painted_s = now
        self.folds.show(self.state)
        self._card()

    def _make_room(self, view: ListView, now: float) -> None:
        """Give the list the height that it needs, once the user has come to rest."""
        wanted = page_rows(self.state, view)
        if wanted != self._n_rows and self._n_rows and now - self._typed_s < SETTLE_S:
            self._dirty = True
        else:
            self._n_rows = wanted

    def _scene(self, view: ListView) -> Scene:
        near = self.close_up
        shown = near.view if self._selected else None
        calibrated = any(layer.worst_db is not None for layer in self.state.decided)
        words = NOT_LOOKED if calibrated or not self.state.decided else NO_RANGES
        if self._selected and self._trouble[0] == self._selected and self._trouble[1]:
            words = NOT_AT_HAND
        if near.ranges_of in self.state.layers:
            name = list_name(self.state.layers[near.ranges_of], 28)
            words = f"inputs of {name}" if near.ranges is not None else NO_RANGES
        return Scene(self.state, view, self._places, self._n_rows, shown, near.ranges, words)

    def _card(self) -> None:
        layer = self.state.layers.get(self._selected)
        if layer is None or layer.report is None:
            self.card.show(None, 0, 0, "")
            return
        seen = self.close_up.of(layer.name)
        places = ranks(self.state)
        sentence = why(layer, seen) if seen is not None else ""
        self.card.show(layer, places.get(layer.name, 0), len(places), sentence, self.state.method_of(layer.name))
        self.card.say_trouble(self._trouble[1] if self._trouble[0] == layer.name else "")
