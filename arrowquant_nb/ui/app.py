"""The studio: choose a model, set it up, see the plan, run, look, change a layer, save. One cell, one figure.

Joins the parts; each part says what happened to it, and this is where that reaches the others.
"""

from __future__ import annotations

import importlib
from html import escape
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError
from arrowquant_nb.ui.forecast_panel import ForecastPanel
from arrowquant_nb.ui.form import Form
from arrowquant_nb.ui.frame import Frame
from arrowquant_nb.ui.live_figure import load_plotly
from arrowquant_nb.ui.model_picker import ModelPicker
from arrowquant_nb.ui.plan_change import change_words, setting_words
from arrowquant_nb.ui.plan_view import NO_MODEL, plan_html
from arrowquant_nb.ui.run_section import RunSection
from arrowquant_nb.ui.run_words import megabytes
from arrowquant_nb.ui.settings_bar import SettingsBar
from arrowquant_nb.ui.worker import Worker

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.results import Plan
    from arrowquant_nb.ui.run_view import RunView

__all__ = ["Studio"]

_SUBTITLE: Final = "quantize a diffusion model"
_LIMIT: Final = "target_model_size_mb"
_AHEAD: Final = "arrowquant_nb.ui.run_view"
"""Loaded beside the kernel after the first paint, with plotly: what a run needs."""


