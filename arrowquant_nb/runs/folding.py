"""Where a run puts equalization into the weights before a layer, so that nothing divides when the model runs.

Decided before the loop, because what makes an input may be stored long before what reads it: scales are searched for
all layers of an input together, and kept where the run's own methods then lose less at these layers' outputs, on a
sample of their rows. From there on the run quantizes the folded model: its weights, and inputs that come divided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb import samples
from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.quantizers.folding import FoldablePlace, foldable_places, plan_folding
from arrowquant_nb.runs.calibrating import USER_RULES
from arrowquant_nb.runs.layer_trials import best_trial
from arrowquant_nb.storage.folded_checkpoint import folded_checkpoint
from arrowquant_nb.storage.safetensors_file import QUANTIZABLE_DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.quantizers.folded_tensor import FoldedTensor
    from arrowquant_nb.quantizers.layer_inputs import LayerInputs
    from arrowquant_nb.runs.layer_inputs import LayerInputSearch
    from arrowquant_nb.samples import Sample
    from arrowquant_nb.storage.checkpoint_reader import Checkpoint
    from arrowquant_nb.storage.quantized import QuantizedModel

LEAST_GAIN_DB: Final = 0.2
"""Folding that gains less changes kept tensors for nothing; as little as a table of timestep groups must gain."""
SAMPLED_ROWS: Final = 256
"""Rows of a layer that the ways are compared on, evenly spread."""


@dataclass(frozen=True, eq=False)
class RunFolding:
    """What a run folds."""

    equalizations: Mapping[str, Equalization] = field(default_factory=dict)
    """Layer -> what its input comes divided by, with what that gains."""
    tensors: Mapping[str, FoldedTensor] = field(default_factory=dict)
    """Tensor -> how it changes: those layers, and what makes their inputs."""

    def __bool__(self) -> bool:
        """Whether anything is folded."""
        return bool(self.tensors)

    def checkpoint(self, source: Checkpoint) -> Checkpoint:
        """Return the float model as it is quantized."""
        return folded_checkpoint(source, self.tensors)

    def tasks(self, tasks: Sequence[LayerTask], checkpoint: Checkpoint) -> list[LayerTask]:
        """Return the tasks of a run, those of changed tensors saying so; `checkpoint` is the folded one."""
        return [
            task.folded(self.tensors[task.name].words, checkpoint.entries[task.name].kept_dtype)
            if task.name in self.tensors
            else task
            for task in tasks
        ]

    def inputs(self, layer: str, known: LayerInputs | None) -> LayerInputs | None:
        """Return what is known of a layer's input as it comes to the folded layer."""
        if known is None or layer not in self.equalizations:
            return known
        return known.divided(self.equalizations[layer])

    def sample(self, model: Sample | None, name: str) -> Sample | None:
        """Return a runnable model over the folded weights."""
        if model is None or not self.tensors:
            return model
        changed = {key: tensor.whole(model.weights[key]) for key, tensor in self.tensors.items()}
        return samples.runnable(name, {**model.weights, **changed})

    def key(self, tensor: str) -> str:
        """Return what a stored layer depends on of what happens to it, "" where nothing does."""
        if tensor not in self.tensors:
            return ""
        own = self.equalizations.get(tensor)
        reported = "" if own is None else f", exponent {own.alpha}, {own.gain_db.hex()} dB"
        return f"{self.tensors[tensor].key}{reported}"


NOTHING_FOLDED: Final = RunFolding()


