"""Which layers a list shows, in which order: sorting, filters, search and paging as pure functions.

The worst list, its table twin and the drop-downs go by the same `ListView`, so they always agree.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Final

from arrowquant_nb.ui.layer_name import brief_name
from arrowquant_nb.ui.layer_state import LayerState, quality
from arrowquant_nb.ui.run_state import RUNNING, RunState

__all__ = ["PAGE_ROWS", "SHOWS", "SORTS", "ListPage", "ListView", "list_page", "page_rows", "ranks"]

PAGE_ROWS: Final = 20


def _or_last(value: float | None) -> float:
    return math.inf if value is None else value


_KEYS: Final[Mapping[str, Callable[[LayerState], tuple[object, ...]]]] = MappingProxyType({
    "Worst quality": quality,
    "Worst time group": lambda layer: (_or_last(layer.worst_db), *quality(layer)),
    "Closest to its gate": lambda layer: (_or_last(layer.margin_db), *quality(layer)),
    "Largest": lambda layer: (-layer.plan.n_weights, *quality(layer)),
    "Model order": lambda _: (),
})  # fmt: skip
_FILTERS: Final[Mapping[str, Callable[[LayerState], bool]]] = MappingProxyType({
    "All layers": lambda layer: layer.quantized and layer.report is not None,
    "Fell back": lambda layer: layer.report is not None and layer.report.fell_back,
    "Below gate": lambda layer: layer.report is not None and not layer.report.passed,
    "INT2": lambda layer: layer.report is not None and layer.report.bit_width == 2,
    "INT4": lambda layer: layer.report is not None and layer.report.bit_width == 4,
    "INT8": lambda layer: layer.report is not None and layer.report.bit_width == 8,
    "Kept": lambda layer: not layer.quantized and len(layer.plan.shape) > 1,
    "Overridden": lambda layer: layer.overridden,
})  # fmt: skip
SORTS: Final = tuple(_KEYS)
SHOWS: Final = tuple(_FILTERS)


@dataclass(frozen=True)
class ListView:
    """What the user chose of the list."""

    sort: str = "Worst quality"
    show: str = "All layers"
    find: str = ""
    """Part of a name as a whole or as the list shows it, or a glob."""
    page: int = 0
    """From 0; beyond the end the last page is shown."""
    selected: str = ""
    """Full name of the selected layer, "" for none."""
    order: tuple[str, ...] = ()
    """Names in an order that is held, worst first; empty to sort anew."""


@dataclass(frozen=True, eq=False)
class ListPage:
    """The rows of one page."""

    rows: tuple[LayerState, ...]
    first: int
    """Place of the first row among all that the filter lets through, from 0."""
    total: int
    """How many the filter lets through."""
    pinned: int = -1
    """Rank from 0 of the selected layer, which is put on top as it would be on another page; -1 for none."""


def ordered(state: RunState, view: ListView) -> list[LayerState]:
    """Return every layer that filter and search let through, in the view's order."""
    wanted = view.find.strip().lower()
    glob = wanted if any(c in wanted for c in "*?[") else f"*{wanted}*"
    shown = [
        layer
        for layer in state.layers.values()
        if _FILTERS[view.show](layer) and (not wanted or _found(layer.name, glob))
    ]
    if view.order:
        places = {name: place for place, name in enumerate(view.order)}
        return sorted(shown, key=lambda layer: (places.get(layer.name, len(places)), *quality(layer)))
    return sorted(shown, key=_KEYS[view.sort])


def _found(name: str, glob: str) -> bool:
    """Match a search with the whole name, or with the brief one that the list shows."""
    return any(fnmatchcase(text.lower(), glob) for text in (name, brief_name(name)))


def list_page(state: RunState, view: ListView, n_rows: int = PAGE_ROWS) -> ListPage:
    """Return the page of a view; a selected layer of another page takes the first row."""
    found = ordered(state, view)
    last = max(0, (len(found) - 1) // n_rows)
    first = min(view.page, last) * n_rows
    rows = found[first : first + n_rows]
    if view.selected in {layer.name for layer in rows} or view.selected not in state.layers:
        return ListPage(tuple(rows), first, len(found))
    selected = state.layers[view.selected]
    if selected.report is None:
        return ListPage(tuple(rows), first, len(found))
    return ListPage((selected, *rows[: n_rows - 1]), first, len(found), ranks(state).get(selected.name, 0))


def page_rows(state: RunState, view: ListView) -> int:
    """Return for how many rows a list has room: no more than a filter or search lets through, once the run is over.

    In mid-run layers come in, and the room for all of them is there from the start.
    """
    room = max(1, min(PAGE_ROWS, len(state.quantized)))
    if state.status == RUNNING or (view.show == ListView.show and not view.find.strip()):
        return room
    found = [layer.name for layer in ordered(state, view)]
    selected = state.layers.get(view.selected)
    pinned = selected is not None and selected.report is not None and view.selected not in found
    return max(1, min(room, len(found) + pinned))


def ranks(state: RunState) -> dict[str, int]:
    """Return the place of each decided layer from worst to best, from 0."""
    return {layer.name: place for place, layer in enumerate(sorted(state.decided, key=quality))}
