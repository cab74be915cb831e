"""From headers and settings to what a run will do: the plan that is shown and the tasks of the loop.

Reads no weight. Says for every tensor its bit width, the reason, and its exact payload size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from arrowquant_nb.config.profiles import K_METHODS
from arrowquant_nb.core import modality as core_modality
from arrowquant_nb.core import strategy as core_strategy
from arrowquant_nb.core.gates import scale_layout
from arrowquant_nb.core.recipes import Recipe, float16_group_size
from arrowquant_nb.core.task import LayerTask
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH, Layout, grid_of
from arrowquant_nb.quantizers.low_rank import check_low_rank, effective_rank
from arrowquant_nb.quantizers.rotation import check_rotation
from arrowquant_nb.results import Plan, PlanRow, Strategy
from arrowquant_nb.runs.input_strategy import PLANNED_EQUALIZATION, input_bit_width, planned_tables
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.policy import assign_bit_widths

if TYPE_CHECKING:
    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.strategy import StrategyChoice
    from arrowquant_nb.runs.calibrating import CalibrationSource
    from arrowquant_nb.runs.locating import LocatedModel
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint
    from arrowquant_nb.storage.policy import Assignment
    from arrowquant_nb.storage.safetensors_file import TensorEntry


@dataclass(frozen=True)
class Decisions:
    """What was decided from headers and settings.

    Attributes
    ----------
    methods, compensated : grids to compare per layer, the first one first, and whether GPTQ runs over them.
    calibration : where the inputs of the layers come from, or why there are none.
    """

    model: str
    modality: str
    modality_reason: str
    strategy: Strategy
    methods: tuple[str, ...]
    compensated: bool
    calibration: CalibrationSource
    assignments: tuple[Assignment, ...]


def choose_strategy(
    modality: str, config: DiffusionQuantConfig, has_calibration: bool, calibration: str
) -> StrategyChoice:
    """Return what a modality calls for under a config, and what is used, with the reason."""
    return core_strategy.select(
        modality,
        config.bit_width,
        str(config.method),
        has_calibration,
        config.enable_time_aware,
        config.enable_spatial,
        config.activation_bit_width,
        calibration,
    )


def public_strategy(choice: StrategyChoice, config: DiffusionQuantConfig, has_calibration: bool) -> Strategy:
    """Return the form of a choice that users see."""
    return Strategy(
        preferred_method=choice.preferred_method,
        used_method=choice.used_method,
        time_aware=choice.time_aware,
        spatial=choice.spatial,
        tables=planned_tables(config, has_calibration),
        reason=f"{choice.reason}; {PLANNED_EQUALIZATION}" if choice.spatial else choice.reason,
    )


def decide(
    checkpoint: Checkpoint, located: LocatedModel, config: DiffusionQuantConfig, calibration: CalibrationSource
) -> Decisions:
    """Detect the modality, select the strategy and give every tensor its bit width."""
    explicit = str(config.modality) if config.modality is not None else None
    modality, reason = core_modality.detect(checkpoint.modality_evidence, explicit)
    assignments = assign_bit_widths(checkpoint.entries.values(), checkpoint.class_name, modality, config)
    choice = choose_strategy(modality, config, bool(calibration), calibration.description)
    return Decisions(
        located.name,
        modality,
        reason,
        public_strategy(choice, config, bool(calibration)),
        choice.methods,
        choice.compensated,
        calibration,
        tuple(assignments),
    )


def make_tasks(checkpoint: Checkpoint, decisions: Decisions, config: DiffusionQuantConfig) -> list[LayerTask]:
    """Return one task per tensor, in checkpoint order."""
    return [
        _task(index, checkpoint.entries[a.name], a, decisions, config) for index, a in enumerate(decisions.assignments)
    ]


def _task(
    index: int, entry: TensorEntry, assignment: Assignment, decisions: Decisions, config: DiffusionQuantConfig
) -> LayerTask:
    kept = assignment.bit_width == KEPT_BIT_WIDTH
    if not kept:
        check_rotation(entry.name, entry.columns, str(config.rotation), config.seed)
        check_low_rank(entry.name, entry.rows * entry.columns, config.low_rank)
    grids = _grids(entry, assignment, decisions, config)
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
        group_size=grids.group_size,
        methods=list(grids.methods),
        gain_correction=config.gain_correction,
        min_accuracy=config.min_accuracy,
        role=assignment.role,
        reason=f"{assignment.reason}; {grids.why}" if grids.why else assignment.reason,
        rule=assignment.rule,
        rotation="none" if kept else str(config.rotation),
        seed=config.seed,
        low_rank=0 if kept else effective_rank(entry.rows, entry.columns, config.low_rank),
        compensated=grids.compensated,
        min_output_sqnr_db=config.min_output_sqnr_db,
        scale_format=grids.scale_format,
        activation_bit_width=input_bit_width(assignment, config),
        ordered_method=assignment.method,
    )


@dataclass(frozen=True)
class _Grids:
    """How one layer is quantized at its width; a kept one not at all."""

    methods: tuple[str, ...] = ()
    compensated: bool = False
    group_size: int = 0
    scale_format: str = ""
    why: str = ""
    """Why it is another method than the run's, or than the ordered one; "" where it is not."""


