"""What a run leaves beside the tensors: the statistics table, the run record, and the text of a failure."""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from arrowquant_nb import __version__, _kernels
from arrowquant_nb.results import QuantizationResult
from arrowquant_nb.run_source import RunSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.network_quality import NetworkQuality
    from arrowquant_nb.runs.model_choice import OpenedModel

STATS_NAME = "stats.parquet"
CARD_NAME = "README.md"
PACKAGES = ("numpy", "pyarrow", "xxhash", "ml_dtypes", "safetensors", "pydantic")

_NOISES = ("weight", "output", "network")
_STATS_SCHEMA = pa.schema(
    [
        ("layer_name", pa.string()), ("shape", pa.string()), ("dtype", pa.string()), ("action", pa.string()),
        ("role", pa.string()), ("reason", pa.string()), ("rule", pa.string()), ("requested_bit_width", pa.int8()),
        ("bit_width", pa.int8()), ("method", pa.string()), ("grid", pa.string()), ("group_size", pa.int32()),
        ("n_weights", pa.int64()), ("source_nbytes", pa.int64()), ("nbytes", pa.int64()),
        ("bits_per_weight", pa.float64()),
        ("sqnr_db", pa.float64()), ("cosine", pa.float64()), ("mse", pa.float64()), ("gain", pa.float64()),
        ("w_absmax", pa.float64()), ("n_attempts", pa.int32()),
        ("rotation_seed", pa.int64()), ("low_rank", pa.int32()),
        *[(f"{figure}_int{bits}", pa.float64()) for bits in (2, 4, 8) for figure in ("sqnr_db", "cosine")],
        ("held", pa.bool_()), ("sensitive", pa.bool_()), ("sensitivity", pa.string()), ("costs", pa.string()),
        *[(f"{where}_noise_int{bits}", pa.float64()) for bits in (2, 4, 8) for where in _NOISES],
    ]
)  # fmt: skip


def statistics_table(reports: Sequence[LayerReport]) -> bytes:
    """Return `stats.parquet`: one row per tensor, its error at every width that was tried (null where not tried)."""
    rows = []
    for report in reports:
        row: dict[str, Any] = {k: v for k, v in asdict(report).items() if k in _STATS_SCHEMA.names}
        row |= {
            "layer_name": report.name, "shape": "x".join(map(str, report.shape)),
            "bits_per_weight": report.bits_per_weight, "n_attempts": len(report.attempts),
        }  # fmt: skip
        row |= _cost_columns(report)
        for attempt in report.attempts:
            row[f"sqnr_db_int{attempt.bit_width}"] = attempt.sqnr_db
            row[f"cosine_int{attempt.bit_width}"] = attempt.cosine
        rows.append(row)
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=_STATS_SCHEMA)
    pq.write_table(table, sink, version="2.6", compression="none", store_schema=False, write_page_checksum=True)
    return bytes(sink.getvalue())


def _cost_columns(report: LayerReport) -> dict[str, Any]:
    """Return what each width costs a layer, nulls where that was not measured: in columns, and whole as JSON."""
    costs = report.costs
    if costs is None:
        return {"costs": None}
    found: dict[str, Any] = {
        "sensitive": costs.sensitive, "sensitivity": costs.sentence, "costs": json.dumps(costs.to_dict()),
    }  # fmt: skip
    for bits in (2, 4, 8):
        way = costs.at(bits)
        for where in _NOISES if way is not None else ():
            noise = getattr(way, f"{where}_noise")
            found[f"{where}_noise_int{bits}"] = None if isinstance(noise, str) else noise
    return found


def what_was_given(opened: OpenedModel) -> dict[str, str | None]:
    """Return what a run was told to read, so that the same can be opened again from anywhere on this machine."""
    checkpoint = opened.checkpoint
    return {
        "model": opened.located.argument, "component": checkpoint.component, "variant": checkpoint.variant,
        "calibration": opened.decisions.calibration.given,
    }  # fmt: skip


