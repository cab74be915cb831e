"""Bits per layer for any size limit, solved in milliseconds from costs that were measured once.

What counts is the payload of all tensors: codes, scales, minima, low-rank branches and kept tensors. Ways that would
miss their gate are left out as long as the limit can be met without them; below that the limit goes before the gates,
and the allocation says which layers miss theirs.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Final

from arrowquant_nb import tables
from arrowquant_nb.core.allocation import BitAllocator, Option
from arrowquant_nb.core.gates import OutputFigures, judge, stage_floor
from arrowquant_nb.costs import NOT_MEASURED, sqnr_db
from arrowquant_nb.errors import ConfigurationError
from arrowquant_nb.forecasts import LayerForecast, SizeAllocation
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.runs.planning import payload_nbytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.allocation import Allocation
    from arrowquant_nb.core.gates import Judgement
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.costs import LayerCosts, WayCost

MEGABYTE: Final = 1_000_000
# Weight cosine asked of a width below the requested one: what the profiles of these widths ask for.
NARROW_COSINE: Final = {2: 0.90, 4: 0.98}
COUNTED: Final = "codes, scales, minima, low-rank branches and kept tensors; container and texts come on top"


def least_cosine(config: DiffusionQuantConfig, bit_width: int) -> float:
    """Weight cosine asked of a layer that a size limit gives `bit_width`.

    The user's `min_accuracy` is meant for the requested width: narrower widths are asked for what their profile asks,
    wider ones for the floor after a fallback at least.
    """
    if bit_width < config.bit_width:
        return min(config.min_accuracy, NARROW_COSINE[bit_width])
    return config.min_accuracy if bit_width == config.bit_width else max(config.min_accuracy, stage_floor(bit_width))


def judged(way: WayCost, requested: int, cosine: float, least_db: float | None, margin_db: float = 0.0) -> Judgement:
    """Judge a measured way by the run's gates; `margin_db` makes its figures worse."""
    output = None
    if not isinstance(way.held_out_sqnr_db, str) and not isinstance(way.worst_group_sqnr_db, str):
        output = OutputFigures(way.held_out_sqnr_db - margin_db, way.worst_group_sqnr_db - margin_db, 1.0, 1.0)
    lost = (1.0 - way.cosine) * 10.0 ** (margin_db / 10.0)
    return judge(way.bit_width, requested, way.compensated, 1.0 - lost, output, cosine, least_db, 0)