def decide_folding(
    checkpoint: Checkpoint,
    tasks: Sequence[LayerTask],
    inputs: LayerInputSearch,
    n_threads: int,
    cancelled: Callable[[], bool],
) -> RunFolding:
    """Say where equalization is folded.

    Only where every layer that reads the input is quantized and was observed, and nothing that makes it is kept by a
    rule of the user's or is a kept matrix: of what is carried over only vectors change, biases and norms. Where one
    source makes two inputs (image and text behind joint attention) the scales are those found for the first.

    Raises
    ------
    InterruptedError
        `cancelled` said so.
    """
    by_name = {task.name: task for task in tasks}
    architecture = checkpoint.class_name or ""
    found: dict[str, Equalization] = {}
    for place in foldable_places(by_name, architecture):
        if not _may_fold(place, by_name, checkpoint, inputs):
            continue
        equalization = inputs.equalization(by_name[place.consumers[0]])
        if equalization is None or equalization.alpha is None:
            continue
        gain_db = _gain_db(
            [by_name[name] for name in place.consumers], equalization, checkpoint, inputs, n_threads, cancelled
        )
        if gain_db >= LEAST_GAIN_DB:
            found |= dict.fromkeys(place.consumers, equalization.measured(gain_db))
    if not found:
        return NOTHING_FOLDED
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    plan = plan_folding(shapes, {name: e.scales for name, e in found.items()}, architecture)
    return RunFolding(found, plan.tensors)


def _may_fold(
    place: FoldablePlace, tasks: Mapping[str, LayerTask], checkpoint: Checkpoint, inputs: LayerInputSearch
) -> bool:
    if place.missing or not all(inputs.read_by_all(layers) for layers in place.readers):
        return False
    for name in place.producers:
        task = tasks[name]
        matrix_kept = task.kept and len(task.shape) > 1
        if matrix_kept or (task.kept and task.rule in USER_RULES):
            return False
        if checkpoint.entries[name].dtype not in QUANTIZABLE_DTYPES:
            return False
    return True


def _gain_db(
    tasks: Sequence[LayerTask],
    equalization: Equalization,
    checkpoint: Checkpoint,
    inputs: LayerInputSearch,
    n_threads: int,
    cancelled: Callable[[], bool],
) -> float:
    """Return the error at the outputs of layers with one input as they are over that of the folded ones, in dB."""
    before = after = 0.0
    for task in tasks:
        known = inputs(task)
        if known is None:
            raise AssertionError(task.name)
        known = replace(known, equalizations=())
        weight = _sampled_rows(checkpoint, task)
        before += _objective(task, weight, known, n_threads, cancelled)
        folded = np.ascontiguousarray(weight.astype(np.float32) * equalization.scales)
        after += _objective(task, folded, known.divided(equalization), n_threads, cancelled)
    if before > 0 and after > 0:
        return 10 * math.log10(before / after)
    return math.inf if before > after else 0.0


def _sampled_rows(checkpoint: Checkpoint, task: LayerTask) -> NDArray[Any]:
    """Read evenly spread rows, one by one where they are few among many."""
    step = -(-task.rows // SAMPLED_ROWS)
    if step == 1:
        return np.ascontiguousarray(checkpoint.read_rows(task.name, 0, task.rows))
    return np.concatenate([checkpoint.read_rows(task.name, row, 1) for row in range(0, task.rows, step)])


def _objective(
    task: LayerTask, weight: NDArray[Any], inputs: LayerInputs, n_threads: int, cancelled: Callable[[], bool]
) -> float:
    """Return the least error at the output among the ways that the run will try."""
    form = task.bit_width, task.group_size, task.scale_format
    return best_trial(task, form, weight, inputs, task.compensated, n_threads, cancelled).objective


def stored_folding(model: QuantizedModel, checkpoint: Checkpoint) -> dict[str, FoldedTensor]:
    """Return how the tensors of the float model changed before a stored model was quantized from it.

    Raises
    ------
    CheckpointError
        The stored scales fit no layer of `checkpoint`: it is of another model.
    """
    spatial = model.spatial
    if spatial is None or not spatial.folded:
        return {}
    missing = [name for name in spatial.folded if name not in checkpoint.entries]
    if missing:
        raise CheckpointError(f"{model.path}: {missing[0]!r} is folded there, and {checkpoint.path} has no such tensor")
    scales = {name: np.array(spatial.equalization_scales[name], np.float32) for name in spatial.folded}
    shapes = {name: entry.shape for name, entry in checkpoint.entries.items()}
    plan = plan_folding(shapes, scales, checkpoint.class_name or "")
    return {name: tensor for name, tensor in plan.tensors.items() if name in checkpoint.entries}
