"""A model folder as the loop's sink: what is stored per layer, and what an earlier run already stored.

A committed file is taken over when its key matches: the hash of every setting that shapes the layer's bytes, joined
with the hash of the source tensor. So a changed override redoes only its layers.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from arrowquant_nb.layer_reports import LayerReport
from arrowquant_nb.quantizers.layout import KEPT_BIT_WIDTH
from arrowquant_nb.runs.folding import NOTHING_FOLDED, RunFolding
from arrowquant_nb.runs.kept_tensors import (
    KEPT_TILE_NBYTES,
    KEPT_TOGETHER_NBYTES,
    absolute_maximum,
    kept_report,
    kept_tile,
)
from arrowquant_nb.runs.settings_hash import settings_hash
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.output import KEPT_NAME, ModelFolder, data_file_name
from arrowquant_nb.storage.parquet_v2 import Tile, TileReference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.tensor import QuantizedTensor
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.runs.source import LayerSource
    from arrowquant_nb.storage.checkpoint import Checkpoint
    from arrowquant_nb.storage.data_file import DataFile


class ModelSink:
    """Stores what the loop decides.

    Parameters
    ----------
    folder : the locked output.
    checkpoint, source : the model being read, and its hashing reader.
    facts : model-wide metadata that every data file repeats (modality and the like).
    layer_facts : metadata of single layers by name, JSON values: "time_aware", "spatial", "activation_stats".
    calibration : what is known of the layers' inputs, and how it is grouped, as a hash or words.
    folding : what was put into the weights of `checkpoint`.
    """

    def __init__(
        self,
        folder: ModelFolder,
        checkpoint: Checkpoint,
        source: LayerSource,
        facts: dict[str, Any],
        layer_facts: Mapping[str, Mapping[str, Any]] | None = None,
        calibration: str = "",
        folding: RunFolding = NOTHING_FOLDED,
    ) -> None:
        self._folder = folder
        self._checkpoint = checkpoint
        self._source = source
        self._facts = facts
        self._calibration = calibration
        self._folding = folding
        self._layer_facts = layer_facts or {}
        self._kept_together: dict[LayerTask, LayerReport] = {}
        self.files: list[str] = []
        self.reused = 0

    # -- the loop's protocol -----------------------------------------------------------------------------------------

    def reuse(self, task: LayerTask) -> LayerReport | None:
        """Return the stored report of this very work, or None."""
        if task.kept and task.source_nbytes < KEPT_TOGETHER_NBYTES:
            return None
        file = data_file_name(task.index, task.name)
        commit = self._folder.find(file)
        settings = self.settings_of(task)
        if commit is None or not commit.key.startswith(settings):
            return None
        if commit.key != f"{settings}-{self._source.source_hash(task.name)}" or not self._folder.intact(commit):
            return None
        self.reused += 1
        self.files.append(file)
        return LayerReport.from_dict(commit.reports[task.name])

    def take(self, prepared: PreparedModel) -> None:
        """Go on with a model in which something else is folded."""
        self._checkpoint = prepared.checkpoint
        self._folding = prepared.folding
        self._source.take(prepared)

    def forget(self, task: LayerTask) -> None:
        """Leave out what was stored of a layer, which is about to be done again."""
        file = data_file_name(task.index, task.name)
        self.files = [name for name in self.files if name != file]
        self._kept_together = {t: r for t, r in self._kept_together.items() if t.name != task.name}

    def begin(self, task: LayerTask, bit_width: int) -> LayerWriter:
        """Open an attempt at a layer."""
        return LayerWriter(self, task, bit_width)

    def keep(self, task: LayerTask) -> LayerReport:
        """Carry a tensor over: small ones later, together; large ones now."""
        if task.source_nbytes < KEPT_TOGETHER_NBYTES:
            report = kept_report(task, absolute_maximum(self._checkpoint.read_bytes(task.name), task.dtype))
            self._kept_together[task] = report
            return report
        file = self._folder.start_file(data_file_name(task.index, task.name))
        row_nbytes = task.columns * numpy_dtype(task.dtype).itemsize
        tile_rows = max(1, KEPT_TILE_NBYTES // row_nbytes)
        largest = 0.0
        for number, start in enumerate(range(0, task.rows, tile_rows)):
            count = min(tile_rows, task.rows - start)
            data = self._checkpoint.read_bytes(task.name, start * row_nbytes, count * row_nbytes)
            w_absmax = absolute_maximum(data, task.dtype)
            largest = max(largest, w_absmax)
            file.append(kept_tile(task, number, start, count, data, w_absmax))
        report = kept_report(task, largest)
        self._commit(file, task, report)
        return report

    # -- after the loop ----------------------------------------------------------------------------------------------

    def finish_kept(self) -> None:
        """Write the small kept tensors into one file, unless an earlier run left the same one."""
        if not self._kept_together:
            return
        hashes = "".join(self.settings_of(t) + self._source.source_hash(t.name) for t in self._kept_together)
        key = hashlib.sha256(hashes.encode()).hexdigest()
        self.files.append(KEPT_NAME)
        commit = self._folder.find(KEPT_NAME)
        if commit is not None and commit.key == key and self._folder.intact(commit):
            self.reused += len(self._kept_together)
            return
        file = self._folder.start_file(KEPT_NAME)
        reports = dict(self._kept_together)
        tasks = list(reports)
        for number, (task, report) in enumerate(reports.items()):
            raw = self._checkpoint.read_bytes(task.name)
            file.append(kept_tile(task, number, 0, task.rows, raw, report.w_absmax))
        hashes_by_name = {t.name: self._source.source_hash(t.name) for t in tasks}

        def describe(references: list[TileReference]) -> dict[str, dict[str, Any]]:
            return {
                t.name: self._entry(KEPT_NAME, t, reports[t], hashes_by_name[t.name], [r])
                for t, r in zip(tasks, references, strict=True)
            }

        metadata = {**self._facts, "tensors": {t.name: {"shape": list(t.shape), "dtype": t.dtype} for t in tasks}}
        # No reports go to the journal: those of kept tensors are made anew by every run.
        file.commit(key, metadata, describe, {})

    # -- shared ------------------------------------------------------------------------------------------------------

    def settings_of(self, task: LayerTask) -> str:
        """Return a hash of every setting that shapes what is stored of a tensor."""
        facts = {**self._facts, **self._layer_facts.get(task.name, {})}
        if folding := self._folding.key(task.name):
            facts["folding"] = folding
        return settings_hash(task, facts, self._checkpoint.entries[task.name].file.name, self._calibration)

    def _commit(
        self, file: DataFile, task: LayerTask, report: LayerReport, facts: Mapping[str, Any] | None = None
    ) -> None:
        source_hash = self._source.source_hash(task.name)
        metadata = {
            **self._facts,
            "layer_name": task.name,
            "shape": list(task.shape),
            "dtype": task.dtype,
            "source_xxh3": source_hash,
            "time_aware": None,
            "spatial": None,
            "activation_stats": None,
            **self._layer_facts.get(task.name, {}),
            **(facts or {}),
        }

        def describe(references: list[TileReference]) -> dict[str, dict[str, Any]]:
            entry = self._entry(file.file, task, report, source_hash, references)
            return {task.name: entry | input_entry(task, metadata)}

        self.files.append(file.file)
        file.commit(f"{self.settings_of(task)}-{source_hash}", metadata, describe, {task.name: report.to_record()})

    def _entry(
        self, file: str, task: LayerTask, report: LayerReport, source_hash: str, references: list[TileReference]
    ) -> dict[str, Any]:
        transforms = {"rotation_seed": report.rotation_seed, "low_rank": report.low_rank or None}
        return {
            "file": file,
            "shape": list(task.shape),
            "dtype": task.dtype,
            "bit_width": report.bit_width,
            "method": report.method,
            "grid": report.grid,
            "group_size": report.group_size,
            **{key: value for key, value in transforms.items() if value is not None},
            **({"folding": task.folding} if task.folding else {}),
            "source_file": self._checkpoint.entries[task.name].file.name,
            "source_xxh3": source_hash,
            "tiles": [r.to_dict() for r in references],
        }


class LayerWriter:
    """Tiles of one attempt at one layer."""

    def __init__(self, sink: ModelSink, task: LayerTask, bit_width: int) -> None:
        self._sink = sink
        self._task = task
        self._bit_width = bit_width
        self._n_tiles = 0
        self._file = sink._folder.start_file(data_file_name(task.index, task.name))  # noqa: SLF001 - one unit

    def append(self, row_start: int, tensor: QuantizedTensor) -> None:
        """Queue one tile."""
        statistics = tensor.statistics
        self._file.append(
            Tile(
                layer_name=self._task.name,
                tile=self._n_tiles,
                row_start=row_start,
                row_count=tensor.rows,
                bit_width=self._bit_width,
                group_size=tensor.group_size,
                quant_type=f"int{self._bit_width}",
                method=tensor.method,
                grid=tensor.grid,
                data=tensor.packed,
                scales=tensor.scales,
                zero_points=tensor.zero_points,
                rotation_seed=tensor.rotation_seed,
                low_rank_a=tensor.low_rank_a,
                low_rank_b=tensor.low_rank_b if row_start == 0 else None,
                sqnr_db=statistics.sqnr_db,
                cosine=statistics.cosine,
                mse=statistics.mse,
                w_absmax=statistics.w_absmax,
                equalization=tensor.equalization,
            )
        )
        self._n_tiles += 1

    def commit(self, report: LayerReport, facts: Mapping[str, Any] | None = None) -> None:
        """Store the attempt, and with it what is done to the layer's input."""
        self._sink._commit(self._file, self._task, report, facts)  # noqa: SLF001 - one unit

    def discard(self) -> None:
        """Forget the attempt."""
        self._file.discard()


def input_entry(task: LayerTask, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the manifest says of a layer's input: its width, its grids, whether channels are evened out."""
    found: dict[str, Any] = {}
    if task.activation_bit_width < KEPT_BIT_WIDTH:
        found["activation_bit_width"] = task.activation_bit_width
    if metadata["time_aware"] is not None:
        found["time_aware"] = metadata["time_aware"]
    if metadata["spatial"] is not None:
        found["spatial"] = True  # the numbers stand in the data file
    return found
