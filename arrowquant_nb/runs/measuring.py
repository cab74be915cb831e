"""What each way of storing each layer costs, measured on a sample of its rows.

Every open layer is quantized at 2, 4 and 8 bits in all its group sizes, by the run's own methods, with calibration
compensated like the run. Where the model can be run, one layer at a time is put into it in two widths and the network's
output compared along float trajectories; the other ways of that layer scale with their error at its own output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.core import sensitivity
from arrowquant_nb.core.candidates import candidate_formats
from arrowquant_nb.core.gates import fallback_chain, scale_layout
from arrowquant_nb.core.strategy import method_at
from arrowquant_nb.costs import NOT_MEASURED, LayerCosts, WayCost
from arrowquant_nb.quantizers.blas import single_threaded_blas
from arrowquant_nb.quantizers.layout import Layout, grid_of
from arrowquant_nb.quantizers.trials import LayerInputs, measure_output
from arrowquant_nb.runs import wide_layers
from arrowquant_nb.runs.layer_trials import best_trial
from arrowquant_nb.runs.wide_layers import as_compensated, wide_gain
from arrowquant_nb.storage.dtypes import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.samples.probe import Probe

    Form = tuple[int, int, str]

# Weights of a layer that are quantized in every way: all of a small layer, and some rows of a large one.
SAMPLED_WEIGHTS: Final = 1 << 16
LEAST_ROWS: Final = 16
# Rows are taken in so many pieces, spread evenly: parts of a fused matrix differ.
PIECES: Final = 8
# Widths at which a layer is put into the network; noise at 8 bits is that at 4, scaled.
NETWORK_WIDTHS: Final = (2, 4)


@dataclass(frozen=True, eq=False)
class SampledLayer:
    """Some rows of a layer, and how it may be stored."""

    task: LayerTask
    open: bool
    """Whether its width is to be chosen."""
    first_rows: tuple[int, ...]
    """Where each piece begins."""
    rows: NDArray[Any]
    """The pieces, one after the other, (n, columns)."""
    kept_nbytes: int
    """Bytes when it is carried over."""
    planned_only: bool = False
    """Whether nothing is asked but what the task's own width costs, and the wider ones that it may fall back to."""

    @property
    def forms(self) -> list[Form]:
        """Ways to try: what the task asks for and falls back to, and all candidates of an open layer."""
        task = self.task
        scales = task.scale_format
        own = {(b, *scale_layout(b, task.group_size, scales)) for b in fallback_chain(task.bit_width)}
        if self.open and not self.planned_only:
            own |= set(candidate_formats(scales, task.columns))
        return sorted(own)


@dataclass(frozen=True, eq=False)
class _Measured:
    """One way, and the rows that came of it."""

    cost: WayCost
    rows: NDArray[np.float32]


