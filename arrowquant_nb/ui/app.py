"""The studio: choose a model, set it up, see the plan, run, look, change a layer, save. One cell, one figure.

Joins the parts; each part says what happened to it, and this is where that reaches the others.
"""

from __future__ import annotations

import importlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import ipywidgets as widgets

from arrowquant_nb import samples
from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.config import DiffusionQuantConfig, field_facts
from arrowquant_nb.errors import ArrowQuantError, ConfigurationError
from arrowquant_nb.ui.forecast_panel import ForecastPanel
from arrowquant_nb.ui.form import Form
from arrowquant_nb.ui.frame import Frame
from arrowquant_nb.ui.live_figure import load_plotly
from arrowquant_nb.ui.model_picker import ModelPicker
from arrowquant_nb.ui.output_folder import OutputFolder, free_name
from arrowquant_nb.ui.plan_change import change_words, setting_words
from arrowquant_nb.ui.plan_view import NO_MODEL, plan_html
from arrowquant_nb.ui.run_words import megabytes
from arrowquant_nb.ui.settings_bar import SettingsBar
from arrowquant_nb.ui.worker import Worker

if TYPE_CHECKING:
    from arrowquant_nb.results import Plan
    from arrowquant_nb.ui.run_view import RunView

__all__ = ["Studio", "studio"]

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
    form, picker, settings : the parts of the form.
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
        self._folder = OutputFolder()
        self._planned_with: DiffusionQuantConfig | None = None
        self._change = ""
        self._output_given = False
        self._plan_box = widgets.HTML(layout={"flex": "1 1 340px", "min_width": "300px"})
        self.forecast = ForecastPanel(self._worker, lambda: (self.model, self.form.config), self._limit)
        self.output = widgets.Text(description="Output", layout={"width": "360px"})
        self.output.style.description_width = "48px"
        self.output_words = widgets.HTML()
        self.another = widgets.Button(description="Use another name", layout={"width": "auto", "display": "none"})
        self.run = widgets.Button(description="Run", tooltip="Quantize the model", layout={"width": "auto"})
        self.run.add_class("aq-run")
        self.why_off = widgets.HTML()
        self.status = widgets.HTML("<span role='status' aria-live='polite'>Ready. Nothing has been written.</span>")
        self.settings = SettingsBar(self._current, self.form.set_config, self._frame.bridge)
        self._run_place = widgets.VBox([])
        self._form_place = self._assemble()
        self._frame.content.children = (self._form_place, self._run_place)
        self.run.on_click(lambda _: self.start())
        self.another.on_click(lambda _: self._rename())
        self.output.observe(self._output_typed, names="value")
        self.form.on_change(self._changed)
        self.open(model if model is not None else samples.names()[0])
        self._worker.start("ahead", _load_ahead, lambda _: None)

    def _assemble(self) -> widgets.VBox:
        reset = widgets.HBox([self.form.changes, self.form.reset])
        reset.add_class("aq-row")
        left = widgets.VBox(
            [self.form.basic, self.form.advanced, reset, self.forecast.widget], layout={"flex": "2 1 560px"}
        )
        body = widgets.HBox([left, self._plan_box], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        setup = widgets.VBox([widgets.HTML("<h3>2 Settings</h3>"), body])
        setup.add_class("aq-section")
        go = widgets.HBox([self.output, self.another, self.run, self.why_off])
        go.add_class("aq-row")
        run = widgets.VBox([widgets.HTML("<h3>3 Run</h3>"), go, self.output_words, self.settings.widget, self.status])
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
        self.status.value = ""
        self.run_view.start(self.model, Path(self.output.value), self.config)

    def drain(self) -> bool:
        """Do what is due; True while there is more to come. The notebook's loop calls it by itself."""
        return self._worker.drain()

    def close(self, timeout_s: float | None = None) -> bool:
        """Stop whatever runs, resumably; with a timeout wait for it. Return whether no thread is left."""
        ended = self._worker.stop(timeout_s)
        if self.run_view is not None:
            self.run_view.dashboard.close_viewer()
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
            if not self._output_given:
                self.output.value = f"{Path(plan.model).stem}-int{plan.bit_width}"
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

    def _output_typed(self, _: Any) -> None:
        self._output_given = self.plan is None or self.output.value != f"{self.plan.model}-int{self.plan.bit_width}"
        self._check_output()

    def _check_output(self) -> None:
        layers = [] if self.plan is None else [row.name for row in self.plan.rows if row.action == "quantized"]
        name = "" if self.plan is None else self.plan.model
        self._folder = OutputFolder.look(self.output.value, name, layers)
        kind = "" if self._folder.usable else "class='aq-error' role='alert'"
        self.output_words.value = f"<span {kind}>{escape(self._folder.words)}</span>" if self._folder.words else ""
        self.another.layout.display = "" if self._folder.words and self.output.value.strip() else "none"
        self.run.description = "Resume" if self._folder.resumable else "Run"
        self._check_run()

    def _check_run(self) -> None:
        reasons = []
        if self.form.complaints:
            n = len(self.form.complaints)
            verb = "setting needs" if n == 1 else "settings need"
            reasons.append(f"Run is off: {n} {verb} attention ({_titles(self.form.complaints)}).")
        elif self.plan is None:
            reasons.append("Run is off: no model is open.")
        elif not self._folder.usable:
            reasons.append("Run is off: choose another output.")
        self.run.disabled = bool(reasons) or self.running
        self.why_off.value = f"<span>{escape(reasons[0])}</span>" if reasons else ""

    def _rename(self) -> None:
        self.output.value = free_name(self.output.value)

    def _current(self) -> tuple[str, str, DiffusionQuantConfig | None]:
        return self.model, self.output.value, self.form.config

    # -- the run -----------------------------------------------------------------------------------------------------

    def _run_changed(self) -> None:
        """Follow the run: what the user changed of single layers enters the form, and so YAML and copies."""
        if self.run_view is None:
            return
        session = self.run_view.session
        if session.config is not None and self.form.config != session.config and not session.running:
            self.form.set_config(session.config)
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


def _titles(complaints: dict[str, str]) -> str:
    facts = field_facts()
    return ", ".join(str(facts[name]["title"]).partition(" (")[0] for name in complaints)


_LIVE: dict[str, Studio] = {}


def studio(model: str | Path | None = None, config: DiffusionQuantConfig | None = None) -> Studio:
    """Show the app in a cell: form, plan, run, dashboard.

    Parameters
    ----------
    model : a path or the name of a bundled sample; None opens the first sample.
    config : settings to begin with; default the local profile.

    Notes
    -----
    Running a cell again replaces its app: a run that goes on there stops after the piece it is at, resumably.
    """
    cell = _cell()
    old = _LIVE.pop(cell, None)
    if old is not None:
        old.replaced()
    _LIVE[cell] = Studio(model, config)
    return _LIVE[cell]


def _cell() -> str:
    """Return what tells this cell from others, "" where the front end does not say."""
    from IPython import get_ipython  # noqa: PLC0415 - not needed to import the package

    shell = get_ipython()
    parent = getattr(shell, "parent_header", None) or {}
    if shell is not None and hasattr(shell, "get_parent"):
        parent = shell.get_parent() or {}
    return str((parent.get("metadata") or {}).get("cellId", ""))
