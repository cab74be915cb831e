"""A Parquet model of ours as a source: float tensors as they are, quantized ones only on request.

Quantizing twice adds the errors of both, so an already quantized model is refused unless `requantize` is set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from arrowquant_nb.errors import CheckpointError
from arrowquant_nb.storage.checkpoint_reader import Checkpoint
from arrowquant_nb.storage.dtypes import numpy_dtype
from arrowquant_nb.storage.evidence import collect_evidence
from arrowquant_nb.storage.quantized import QuantizedModel, open_quantized
from arrowquant_nb.storage.safetensors_file import TensorEntry, quoted
from arrowquant_nb.storage.source_folder import SourceFolder

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Read and hashed together: as much as a tile dequantizes to.
HASHED_NBYTES = 1 << 25


@dataclass(frozen=True, eq=False)
class ParquetCheckpoint(Checkpoint):
    """A `Checkpoint` over a model folder of ours; hashes of files are checked at their first access."""

    model: QuantizedModel = field(kw_only=True)

    @property
    def quantized(self) -> bool:
        """Whether weights have been quantized already."""
        return any(not self.model[name].kept for name in self.model)

    def read_rows(
        self, name: str, row_start: int, row_count: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.generic]:
        """Return rows of the matrix view, in the stored dtype; float32 for a tensor that was quantized."""
        entry = self._entry(name)
        rows = self.model[name].read_rows(row_start, row_count)
        if out is None:
            return rows
        view: NDArray[np.generic] = out[: rows.nbytes].view(rows.dtype).reshape(row_count, entry.columns)
        view[...] = rows
        return view

    def read_bytes(
        self, name: str, start: int = 0, count: int | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, or a range of them."""
        entry = self._entry(name)
        row_nbytes = max(1, entry.columns * numpy_dtype(entry.dtype).itemsize)
        end = entry.nbytes if count is None else start + count
        first = start // row_nbytes
        rows = np.ascontiguousarray(self.model[name].read_rows(first, -(-end // row_nbytes) - first))
        part = rows.reshape(-1).view(np.uint8)[start - first * row_nbytes : end - first * row_nbytes]
        if out is None:
            return part
        out[: part.nbytes] = part
        return out[: part.nbytes]

    def hash_tensor(self, name: str) -> str:
        """Return the xxh3-128 of a tensor's bytes as they are read."""
        digest = xxhash.xxh3_128()
        nbytes = self._entry(name).nbytes
        for start in range(0, nbytes, HASHED_NBYTES):
            digest.update(self.read_bytes(name, start, min(HASHED_NBYTES, nbytes - start)).data)
        return digest.hexdigest()

    def close(self) -> None:
        """Unmap the files."""
        self.model.close()


def open_parquet_checkpoint(path: Path, requantize: bool = False) -> ParquetCheckpoint:
    """Open a model folder of ours as a source.

    Raises
    ------
    CheckpointError
        It holds quantized tensors and `requantize` is false.
    """
    model = open_quantized(path)
    quantized = [name for name in model if not model[name].kept]
    if quantized and not requantize:
        raise CheckpointError(
            f"{path} is quantized already ({len(quantized)} tensors, first {quoted(quantized[0])}): quantize the "
            "float original, or pass requantize=True (--requantize) to add a second error to the first"
        )
    facts = model.facts
    folder = SourceFolder.at(path)
    # Hash-checked and confined to the folder: the list itself may come from a stranger.
    listed = {t: model.file_path(t) for t in facts.get("metadata_files", []) if isinstance(t, str)}
    config = folder.json("config.json") or {} if "config.json" in listed else {}
    entries = {name: _entry(path, model, name) for name in model}
    pipeline = folder if "model_index.json" in listed else None
    evidence = collect_evidence(path, folder, pipeline, config, {}, entries)
    return ParquetCheckpoint(
        path=path, kind="parquet", component=facts.get("component"), variant=facts.get("variant"),
        config=MappingProxyType(config), class_name=facts.get("class_name"),
        modality_evidence=evidence,
        entries=entries, scales={}, stamps={}, model=model,
        metadata_files=tuple((source, t) for t, source in listed.items()),
    )  # fmt: skip


def _entry(path: Path, model: QuantizedModel, name: str) -> TensorEntry:
    tensor = model[name]
    dtype = tensor.dtype if tensor.kept else "float32"
    nbytes = tensor.n_weights * numpy_dtype(dtype).itemsize
    return TensorEntry(name, tensor.shape, dtype, path / tensor.source_file, 0, nbytes)