class SizeBudget:
    """The sizes that a model can have, and the least error of each.

    Attributes
    ----------
    model : its name.
    calibration : where layer inputs came from, or why there are none.
    costs : what every way of storing every layer costs.

    Examples
    --------
    >>> from arrowquant_nb import ArrowQuantV2
    >>> budget = ArrowQuantV2().budget("digits-dit")
    >>> budget.solve(1.25).size_mb <= 1.25
    True
    """

    def __init__(
        self,
        model: str,
        tasks: Sequence[LayerTask],
        costs: Mapping[str, LayerCosts],
        config: DiffusionQuantConfig,
        calibration: str,
    ) -> None:
        self.model = model
        self.calibration = calibration
        self.costs = tuple(costs[task.name] for task in tasks if not task.kept)
        self._by_name = {layer.name: layer for layer in self.costs}
        self._config = config
        self._tasks = {task.name: task for task in tasks}
        self._open = [layer for layer in self.costs if layer.open]
        opened = {layer.name for layer in self._open}
        self._fixed_nbytes = sum(self._planned_nbytes(task) for task in tasks if task.name not in opened)

    def _planned_nbytes(self, task: LayerTask) -> int:
        way = None if task.kept else self._planned_way(task)
        return payload_nbytes(task) if way is None else way.nbytes

    def _planned_way(self, task: LayerTask) -> WayCost | None:
        return self._by_name[task.name].way(task.bit_width, task.group_size, task.scale_format)

    @cached_property
    def _relaxed(self) -> BitAllocator:
        return BitAllocator([_options(layer, layer.ways) for layer in self._open])

    @cached_property
    def _passing(self) -> list[list[WayCost]]:
        """The ways of every open layer that are expected to pass their gates."""
        return [[way for way in layer.ways if self._judge(way).passed] for layer in self._open]

    @cached_property
    def _strict(self) -> BitAllocator:
        pairs = zip(self._open, self._passing, strict=True)
        return BitAllocator([_options(layer, passing) for layer, passing in pairs])

    def _judge(self, way: WayCost) -> Judgement:
        least = least_cosine(self._config, way.bit_width)
        return judged(way, way.bit_width, least, self._config.min_output_sqnr_db)

    @property
    def smallest_mb(self) -> float:
        """Smallest reachable payload in 10^6 bytes."""
        return (self._fixed_nbytes + self._relaxed.smallest_nbytes) / MEGABYTE

    @property
    def largest_mb(self) -> float:
        """Payload with every open layer kept; a larger limit changes nothing."""
        return (
            self._fixed_nbytes + sum(max(layer.kept_nbytes, *(w.nbytes for w in layer.ways)) for layer in self._open)
        ) / MEGABYTE

    def solve(self, target_mb: float) -> SizeAllocation:
        """Return the widths and group sizes with the least error whose payload is at most `target_mb`.

        Raises
        ------
        ConfigurationError
            Even the smallest ways are larger; the message states the smallest reachable size.
        """
        chosen, method = self._choose(target_mb)
        layers, missed = [], []
        for layer in self.costs:
            way = chosen.get(layer.name) if layer.open else self._planned_way(self._tasks[layer.name])
            entry, passed = self._forecast(layer, way)
            layers.append(entry)
            if not passed:
                missed.append(layer.name)
        opened = sum(entry.nbytes for entry, layer in zip(layers, self.costs, strict=True) if layer.open)
        return SizeAllocation(
            target_mb=float(target_mb),
            size_mb=(self._fixed_nbytes + opened) / MEGABYTE,
            network_sqnr_db=self.network_sqnr_db(chosen),
            layers=tuple(layers),
            missed_gates=tuple(missed),
            method=method,
        )

    def choose(self, target_mb: float) -> dict[str, WayCost | None]:
        """Return the way of every open layer, None where it is kept; see `solve`."""
        return self._choose(target_mb)[0]

    def _choose(self, target_mb: float) -> tuple[dict[str, WayCost | None], str]:
        if isinstance(target_mb, bool) or not isinstance(target_mb, int | float) or not 0 < target_mb < math.inf:
            raise ConfigurationError(f"target_model_size_mb: {target_mb!r} is not a number of megabytes above 0")
        if not self._open:
            self._refuse_unreachable(target_mb)
            return {}, "nothing to choose"
        self._refuse_unreachable(target_mb)
        budget = math.floor(target_mb * MEGABYTE) - self._fixed_nbytes
        strict = budget >= self._strict.smallest_nbytes
        ways = self._passing if strict else [list(layer.ways) for layer in self._open]
        found: Allocation = (self._strict if strict else self._relaxed).allocate(budget)
        chosen = {
            layer.name: passing[choice] if choice < len(passing) else None
            for layer, passing, choice in zip(self._open, ways, found.choices, strict=True)
        }
        return chosen, found.method

    def _refuse_unreachable(self, target_mb: float) -> None:
        smallest = self._fixed_nbytes + (self._relaxed.smallest_nbytes if self._open else 0)
        if target_mb * MEGABYTE < smallest:
            rounded = math.ceil(smallest / 1000) / 1000
            raise ConfigurationError(
                f"target_model_size_mb: {self.model} cannot be stored in {target_mb:g} MB; the smallest reachable size "
                f"is {rounded:.3f} MB ({smallest:,} bytes of payload: {COUNTED}), of which {self._fixed_nbytes:,} are "
                "of tensors whose width a rule decides"
            )

    def network_sqnr_db(self, chosen: Mapping[str, WayCost | None]) -> float | str:
        """Return the predicted signal over error of the network's output in dB: noises of single layers add up."""
        total = 0.0
        for layer in self.costs:
            way = chosen.get(layer.name) if layer.open else self._planned_way(self._tasks[layer.name])
            if way is None:
                continue
            if isinstance(way.network_noise, str):
                return NOT_MEASURED
            total += way.network_noise
        return sqnr_db(total)

    def _forecast(self, layer: LayerCosts, way: WayCost | None) -> tuple[LayerForecast, bool]:
        if way is None:
            return kept_forecast(layer), True
        verdict = self._judge(way)
        sentence = layer.sentence if verdict.passed else f"{verdict.sentence} {layer.sentence}"
        return way_forecast(layer, way, way.bit_width, sentence), verdict.passed

    def __repr__(self) -> str:
        return f"SizeBudget({self.model!r}, {self.smallest_mb:.3f} to {self.largest_mb:.3f} MB)"

    def __str__(self) -> str:
        return tables.headline_text(self._headline())

    def _repr_html_(self) -> str:
        return tables.headline_html(self._headline())

    def _headline(self) -> list[tuple[str, str]]:
        return [
            ("model", self.model),
            ("sizes", f"{self.smallest_mb:.3f} to {self.largest_mb:.3f} MB of payload: {COUNTED}"),
            ("open layers", f"{len(self._open)} of {len(self.costs)} quantized ones; rules decide the others"),
            ("calibration", self.calibration),
        ]


def _options(layer: LayerCosts, ways: Sequence[WayCost]) -> list[Option]:
    """Ways as the allocator knows them, and last the layer as it is."""
    found = [Option(way.bit_width, way.group_size, way.nbytes, way.noise) for way in ways]
    return [*found, Option(KEPT_BIT_WIDTH, 0, layer.kept_nbytes, 0.0)]


def way_forecast(layer: LayerCosts, way: WayCost, planned: int, sentence: str) -> LayerForecast:
    """Return a layer's line of a forecast."""
    network = way.network_noise
    return LayerForecast(
        name=layer.name,
        planned_bit_width=planned,
        bit_width=way.bit_width,
        group_size=way.group_size,
        scale_format=way.scale_format,
        nbytes=way.nbytes,
        weight_sqnr_db=sqnr_db(way.weight_noise),
        output_sqnr_db=way.held_out_sqnr_db,
        network_sqnr_db=network if isinstance(network, str) else sqnr_db(network),
        sensitive=layer.sensitive,
        sentence=sentence,
    )


def kept_forecast(layer: LayerCosts) -> LayerForecast:
    """Return the line of a layer that is carried over."""
    exact: float | str = math.inf if layer.measured == "network" else NOT_MEASURED
    return LayerForecast(
        layer.name, KEPT_BIT_WIDTH, KEPT_BIT_WIDTH, 0, "", layer.kept_nbytes, math.inf, NOT_MEASURED, exact,
        layer.sensitive, layer.sentence,
    )  # fmt: skip
