"""The end of a run: everything that is not tensor data, and the manifest that makes a model of the folder.

Writes what a run has come to; decides nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from arrowquant_nb import _kernels
from arrowquant_nb.runs.card import model_card
from arrowquant_nb.runs.input_strategy import applied_strategy, input_warnings
from arrowquant_nb.runs.record import (
    CARD_NAME,
    STATS_NAME,
    assemble_result,
    machine,
    run_source,
    statistics_table,
    versions,
)
from arrowquant_nb.runs.rounds import floor_warnings
from arrowquant_nb.storage.manifest import Manifest
from arrowquant_nb.storage.output import RUN_NAME

if TYPE_CHECKING:
    from pathlib import Path

    from arrowquant_nb.config import DiffusionQuantConfig
    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.layer_reports import LayerReport
    from arrowquant_nb.network_quality import NetworkQuality, SizeOutcome
    from arrowquant_nb.results import QuantizationResult
    from arrowquant_nb.runs.calibrating import RunCalibration
    from arrowquant_nb.runs.model_choice import OpenedModel
    from arrowquant_nb.runs.planning import Decisions
    from arrowquant_nb.runs.sink import ModelSink
    from arrowquant_nb.storage.checkpoint import Checkpoint
    from arrowquant_nb.storage.output import ModelFolder


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run has come to."""

    opened: OpenedModel
    """The float model, and what was decided of it."""
    config: DiffusionQuantConfig
    calibration: RunCalibration
    tasks: list[LayerTask]
    """As they were carried out in the end."""
    reports: list[LayerReport]
    """One for each."""
    sink: ModelSink
    """Which files hold them."""
    network: NetworkQuality | None
    size: SizeOutcome | None
    measuring_warnings: tuple[str, ...]
    """What was wrong with the cache of costs."""

    @property
    def decisions(self) -> Decisions:
        """What was decided, the strategy as it was carried out."""
        planned = self.opened.decisions
        return replace(planned, strategy=applied_strategy(planned.strategy, self.reports))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong without stopping the run, one sentence each."""
        return (
            *self.calibration.warnings,
            *self.measuring_warnings,
            *floor_warnings(self.network, self.config),
            *input_warnings(self.reports, self.calibration),
        )


def seal(outcome: Outcome, folder: ModelFolder, seconds: float) -> QuantizationResult:
    """Write the texts and tables of a model, last of all its manifest, and return the run's result."""
    checkpoint = outcome.opened.checkpoint
    files: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Any]] = {}
    for file in sorted(outcome.sink.files):  # whatever order they were committed in
        commit = folder.committed(file)
        files[file] = {"nbytes": commit.nbytes, "xxh3": commit.xxh3}
        tensors.update(commit.tensors)
    for source, target in checkpoint.metadata_files:
        files[target] = folder.write(target, source.read_bytes())
    files[STATS_NAME] = folder.write(STATS_NAME, statistics_table(outcome.reports))
    hashes = {name: str(entry["xxh3"]) for name, entry in files.items()}
    files[CARD_NAME] = folder.write(CARD_NAME, _card(outcome, hashes))
    folder.write(RUN_NAME, _record(outcome, seconds, tensors), listed=False)
    manifest = Manifest(_facts(outcome), {t.name: tensors[t.name] for t in outcome.tasks}, files)
    folder.seal(manifest)
    return _result(outcome, folder, seconds, folder.size_nbytes(manifest))


def _card(outcome: Outcome, hashes: dict[str, str]) -> bytes:
    command = run_source(outcome.opened).command(outcome.config)
    return model_card(
        outcome.decisions, outcome.config, outcome.reports, hashes, command, outcome.network, outcome.size
    )


def _facts(outcome: Outcome) -> dict[str, Any]:
    """Return what the manifest says of the whole model."""
    checkpoint, decisions = outcome.opened.checkpoint, outcome.decisions
    measured = {"network": outcome.network, "size": outcome.size}
    return {
        "name": decisions.model,
        "kind": checkpoint.kind,
        "component": checkpoint.component,
        "variant": checkpoint.variant,
        "source": run_source(outcome.opened).to_record(),
        "class_name": checkpoint.class_name,
        "modality": decisions.modality,
        "modality_reason": decisions.modality_reason,
        "strategy": decisions.strategy.to_dict(),
        "calibration": outcome.calibration.facts(),
        # A thread count changes no byte of a model, so it does not enter the manifest.
        "config": outcome.config.to_dict() | {"num_threads": 0},
        "metadata_files": [target for _, target in checkpoint.metadata_files],
        "component_files": [t for source, t in checkpoint.metadata_files if _belongs_to_component(checkpoint, source)],
        "header": _header_facts(checkpoint),
        **{name: value.to_dict() for name, value in measured.items() if value is not None},
    }


def _record(outcome: Outcome, seconds: float, tensors: dict[str, dict[str, Any]]) -> bytes:
    """Return `run.json`: what is needed to run again, and on what this run was made."""
    checkpoint, config = outcome.opened.checkpoint, outcome.config
    record = {
        "model": outcome.opened.located.argument,
        "component": checkpoint.component,
        "variant": checkpoint.variant,
        "config": config.to_dict(),
        "sources": dict(config.sources),
        "inputs": {name: entry["source_xxh3"] for name, entry in tensors.items()},
        "versions": versions(),
        "machine": machine(),
        "n_threads": _kernels.resolve_threads(config.num_threads),
        "quantization_time_s": seconds,
        "reused": outcome.sink.reused,
        "calibration": outcome.calibration.record(),
        "warnings": list(outcome.warnings),
    }
    return (json.dumps(record, indent=1) + "\n").encode()


def _result(outcome: Outcome, folder: ModelFolder, seconds: float, size: int) -> QuantizationResult:
    decisions = outcome.decisions
    return assemble_result(
        outcome.reports,
        size_nbytes=size,
        quantized_path=str(folder.folder),
        model=decisions.model,
        source=run_source(outcome.opened),
        modality=decisions.modality,
        modality_reason=decisions.modality_reason,
        strategy=decisions.strategy,
        bit_width=outcome.config.bit_width,
        quantization_time_s=seconds,
        reused=outcome.sink.reused,
        config=outcome.config.to_dict(),
        calibration=outcome.calibration.facts(),
        warnings=outcome.warnings,
        network=outcome.network,
        size=outcome.size,
    )


def _belongs_to_component(checkpoint: Checkpoint, source: Path) -> bool:
    return checkpoint.component is not None and source.is_relative_to(checkpoint.path / checkpoint.component)


def _header_facts(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what of a safetensors header tells the architecture, for writing it back."""
    architecture = checkpoint.modality_evidence.header_architecture
    return {"modelspec.architecture": architecture} if architecture else {}
