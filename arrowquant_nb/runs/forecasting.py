"""A run's size and quality before it: costs from a sample of rows, added up over the layers.

Noise of single layers adds up at the network's output as long as it is small; how well was measured on the bundled
models, and stands in the interval.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from arrowquant_nb import samples
from arrowquant_nb.calibration.cache import cache_folder, is_kept
from arrowquant_nb.calibration.statistics import CalibrationSettings
from arrowquant_nb.core.gates import fallback_chain, required_cosine, scale_layout
from arrowquant_nb.costs import sqnr_db
from arrowquant_nb.forecasts import Forecast, Interval
from arrowquant_nb.runs.calibrating import calibrate, own_trajectories
from arrowquant_nb.runs.costing import measure_model
from arrowquant_nb.runs.input_strategy import ROUNDED_ROLES
from arrowquant_nb.runs.planning import payload_nbytes
from arrowquant_nb.runs.preparation import prepare
from arrowquant_nb.runs.size_budget import MEGABYTE, SizeBudget, judged, kept_forecast, way_forecast
from arrowquant_nb.runs.widths import keep_sensitive

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.gates import Judgement
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.costs import LayerCosts, WayCost
    from arrowquant_nb.forecasts import LayerForecast
    from arrowquant_nb.runs.calibrating import CalibrationSource, RunCalibration
    from arrowquant_nb.runs.costing import ModelCosts
    from arrowquant_nb.runs.model_choice import ModelChoice

# Trajectories of a calibration that nobody has kept yet: enough for a forecast, done in seconds.
QUICK_TRAJECTORIES: Final = 8
# Half-width of the interval of the network's output beside the sampling error: noise of layers is not quite additive,
# and few trajectories are not all. Runs of the bundled models came out 1.6 dB below to 1.0 dB above what was told.
ADDITIVITY_DB: Final = 2.0
# A layer whose figures lie this close to its gate may fall back.
NEAR_DB: Final = 1.0
# Half-width beside the sampling error for the weights: a run with more calibration compensates a little differently.
WEIGHTS_DB: Final = 0.5
# Two standard errors: nineteen times out of twenty.
DEVIATES: Final = 2.0


def forecast_model(
    choice: ModelChoice, config: DiffusionQuantConfig, progress: Callable[[float], None] = lambda _: None
) -> Forecast:
    """Forecast a run; see `ArrowQuantV2.forecast`."""
    began = time.perf_counter()
    # A size limit chooses among all ways, and which layers are sensitive is told at the narrowest of them.
    every_way = config.target_model_size_mb is not None or config.skip_sensitive_layers
    found = _measured(choice, config, progress, every_way=every_way)
    layers, high = _expected(found, config)
    limit = found.budget
    return Forecast(
        model=limit.model,
        size_mb=_size(found, layers, high, config),
        network_sqnr_db=_network(found, layers),
        weight_sqnr_db=_weights(found, layers),
        layers=tuple(layers),
        calibration=limit.calibration,
        reused=found.costs.reused,
        seconds=time.perf_counter() - began,
        target_mb=config.target_model_size_mb,
        warnings=found.warnings,
    )


def budget_model(
    choice: ModelChoice, config: DiffusionQuantConfig, progress: Callable[[float], None] = lambda _: None
) -> SizeBudget:
    """Measure a model for any size limit; see `ArrowQuantV2.budget`."""
    return _measured(choice, config, progress, every_way=True).budget


@dataclass(frozen=True, eq=False)
class _Measured:
    """A model whose costs are known."""

    tasks: list[LayerTask]
    costs: ModelCosts
    budget: SizeBudget
    warnings: tuple[str, ...]
    spatial: bool
    """Whether a layer's channels may be equalized, which stores a float16 for each."""


def _measured(
    choice: ModelChoice, config: DiffusionQuantConfig, progress: Callable[[float], None], *, every_way: bool
) -> _Measured:
    def passes(task: LayerTask, way: WayCost) -> bool:
        return _verdict(way, task, config, NEAR_DB).passed

    with choice.opened(config) as opened:
        tasks = opened.tasks
        inputs = quick_calibration(opened.decisions.calibration, tasks, config, lambda part: progress(part / 2))
        prepared = prepare(opened, inputs, config)
        found = measure_model(
            prepared, config.num_threads, lambda part: progress((1 + part) / 2), enough=None if every_way else passes
        )
        tasks = prepared.tasks
        if config.skip_sensitive_layers:
            tasks = keep_sensitive(tasks, found.by_name, prepared.checkpoint)
    budget = SizeBudget(opened.decisions.model, tasks, found.by_name, config, inputs.source.description)
    warnings = (*inputs.warnings, *found.warnings)
    return _Measured(tasks, found, budget, warnings, spatial=opened.decisions.strategy.spatial)


