"""A model's costs: which layers are open, a sample of their rows, and the figures, measured now or earlier.

Joins a checkpoint and its calibration for `measuring.py`; who asks is a forecast, a size budget or a run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import xxhash

from arrowquant_nb.calibration.cache import cache_folder
from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.runs.cost_cache import FOLDER, content_key, read_costs, write_costs
from arrowquant_nb.runs.measuring import SampledLayer, judged, kept_nbytes, measure_layers, pieces_of
from arrowquant_nb.runs.settings_hash import ALGORITHM_VERSION
from arrowquant_nb.samples.probe import Probe
from arrowquant_nb.samples.runnable import CALIBRATION
from arrowquant_nb.storage.policy_table import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.costs import LayerCosts, WayCost
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.samples import Sample
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint

# Raised whenever the same rows would give other figures.
COSTS_VERSION: Final = 4
# The network calls that a layer alone is judged on; of other trajectories than the run's calibration.
PROBE_TRAJECTORIES: Final = 4
PROBE_STEPS: Final = 4
PROBE_SEED: Final = 1_000_003


@dataclass(frozen=True, eq=False)
class ModelCosts:
    """What every way of storing every quantized layer costs."""

    layers: tuple[LayerCosts, ...]
    """In checkpoint order; kept tensors have none."""
    reused: bool
    """Measured by an earlier call."""
    warnings: tuple[str, ...]
    """What was wrong with the cache."""

    def __getitem__(self, name: str) -> LayerCosts:
        return self.by_name[name]

    @property
    def by_name(self) -> dict[str, LayerCosts]:
        """By weight name."""
        return {layer.name: layer for layer in self.layers}


def is_open(task: LayerTask) -> bool:
    """Tell whether no rule decides a layer's width: not the user's, not its class's."""
    return task.rule == "bit_width" and task.bit_width != KEPT_BIT_WIDTH and not ROLES[task.role].least_bit_width


def measure_model(
    prepared: PreparedModel,
    n_threads: int = 0,
    progress: Callable[[float], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    enough: Callable[[LayerTask, WayCost], bool] | None = None,
) -> ModelCosts:
    """Measure what the ways of storing each quantized layer cost, or take it from the cache.

    A model that cannot be run here has no figures of its network's output. With `enough` only the planned way of each
    layer is measured, and wider ones as long as it says no.
    """
    calibration, model = prepared.calibration, prepared.runnable()
    planned = enough is not None
    layers = [_sampled(prepared.checkpoint, task, planned) for task in prepared.tasks if not task.kept]
    groups = prepared.inputs.n_time_groups if calibration.hash else 0
    entry = content_key([COSTS_VERSION, ALGORITHM_VERSION, calibration.hash, groups, _network_facts(model)])
    keys = [content_key(_facts(layer)) for layer in layers]
    folder = cache_folder(os.environ).with_name(FOLDER)
    found, warning = read_costs(folder, entry)
    missing = [layer for layer, key in zip(layers, keys, strict=True) if key not in found]
    said = [warning]
    if missing:
        probe = None
        if model is not None:
            with single_threaded_blas():  # faster on small matrices, and the same figures for any number of threads
                probe = Probe.of(model, PROBE_TRAJECTORIES, PROBE_SEED, PROBE_STEPS, CALIBRATION)
        measured = measure_layers(
            missing,
            prepared.inputs.float_inputs,
            probe,
            n_threads,
            progress,
            cancelled,
            enough or (lambda _task, _way: False),
        )
        by_name = {costs.name: costs for costs in measured}
        found |= {key: by_name[layer.task.name] for layer, key in zip(layers, keys, strict=True) if layer in missing}
        said.append(write_costs(folder, entry, found))
    progress(1.0)
    costs = judged([found[key] for key in keys])
    return ModelCosts(costs, reused=not missing, warnings=tuple(text for text in said if text))


def _sampled(checkpoint: Checkpoint, task: LayerTask, planned_only: bool) -> SampledLayer:
    pieces = pieces_of(task)
    read = [checkpoint.read_rows(task.name, first, count) for first, count in pieces]
    rows = np.ascontiguousarray(np.concatenate(read)) if len(read) > 1 else np.ascontiguousarray(read[0])
    kept = kept_nbytes(task, checkpoint.entries[task.name].kept_dtype)
    return SampledLayer(task, is_open(task), tuple(first for first, _ in pieces), rows, kept, planned_only)


def _facts(layer: SampledLayer) -> list[Any]:
    """Everything about a layer that decides a figure."""
    task, rows = layer.task, layer.rows
    return [
        task.name, list(task.shape), str(rows.dtype), xxhash.xxh3_128_hexdigest(rows.view(np.uint8).data),
        layer.first_rows, layer.open, layer.forms, layer.planned_only,
        task.methods, task.compensated, task.gain_correction, task.rotation,
        task.seed if task.rotation != "none" else 0, task.low_rank, layer.kept_nbytes,
        *([task.min_accuracy, task.min_output_sqnr_db] if layer.planned_only else []),
    ]  # fmt: skip


def _network_facts(model: Sample | None) -> list[Any]:
    if model is None:
        return []
    digest = xxhash.xxh3_128()
    for name, weight in model.weights.items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(weight).data)
    return [digest.hexdigest(), PROBE_TRAJECTORIES, PROBE_STEPS, PROBE_SEED]
