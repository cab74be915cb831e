"""The controls of a comparison: which two runs, in which order, which layers. Holds no logic; redraws words and SVG."""

from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb.run_comparison import SHOWS, SORTS, RunComparison
from arrowquant_nb.ui.compare import Comparison

__all__ = ["CompareControls"]

_ROWS: Final = 20


class CompareControls:
    """Drop-downs and a search box over the still pictures and tables of a comparison."""

    def __init__(self, data: RunComparison) -> None:
        self._data = data
        letters = [(run.label, run.letter) for run in data.runs]
        self.a = widgets.Dropdown(options=letters, value=data.a.letter, description="A")
        self.b = widgets.Dropdown(options=letters, value=data.b.letter, description="B")
        self.sort = widgets.Dropdown(options=SORTS, description="Sort")
        self.show = widgets.Dropdown(options=SHOWS, description="Show")
        self.find = widgets.Text(
            description="Find", placeholder="part of a name, or a pattern with *", continuous_update=False
        )
        self.view = widgets.HTML()
        pair = [self.a, self.b] if len(letters) > 2 else []
        controls = [*pair, self.sort, self.show, self.find]
        for control in controls:
            control.observe(self._draw, names="value")
        self.box = widgets.VBox([widgets.Box(controls, layout={"flex_flow": "row wrap"}), self.view])
        self._draw()

    def _draw(self, _: Any = None) -> None:
        chosen = Comparison(self._data.pair(self.a.value, self.b.value))
        self.view.value = chosen.html(self.sort.value, self.show.value, self.find.value.strip(), limit=_ROWS)