def quick_calibration(
    source: CalibrationSource,
    tasks: Sequence[LayerTask],
    config: DiffusionQuantConfig,
    progress: Callable[[float], None],
) -> RunCalibration:
    """Return the run's own calibration where it is at hand, else one of few trajectories."""
    if source.sample is not None and source.file is None:
        model = samples.runnable(source.sample)
        settings = CalibrationSettings(n_samples=config.calibration_samples, seed=config.seed)
        wanted = {task.name for task in tasks if not task.kept}
        layers = [name for name in model.layers() if name in wanted]
        few = min(QUICK_TRAJECTORIES, config.calibration_samples)
        if layers and not is_kept(model, settings, layers, folder=cache_folder(os.environ)):
            config = config.replace(calibration_samples=few)
            source = replace(source, description=own_trajectories(few, config.seed))
    return calibrate(source, tasks, config, progress)


def _expected(found: _Measured, config: DiffusionQuantConfig) -> tuple[list[LayerForecast], int]:
    """Return every layer as it would be stored, and what near fallbacks and equalization would add to the payload."""
    if config.target_model_size_mb is not None:
        return list(found.budget.solve(config.target_model_size_mb).layers), 0
    layers, more = [], 0
    for task in found.tasks:
        if task.name not in found.costs.by_name:
            continue
        costs = found.costs.by_name[task.name]
        if task.kept:
            layers.append(kept_forecast(costs))
            continue
        way, said = _stored_as(costs, task, config, 0.0)
        wider, _ = _stored_as(costs, task, config, NEAR_DB)
        scales = 2 * task.columns if found.spatial and task.role in ROUNDED_ROLES else 0
        more += max(0, wider.nbytes - way.nbytes) + scales
        layers.append(way_forecast(costs, way, task.bit_width, f"{said}{costs.sentence}"))
    return layers, more


def _stored_as(
    costs: LayerCosts, task: LayerTask, config: DiffusionQuantConfig, margin_db: float
) -> tuple[WayCost, str]:
    """Return the first way of the fallback chain that passes its gate, the last where none does; and why."""
    said = ""
    way = costs.ways[-1]
    for bits in fallback_chain(task.bit_width):
        way = costs.way(bits, *scale_layout(bits, task.group_size, task.scale_format)) or way
        verdict = _verdict(way, task, config, margin_db)
        if verdict.passed:
            break
        said += f"{verdict.sentence} "
    return way, said


def _verdict(way: WayCost, task: LayerTask, config: DiffusionQuantConfig, margin_db: float) -> Judgement:
    """Judge a way as the run would, its figures made worse by a margin."""
    cosine = required_cosine(way.bit_width, task.bit_width, task.min_accuracy)
    return judged(way, task.bit_width, cosine, config.min_output_sqnr_db, margin_db)


def _way(costs: LayerCosts, layer: LayerForecast) -> WayCost | None:
    return costs.way(layer.bit_width, layer.group_size, layer.scale_format)


def _size(found: _Measured, layers: list[LayerForecast], more: int, config: DiffusionQuantConfig) -> Interval:
    stored = {layer.name: layer.nbytes for layer in layers}
    nbytes = sum(stored.get(task.name, payload_nbytes(task)) for task in found.tasks)
    planned = nbytes if config.target_model_size_mb is not None else sum(payload_nbytes(t) for t in found.tasks)
    return Interval(nbytes / MEGABYTE, planned / MEGABYTE, (nbytes + more) / MEGABYTE)


def _network(found: _Measured, layers: list[LayerForecast]) -> Interval | None:
    """Add up what single layers cost at the network's output; None where one is not known."""
    total = variance = 0.0
    for layer in layers:
        way = _way(found.costs.by_name[layer.name], layer)
        if way is None:
            continue
        if isinstance(way.network_noise, str):
            return None
        total += way.network_noise
        variance += (way.network_noise * way.spread) ** 2
    return _interval(total, math.sqrt(variance), ADDITIVITY_DB)


def _weights(found: _Measured, layers: list[LayerForecast]) -> Interval:
    """Signal over error of all quantized weights together."""
    noise = power = variance = 0.0
    for layer in layers:
        costs = found.costs.by_name[layer.name]
        way = _way(costs, layer)
        if way is None:
            continue
        power += costs.power
        noise += way.weight_noise * costs.power
        variance += (way.weight_noise * way.weight_spread * costs.power) ** 2
    return _interval(noise / power if power else 0.0, math.sqrt(variance) / power if power else 0.0, WEIGHTS_DB)


def _interval(noise: float, error: float, margin_db: float) -> Interval:
    """Noise and its standard error as decibels, widened by `margin_db` on both sides."""
    if noise <= 0.0:
        return Interval(math.inf, math.inf, math.inf)
    high = sqnr_db(max(noise - DEVIATES * error, noise / 10.0)) + margin_db
    return Interval(sqnr_db(noise), sqnr_db(noise + DEVIATES * error) - margin_db, high)
