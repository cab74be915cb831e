"""The panel of "Compare with...": another run is picked by its folder, and compared with in place."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb.run_comparison import compare_runs
from arrowquant_nb.storage.manifest import MANIFEST_NAME
from arrowquant_nb.ui.compare_controls import CompareControls

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.results import QuantizationResult
    from arrowquant_nb.run_comparison import RunComparison
    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["ComparePanel", "runs_beside"]

_MOST_OFFERED: Final = 50
_CHOOSE: Final = "choose a folder"


class ComparePanel:
    """A picker of runs and what they compare to; hidden until it is opened.

    Parameters
    ----------
    worker : reads the other run.

    Attributes
    ----------
    widget : the panel.
    nearby, path, compare, words, view : its parts.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._mine: tuple[QuantizationResult, Path] | None = None
        self.nearby = widgets.Dropdown(options=[(_CHOOSE, "")], description="Run", layout={"width": "280px"})
        self.nearby.style.description_width = "34px"
        self.path = widgets.Text(
            placeholder="or a model folder, or an executed notebook", description="Path", layout={"width": "400px"}
        )
        self.path.style.description_width = "34px"
        self.compare = widgets.Button(description="Compare", layout={"width": "auto"})
        self.nearby.observe(lambda change: self._begin(change["new"]), names="value")
        self.path.continuous_update = False  # Enter, or leaving the field
        self.path.observe(lambda change: self._begin(change["new"].strip()), names="value")
        self.compare.on_click(lambda _: self._begin(self.path.value.strip() or str(self.nearby.value)))
        self.words = widgets.HTML()
        self.view = widgets.VBox([])
        row = widgets.HBox([self.nearby, self.path, self.compare])
        row.add_class("aq-row")
        self.widget = widgets.VBox([row, self.words, self.view])
        self.widget.add_class("aq-card")
        self.hide()

    def offer(self, result: QuantizationResult, output: Path) -> None:
        """Compare this run from now on; what was compared before is taken away."""
        self._mine = result, output
        self.view.children = ()
        self.words.value = ""

    def toggle(self) -> None:
        """Open the panel, or close it."""
        if self.widget.layout.display != "none" or self._mine is None:
            self.hide()
            return
        found = runs_beside(self._mine[1])
        self.nearby.options = [(_CHOOSE, ""), *((path.name, str(path)) for path in found)]
        self.words.value = (
            "" if self.view.children else "Pick a run: layers that got better or worse, sizes, settings that differ."
        )
        self.widget.layout.display = ""

    def hide(self) -> None:
        """Close the panel."""
        self.widget.layout.display = "none"

    def _begin(self, other: str) -> None:
        if not other or self._mine is None:
            return
        result, _ = self._mine
        self.words.value = f"<span role='status'>Reading {escape(other)}...</span>"

        def done(outcome: Outcome[RunComparison]) -> None:
            if self._mine is not None and self._mine[0] is result:
                self._show(other, outcome)

        self._worker.start("compare", lambda _: compare_runs(result, other), done)

    def _show(self, other: str, outcome: Outcome[Any]) -> None:
        if outcome.result is None:
            self.view.children = ()
            self.words.value = f"<span class='aq-error' role='alert'>{escape(str(outcome.error))}</span>"
            return
        controls = CompareControls(outcome.result)
        controls.box.add_class("aq-across")
        self.view.children = (controls.box,)
        self.words.value = f"<span role='status'>This run is A, {escape(other)} is B.</span>"


def runs_beside(output: Path) -> list[Path]:
    """Return the other finished model folders in the folder that holds `output`, the latest first."""
    try:
        found = [p for p in output.resolve().parent.iterdir() if (p / MANIFEST_NAME).is_file()]
        found = [p for p in found if p != output.resolve()]
        return sorted(found, key=lambda p: -(p / MANIFEST_NAME).stat().st_mtime)[:_MOST_OFFERED]
    except OSError:
        return []
