"""What a plan and a run hand back: frozen values with a JSON form, a text and an HTML table.

Knows nothing of how the figures came about. Sizes are bytes or megabytes (10^6 bytes), SQNR is in dB,
times are seconds. An infinite SQNR (bit-exact tensor) is written as the string "inf" in JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from arrowquant_nb import result_card, result_tables, tables
from arrowquant_nb.json_form import JsonForm
from arrowquant_nb.layer_reports import AttemptReport, LayerReport
from arrowquant_nb.network_quality import NetworkQuality, SizeOutcome
from arrowquant_nb.run_source import RunSource

if TYPE_CHECKING:
    import pyarrow as pa

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Strategy(JsonForm):
    """How a model is quantized: preferred and used method, and which second parts apply, with the reason."""

    preferred_method: str
    used_method: str
    time_aware: bool
    spatial: bool
    tables: str
    reason: str


@dataclass(frozen=True)
class PlanRow(JsonForm):
    """One tensor of a plan; `nbytes` is the exact payload at the planned width, before any fallback."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    action: str
    role: str
    reason: str
    rule: str
    bit_width: int
    group_size: int = field(default=0, kw_only=True)
    method: str = field(default="", kw_only=True)
    n_weights: int
    source_nbytes: int
    nbytes: int
    scale_format: str = ""
    ordered_method: str = ""
    """What `layer_methods` orders for this layer; "" for the run's method."""

    @property
    def bits_per_weight(self) -> float:
        """Planned bits per weight, scales and zero points counted."""
        return 8 * self.nbytes / self.n_weights if self.n_weights else 0.0


@dataclass(frozen=True, repr=False)
class Plan(JsonForm):
    """What a run would do, from headers alone: no weight is read."""

    _headline: ClassVar[tuple[str, ...]] = ("source_size_mb", "size_mb", "bits_per_weight")

    model: str
    modality: str
    modality_reason: str
    strategy: Strategy
    bit_width: int
    rows: tuple[PlanRow, ...]

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {"rows": PlanRow, "strategy": Strategy}

    @property
    def source_size_mb(self) -> float:
        """Source tensors in 10^6 bytes."""
        return sum(r.source_nbytes for r in self.rows) / MEGABYTE

    @property
    def size_mb(self) -> float:
        """Planned payload in 10^6 bytes, container overhead excluded."""
        return sum(r.nbytes for r in self.rows) / MEGABYTE

    @property
    def bits_per_weight(self) -> float:
        """Planned payload bits over all elements, kept tensors included."""
        n = sum(r.n_weights for r in self.rows)
        return 8 * sum(r.nbytes for r in self.rows) / n if n else 0.0

    def __repr__(self) -> str:
        return f"Plan({self.model!r}, {self.modality}, {tables.width_counts(self.rows)}, {self.size_mb:.3f} MB planned)"

    def __str__(self) -> str:
        return result_tables.plan_text(self)

    def _repr_html_(self) -> str:
        return result_tables.plan_html(self)


@dataclass(frozen=True, repr=False)
class QuantizationResult(JsonForm):
    """The finished run.

    Attributes
    ----------
    quantized_path : folder of the model; None where none was kept (a pipeline that was quantized in place).
    compression_ratio : source bytes over stored payload bytes, all tensors.
    compression_ratio_quantized : the same over the quantized tensors only.
    cosine_similarity : weight cosine of the quantized tensors, weighted by number of weights.
    sqnr_db : signal over error energy of all quantized weights together.
    model_size_mb : size on disk of all files of the model, in 10^6 bytes; source_size_mb the source tensors.
    container_nbytes : bytes on disk that are not tensor payload (Parquet framing, statistics, manifest, copied files).
    modality, modality_reason, strategy : what was detected and chosen, and why.
    bit_width : requested; the layers tell what each got.
    quantization_time_s : wall time of the run.
    fallback_rate : quantized layers that needed a wider format, 0 to 1.
    reused : layers taken over from an earlier run of the same output.
    layers : one report per tensor, in model order.
    calibration : where the inputs of the layers came from, with settings and hash; or why there were none.
    warnings : what went wrong without stopping the run, one sentence each.
    network : the network's output with all stored weights; None where the model cannot be run here.
    size : how the size limit was kept; None without one.
    source : what was read, as a command names it; None where no model folder was.
    """

    _headline: ClassVar[tuple[str, ...]] = ("bits_per_weight",)

    quantized_path: str | None
    model: str
    compression_ratio: float
    compression_ratio_quantized: float
    cosine_similarity: float
    sqnr_db: float
    model_size_mb: float
    source_size_mb: float
    payload_nbytes: int
    container_nbytes: int
    modality: str
    modality_reason: str
    strategy: Strategy
    bit_width: int
    quantization_time_s: float
    fallback_rate: float
    reused: int
    layers: tuple[LayerReport, ...]
    config: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    network: NetworkQuality | None = None
    size: SizeOutcome | None = None
    source: RunSource | None = None

    @classmethod
    def _nested(cls) -> dict[str, Any]:
        return {
            "layers": LayerReport, "network": NetworkQuality, "size": SizeOutcome, "strategy": Strategy,
            "source": RunSource,
        }  # fmt: skip

    @property
    def bits_per_weight(self) -> float:
        """Payload bits per element over the quantized tensors."""
        done = [r for r in self.layers if r.action == "quantized"]
        n = sum(r.n_weights for r in done)
        return 8 * sum(r.nbytes for r in done) / n if n else 0.0

    @property
    def fallback_history(self) -> tuple[tuple[str, AttemptReport], ...]:
        """Every failed attempt as (layer name, attempt), in order."""
        return tuple((r.name, a) for r in self.layers for a in r.attempts if not a.passed)

    def to_arrow(self) -> pa.Table:
        """Return the layer reports as an Arrow table, one row per tensor (attempts and costs left out)."""
        import pyarrow as pa  # noqa: PLC0415 - loads on first use

        rows = [
            {k: v for k, v in asdict(r).items() if k not in ("attempts", "costs")}
            | {"bits_per_weight": r.bits_per_weight}
            for r in self.layers
        ]
        return pa.Table.from_pylist(rows)

    def __repr__(self) -> str:
        return (
            f"QuantizationResult({self.quantized_path!r}, {tables.width_counts(self.layers)}, "
            f"{self.payload_nbytes / MEGABYTE:.3f} MB of tensors, {self.model_size_mb:.3f} MB on disk, "
            f"cosine {self.cosine_similarity:.6f})"
        )

    def __str__(self) -> str:
        return result_tables.result_text(self)

    def _repr_html_(self) -> str:
        return result_card.card_html(self)
