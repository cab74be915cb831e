"""A checkpoint as the loop's source: rows on demand into reused buffers, hashed in passing.

Memory stays at one tile of source bytes for large tensors; small ones get arrays of their own, because a batch of
them is in use at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from arrowquant_nb.core.orchestrator import BATCH_WEIGHTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.storage.checkpoint import Checkpoint

_FLOAT8_PREFIX = "float8"


class LayerSource:
    """Reads rows of a checkpoint and knows the hash of every tensor that was read through."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._buffer = np.empty(0, np.uint8)
        self._digests: dict[str, tuple[int, Any]] = {}
        self._hashes: dict[str, str] = {}

    def read_rows(self, name: str, row_start: int, row_count: int) -> NDArray[Any]:
        """Return rows [row_start, row_start + row_count) of the matrix view; valid until the next large read."""
        entry = self._checkpoint.entries[name]
        out = None
        if entry.rows * entry.columns >= BATCH_WEIGHTS:
            nbytes = row_count * entry.columns * 4
            if self._buffer.nbytes < nbytes:
                self._buffer = np.empty(nbytes, np.uint8)
            out = self._buffer[:nbytes]
        rows = self._checkpoint.read_rows(name, row_start, row_count, out)
        if not entry.dtype.startswith(_FLOAT8_PREFIX):
            self._update(name, row_start, rows, row_start + row_count == entry.rows)
        return rows

    def _update(self, name: str, row_start: int, rows: NDArray[Any], last: bool) -> None:
        if name in self._hashes:
            return
        done, digest = self._digests.pop(name, (0, xxhash.xxh3_128())) if row_start else (0, xxhash.xxh3_128())
        if done != row_start:
            return
        digest.update(rows.reshape(-1).view(np.uint8).data)
        if last:
            self._hashes[name] = digest.hexdigest()
        else:
            self._digests[name] = (row_start + rows.shape[0], digest)

    def source_hash(self, name: str) -> str:
        """Return the xxh3-128 of a tensor's source bytes, reading them where that has not happened yet."""
        if name not in self._hashes:
            self._hashes[name] = self._checkpoint.hash_tensor(name)
        return self._hashes[name]
