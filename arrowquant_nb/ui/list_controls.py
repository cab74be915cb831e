"""The row above the figure: how the list is sorted, what it shows, and where it stands."""

from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from arrowquant_nb.ui.layer_list import SHOWS, SORTS, ListPage, ListView

__all__ = ["ListControls"]


class ListControls:
    """Widgets that make a `ListView`.

    Parameters
    ----------
    on_change : called when the user changes one.
    on_first : called to select the first row: with the search box, the way into the list without a pointer.

    Attributes
    ----------
    widget : the row.
    hold : whether rows keep their places while new ones come in.
    table : whether the table is shown instead of the figure.
    """

    def __init__(self, on_change: Callable[[], None], on_first: Callable[[], None]) -> None:
        self._on_change = on_change
        self._page = 0
        self.sort = widgets.Dropdown(options=SORTS, description="Sort", layout={"width": "185px"})
        self.show = widgets.Dropdown(options=SHOWS, description="Show", layout={"width": "145px"})
        self.find = widgets.Text(description="Find", placeholder="part of a name", layout={"width": "165px"})
        for box, width in ((self.sort, "34px"), (self.show, "40px"), (self.find, "34px")):
            box.style.description_width = width
        self.first = widgets.Button(
            description="Open", tooltip="Look closer at the first layer of the list", layout={"width": "auto"}
        )
        self.first.on_click(lambda _: on_first())
        self.previous = widgets.Button(description="<", tooltip="Previous page", layout={"width": "40px"})
        self.next = widgets.Button(description=">", tooltip="Next page", layout={"width": "40px"})
        self.previous.add_class("aq-narrow")
        self.next.add_class("aq-narrow")
        self.place = widgets.HTML()
        self.hold = widgets.ToggleButton(
            description="Hold",
            tooltip="Hold the order: rows keep their places while new ones come in",
            layout={"width": "auto"},
        )
        self.table = widgets.ToggleButton(
            description="Table", tooltip="The same rows as a table", layout={"width": "auto"}
        )
        for box in (self.sort, self.show, self.find):
            box.observe(self._restart, names="value")
        for box in (self.hold, self.table):
            box.observe(lambda _: on_change(), names="value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self.widget = widgets.HBox(
            [self.sort, self.show, self.find, self.first, self.previous, self.place, self.next, self.hold, self.table]
        )
        self.widget.add_class("aq-row")

    def view(self, selected: str, order: tuple[str, ...]) -> ListView:
        """Return what is chosen."""
        return ListView(self.sort.value, self.show.value, self.find.value, self._page, selected, order)

    def tell(self, page: ListPage, n_rows: int) -> None:
        """Say which rows are shown, and offer the pages there are."""
        self._page = min(self._page, max(0, (page.total - 1) // n_rows))
        first = self._page * n_rows
        text = (
            f"{first + 1:,}-{min(first + n_rows, page.total):,} of {page.total:,}" if page.total else "no layer matches"
        )
        if self.place.value != text:
            self.place.value = text
        self.previous.disabled = self._page == 0
        self.next.disabled = first + n_rows >= page.total

    def _restart(self, _: Any) -> None:
        self._page = 0
        self._on_change()

    def _turn(self, by: int) -> None:
        self._page = max(0, self._page + by)
        self._on_change()