class Studio:
    """The app; a notebook shows it as what a cell returns.

    Parameters
    ----------
    model : a path or a bundled sample; None opens the first sample.

    Attributes
    ----------
    form, picker, target, settings : the parts of the form.
    output, run : where the output goes, and the button.
    plan : of the opened model under the form's settings; None while there is none.
    run_view : the runs, None before the first.
    """

    def __init__(self, model: str | Path | None = None, config: DiffusionQuantConfig | None = None) -> None:
        self._worker = Worker(self._tick)
        self._frame = Frame("ArrowQuant", _SUBTITLE, self._dress)
        self.form = Form(config)
        modality = self.form.controls.get("modality")
        self.picker = ModelPicker(self.open, None if modality is None else modality.main)
        self.model = ""
        self.plan: Plan | None = None
        self.run_view: RunView | None = None
        self._plan_due = False
        self._planned_with: DiffusionQuantConfig | None = None
        self._change = ""
        self._plan_box = widgets.HTML(layout={"flex": "1 1 300px", "min_width": "0"})
        self.forecast = ForecastPanel(self._worker, lambda: (self.model, self.form.config), self._limit)
        self.target = RunSection(self.start, self._check_output)
        self.output, self.run = self.target.output, self.target.run
        self.settings = SettingsBar(self._current, self.form.set_config, self._frame.bridge)
        self._run_place = widgets.VBox([])
        self._form_place = self._assemble()
        self._frame.content.children = (self._form_place, self._run_place)
        self.form.on_change(self._changed)
        self.open(model if model is not None else samples.names()[0])
        self._worker.start("ahead", _load_ahead, lambda _: None)

    def _assemble(self) -> widgets.VBox:
        reset = widgets.HBox([self.form.changes, self.form.reset])
        reset.add_class("aq-row")
        left = widgets.VBox(
            [self.form.basic, self.form.advanced, reset, self.forecast.widget],
            layout={"flex": "2 1 560px", "min_width": "0"},
        )
        body = widgets.HBox([left, self._plan_box], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        setup = widgets.VBox([widgets.HTML("<h3>2 Settings</h3>"), body])
        setup.add_class("aq-section")
        go = self.target
        run = widgets.VBox([widgets.HTML("<h3>3 Run</h3>"), go.row, go.words, self.settings.widget, go.status])
        run.add_class("aq-section")
        return widgets.VBox([self.picker.widget, setup, run])

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
        return self.run_view is not None and self.run_view.session.running

    @property
    def result(self) -> Any:
        """The `QuantizationResult` of the latest finished run, or None."""
        return None if self.run_view is None else self.run_view.session.result

    @property
    def selection(self) -> str:
        """Full name of the layer that is looked at, "" for none; may be set while a run is shown."""
        return "" if self.run_view is None else self.run_view.dashboard.selection

    @selection.setter
    def selection(self, name: str) -> None:
        if self.run_view is not None:
            self.run_view.dashboard.selection = name

    def open(self, model: str | Path) -> None:
        """Open a model: a bundled sample at once, a path beside the kernel."""
        self.model = str(model)
        self.plan = None
        self.picker.show(self.model)
        if self.model.removeprefix("sample:") in samples.names():
            self._replan()
            return
        self.picker.opening()
        config, opened = self.form.config or DiffusionQuantConfig(), self.model

        def done(outcome: Any) -> None:
            if self.model == opened:
                self._planned(outcome.result, outcome.error, config)

        self._worker.start("open", lambda _: ArrowQuantV2(config).plan(opened), done)

    def start(self) -> None:
        """Run with the form's settings, as the button does; nothing happens while Run is off."""
        self._check_output()
        if self.run.disabled or self.config is None:
            return
        from arrowquant_nb.ui.run_view import RunView  # noqa: PLC0415 - loads plotly, after the first paint

        if self.run_view is None:
            self.run_view = RunView(self._worker, self._run_changed, self._toggle_form)
            self._run_place.children = (self.run_view.widget,)
            self._dress(self._frame.theme, self._width())
        self._form_place.layout.display = "none"
        self.run_view.settings.description = "Show settings"
        self.target.status.value = ""
        self.run_view.start(self.model, self.target.folder, self.config)

    def drain(self) -> bool:
        """Do what is due; True while there is more to come. The notebook's loop calls it by itself."""
        return self._worker.drain()

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop whatever runs, resumably; with a timeout wait for it. Return whether no thread is left."""
        ended = self._worker.stop(timeout_s)
        if self.run_view is not None:
            self.run_view.dashboard.close_up.close()
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
        control = self.form.controls.get(_LIMIT)
        if control is not None and control.value != limit:
            control.value = limit

    def _changed(self) -> None:
        self._plan_due = True
        config = self.form.config
        self.forecast.follow(None if config is None else config.target_model_size_mb)
        self._check_run()
        self._worker.pump()

    def _replan(self) -> None:
        self._plan_due = False
        if not self.model:
            return
        config = self.form.config
        if config is None:
            self._show_plan()
            return
        try:
            plan, error = ArrowQuantV2(config).plan(self.model), None
        except ArrowQuantError as refused:
            plan, error = None, refused
        self._planned(plan, error, config)

    def _planned(self, plan: Plan | None, error: BaseException | None, config: DiffusionQuantConfig) -> None:
        before, self.plan = self.plan, plan
        old, self._planned_with = self._planned_with, config
        if plan is None:
            self._refused(error or ConfigurationError("the plan could not be made"))
        else:
            self.picker.opened(plan)
            self._label_widths()
            self.target.suggest(plan)
            if before is None or old is None:
                self._change = ""
            elif old != config:
                self._change = change_words(setting_words(old, config), before, plan)
        self._show_plan()
        self._check_output()

    def _refused(self, error: BaseException) -> None:
        self.picker.refused(error, self.model)

    def _label_widths(self) -> None:
        """Predict the size at each width, for the words on the buttons; a width that is refused has none."""
        sizes = {}
        for bits in (2, 4, 8):
            try:
                config = self.form.config.replace(bit_width=bits) if self.form.config is not None else None
                if config is not None:
                    sizes[bits] = megabytes(ArrowQuantV2(config).plan(self.model).size_mb * 1e6)
            except ArrowQuantError:
                continue
        self.form.label_widths(sizes)

    def _show_plan(self) -> None:
        if self.plan is None:
            self._plan_box.value = f"<div class='aq-plan'>{escape(NO_MODEL)}</div>"
        else:
            self._plan_box.value = plan_html(self.plan, self._change, "", self._frame.theme)

    # -- output and Run ----------------------------------------------------------------------------------------------

    def _check_output(self) -> None:
        self.target.look(self.plan)
        self._check_run()

    def _check_run(self) -> None:
        self.target.allow(self.plan, self.form.complaints, running=self.running)

    def _current(self) -> tuple[str, str, DiffusionQuantConfig | None]:
        return self.model, self.output.value, self.form.config

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
        return self.run_view is not None and self.run_view.tick()

    def _width(self) -> int:
        return max(0, self._frame.bridge.width - 26)

    def _dress(self, theme: str, width: int) -> None:
        if self.run_view is not None:
            self.run_view.dashboard.dress(theme, width)
        self._show_plan()

    def __repr__(self) -> str:
        return f"Studio({self.model!r}{', running' if self.running else ''})"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def _load_ahead(_: object) -> None:
    """Load what a run needs, plotly above all, beside the kernel."""
    importlib.import_module(_AHEAD)
    load_plotly()
