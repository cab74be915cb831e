"""The plan that is shown before a run, from headers alone: no weight is read.

Under a size limit the widths are provisional, because the run measures the layers and then chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.runs.planning import make_plan
from arrowquant_nb.runs.widths import provisional

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.results import Plan
    from arrowquant_nb.runs.model_choice import ModelChoice


def plan_model(choice: ModelChoice, config: DiffusionQuantConfig) -> Plan:
    """Open a model's headers and plan it; see `ArrowQuantV2.plan`."""
    with choice.opened(config) as opened:
        return make_plan(opened.decisions, provisional(opened.tasks, opened.checkpoint, config), config)
