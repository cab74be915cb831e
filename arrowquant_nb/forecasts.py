"""What a run would cost, said before it: forecasts with intervals, and the widths that fit a size.

Frozen values with a JSON form, a text and an HTML table. Knows nothing of how the figures came about. Sizes are
megabytes (10^6 bytes) of payload: codes, scales, minima, low-rank branches and kept tensors of the whole model; the
Parquet container, statistics and texts come on top.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from arrowquant_nb import tables
from arrowquant_nb.costs import NOT_MEASURED
from arrowquant_nb.json_form import JsonForm

__all__ = ["Forecast", "Interval", "LayerForecast", "SizeAllocation"]

LAYER_HEADER = ("layer", "planned", "kB", "weights", "layer output", "network, this layer alone", "note")


@dataclass(frozen=True)
class Interval(JsonForm):
    """A predicted figure and the range it should fall into nineteen times out of twenty."""

    value: float
    low: float
    high: float

    def words(self, form: str) -> str:
        """Return value and range, each formatted with `form`."""
        return f"{self.value:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class LayerForecast(JsonForm):
    """One layer as it would be stored.

    Attributes
    ----------
    name : the weight.
    planned_bit_width : width that plan or size limit ask for; 16 = kept.
    bit_width, group_size, scale_format, nbytes : what is expected to be stored, after a predicted fallback.
    weight_sqnr_db : signal over error of the weights in dB.
    output_sqnr_db : of the layer's output on held-out inputs; "not_measured" without calibration.
    network_sqnr_db : of the network's output with this layer alone quantized; "not_measured" where it cannot be run.
    sensitive : whether it costs more than median + 3 MAD of the layers.
    sentence : what is expected of its gate, and how sensitive it is.
    """

    name: str
    planned_bit_width: int
    bit_width: int
    group_size: int
    scale_format: str
    nbytes: int
    weight_sqnr_db: float
    output_sqnr_db: float | str
    network_sqnr_db: float | str
    sensitive: bool
    sentence: str


def _rows(layers: tuple[LayerForecast, ...]) -> list[list[str]]:
    return [
        [
            layer.name,
            _stored(layer),
            f"{layer.nbytes / 1000:.1f}",
            tables.decibels(layer.weight_sqnr_db),
            _shown(layer.output_sqnr_db),
            _shown(layer.network_sqnr_db),
            layer.sentence,
        ]
        for layer in layers
    ]


def _stored(layer: LayerForecast) -> str:
    if layer.bit_width == 16:
        return "kept"
    scales = "k " if layer.scale_format == "k" else ""
    fell = "" if layer.bit_width == layer.planned_bit_width else f" (asked INT{layer.planned_bit_width})"
    return f"INT{layer.bit_width} {scales}g{layer.group_size}{fell}"


def _shown(value: float | str) -> str:
    return "-" if isinstance(value, str) else tables.decibels(value)


@dataclass(frozen=True, repr=False)
class Forecast(JsonForm):
    """What a run would store and lose, from a sample of the rows of every layer.

    Attributes
    ----------
    model : its name.
    size_mb : payload of all tensors; the range reaches from no fallback to every fallback that is near.
    network_sqnr_db : signal over error of the network's output along float trajectories, the sum of what each layer
        costs alone; None where the model cannot be run here.
    weight_sqnr_db : of all quantized weights together.
    layers : every quantized layer.
    calibration : where layer inputs came from, or why there are none.
    reused : whether the costs were measured by an earlier call.
    seconds : how long it took.
    target_mb : size limit; None without.
    warnings : what went wrong without stopping it.
    """

    model: str
    size_mb: Interval
    network_sqnr_db: Interval | None
    weight_sqnr_db: Interval
    layers: tuple[LayerForecast, ...]
    calibration: str
    reused: bool
    seconds: float
    target_mb: float | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {
            "size_mb": Interval,
            "network_sqnr_db": Interval,
            "weight_sqnr_db": Interval,
            "layers": LayerForecast,
        }

    @property
    def sensitive(self) -> tuple[str, ...]:
        """Names of the sensitive layers."""
        return tuple(layer.name for layer in self.layers if layer.sensitive)

    def headline(self) -> list[tuple[str, str]]:
        """Label and value of each headline figure."""
        network = self.network_sqnr_db
        worst = [layer.output_sqnr_db for layer in self.layers if not isinstance(layer.output_sqnr_db, str)]
        limit = "" if self.target_mb is None else f", limit {self.target_mb:g} MB"
        rows = [
            ("forecast size", f"{self.size_mb.words('.3f')} MB of payload{limit}"),
            (
                "forecast network output",
                f"{network.words('.1f')} dB"
                if network is not None
                else f"{NOT_MEASURED} (the model cannot be run here)",
            ),
            ("forecast weights", f"{self.weight_sqnr_db.words('.1f')} dB"),
            (
                "forecast layer outputs",
                f"worst layer {tables.decibels(min(worst))}" if worst else f"{NOT_MEASURED} ({self.calibration})",
            ),
        ]
        if self.sensitive:
            rows.append(("sensitive layers", ", ".join(self.sensitive)))
        where = "measured before" if self.reused else f"measured in {self.seconds:.1f} s"
        rows.append(("forecast from", f"a sample of every layer's rows, {where}; {self.calibration}"))
        return rows + [("warning", warning) for warning in self.warnings]

    def __repr__(self) -> str:
        network = "not measured" if self.network_sqnr_db is None else f"{self.network_sqnr_db.value:.1f} dB"
        return f"Forecast({self.model!r}, {self.size_mb.value:.3f} MB, network {network})"

    def __str__(self) -> str:
        table = tables.text_table(LAYER_HEADER, _rows(self.layers))
        return f"{tables.headline_text(self.headline())}\n\n{table}"

    def _repr_html_(self) -> str:
        table = tables.html_table(LAYER_HEADER, _rows(self.layers))
        return (
            tables.headline_html(self.headline())
            + f"<details><summary>{len(self.layers)} layers</summary>{table}</details>"
        )


@dataclass(frozen=True, repr=False)
class SizeAllocation(JsonForm):
    """Bits per layer that fit a size with the least error.

    Attributes
    ----------
    target_mb : the limit.
    size_mb : payload of all tensors; never above the limit.
    network_sqnr_db : predicted signal over error of the network's output; "not_measured" where it cannot be run.
    layers : every quantized or open layer with what it gets.
    missed_gates : layers that are expected to miss their gate, because the limit leaves no bytes for it.
    method : "greedy" or "dynamic programming", whichever found it.
    """

    target_mb: float
    size_mb: float
    network_sqnr_db: float | str
    layers: tuple[LayerForecast, ...]
    missed_gates: tuple[str, ...]
    method: str

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"layers": LayerForecast}

    def headline(self) -> list[tuple[str, str]]:
        """Label and value of each headline figure."""
        counts: dict[int, int] = {}
        for layer in self.layers:
            counts[layer.bit_width] = counts.get(layer.bit_width, 0) + 1
        widths = ", ".join(f"{counts[b]} {tables.WIDTH_NAMES[b]}" for b in sorted(counts))
        rows = [
            ("size", f"{self.size_mb:.3f} MB of payload, limit {self.target_mb:g} MB"),
            ("network output", _shown(self.network_sqnr_db) if self.network_sqnr_db != NOT_MEASURED else NOT_MEASURED),
            ("layers", f"{widths} ({self.method})"),
        ]
        return rows + ([("gates missed", ", ".join(self.missed_gates))] if self.missed_gates else [])

    def __repr__(self) -> str:
        return f"SizeAllocation({self.size_mb:.3f} of {self.target_mb:g} MB, network {_shown(self.network_sqnr_db)})"

    def __str__(self) -> str:
        table = tables.text_table(LAYER_HEADER, _rows(self.layers))
        return f"{tables.headline_text(self.headline())}\n\n{table}"

    def _repr_html_(self) -> str:
        return tables.headline_html(self.headline()) + tables.html_table(LAYER_HEADER, _rows(self.layers))