def run_source(opened: OpenedModel) -> RunSource:
    """Return the same in the words of a command, without folders."""
    checkpoint = opened.checkpoint
    ours = checkpoint.kind == "parquet"  # has its component and variant in it
    return RunSource(
        model=opened.located.word,
        component=None if ours else checkpoint.component,
        variant=None if ours else checkpoint.variant,
        calibration=opened.decisions.calibration.word,
        requantize=checkpoint.quantized,
    )


def versions() -> dict[str, str]:
    """Return the versions of Python, this package and the packages whose bytes matter."""
    found = {"arrowquant_nb": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> dict[str, Any]:
    """Return what of the machine may explain a timing: system, processor, cores, instruction set, compiled or not."""
    return {
        "system": platform.system(), "processor": platform.machine(), "n_cores": os.cpu_count(),
        "isa": _kernels.active_isa(), "compiled_kernels": _kernels.COMPILED,
    }  # fmt: skip


def overall_sqnr_db(reports: Sequence[LayerReport]) -> float:
    """Signal over error energy of all weights of the given layers together, in dB."""
    error = math.fsum(r.mse * r.n_weights for r in reports)
    signal = math.fsum(10 ** (r.sqnr_db / 10) * r.mse * r.n_weights for r in reports if math.isfinite(r.sqnr_db))
    if error == 0:
        return math.inf
    return 10 * math.log10(signal / error) if signal > 0 else -math.inf


def assemble_result(layers: Sequence[LayerReport], *, size_nbytes: int, **facts: Any) -> QuantizationResult:
    """Return the result of a run: figures computed from its layer reports, and the facts that they do not tell.

    `size_nbytes` counts every file of the model folder.
    """
    done = [r for r in layers if r.action == "quantized"]
    n_weights = sum(r.n_weights for r in done)
    payload = sum(r.nbytes for r in layers)
    return QuantizationResult(
        compression_ratio=_ratio(layers),
        compression_ratio_quantized=_ratio(done),
        cosine_similarity=sum(r.cosine * r.n_weights for r in done) / n_weights if n_weights else 1.0,
        sqnr_db=overall_sqnr_db(done),
        model_size_mb=size_nbytes / 1e6,
        source_size_mb=sum(r.source_nbytes for r in layers) / 1e6,
        payload_nbytes=payload,
        container_nbytes=size_nbytes - payload,
        fallback_rate=sum(r.fell_back for r in done) / len(done) if done else 0.0,
        layers=tuple(layers),
        **facts,
    )


def _ratio(reports: Sequence[LayerReport]) -> float:
    stored = sum(r.nbytes for r in reports)
    return sum(r.source_nbytes for r in reports) / stored if stored else 1.0


def network_failure(network: NetworkQuality, config: DiffusionQuantConfig) -> str:
    """Say that the network's output missed its floor, what was tried, and what to change."""
    tried = "".join(f"\n  {p.sqnr_db:.2f} dB: {p.layer}: {p.sentence}" for p in network.promotions)
    limit = " or target_model_size_mb" if config.target_model_size_mb is not None else ""
    return (
        f"the network's output keeps {network.sqnr_db:.2f} dB, below the {network.least_db:g} dB asked for by "
        f"min_network_sqnr_db, with {len(network.promotions)} layers raised; the layers are committed, no manifest was "
        f"written. Raise bit_width{limit}, name layers in layer_bit_widths, or lower min_network_sqnr_db.{tried}"
    )


def failure_message(failed: Sequence[LayerReport], sealed: bool) -> str:
    """List every layer that failed at every width, with the settings that would accept it.

    `sealed` says that the folder still holds the finished model of an earlier run.
    """
    state = "the earlier model in the folder is unchanged" if sealed else "no manifest was written"
    lines = [f"{len(failed)} layers failed at every bit width; the others are committed, {state}:"]
    lines += [f"  {r.name}: {r.attempts[-1].sentence}" for r in failed]
    lines.append("Lower min_accuracy, or keep these layers in their source format:")
    lines.append("  layer_bit_widths:")
    lines += [f"    {r.name!r}: 16" for r in failed]
    return "\n".join(lines)
