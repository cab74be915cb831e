"""From figures to the reports of an attempt and of a layer. Decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arrowquant_nb.core.gates import NOT_MEASURED, required_cosine
from arrowquant_nb.core.strategy import other_method_reason
from arrowquant_nb.layer_reports import AttemptReport, InputReport, LayerReport

if TYPE_CHECKING:
    from arrowquant_nb.core.gates import Judgement, OutputFigures
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.core.trial_choice import Choice
    from arrowquant_nb.quantizers.tensor import LayerStatistics, QuantizedTensor


def attempt_report(
    statistics: LayerStatistics,
    task: LayerTask,
    tensor: QuantizedTensor,
    choice: Choice,
    judgement: Judgement,
    output: OutputFigures | None,
) -> AttemptReport:
    """Join an attempt's figures with the judgement on them; `tensor` is the layer or its last tile."""
    other = other_method_reason(task.method, tensor.bit_width)
    said = [judgement.sentence, choice.explain(output is not None), f"{other}." if other else ""]
    return AttemptReport(
        bit_width=tensor.bit_width,
        method=tensor.method,
        grid=tensor.grid,
        cosine=statistics.cosine,
        sqnr_db=statistics.sqnr_db,
        mse=statistics.mse,
        min_cosine=required_cosine(tensor.bit_width, task.bit_width, task.min_accuracy),
        passed=judgement.passed,
        output_sqnr=NOT_MEASURED if output is None else output.sqnr_db,
        sentence=" ".join(part for part in said if part),
        group_size=tensor.group_size,
        worst_output_sqnr=NOT_MEASURED if output is None else output.worst_sqnr_db,
        output_cosine=NOT_MEASURED if output is None else output.cosine,
        output_gain=NOT_MEASURED if output is None else output.gain,
        compared=dict(choice.compared) if len(choice.compared) > 1 else {},
        scale_format=scale_format_of(tensor),
    )


def scale_format_of(tensor: QuantizedTensor) -> str:
    """Scale format of a grid."""
    return "k" if tensor.grid == "k" else "float16"


def layer_report(
    task: LayerTask,
    statistics: LayerStatistics,
    nbytes: int,
    tensor: QuantizedTensor,
    attempts: list[AttemptReport],
    inputs: InputReport | None,
) -> LayerReport:
    """Report of a layer that is decided, by its last attempt."""
    if inputs is None and task.activation_bit_width < 16:
        inputs = InputReport(mode="per token", bit_width=task.activation_bit_width)
    branch = tensor.low_rank_a
    return LayerReport(
        name=task.name,
        shape=task.shape,
        dtype=task.dtype,
        action="quantized",
        role=task.role,
        reason=task.reason,
        rule=task.rule,
        requested_bit_width=task.bit_width,
        bit_width=tensor.bit_width,
        method=tensor.method,
        grid=tensor.grid,
        group_size=tensor.group_size,
        n_weights=task.n_weights,
        source_nbytes=task.source_nbytes,
        nbytes=nbytes,
        sqnr_db=statistics.sqnr_db,
        cosine=statistics.cosine,
        mse=statistics.mse,
        gain=statistics.gain,
        w_absmax=statistics.w_absmax,
        attempts=tuple(attempts),
        rotation_seed=tensor.rotation_seed,
        low_rank=0 if branch is None else branch.shape[1],
        inputs=inputs,
        scale_format=scale_format_of(tensor),
        held=task.held,
        folding=task.folding,
    )
