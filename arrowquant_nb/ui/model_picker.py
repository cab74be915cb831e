"""Which model: a bundled sample or a path, what was recognised and by what; errors stand under the path."""

import difflib
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.results import Plan
from arrowquant_nb.ui.plan_view import detection_words
from arrowquant_nb.ui.run_words import megabytes

__all__ = ["ModelPicker", "near_path"]


class ModelPicker:
    """Widgets to choose a model; `on_open(model)` is called with what was chosen.

    Parameters
    ----------
    modality : the form's own control, shown here too.
    """

    def __init__(self, on_open: Callable[[str], None], modality: widgets.Widget | None) -> None:
        self._on_open = on_open
        self._quiet = False
        options = [("choose a sample", ""), *((_sample_label(name), name) for name in samples.names())]
        self.sample = widgets.Dropdown(options=options, layout={"width": "270px"})
        self.path = widgets.Text(
            placeholder="or a folder, or a .safetensors file", description="Path", layout={"width": "420px"}
        )
        self.path.style.description_width = "34px"
        self.open = widgets.Button(description="Open", tooltip="Read names and shapes", layout={"width": "auto"})
        self.sample.observe(self._sampled, names="value")
        self.open.on_click(lambda _: self._typed())
        self.path.continuous_update = False  # Enter, or leaving the field
        self.path.observe(lambda _: None if self._quiet else self._typed(), names="value")
        self.words = widgets.HTML()
        parts = [self.sample, self.path, self.open]
        if modality is not None:
            parts += [widgets.HTML("<label>Modality</label>"), modality]
        row = widgets.HBox(parts)
        row.add_class("aq-row")
        self.widget = widgets.VBox([widgets.HTML("<h3>1 Model</h3>"), row, self.words])
        self.widget.add_class("aq-section")

    def show(self, model: str) -> None:
        """Show what was chosen from code."""
        self._quiet = True
        sample = model.removeprefix("sample:") in samples.names()
        self.sample.value = model.removeprefix("sample:") if sample else ""
        self.path.value = "" if sample else model
        self._quiet = False

    def opening(self) -> None:
        """Say that names and shapes are being read."""
        self.words.value = "<span role='status'>Reading names and shapes... (weights are not loaded)</span>"

    def opened(self, plan: Plan) -> None:
        """Say what was recognised."""
        self.words.value = escape(detection_words(plan))

    def refused(self, error: BaseException, model: str) -> None:
        """Say why nothing was opened, and what is near."""
        near = near_path(model)
        hint = f' Did you mean "{near}"?' if near else ""
        self.words.value = f"<span class='aq-error' role='alert'>{escape(str(error) + hint)}</span>"

    def _sampled(self, change: Any) -> None:
        if change["new"] and not self._quiet:
            self.path.value = ""
            self._on_open(change["new"])

    def _typed(self) -> None:
        typed = self.path.value.strip()
        if typed:
            self.show(typed)
            self._on_open(typed)


def near_path(model: str) -> str:
    """Return the path beside a missing one that is spelled most like it; "" for none."""
    path = Path(model)
    try:
        if path.exists() or not path.parent.is_dir():
            return ""
        names = [p.name for p in path.parent.iterdir()][:5000]
    except (OSError, ValueError):
        return ""
    found = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return str(path.with_name(found[0])) if found else ""


def _sample_label(name: str) -> str:
    nbytes = sum(p.stat().st_size for p in samples.load(name).glob("*.safetensors"))
    return f"Sample: {name} ({samples.modality(name)}, {megabytes(nbytes)})"
