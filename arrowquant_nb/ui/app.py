"""The studio: choose a model, set it up, see the plan, run, look, change a layer, save. One cell, one figure.

Joins the parts; each part says what happened to it, and this is where that reaches the others.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError
from arrowquant_nb.runs.model_choice import ModelChoice
from arrowquant_nb.ui.forecast_panel import ForecastPanel
from arrowquant_nb.ui.form import Form
from arrowquant_nb.ui.form_place import LIMIT, form_place
from arrowquant_nb.ui.frame import Frame
from arrowquant_nb.ui.model_picker import ModelPicker
from arrowquant_nb.ui.output_folder import unfinished_runs
from arrowquant_nb.ui.plan_section import PlanSection, width_sizes
from arrowquant_nb.ui.run_place import RunPlace, load_ahead, taken_up
from arrowquant_nb.ui.run_section import RunSection
from arrowquant_nb.ui.settings_bar import SettingsBar
from arrowquant_nb.ui.spoken import error_html, said
from arrowquant_nb.ui.worker import Worker

if TYPE_CHECKING:
    from arrowquant_nb.results import Plan
    from arrowquant_nb.ui.run_view import RunView

__all__ = ["Studio"]

_SUBTITLE: Final = "quantize a diffusion model"
LOOK_AGAIN_S: Final = 1.0
"""While another run writes the output folder, it is looked at so often whether it still does."""


class Studio:
    """The app; a notebook shows it as what a cell returns.

    Parameters
    ----------
    model : a path or a bundled sample; None opens the first sample.

    Attributes
    ----------
    form, picker, plan_section, target, settings : the parts of the form.
    choice : the model that is opened, and what is read with it.
    output, run : where the output goes, and the button.
    runs : where a run, or an earlier one, is shown.
    """

    def __init__(self, model: str | Path | None = None, config: DiffusionQuantConfig | None = None) -> None:
        self._worker = Worker(self._tick)
        self.runs = RunPlace(self._worker, self._run_changed, self._toggle_form)
        self._frame = Frame("ArrowQuant", _SUBTITLE, self._dress, self.runs.renew)
        self.form = Form(config)
        modality = self.form.controls.get("modality")
        self.picker = ModelPicker(self.open, None if modality is None else modality.main)
        self.choice = ModelChoice("")
        self._plan_due = False
        self._looked_s = 0.0
        self.plan_section = PlanSection()
        self.forecast = ForecastPanel(self._worker, lambda: (self.choice, self.form.config), self._limit)
        self.target = RunSection(self.start, self._check_output, self.take_up)
        self.output, self.run = self.target.output, self.target.run
        self.settings = SettingsBar(self._current, self.form.set_config, self._frame.bridge)
        self._form_place = form_place(
            self.picker, self.form, self.forecast, self.plan_section, self.target, self.settings
        )
        self._frame.content.children = (self._form_place, self.runs.widget)
        self.form.on_change(self._changed)
        self.open(model if model is not None else samples.names()[0])
        self._worker.start("ahead", load_ahead, lambda _: self.runs.prepare())

    # -- what a script, a test or another cell may do ----------------------------------------------------------------

    @property
    def widget(self) -> Any:
        """What the notebook shows."""
        return self._frame.widget

    @property
    def config(self) -> DiffusionQuantConfig | None:
        """The form's settings; None while a value is refused."""
        return self.form.config

    @property
    def running(self) -> bool:
        """Whether a run goes on."""
        return self.runs.running

    @property
    def run_view(self) -> RunView | None:
        """The app's own runs; None until there are some, or may be."""
        return self.runs.view

    @property
    def result(self) -> Any:
        """The `QuantizationResult` of the latest finished run, or None."""
        return None if self.run_view is None else self.run_view.session.result

    @property
    def selection(self) -> str:
        """Full name of the layer that is looked at, "" for none; may be set while a run is shown."""
        return self.runs.selection

    @selection.setter
    def selection(self, name: str) -> None:
        self.runs.selection = name

    @property
    def plan(self) -> Plan | None:
        """The plan of the opened model under the form's settings; None while there is none."""
        return self.plan_section.plan

    @property
    def model(self) -> str:
        """The model that is opened, as it was chosen."""
        return str(self.choice.model)

    def open(self, model: str | Path | ModelChoice) -> None:
        """Open a model: a bundled sample at once, a path beside the kernel."""
        self.choice = opened = model if isinstance(model, ModelChoice) else ModelChoice(str(model))
        self.plan_section.forget()
        self.picker.show(opened)
        self._follow()
        if self.model.removeprefix("sample:") in samples.names():
            self._replan()
            return
        self.picker.opening()
        config = self.form.config or DiffusionQuantConfig()

        def done(outcome: Any) -> None:
            if self.choice == opened:
                self._planned(outcome.result, outcome.error, config)

        self._worker.start("open", lambda _: ArrowQuantV2(config).plan(opened.model, **opened.parts), done)

    def start(self) -> None:
        """Run with the form's settings, as the button does; nothing happens while Run is off."""
        self._check_output()
        if self.run.disabled or self.config is None:
            return
        view = self.runs.show_run()
        self._form_place.layout.display = "none"
        view.settings.description = "Show settings"
        self.target.status.value = ""
        view.start(self.choice, self.target.folder, self.config)

    def take_up(self, folder: Path) -> None:
        """Show an earlier run, still going on or not, and take into the form what its record says it was given.

        That is model, component, variant, calibration, settings and folder; what the record lacks is named.
        """
        if self.running:
            return
        try:
            replay = self.runs.show_earlier(folder)
            config, choice = replay.config, replay.choice
        except ArrowQuantError as error:
            self.target.status.value = error_html("This run cannot be taken up", str(error))
            return
        self.target.status.value = said(taken_up(choice, replay.unrecorded))
        self.form.set_config(config)
        self.target.choose(folder)
        self.open(choice or self.choice)

    def drain(self) -> bool:
        """Do what is due; True while there is more to come. The notebook's loop calls it by itself."""
        return self._worker.drain()

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop whatever runs, resumably; with a timeout wait for it. Return whether no thread is left."""
        ended = self._worker.stop(timeout_s)
        self.runs.close()
        return ended

    def replaced(self) -> None:
        """Give way to a newer view of the same cell."""
        self.close()
        self._frame.content.children = (
            widgets.HTML(
                "<span role='status'>Replaced by a newer view. What was done is kept: run it again to resume.</span>"
            ),
        )

    # -- plan --------------------------------------------------------------------------------------------------------

    def _limit(self, limit: float | None) -> None:
        """Take the size slider's limit into the settings."""
        control = self.form.controls.get(LIMIT)
        if control is not None and control.value != limit:
            control.value = limit

    def _follow(self) -> None:
        config = self.form.config
        self.forecast.follow(None if config is None else config.target_model_size_mb)

    def _changed(self) -> None:
        self._plan_due = True
        self._follow()
        self._check_run()
        self._worker.pump()

    def _replan(self) -> None:
        self._plan_due = False
        if not self.choice.model:
            return
        config = self.form.config
        if config is None:
            self._show_plan()
            return
        try:
            plan, error = ArrowQuantV2(config).plan(self.choice.model, **self.choice.parts), None
        except ArrowQuantError as refused:
            plan, error = None, refused
        self._planned(plan, error, config)

    def _planned(self, plan: Plan | None, error: BaseException | None, config: DiffusionQuantConfig) -> None:
        self.plan_section.take(plan, config)
        if plan is None:
            self.picker.refused(error or ConfigurationError("the plan could not be made"), self.model)
        else:
            self.picker.opened(plan)
            self.form.label_widths(width_sizes(self.choice, config))
            self.target.suggest(plan)
        self._show_plan()
        self._check_output()

    def _show_plan(self) -> None:
        self.plan_section.show(self._frame.theme)

    # -- output and Run ----------------------------------------------------------------------------------------------

    def _check_output(self) -> None:
        self._looked_s = time.monotonic()
        self.target.look(self.plan)
        if not self.running:
            self.target.list_unfinished(unfinished_runs(Path()))
        self._check_run()
        if self.target.busy:
            self._worker.pump()

    def _check_run(self) -> None:
        self.target.allow(self.plan, self.form.complaints, running=self.running)

    def _current(self) -> tuple[ModelChoice, str, DiffusionQuantConfig | None]:
        return self.choice, self.output.value, self.form.config

    # -- the run -----------------------------------------------------------------------------------------------------

    def _run_changed(self) -> None:
        """Follow the run: what the user changed of single layers enters the form, and so YAML and copies."""
        if self.run_view is None:
            return
        session, shown = self.run_view.session, self.form.config
        if session.config is not None and shown is not None and not session.running:
            changed = {name: getattr(session.config, name) for name in ("layer_bit_widths", "layer_methods")}
            if any(getattr(shown, name) != value for name, value in changed.items()):
                self.form.set_config(shown.replace(**changed))
        self._check_output()

    def _toggle_form(self) -> None:
        shown = self._form_place.layout.display != "none"
        self._form_place.layout.display = "none" if shown else ""
        if self.run_view is not None:
            self.run_view.settings.description = "Show settings" if shown else "Hide settings"

    def _tick(self) -> bool:
        if self._plan_due:
            self._replan()
        waits = self.target.busy and not self.running
        if waits and time.monotonic() - self._looked_s > LOOK_AGAIN_S:
            self._check_output()
        return self.runs.tick() or waits

    def _dress(self, theme: str, width: int) -> None:
        self.runs.dress(theme, width)
        self._show_plan()

    def __repr__(self) -> str:
        return f"Studio({self.model!r}{', running' if self.running else ''})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)
