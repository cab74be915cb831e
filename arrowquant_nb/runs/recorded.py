"""A finished run read back from its model folder: the same result that the run handed over.

The layer reports stand in the journal, beside the hash of the file that each belongs to; a folder that was passed on
without its journal still has `stats.parquet`, which tells everything but the attempts. Reads no weight.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowquant_nb.costs import LayerCosts
from arrowquant_nb.errors import ArrowQuantError, MetadataError
from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.network_quality import NetworkQuality, SizeOutcome
from arrowquant_nb.results import QuantizationResult, Strategy
from arrowquant_nb.run_source import RunSource
from arrowquant_nb.runs.record import STATS_NAME, assemble_result
from arrowquant_nb.storage.journal import JOURNAL_NAME, read_commits
from arrowquant_nb.storage.manifest import MANIFEST_NAME, read_manifest
from arrowquant_nb.storage.output import EVENTS_NAME, RUN_NAME
from arrowquant_nb.storage.quantized import open_quantized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arrowquant_nb.storage.manifest import Manifest

__all__ = ["read_result"]


def read_result(folder: str | Path) -> QuantizationResult:
    """Return the result of the run that made a model folder.

    Parameters
    ----------
    folder : a finished model.

    Returns
    -------
    QuantizationResult
        As the run returned it, its size on disk measured now. Without the folder's journal the layers have no
        attempts; without its `run.json` the time reads 0.

    Raises
    ------
    ModelNotFoundError, ValidationError, MetadataError
        No finished model there, one that does not match its own hashes, or records that cannot be read.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    record = _run_record(path)
    try:
        return _result(path, manifest, record, _reports(path, manifest))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, ArrowQuantError):
            raise
        raise MetadataError(
            f"{path}: its records cannot be read ({type(error).__name__}: {error}); quantize again to renew them"
        ) from error


def _run_record(folder: Path) -> dict[str, Any]:
    """Return `run.json`, or nothing where it is missing or damaged: it holds times and places only."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads((folder / RUN_NAME).read_bytes())
        return record if isinstance(record, dict) else {}
    return {}


def _reports(folder: Path, manifest: Manifest) -> list[LayerReport]:
    """Return one report per tensor, in the manifest's order."""
    rows = _statistics_reports(folder)
    known = rows | {n: replace(r, costs=rows[n].costs) for n, r in _journal_reports(folder, manifest).items()}
    missing = [name for name in manifest.tensors if name not in known]
    if missing:
        raise MetadataError(f"{folder / STATS_NAME} says nothing of {missing[0]!r}; quantize again to renew it")
    return [known[name] for name in manifest.tensors]


def _journal_reports(folder: Path, manifest: Manifest) -> dict[str, LayerReport]:
    """Return the reports of the committed files that the manifest names; of small kept tensors there are none."""
    try:
        commits, _ = read_commits(folder / JOURNAL_NAME)
    except (OSError, ArrowQuantError):
        return {}
    mine = [c for c in commits.values() if manifest.files.get(c.file, {}).get("xxh3") == c.xxh3]
    return {name: LayerReport.from_dict(report) for commit in mine for name, report in commit.reports.items()}


def _statistics_reports(folder: Path) -> dict[str, LayerReport]:
    with open_quantized(folder) as model:
        rows = model.stats().to_pylist()
    reports = {}
    for row in rows:
        name, shape = row.pop("layer_name"), tuple(int(n) for n in row.pop("shape").split("x") if n)
        known = {key: value for key, value in row.items() if key in LayerReport.__dataclass_fields__}
        costs = known.get("costs")
        known["costs"] = None if costs is None else LayerCosts.from_dict(json.loads(costs))
        reports[name] = LayerReport(**known, name=name, shape=shape)
    return reports


def _result(
    folder: Path, manifest: Manifest, record: dict[str, Any], layers: Sequence[LayerReport]
) -> QuantizationResult:
    facts = manifest.model
    names = [*manifest.files, MANIFEST_NAME, JOURNAL_NAME, EVENTS_NAME, RUN_NAME]
    return assemble_result(
        layers,
        size_nbytes=sum((folder / name).stat().st_size for name in names if (folder / name).is_file()),
        quantized_path=str(folder),
        model=str(facts["name"]),
        source=RunSource.from_dict(facts["source"]) if "source" in facts else None,
        modality=str(facts["modality"]),
        modality_reason=str(facts["modality_reason"]),
        strategy=Strategy.from_dict(facts["strategy"]),
        bit_width=int(facts["config"]["bit_width"]),
        quantization_time_s=float(record.get("quantization_time_s", 0.0)),
        reused=int(record.get("reused", 0)),
        config=dict(record.get("config", facts["config"])),
        calibration=dict(facts.get("calibration", {})),
        warnings=tuple(record.get("warnings", record.get("calibration", {}).get("warnings", ()))),
        network=None if facts.get("network") is None else NetworkQuality.from_dict(facts["network"]),
        size=None if facts.get("size") is None else SizeOutcome.from_dict(facts["size"]),
    )
