"""The dashboard of one run: words, one figure, its table twin, and the selected layer from near.

Shows a `RunState` and nothing else; whoever has newer events shows a newer one. Everything that takes time is done by
the worker.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb.tables import html_table
from arrowquant_nb.ui.charts.block_map import BlockMap
from arrowquant_nb.ui.charts.worst_list import list_name
from arrowquant_nb.ui.figure_box import FigureBox
from arrowquant_nb.ui.layer_card import LayerCard
from arrowquant_nb.ui.layer_list import PAGE_ROWS, ListView, list_page, ordered, ranks
from arrowquant_nb.ui.list_controls import ListControls
from arrowquant_nb.ui.live_figure import Scene
from arrowquant_nb.ui.run_folds import RunFolds
from arrowquant_nb.ui.run_state import FINISHED, RUNNING, RunState
from arrowquant_nb.ui.run_words import TABLE_HEADER, ending, facts, layer_cells, progress, waiting
from arrowquant_nb.ui.why import why

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.runs.layer_view import LayerView, TimeRanges
    from arrowquant_nb.runs.layer_viewer import LayerViewer
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["Dashboard"]

FIGURE_S: Final = 0.25
"""A redraw costs the browser about 0.1 s; four a second leave it time for clicks."""
SORT_S: Final = 1.0
REST_AFTER_CLICK_S: Final = 5.0
_LEGEND: Final = (
    "<span class='aq-quiet'>&#9660; INT2 &nbsp; &#9679; INT4 &nbsp; &#9632; INT8 &nbsp; &mdash; "
    "down to the worst time group &nbsp; | gate "
    "(short: of the worst group) &nbsp; &#9650; fell back &nbsp; &#9633; kept &nbsp; "
    "&#10005; + &#9671; on Gaussian weights. Click a layer to see its weights and its error.</span>"
)


class Dashboard:
    """A run on show.

    Parameters
    ----------
    worker : does what takes time.
    open_viewer : opens the run's files for the panels of one layer; None where they are not at hand.
    on_override, on_undo : called with a layer's name (and the wanted width); None to offer no change.
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
        on_override: Callable[[str, int], None] | None = None,
        on_undo: Callable[[str], None] | None = None,
        extra: dict[str, widgets.Widget] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.state = RunState()
        self._worker, self._clock = worker, clock
        self._open_viewer = open_viewer
        self._viewer: LayerViewer | None = None
        self._places = BlockMap((), (), {})
        self._layer: LayerView | None = None
        self._ranges: TimeRanges | None = None
        self._ranges_words = "No calibration: nothing measured over time."
        self._selected = ""
        self._wanted_view = ""
        self._viewing = False
        self._chosen_by_user = False
        self._order: tuple[str, ...] = ()
        self._heard_s = self._painted_s = self._sorted_s = self._clicked_s = -math.inf
        self._dirty = False
        self.bar = widgets.HTML()
        self.facts = widgets.HTML()
        self.status = widgets.HTML()
        self._spoken: tuple[Any, ...] = ()
        self._told = self.state
        self.legend = widgets.HTML(_LEGEND)
        self.controls = ListControls(self._controls_changed)
        self.figure = FigureBox(self._clicked)
        self.table = widgets.HTML(layout={"display": "none"})
        self.table.add_class("aq-scroll")
        self.card = LayerCard(self.step, lambda: self._choose(""), on_override, on_undo)
        self.folds = RunFolds(extra or {})
        self.widget = widgets.VBox([
            self.status, self.bar, self.facts, self.controls.widget, self.legend, self.figure.widget, self.table,
            self.card.widget, self.folds.widget,
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
        self._speak(now)
        if self.state.status == FINISHED and not self._selected and not self._chosen_by_user:
            worst = self.state.worst()
            if worst is not None:
                self._select(worst.name)
        begun = bool(self.state.order)
        self._reveal(begun)
        if self._dirty and begun and (now - self._painted_s >= FIGURE_S or self.state.status != RUNNING):
            self._paint(now)
        return self._dirty and begun

    def _reveal(self, begun: bool) -> None:
        """Show list and figure from the first layer on: before it there are words, not empty axes."""
        display = "" if begun else "none"
        if self.controls.widget.layout.display != display:
            for part in (self.controls.widget, self.legend):
                part.layout.display = display

    @property
    def selection(self) -> str:
        """Full name of the selected layer, "" for none."""
        return self._selected

    @selection.setter
    def selection(self, name: str) -> None:
        if name and name not in self.state.layers:
            raise KeyError(f"there is no layer {name!r} in this run")
        self._choose(name)

    def dress(self, theme: str, width: int) -> None:
        """Follow the page's theme and the cell's width in pixels."""
        if (theme, width) != (self.figure.theme, self.figure.width):
            self.figure.theme, self.figure.width = theme, width
            self._dirty = True
            self._worker.pump()

    def step(self, by: int) -> None:
        """Select the layer that many places better (worse where negative) than the selected one."""
        places = ranks(self.state)
        names = list(places)
        place = places.get(self._selected, -1) + by
        if 0 <= place < len(names):
            self._choose(names[place])

    def forget_layer(self) -> None:
        """Read the selected layer anew: its run has changed it."""
        self.close_viewer()
        if self._selected:
            self._select(self._selected)

    def restart(self) -> None:
        """Forget the run that was shown: another one begins."""
        self.state = RunState()
        self._selected, self._chosen_by_user = "", False
        self._layer = self._ranges = None
        self._order, self._spoken = (), ()
        self._dirty = False
        self.figure.clear()
        self._card()

    def close_viewer(self) -> None:
        """Let go of the run's files."""
        if self._viewer is not None and not self._viewing:
            self._viewer.close()
        self._viewer = None

    # -- selecting ---------------------------------------------------------------------------------------------------

    def _clicked(self, name: str) -> None:
        self._clicked_s = self._clock()
        self._choose("" if name == self._selected else name)

    def _choose(self, name: str) -> None:
        self._chosen_by_user = True
        self._select(name)

    def _select(self, name: str) -> None:
        self._selected = name
        layer = self.state.layers.get(name)
        if self._layer is not None and (not name or layer is None or self._layer.name != name):
            self._layer = None if not name else self._layer
        self._dirty = True
        if name and layer is not None and layer.report is not None and layer.quantized:
            self._request_view(name)
        self._card()
        self._worker.pump()

    def _request_view(self, name: str) -> None:
        """Have a layer read; of several requests the last one counts."""
        self._wanted_view = name
        if self._viewing or self._open_viewer is None:
            return
        self._viewing = True
        opener, viewer = self._open_viewer, self._viewer

        def work(_: Any) -> tuple[LayerViewer, LayerView]:
            opened = viewer if viewer is not None else opener()
            return opened, opened.view(name)

        self._worker.start("view", work, lambda outcome: self._viewed(name, outcome))

    def _viewed(self, name: str, outcome: Outcome[tuple[LayerViewer, LayerView]]) -> None:
        self._viewing = False
        if outcome.result is None:
            self._say(f"{list_name(self.state.layers[name])} cannot be shown from near: {outcome.error}", alert=True)
        else:
            self._viewer, view = outcome.result
            if self._selected == name:
                self._layer = view
                self._ranges = view.ranges
                of = list_name(self.state.layers[name], 28)
                self._ranges_words = f"inputs of {of}" if view.ranges is not None else "No calibration for this layer."
        if self._wanted_view != name and self._wanted_view == self._selected:
            self._request_view(self._wanted_view)
        self._dirty = True
        self._card()

    # -- painting ----------------------------------------------------------------------------------------------------

    def _controls_changed(self) -> None:
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
        n_rows = max(1, min(PAGE_ROWS, len(self.state.quantized)))
        view = self.view()
        self.controls.tell(list_page(self.state, view, n_rows), n_rows)
        as_table = self.controls.table.value
        self.table.layout.display = "" if as_table else "none"
        self.figure.widget.layout.display = "none" if as_table else ""
        if as_table:
            places = ranks(self.state)
            rows = [layer_cells(layer, places.get(layer.name, 0)) for layer in ordered(self.state, view)]
            self.table.value = html_table(TABLE_HEADER, rows, "Layers, in the order of the list")
        else:
            layer = self._layer if self._selected else None
            self.figure.draw(Scene(self.state, view, self._places, layer, self._ranges, self._ranges_words))
        self._painted_s = now
        self.folds.show(self.state)
        self._card()

    def _card(self) -> None:
        layer = self.state.layers.get(self._selected)
        if layer is None or layer.report is None:
            self.card.show(None, 0, 0, "")
            return
        sentence = why(layer, self._layer) if self._layer is not None and self._layer.name == layer.name else ""
        places = ranks(self.state)
        self.card.show(layer, places.get(layer.name, 0), len(places), sentence)

    def _speak(self, now: float) -> None:
        """Write bar, figures and status line; the status changes at the start, each quarter, and the end."""
        state = self.state
        if not state.layers and state.status != RUNNING:
            return
        share = state.share_done
        words = waiting(state, now - self._heard_s) or progress(state)
        bar = (
            f"<progress value='{share:.4f}' max='1' aria-label='layers done'></progress> &nbsp; "
            f"{escape(words).replace('   ', ' &nbsp; ')}"
        )
        if self.bar.value != bar:
            self.bar.value = bar
        if state is not self._told:
            self._told = state
            self.facts.value = escape(facts(state)).replace(" | ", " &nbsp;|&nbsp; ")
        final = state.written_nbytes if state.status != RUNNING else 0
        spoken = (state.status, int(4 * share), len(state.layers), final)
        if spoken != self._spoken:
            self._spoken = spoken
            done, n = len(state.decided), len(state.quantized)
            self._say(ending(state) or f"Running: {done} of {n} layers are done, {state.n_fell_back} fell back.")

    def announce(self, text: str) -> None:
        """Say something in the status line, until the run's state changes."""
        self._say(text)

    def _say(self, text: str, *, alert: bool = False) -> None:
        role = "alert" if alert else "status"
        live = "" if alert else " aria-live='polite'"
        said = f"<span role='{role}'{live}>{escape(text)}</span>"
        if self.status.value != said:
            self.status.value = said
