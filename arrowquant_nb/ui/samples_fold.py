"""What the model makes, original above quantized, from the same seed: at the end of a run, and on demand."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.storage.quantized import open_quantized

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.ui.worker import Outcome, Worker

__all__ = ["SamplesFold"]


class SamplesFold:
    """A button, a seed, and the pictures, sounds or texts."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._model: tuple[str, Path, str] | None = None
        self._drawing = False
        self.seed = widgets.BoundedIntText(value=0, min=0, max=2**31 - 1, description="Seed", layout={"width": "130px"})
        self.seed.style.description_width = "34px"
        self.draw = widgets.Button(description="Draw samples", disabled=True, layout={"width": "auto"})
        self.draw.on_click(lambda _: self._start())
        self.view = widgets.HTML("Samples are drawn when a run of a bundled sample has finished.")
        row = widgets.HBox([self.draw, self.seed])
        row.add_class("aq-row")
        self.widget = widgets.VBox([row, self.view])

    def offer(self, model: str, output: Path, label: str) -> bool:
        """Draw from what a run over `model` has left in `output`, where the package can run it; return whether."""
        name = model.removeprefix(SAMPLE_PREFIX)
        if name not in samples.names():
            self.view.value = "This model cannot be run here: pictures are drawn of the bundled samples only."
            return False
        self._model = (name, output, label)
        self.draw.disabled = False
        self._start()
        return True

    def _start(self) -> None:
        if self._model is None or self._drawing:
            return
        self._drawing = True
        self.draw.disabled = True
        name, output, label = self._model
        seed = int(self.seed.value)
        self.view.value = f"Drawing 8 samples of each from seed {seed}..."

        def work(_: Any) -> str:
            from arrowquant_nb.ui.sample_pair import draw_pair  # noqa: PLC0415 - loads the models' numerics

            with open_quantized(output) as model:
                return draw_pair(name, model, label, 8, seed).html()  # sounds take a tenth of a second

        self._worker.start("samples", work, self._drawn)

    def _drawn(self, outcome: Outcome[str]) -> None:
        self._drawing = False
        self.draw.disabled = False
        if outcome.result is None:
            self.view.value = f"<span role='alert'>The samples could not be drawn: {escape(str(outcome.error))}</span>"
        else:
            self.view.value = f"<div class='aq-samples'>{outcome.result}</div>"