def pieces_of(task: LayerTask) -> list[tuple[int, int]]:
    """Return (first row, rows) of the pieces that are sampled; all rows of a small layer or for a low-rank branch."""
    wanted = max(LEAST_ROWS, SAMPLED_WEIGHTS // max(1, task.columns))
    if wanted >= task.rows or task.low_rank:
        return [(0, task.rows)]
    each = max(1, wanted // PIECES)
    gap = (task.rows - each) / (PIECES - 1)
    return [(int(k * gap), each) for k in range(PIECES)]


def measure_layers(
    layers: Sequence[SampledLayer],
    inputs: Callable[[LayerTask], LayerInputs | None],
    probe: Probe | None,
    n_threads: int,
    progress: Callable[[float], None],
    cancelled: Callable[[], bool],
    enough: Callable[[LayerTask, WayCost], bool] = lambda _task, _way: False,
) -> list[LayerCosts]:
    """Measure every layer; whether one is sensitive is for `judged` to say.

    Parameters
    ----------
    layers : the layers that will be quantized.
    inputs : what calibration knows of a layer's inputs.
    probe : the model's own network calls, None where it cannot be run.
    progress : called with a rising fraction; an exception in it stops.
    enough : tells, of a layer of which only its own width is asked, whether a way needs no wider one behind it.

    Raises
    ------
    InterruptedError
        `cancelled` said so.
    """
    found: list[LayerCosts] = []
    for number, layer in enumerate(layers):
        known = inputs(layer.task)
        if known is not None and len(layer.rows) < layer.task.rows:
            known = replace(known, parts=())  # rows from here and there meet the inputs of all channel groups together
        ways: list[_Measured] = []
        for form in layer.forms:
            ways.append(_measure_way(layer, form, known, n_threads, cancelled))
            if layer.planned_only and enough(layer.task, ways[-1].cost):
                break
        costs = [way.cost for way in ways]
        if probe is not None and layer.task.name in probe.model.weights:
            costs = _with_network(layer, ways, probe)
        found.append(_unjudged(layer, costs))
        progress((number + 1) / len(layers))
    return found


def _measure_way(
    layer: SampledLayer, form: Form, inputs: LayerInputs | None, n_threads: int, cancelled: Callable[[], bool]
) -> _Measured:
    """Quantize the sampled rows in one way, by the method with the least error."""
    task = layer.task
    asked = task.compensated and inputs is not None
    compensated = asked and task.columns <= wide_layers.COMPENSATED_COLUMNS
    tensor = best_trial(task, form, layer.rows, inputs, compensated, n_threads, cancelled).tensor
    rows = np.asarray(tensor.dequantize("float32", n_threads=n_threads), np.float32).reshape(layer.rows.shape)
    cost = _way_cost(layer, form, tensor, rows, inputs, compensated, n_threads)
    if asked and not compensated and inputs is not None:
        cost = as_compensated(cost, wide_gain(task, form, layer.rows, inputs, n_threads, cancelled))
    return _Measured(cost, rows)


def _way_cost(
    layer: SampledLayer,
    form: Form,
    tensor: QuantizedTensor,
    rows: NDArray[np.float32],
    inputs: LayerInputs | None,
    compensated: bool,
    n_threads: int,
) -> WayCost:
    original = layer.rows.astype(np.float64)
    error = rows.astype(np.float64) - original
    weight_noise, weight_spread = _ratio(np.square(error).sum(axis=1), np.square(original).sum(axis=1), layer.task.rows)
    spread = weight_spread
    output_noise: float | str = NOT_MEASURED
    held_out: float | str = NOT_MEASURED
    worst: float | str = NOT_MEASURED
    if inputs is not None:
        with single_threaded_blas():
            blocks = inputs.blocks(len(error))
            costs, power = (
                np.concatenate([np.einsum("ij,ij->i", m[rows] @ part.hessian, m[rows]) for rows, part in blocks])
                for m in (error, original)
            )
        output_noise, spread = _ratio(np.maximum(costs, 0.0), np.maximum(power, 0.0), layer.task.rows)
        output = measure_output(layer.rows, tensor, inputs, n_threads)
        held_out, worst = output.sqnr_db, output.worst_sqnr_db
    return WayCost(
        *form, tensor.method, _nbytes(layer.task, form, tensor), weight_noise, output_noise, NOT_MEASURED, spread,
        weight_spread,        tensor.statistics.cosine, held_out, worst, compensated,
    )  # fmt: skip


def _nbytes(task: LayerTask, form: Form, tensor: QuantizedTensor) -> int:
    """Return the stored bytes of the whole layer: of the first method, because rivals store no more.

    Scales are counted in the float type that the sampled ones needed, a low-rank branch as it was asked for.
    """
    bit_width, group_size, scales = form
    layout = Layout(
        task.rows,
        task.columns,
        bit_width,
        group_size,
        grid_of(method_at(task.methods[0], bit_width), scales, task.name),
    )
    branch = 2 * task.low_rank * (task.rows + task.columns)
    return layout.nbytes(tensor.layout.scale_dtype(tensor.scales)) + branch


def _ratio(errors: NDArray[np.float64], powers: NDArray[np.float64], n_rows: int) -> tuple[float, float]:
    """Return the ratio of the sums, and its relative standard error as an estimate for `n_rows` rows."""
    total, power = math.fsum(errors.tolist()), math.fsum(powers.tolist())
    if total == 0.0:
        return 0.0, 0.0
    if power <= 0.0:
        return 1.0, 0.0
    ratio, n = total / power, len(errors)
    if n >= n_rows or n < 2:
        return ratio, 0.0
    residuals = errors - ratio * powers
    variance = (1.0 - n / n_rows) * float(np.var(residuals, ddof=1)) / n
    return ratio, math.sqrt(variance) / (power / n) / ratio


def _with_network(layer: SampledLayer, ways: list[_Measured], probe: Probe) -> list[WayCost]:
    """Add what the ways cost at the network's output: measured in some, scaled in the others."""
    bases: dict[int, tuple[WayCost, float]] = {}
    for way in ways:
        bits = way.cost.bit_width
        if bits not in bases and (bits in NETWORK_WIDTHS or not bases):
            bases[bits] = way.cost, _network_noise(layer, way.rows, probe)
    return [replace(w.cost, network_noise=_scaled(w.cost, *bases[_nearest(w.cost.bit_width, bases)])) for w in ways]


def _nearest(bit_width: int, bases: dict[int, tuple[WayCost, float]]) -> int:
    return max((b for b in bases if b <= bit_width), default=min(bases))


def _scaled(way: WayCost, base: WayCost, noise: float) -> float:
    mine, its = (w.output_noise if not isinstance(w.output_noise, str) else w.weight_noise for w in (way, base))
    return noise * mine / its if its > 0.0 else mine


def _network_noise(layer: SampledLayer, rows: NDArray[np.float32], probe: Probe) -> float:
    """Put the sampled rows into the network; the error grows with the rows that are not."""
    weight = np.array(probe.model.weights[layer.task.name], np.float32)
    matrix = weight.reshape(layer.task.rows, layer.task.columns)
    n = len(rows) // len(layer.first_rows)
    for number, first in enumerate(layer.first_rows):
        matrix[first : first + n] = rows[number * n : (number + 1) * n]
    with single_threaded_blas():
        return probe.noise({layer.task.name: weight}) * layer.task.rows / len(rows)


def _unjudged(layer: SampledLayer, costs: list[WayCost]) -> LayerCosts:
    first = costs[0]
    measured = "weights" if isinstance(first.output_noise, str) else "hessian"
    if not isinstance(first.network_noise, str):
        measured = "network"
    rows = layer.rows.astype(np.float64)
    power = float(np.sum(np.square(rows))) * layer.task.rows / len(rows)
    return LayerCosts(layer.task.name, layer.open, measured, False, "", tuple(costs), layer.kept_nbytes, power)


_WHERE: Final = {
    "network": "the network's output",
    "hessian": "the layer's output",
    "weights": "the weights",
}


def judged(found: Sequence[LayerCosts]) -> tuple[LayerCosts, ...]:
    """Flag the sensitive ones among the open layers, each compared with those that were measured in the same place."""
    compared = []
    for layer in found:
        peers = [c.ways[0].noise for c in found if c.open and c.measured == layer.measured]
        mine, bits = layer.ways[0].noise, layer.ways[0].bit_width
        sentence = sensitivity.explain(mine, peers if layer.open else [], _WHERE[layer.measured], bits)
        flagged = layer.open and mine > sensitivity.threshold(peers)
        compared.append(replace(layer, sensitive=flagged, sentence=sentence))
    return tuple(compared)


def kept_nbytes(task: LayerTask, kept_dtype: str) -> int:
    """Bytes of a tensor that is carried over."""
    return task.n_weights * numpy_dtype(kept_dtype).itemsize
