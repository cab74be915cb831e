"""A checkpoint as the loop's source: rows on demand, hashed in passing, the next tile read while one is quantized.

Two tile buffers serve all large tensors in turn, so memory does not grow with the model; small tensors get arrays of
their own, because a batch of them is in use at the same time.
"""

from __future__ import annotations

import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import xxhash

from arrowquant_nb.core.batches import BATCH_WEIGHTS, rows_at_once
from arrowquant_nb.storage.dtypes import numpy_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.core.task import LayerTask
    from arrowquant_nb.quantizers.trials import LayerInputs
    from arrowquant_nb.runs.preparation import PreparedModel
    from arrowquant_nb.storage.checkpoint import Checkpoint

# Read and hash this much at a time: it stays in the second-level cache between the two.
_CHUNK_NBYTES = 1 << 20


class _Tile(NamedTuple):
    """Rows of one large tensor."""

    name: str
    row_start: int
    row_count: int


class LayerSource:
    """Reads rows of a checkpoint and knows the hash of every tensor that was read through; a context manager.

    Parameters
    ----------
    checkpoint : where the weights are.
    tasks : what the loop will ask for, in order; tells which tile to read ahead.
    inputs : what calibration knows of a layer's inputs.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tasks: Sequence[LayerTask],
        inputs: Callable[[LayerTask], LayerInputs | None] = lambda _task: None,
    ) -> None:
        self._checkpoint = checkpoint
        large = [t for t in tasks if not t.kept and t.n_weights >= BATCH_WEIGHTS]
        self._next_large = {a.name: b.name for a, b in itertools.pairwise(large)}
        self._steps = {t.name: rows_at_once(t) for t in large}
        self._buffers = [np.empty(0, np.uint8), np.empty(0, np.uint8)]
        self._ahead: tuple[_Tile, Future[NDArray[Any]]] | None = None
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arrowquant-reader")
        self._digests: dict[str, tuple[int, Any]] = {}
        self._hashes: dict[str, str] = {}
        self._layer_inputs = inputs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read_rows(self, name: str, row_start: int, row_count: int) -> NDArray[Any]:
        """Return rows [row_start, row_start + row_count) of the matrix view; of a large tensor until the next call."""
        entry = self._checkpoint.entries[name]
        if entry.rows * entry.columns < BATCH_WEIGHTS:
            fresh = np.empty(row_count * entry.columns * numpy_dtype(entry.value_dtype).itemsize, np.uint8)
            return self._read(_Tile(name, row_start, row_count), fresh)
        wanted = _Tile(name, row_start, row_count)
        ahead, self._ahead = self._ahead, None
        rows = ahead[1].result() if ahead is not None else None
        if ahead is None or rows is None or ahead[0] != wanted:
            rows = self._read(wanted, self._buffer(wanted))
        self._read_ahead(wanted)
        return rows

    def take(self, prepared: PreparedModel) -> None:
        """Go on with a model in which something else is folded."""
        if self._ahead is not None:
            self._ahead[1].result()
        self._ahead = None
        self._digests.clear()
        self._checkpoint = prepared.checkpoint
        self._layer_inputs = prepared.inputs

    def inputs(self, task: LayerTask) -> LayerInputs | None:
        """Return what calibration knows of a layer's inputs; None without."""
        return self._layer_inputs(task)

    def source_hash(self, name: str) -> str:
        """Return the xxh3-128 of a tensor's source bytes, reading them where that has not happened yet."""
        if name not in self._hashes:
            self._hashes[name] = self._checkpoint.hash_tensor(name)
        return self._hashes[name]

    def _buffer(self, tile: _Tile) -> NDArray[np.uint8]:
        """Take the buffer that is not in use, large enough for a tile."""
        self._buffers.reverse()
        entry = self._checkpoint.entries[tile.name]
        nbytes = tile.row_count * entry.columns * numpy_dtype(entry.value_dtype).itemsize
        if self._buffers[0].nbytes < nbytes:
            self._buffers[0] = np.empty(nbytes, np.uint8)
        return self._buffers[0][:nbytes]

    def _read_ahead(self, tile: _Tile) -> None:
        """Begin reading what the loop will most likely ask for next."""
        name, start = tile.name, tile.row_start + tile.row_count
        if start >= self._checkpoint.entries[name].rows:
            if name not in self._next_large:
                return
            name, start = self._next_large[name], 0
        entry = self._checkpoint.entries[name]
        following = _Tile(name, start, min(self._steps[name], entry.rows - start))
        buffer = self._buffer(following)
        self._ahead = (following, self._pool.submit(self._read, following, buffer))

    def _read(self, tile: _Tile, buffer: NDArray[np.uint8]) -> NDArray[Any]:
        """Read a tile chunk by chunk, hashing each chunk while it is warm."""
        entry = self._checkpoint.entries[tile.name]
        dtype = numpy_dtype(entry.value_dtype)
        rows: NDArray[Any] = buffer.view(dtype).reshape(tile.row_count, entry.columns)
        row_nbytes = entry.columns * dtype.itemsize
        chunk_rows = max(1, _CHUNK_NBYTES // max(1, row_nbytes))
        digest = self._digest(tile)
        for start in range(0, tile.row_count, chunk_rows):
            count = min(chunk_rows, tile.row_count - start)
            chunk = buffer[start * row_nbytes : (start + count) * row_nbytes]
            self._checkpoint.read_rows(tile.name, tile.row_start + start, count, chunk)
            if digest is not None:
                digest.update(chunk.data)
        if digest is not None:
            done = tile.row_start + tile.row_count
            self._digests[tile.name] = (done, digest)
            if done == entry.rows:
                self._hashes[tile.name] = self._digests.pop(tile.name)[1].hexdigest()
        return rows

    def _digest(self, tile: _Tile) -> Any:
        """Return the digest that goes on with this tile; None where the hash is known or the order was broken."""
        if tile.name in self._hashes or not self._checkpoint.entries[tile.name].verbatim:
            return None
        if tile.row_start == 0:
            return xxhash.xxh3_128()
        done, digest = self._digests.get(tile.name, (-1, None))
        return digest if done == tile.row_start else None
