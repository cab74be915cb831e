"""Synthetic calibration: seeded noise at evenly spread timesteps through a runnable model.

For models whose trajectories cannot be followed or take too long. Nearly clean steps are then given pure noise, so
the statistics are coarser than a capture's. Without a model that runs nothing is invented.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.calibration.capture import Call, record
from arrowquant_nb.calibration.inputs import FIT, HELD_OUT
from arrowquant_nb.calibration.statistics import Calibration, CalibrationSettings, model_hash
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.samples.runnable import Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from arrowquant_nb.calibration.capture import Progress
    from arrowquant_nb.samples.runnable import RunnableModel


def calibrate_on_noise(
    model: RunnableModel,
    settings: CalibrationSettings | None = None,
    layers: Collection[str] | None = None,
    progress: Progress | None = None,
    template: Step | None = None,
) -> Calibration:
    """Run noise through a model and record the inputs of its layers.

    Parameters
    ----------
    model, layers, progress
        See `capture`.
    settings
        `n_steps` timesteps; calls of a batch each until there are `n_samples` per timestep.
    template
        A call to copy names, shapes and dtypes from; None takes the first one of a trajectory. Its float inputs are
        replaced by standard normal noise, its integer inputs (classes) stay as they are.

    Raises
    ------
    ConfigurationError
        The model has no float input: token ids cannot be noise.

    """
    settings = settings or CalibrationSettings()
    if template is None:
        template = next(iter(model.trajectories(min(settings.batch_samples, settings.n_samples), settings.seed)))
    if not any(values.dtype.kind == "f" for values in template.inputs.values()):
        raise ConfigurationError(
            f"calibration: the model takes {', '.join(template.inputs) or 'nothing'}, and none of it is noise; follow "
            "its trajectories instead, or give a calibration file"
        )
    n_fit = -(-settings.n_samples // settings.batch_samples)
    n_held_out = -(-settings.n_held_out // settings.batch_samples)
    fit_share = n_fit / (n_fit + n_held_out)
    captured = record(
        model,
        _noise_calls(template, settings, FIT, n_fit, 0.0, fit_share),
        _noise_calls(template, settings, HELD_OUT, n_held_out, fit_share, 1.0),
        settings,
        layers,
        progress,
    )
    return Calibration(captured, "synthetic", settings, model_hash(model.weights))


def spread_timesteps(n_timesteps: int, n_steps: int) -> list[int]:
    """Return timesteps at equal distances, the last training timestep first ("trailing" spacing)."""
    n = min(n_steps, n_timesteps)
    return [(n - i) * n_timesteps // n - 1 for i in range(n)]


def _noise_calls(
    template: Step, settings: CalibrationSettings, which: int, n_batches: int, begin: float, end: float
) -> Iterator[Call]:
    times = spread_timesteps(settings.n_timesteps, settings.n_steps)
    for batch in range(n_batches):
        for number, time in enumerate(times):
            rng = np.random.default_rng([settings.seed, which, batch, time])
            inputs = {
                name: rng.standard_normal(values.shape).astype(values.dtype) if values.dtype.kind == "f" else values
                for name, values in template.inputs.items()
            }
            done = (batch + number / len(times)) / n_batches
            yield Call(Step(inputs, time), 1 / n_batches, begin + (end - begin) * done, time)
