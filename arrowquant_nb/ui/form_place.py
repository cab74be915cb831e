"""Where the parts of the studio's form stand: model, settings with the plan beside them, run. Holds no logic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import ipywidgets as widgets

if TYPE_CHECKING:
    from arrowquant_nb.ui.forecast_panel import ForecastPanel
    from arrowquant_nb.ui.form import Form
    from arrowquant_nb.ui.model_picker import ModelPicker
    from arrowquant_nb.ui.plan_section import PlanSection
    from arrowquant_nb.ui.run_section import RunSection
    from arrowquant_nb.ui.settings_bar import SettingsBar

__all__ = ["LIMIT", "form_place"]

LIMIT: Final = "target_model_size_mb"
"""The field that the forecast's slider moves."""


def form_place(
    picker: ModelPicker,
    form: Form,
    forecast: ForecastPanel,
    plan: PlanSection,
    target: RunSection,
    settings: SettingsBar,
) -> widgets.VBox:
    """Return all parts in their places."""
    form.put_beside(LIMIT, forecast.slider, forecast.hint, forecast.lift)
    reset = widgets.HBox([form.changes, form.reset])
    reset.add_class("aq-row")
    left = widgets.VBox(
        [form.basic, form.advanced, reset, forecast.widget], layout={"flex": "2 1 560px", "min_width": "0"}
    )
    body = widgets.HBox([left, plan.widget], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
    setup = widgets.VBox([widgets.HTML("<h3>2 Settings</h3>"), body])
    run = widgets.VBox([widgets.HTML("<h3>3 Run</h3>"), target.widget, settings.widget, target.status])
    for section in (setup, run):
        section.add_class("aq-section")
    return widgets.VBox([picker.widget, setup, run])
