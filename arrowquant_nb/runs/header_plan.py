"""The plan that is shown before a run, from headers alone: no weight is read.

Under a size limit the widths are provisional, because the run measures the layers and then chooses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.runs.calibrating import find_source
from arrowquant_nb.runs.locating import locate_model
from arrowquant_nb.runs.planning import decide, make_plan, make_tasks
from arrowquant_nb.runs.widths import provisional
from arrowquant_nb.storage.checkpoint import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.results import Plan


def plan_model(
    model: str | Path,
    config: DiffusionQuantConfig,
    *,
    requantize: bool = False,
    component: str | None = None,
    variant: str | None = None,
    calibration: str | Path | None = None,
) -> Plan:
    """Open a model's headers and plan it; see `ArrowQuantV2.plan`."""
    located = locate_model(model)
    with open_checkpoint(located.path, component, variant, requantize=requantize) as checkpoint:
        decisions = decide(checkpoint, located, config, find_source(located, config, calibration))
        return make_plan(decisions, provisional(make_tasks(checkpoint, decisions, config), checkpoint, config), config)
