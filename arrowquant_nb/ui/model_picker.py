"""Which model: a bundled sample or a path, what was recognised and by what; errors stand under the path."""

import difflib
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, Final

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.results import Plan
from arrowquant_nb.runs.locating import SAMPLE_PREFIX
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.ui.plan_view import detection_words
from arrowquant_nb.ui.run_words import megabytes

__all__ = ["ModelPicker", "near_path"]


_HINTS: Final[Mapping[str, tuple[str, str, str]]] = {
    "component": ("the denoiser", "Part of a pipeline, such as transformer or text_encoder", "180px"),
    "variant": ("plain files", "Variant of the weight files, such as fp16", "150px"),
    "calibration": (
        "found by itself",
        (
            'A calibration file, or "none" to go without. Left empty: a file beside the model; else a bundled sample '
            "runs along its own trajectories, and other models go without"
        ),
        "330px",
    ),
}
"""What is chosen beside a model: the words for leaving it open, what it is, and the width of its box."""


class ModelPicker:
    """Widgets to choose a model and what is read with it; `on_open(choice)` is called with what was chosen.

    Parameters
    ----------
    modality : the form's own control, shown here too.

    Attributes
    ----------
    sample, path, open : the model.
    parts : boxes for component, variant and calibration, by these names; the first two make sense for a path only.
    words : what was recognised, or what is wrong.
    """

    def __init__(self, on_open: Callable[[ModelChoice], None], modality: widgets.Widget | None) -> None:
        self._on_open = on_open
        self._quiet = False
        self._shown = ""
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
        self.parts = {name: self._part(name) for name in _HINTS}
        beside = widgets.HBox(list(self.parts.values()))
        beside.add_class("aq-row")
        self.widget = widgets.VBox([widgets.HTML("<h3>1 Model</h3>"), row, beside, self.words])
        self.widget.add_class("aq-section")

    def _part(self, name: str) -> widgets.Text:
        empty, tooltip, width = _HINTS[name]
        box = widgets.Text(
            placeholder=empty, description=name.capitalize(), tooltip=tooltip, continuous_update=False,
            layout={"width": width},
        )  # fmt: skip
        box.style.description_width = "initial"
        box.observe(lambda _: self._typed_part(), names="value")
        return box

    def show(self, choice: ModelChoice) -> None:
        """Show what was chosen from code."""
        self._quiet = True
        model = str(choice.model)
        sample = model.removeprefix(SAMPLE_PREFIX) in samples.names()
        self.sample.value = model.removeprefix(SAMPLE_PREFIX) if sample else ""
        self.path.value = self._shown = "" if sample else model
        for name, value in choice.parts.items():
            self.parts[name].value = value or ""
            self.parts[name].layout.display = "none" if sample and name != "calibration" and not value else ""
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
            self._on_open(ModelChoice(change["new"]))

    def _typed(self) -> None:
        """Open what is typed; what was chosen beside another model goes with that."""
        typed = self.path.value.strip()
        if typed:
            self._on_open(self._chosen(typed) if typed == self._shown else ModelChoice(typed))

    def _typed_part(self) -> None:
        model = self.path.value.strip() or self.sample.value
        if model and not self._quiet:
            self._on_open(self._chosen(model))

    def _chosen(self, model: str) -> ModelChoice:
        given = {name: box.value.strip() or None for name, box in self.parts.items()}
        return ModelChoice(model, given["component"], given["variant"], calibration=given["calibration"])


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
