"""From headers and settings to what a run will do: the plan that is shown and the tasks of the loop.

Reads no weight. Says for every tensor its bit width, the reason, and its exact payload size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from arrowquant_nb import samples
from arrowquant_nb.core import modality as core_modality
from arrowquant_nb.core import strategy as core_strategy
from arrowquant_nb.core.gates import scale_layout
from arrowquant_nb.core.task import LayerTask
from arrowquant_nb.errors import ModelNotFoundError
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH, Layout, grid_of
from arrowquant_nb.results import Plan, PlanRow, Strategy
from arrowquant_nb.storage.checkpoint import open_checkpoint
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.policy import assign_bit_widths

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint
    from arrowquant_nb.storage.policy import Assignment
    from arrowquant_nb.storage.safetensors_file import TensorEntry


@dataclass(frozen=True)
class LocatedModel:
    """Where a model is.

    Attributes
    ----------
    path : its folder or file.
    name : what to call it; never a path.
    argument : what finds it again: an absolute path, or the name of a bundled sample.
    """

    path: Path
    name: str
    argument: str


SAMPLE_PREFIX = "sample:"


def locate_model(model: str | Path) -> LocatedModel:
    """Find a model: the bare name of a bundled sample is that sample, anything else a path.

    A folder that is called like a sample is written with its path, such as `./digits-dit`.

    Raises
    ------
    ModelNotFoundError
        Neither a path nor a bundled sample.
    """
    name = str(model).removeprefix(SAMPLE_PREFIX)
    if name in samples.names() and not isinstance(model, Path):
        return LocatedModel(samples.load(name), name, SAMPLE_PREFIX + name)
    path = Path(model)
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{str(model)[:200]!r} cannot be looked at: {error}") from error
    if there:
        return LocatedModel(path, path.resolve().name, str(path.resolve()))
    raise ModelNotFoundError(
        f"there is no model at {str(model)!r}, and no bundled sample of that name; "
        f"the samples are: {', '.join(samples.names())}"
    )


@dataclass(frozen=True)
class Decisions:
    """What was decided from headers and settings."""

    model: str
    modality: str
    modality_reason: str
    strategy: Strategy
    assignments: tuple[Assignment, ...]


def select_strategy(modality: str, config: DiffusionQuantConfig) -> Strategy:
    """Return preferred and used method of a modality under a config, with the reason; nothing is calibrated yet."""
    choice = core_strategy.select(
        modality, config.bit_width, str(config.method), False, config.enable_time_aware, config.enable_spatial
    )
    return Strategy(
        preferred_method=choice.preferred_method,
        used_method=choice.used_method,
        time_aware=choice.time_aware,
        spatial=choice.spatial,
        tables="none (weights only)",
        reason=choice.reason,
    )


def decide(checkpoint: Checkpoint, model: str, config: DiffusionQuantConfig) -> Decisions:
    """Detect the modality, select the strategy and give every tensor its bit width."""
    explicit = str(config.modality) if config.modality is not None else None
    modality, reason = core_modality.detect(checkpoint.modality_evidence, explicit)
    assignments = assign_bit_widths(checkpoint.entries.values(), checkpoint.class_name, modality, config)
    return Decisions(model, modality, reason, select_strategy(modality, config), tuple(assignments))


def make_tasks(checkpoint: Checkpoint, decisions: Decisions, config: DiffusionQuantConfig) -> list[LayerTask]:
    """Return one task per tensor, in checkpoint order."""
    return [
        _task(index, checkpoint.entries[a.name], a, decisions.strategy.used_method, config)
        for index, a in enumerate(decisions.assignments)
    ]


def _task(
    index: int, entry: TensorEntry, assignment: Assignment, method: str, config: DiffusionQuantConfig
) -> LayerTask:
    kept = assignment.bit_width == KEPT_BIT_WIDTH
    group_size, scale_format = scale_layout(assignment.bit_width, config.group_size, str(config.scale_format))
    return LayerTask(
        index=index,
        file=str(entry.file),
        name=entry.name,
        shape=entry.shape,
        dtype=entry.kept_dtype if kept else entry.dtype,
        rows=entry.rows,
        columns=entry.columns,
        source_nbytes=entry.nbytes,
        bit_width=assignment.bit_width,
        group_size=0 if kept else group_size,
        method="" if kept else method,
        gain_correction=config.gain_correction,
        min_accuracy=config.min_accuracy,
        role=assignment.role,
        reason=assignment.reason,
        rule=assignment.rule,
        scale_format="" if kept else scale_format,
    )


def payload_nbytes(task: LayerTask) -> int:
    """Exact stored bytes of a task at its requested width with float16 scales."""
    if task.kept:
        return task.n_weights * numpy_dtype(task.dtype).itemsize
    grid = grid_of(task.method, task.scale_format, task.name)
    return Layout(task.rows, task.columns, task.bit_width, task.group_size, grid).nbytes()


def make_plan(decisions: Decisions, tasks: list[LayerTask], config: DiffusionQuantConfig) -> Plan:
    """Return the plan to show."""
    rows = tuple(
        PlanRow(
            name=t.name,
            shape=t.shape,
            dtype=t.dtype,
            action="kept" if t.kept else "quantized",
            role=t.role,
            reason=t.reason,
            rule=t.rule,
            bit_width=t.bit_width,
            group_size=t.group_size,
            method=t.method,
            n_weights=t.n_weights,
            source_nbytes=t.source_nbytes,
            nbytes=payload_nbytes(t),
            scale_format=t.scale_format,
        )
        for t in tasks
    )
    return Plan(
        decisions.model, decisions.modality, decisions.modality_reason, decisions.strategy, config.bit_width, rows
    )


def plan_model(
    model: str | Path,
    config: DiffusionQuantConfig,
    *,
    requantize: bool = False,
    component: str | None = None,
    variant: str | None = None,
) -> Plan:
    """Open a model's headers and plan it; see `ArrowQuantV2.plan`."""
    located = locate_model(model)
    with open_checkpoint(located.path, component, variant, requantize=requantize) as checkpoint:
        decisions = decide(checkpoint, located.name, config)
        return make_plan(decisions, make_tasks(checkpoint, decisions, config), config)
