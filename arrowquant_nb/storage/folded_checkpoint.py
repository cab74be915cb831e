"""A source whose equalization is folded: some tensors come changed, as float32, and all others as they are.

The model computes what it did before. Hashes stay those of the source's own tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.storage.checkpoint_reader import Checkpoint
from arrowquant_nb.storage.safetensors_file import TensorEntry, byte_buffer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.folded_tensor import FoldedTensor

__all__ = ["FoldedCheckpoint", "folded_checkpoint"]

FLOAT32_NBYTES = 4


class FoldedEntry(TensorEntry):
    """A tensor that comes changed: in float32, in which nothing of the change is lost."""

    __slots__ = ()

    @property
    def value_dtype(self) -> str:
        """Dtype in which rows are delivered."""
        return "float32"

    @property
    def verbatim(self) -> bool:
        """Never: what is delivered is not what is stored."""
        return False

    @property
    def kept_dtype(self) -> str:
        """Dtype in which the tensor is carried over."""
        return "float32"


@dataclass(frozen=True, eq=False)
class FoldedCheckpoint(Checkpoint):
    """A `Checkpoint` over another, with some tensors folded."""

    source: Checkpoint = field(kw_only=True)
    folding: Mapping[str, FoldedTensor] = field(kw_only=True)
    """Tensor name -> how it changes."""

    def read_rows(
        self, name: str, row_start: int, row_count: int, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.generic]:
        """Return rows of the matrix view; float32 of a folded tensor."""
        if name not in self.folding:
            return self.source.read_rows(name, row_start, row_count, out)
        entry = self.entries[name]
        rows = self.source.read_rows(name, row_start, row_count)
        folded = self.folding[name]
        values = folded.rows(rows, row_start) if len(entry.shape) > 1 else folded.whole(rows.reshape(-1))[None]
        if out is None:
            return values
        buffer = byte_buffer(out, values.nbytes, name)
        buffer[:] = values.reshape(-1).view(np.uint8)
        return buffer.view(np.float32).reshape(values.shape)

    def read_bytes(
        self, name: str, start: int = 0, count: int | None = None, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return the bytes of a tensor, or a range of them: float32 values of a folded one."""
        if name not in self.folding:
            return self.source.read_bytes(name, start, count, out)
        entry = self.entries[name]
        row_nbytes = FLOAT32_NBYTES * entry.columns
        end = row_nbytes * entry.rows if count is None else start + count
        first = start // row_nbytes
        values = self.read_rows(name, first, -(-end // row_nbytes) - first)
        part = values.reshape(-1).view(np.uint8)[start - first * row_nbytes : end - first * row_nbytes]
        if out is None:
            return part
        buffer = byte_buffer(out, part.nbytes, name)
        buffer[:] = part
        return buffer

    def hash_tensor(self, name: str) -> str:
        """Return the hash of the source's own tensor."""
        return self.source.hash_tensor(name)

    def close(self) -> None:
        """Release what the source holds."""
        self.source.close()


def folded_checkpoint(source: Checkpoint, folding: Mapping[str, FoldedTensor]) -> Checkpoint:
    """Return a source with some tensors folded; the source itself where there are none.

    Parameters
    ----------
    source : the float model.
    folding : tensor name -> how it changes; every name must be there.
    """
    if not folding:
        return source
    entries = {name: _folded(entry) if name in folding else entry for name, entry in source.entries.items()}
    own = {f.name: getattr(source, f.name) for f in fields(Checkpoint)}
    return FoldedCheckpoint(**(own | {"entries": MappingProxyType(entries)}), source=source, folding=dict(folding))


def _folded(entry: TensorEntry) -> FoldedEntry:
    return FoldedEntry(**{f.name: getattr(entry, f.name) for f in fields(TensorEntry)})
