"""The plan beside the form: what the model would become, what the last change did, what each width would take."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import ipywidgets as widgets

from arrowquant_nb.api import ArrowQuantV2
from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.ui.plan_change import change_words, setting_words
from arrowquant_nb.ui.plan_view import NO_MODEL, plan_html
from arrowquant_nb.ui.run_words import megabytes

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.results import Plan
    from arrowquant_nb.runs.model_choice import ModelChoice

__all__ = ["PlanSection", "width_sizes"]


class PlanSection:
    """Shows a plan.

    Attributes
    ----------
    widget : the panel.
    plan : what is shown, None while there is none.
    """

    def __init__(self) -> None:
        self.widget = widgets.HTML(layout={"flex": "1 1 300px", "min_width": "0"})
        self.plan: Plan | None = None
        self._made_with: DiffusionQuantConfig | None = None
        self._change = ""

    def forget(self) -> None:
        """Let go of the plan: another model is opened."""
        self.plan = None

    def take(self, plan: Plan | None, config: DiffusionQuantConfig) -> None:
        """Take a newer plan, made with these settings; None where they were refused."""
        before, self.plan = self.plan, plan
        old, self._made_with = self._made_with, config
        if plan is None:
            return
        if before is None or old is None:
            self._change = ""
        elif old != config:
            self._change = change_words(setting_words(old, config), before, plan)

    def show(self, theme: str) -> None:
        """Paint it."""
        if self.plan is None:
            self.widget.value = f"<div class='aq-plan'>{escape(NO_MODEL)}</div>"
        else:
            self.widget.value = plan_html(self.plan, self._change, "", theme)


def width_sizes(choice: ModelChoice, config: DiffusionQuantConfig) -> dict[int, str]:
    """Return the predicted size at each bit width, in words; a width that is refused has none."""
    sizes = {}
    for bits in (2, 4, 8):
        try:
            plan = ArrowQuantV2(config.replace(bit_width=bits)).plan(choice.model, **choice.parts)
            sizes[bits] = megabytes(plan.size_mb * 1e6)
        except ArrowQuantError:
            continue
    return sizes