def _grids(entry: TensorEntry, assignment: Assignment, decisions: Decisions, config: DiffusionQuantConfig) -> _Grids:
    bits = assignment.bit_width
    if bits == KEPT_BIT_WIDTH:
        return _Grids()
    group_size, scale_format = scale_layout(bits, config.group_size, str(config.scale_format))
    methods, compensated = decisions.methods, decisions.compensated
    why = core_strategy.other_method_reason(assignment.method or methods[0], bits)
    if assignment.method:
        if why and {entry.name, entry.name.removesuffix(".weight")} & set(config.layer_methods):
            raise ConfigurationError(
                f"layer_methods {entry.name!r}: {why}; order another method for it, or 2 bits in layer_bit_widths"
            )
        choice = core_strategy.select(
            decisions.modality, bits, core_strategy.method_at(assignment.method, bits), bool(decisions.calibration),
            config.enable_time_aware, config.enable_spatial, config.activation_bit_width,
            decisions.calibration.description,
        )  # fmt: skip
        methods, compensated = choice.methods, choice.compensated
        if assignment.method == core_strategy.COMPENSATED and not compensated:
            why = f"there is no calibration data ({decisions.calibration.description}), so {methods[0]} is used"
        if scale_format == "k" and assignment.method not in K_METHODS:
            reference = Recipe(
                bits, core_strategy.DIRECT_GRID, group_size, compensated=False, scale_format=scale_format
            )
            group_size, scale_format = float16_group_size(methods[0], reference, entry.columns), "float16"
    return _Grids(
        (core_strategy.method_at(methods[0], bits), *methods[1:]), compensated, group_size, scale_format, why
    )  # fmt: skip


def payload_nbytes(task: LayerTask) -> int:
    """Exact stored bytes of a task at its requested width, with float16 parameters and the low-rank branch asked for.

    Where several grids are compared it is the first one's: the others store no more.
    """
    if task.kept:
        return task.n_weights * numpy_dtype(task.dtype).itemsize
    branch = 2 * task.low_rank * (task.rows + task.columns)
    grid = grid_of(task.method, task.scale_format, task.name)
    return Layout(task.rows, task.columns, task.bit_width, task.group_size, grid).nbytes() + branch


def _shown_method(task: LayerTask) -> str:
    """Name what a task will try, such as `gptq-uls|r2q`."""
    names = "|".join(m for m in task.methods if core_strategy.method_at(m, task.bit_width) == m)
    return f"gptq-{names}" if task.compensated else names


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
            method=_shown_method(t),
            n_weights=t.n_weights,
            source_nbytes=t.source_nbytes,
            nbytes=payload_nbytes(t),
            scale_format=t.scale_format,
            ordered_method=t.ordered_method,
        )
        for t in tasks
    )
    return Plan(
        decisions.model, decisions.modality, decisions.modality_reason, decisions.strategy, config.bit_width, rows
    )
