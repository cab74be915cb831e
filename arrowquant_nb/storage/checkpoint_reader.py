"""An opened source: what it is, what it holds, and rows of it on demand.

Reads byte ranges of safetensors files and turns them into arrays; how a path becomes a `Checkpoint` is
`checkpoint.open_checkpoint`. Which tensors are quantized is not known here.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import ml_dtypes
import numpy as np
import xxhash
from numpy.typing import NDArray

from arrowquant_nb.errors import CheckpointError, ShapeMismatchError
from arrowquant_nb.storage.companions import scale_rows, scale_values
from arrowquant_nb.storage.evidence import Evidence
from arrowquant_nb.storage.safetensors_file import (
    FLOAT8,
    QUANTIZABLE_DTYPES,
    FileStamp,
    TensorEntry,
    byte_buffer,
    quoted,
    read_into,
)

TILE_NBYTES = 4 << 20
_DTYPES: Mapping[str, np.dtype[np.generic]] = MappingProxyType(
    {
        "float32": np.dtype("<f4"),
        "float16": np.dtype("<f2"),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
    }
)
_FLOAT8_TABLES: Mapping[str, NDArray[np.float32]] = MappingProxyType(
    {name: np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32) for name in FLOAT8}
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened source: what it is and what it holds; tensor data are read when asked for.

    Use it as a context manager. No file stays open between reads, and reads from several threads are safe.
    """

    path: Path
    """What the user gave."""
    kind: str
    """`diffusers_pipeline`, `diffusers_component`, `transformers`, `weights_folder`, `single_file` or `parquet`."""
    component: str | None
    """The sub-folder of a pipeline that is read."""
    variant: str | None
    """Variant of the weight files (`fp16`); None for the plain ones."""
    config: Mapping[str, object]
    """`config.json`, empty when there is none."""
    class_name: str | None
    """`_class_name`, else the first of `architectures`; None for a single file."""
    modality_evidence: Evidence
    """What detection looks at."""
    entries: Mapping[str, TensorEntry]
    """Tensor name -> entry, in file order; scales that belong to a float8 weight are not listed."""
    scales: Mapping[str, TensorEntry]
    """The scales that are multiplied in."""
    stamps: Mapping[Path, FileStamp]
    """Identity of each weight file when it was listed."""
    metadata_files: tuple[tuple[Path, str], ...]
    """Configuration, scheduler and tokenizer files to copy: (source, relative target name)."""

    @property
    def quantized(self) -> bool:
        """Whether weights have been quantized already."""
        return False

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors in the source, scales included."""
        return sum(entry.nbytes for entry in (*self.entries.values(), *self.scales.values()))

    def read_rows(
        self, name: str, row_start: int, row_count: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.generic]:
        """Read some rows of the matrix view `[O, prod(rest)]` of a float tensor.

        Parameters
        ----------
        name : str
            A key of `entries`.
        row_start, row_count : int
            Rows; 0-d and 1-d tensors have one row.
        out : uint8 array, optional
            Byte buffer (OUT) to read into; the result is then a view of its beginning.

        Returns
        -------
        array of shape (row_count, columns)
            float32, float16 or bfloat16 as stored; float8 comes as float32 times its scale.

        Raises
        ------
        CheckpointError
            The tensor is not a float tensor, or its file changed, ends early or cannot be read.
        ShapeMismatchError
            Rows outside the tensor, or a buffer that is too small.
        """
        entry = self._entry(name)
        if entry.dtype not in QUANTIZABLE_DTYPES:
            raise CheckpointError(
                f"{entry.file}: {quoted(name)} is {entry.dtype}, rows can be read of {', '.join(QUANTIZABLE_DTYPES)}"
            )
        if row_start < 0 or row_count < 0 or row_start + row_count > entry.rows:
            raise ShapeMismatchError(
                f"rows {row_start} to {row_start + row_count} are outside {quoted(name)}, which has {entry.rows}"
            )
        dtype = _DTYPES[entry.value_dtype]
        buffer = byte_buffer(out, row_count * entry.columns * dtype.itemsize, name)
        rows: NDArray[np.generic] = buffer.view(dtype).reshape(row_count, entry.columns)
        if entry.dtype in FLOAT8:
            self._read_float8(entry, row_start, buffer.view(np.float32).reshape(row_count, entry.columns))
        else:
            offset = entry.offset + row_start * entry.columns * dtype.itemsize
            read_into(entry.file, self.stamps[entry.file], offset, buffer)
        return rows

    def read_bytes(
        self, name: str, start: int = 0, count: int | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Read the bytes of a tensor that is carried over, bit for bit, or a range of them.

        The bytes are of `TensorEntry.kept_dtype`: as stored, except that a float8 tensor with a scale is
        given whole as float32 values with the scale multiplied in, because the scale is not copied.
        """
        entry = self._entry(name)
        if entry.scale is not None:
            whole = self.read_rows(name, 0, entry.rows).view(np.uint8).reshape(-1)
            part = whole[start : None if count is None else start + count]
            if out is None:
                return part
            buffer = byte_buffer(out, part.nbytes, name)
            buffer[:] = part
            return buffer
        count = entry.nbytes - start if count is None else count
        if start < 0 or count < 0 or start + count > entry.nbytes:
            raise ShapeMismatchError(f"bytes {start} to {start + count} are outside {quoted(name)} ({entry.nbytes:,})")
        buffer = byte_buffer(out, count, name)
        read_into(entry.file, self.stamps[entry.file], entry.offset + start, buffer)
        return buffer

    def hash_tensor(self, name: str) -> str:
        """Return xxh3-128 (hexadecimal) over the stored bytes, then those of the scale of a float8 tensor."""
        digest = xxhash.xxh3_128()
        entry = self._entry(name)
        tile = np.empty(min(TILE_NBYTES, max(entry.nbytes, 1)), np.uint8)
        for part in (entry,) if entry.scale is None else (entry, self.scales[entry.scale]):
            for start in range(0, part.nbytes, tile.nbytes):
                view = tile[: min(tile.nbytes, part.nbytes - start)]
                read_into(part.file, self.stamps[part.file], part.offset + start, view)
                digest.update(view.data)
        return digest.hexdigest()

    def close(self) -> None:
        """Release what is held; for files there is nothing, a subclass may map some."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        parts = [repr(os.fspath(self.path)), self.kind]
        parts += [f"component={self.component}"] if self.component else []
        parts += [f"variant={self.variant}"] if self.variant else []
        return f"Checkpoint({', '.join(parts)}, {len(self.entries):,} tensors, {self.n_bytes / 1e6:,.1f} MB)"

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self.entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: holds no tensor {quoted(name)}") from None

    def _read_float8(self, entry: TensorEntry, row_start: int, rows: NDArray[np.float32]) -> None:
        table = _FLOAT8_TABLES[entry.dtype]
        scale = None if entry.scale is None else self._scale(self.scales[entry.scale])
        step = max(1, (1 << 20) // max(1, entry.columns))
        codes = np.empty(min(step, len(rows)) * entry.columns, np.uint8)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            raw = codes[: part.size]
            read_into(entry.file, self.stamps[entry.file], entry.offset + (row_start + start) * entry.columns, raw)
            np.take(table, raw.reshape(part.shape), out=part, mode="clip")
            if scale is not None:
                np.multiply(part, scale_rows(scale, entry, row_start + start, len(part)), out=part)

    def _scale(self, scale: TensorEntry) -> NDArray[np.float32]:
        raw = np.empty(scale.nbytes, np.uint8)
        read_into(scale.file, self.stamps[scale.file], scale.offset, raw)
        return scale_values(raw, scale)
