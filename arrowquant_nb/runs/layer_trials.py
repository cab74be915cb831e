"""Some rows of a layer in one way, by whichever of the run's own methods loses least.

For whoever asks before the loop does: what a way costs, and whether folding pays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb.core.recipes import recipes
from arrowquant_nb.core.trial_choice import matrix_job
from arrowquant_nb.quantizers.trials import try_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.trials import LayerInputs, Trial

    Form = tuple[int, int, str]
    """Bit width, group size and scale format."""

__all__ = ["best_trial"]


def best_trial(
    task: LayerTask,
    form: Form,
    rows: NDArray[Any],
    inputs: LayerInputs | None,
    compensated: bool,
    n_threads: int,
    cancelled: Callable[[], bool],
) -> Trial:
    """Quantize rows in one way by every method that the run would compare, and return the one with the least error.

    Raises
    ------
    InterruptedError
        `cancelled` said so.
    """
    bit_width, group_size, scales = form
    best: Trial | None = None
    for recipe in recipes(task.methods, bit_width, group_size, compensated, scales, task.columns):
        job = matrix_job(task, recipe, rows, 0, task.rotation)
        trial = try_recipe(job, inputs, compensated=compensated, n_threads=n_threads, cancelled=cancelled)
        if trial is None:
            raise InterruptedError(task.name)
        if best is None or trial.objective < best.objective:
            best = trial
    if best is None:
        raise AssertionError(task.name)
    return best
