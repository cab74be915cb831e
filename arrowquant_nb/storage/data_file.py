"""One data file on its way into a model folder: encoded tile by tile, then committed or discarded.

The folder's writer thread encodes; its publisher thread makes a finished file durable and journals it.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

from arrowquant_nb.errors import ArrowQuantError, OutputError
from arrowquant_nb.storage.durable import as_output_error, drop, hash_file, publish, temporary_path
from arrowquant_nb.storage.journal import Commit
from arrowquant_nb.storage.parquet_v2 import Tile, TileFileWriter, TileReference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


class Committer(Protocol):
    """The folder that a data file goes into, and its writer thread."""

    folder: Path

    def submit(self, work: Callable[[], None]) -> None:
        """Hand work to the writer thread."""

    def publish(self, work: Callable[[], None]) -> None:
        """Hand a finished file to the publisher thread."""

    def unseal(self) -> None:
        """Take the manifest away before a file changes."""

    def record(self, commit: Commit) -> None:
        """Journal a published file."""


class DataFile:
    """One data file on its way: tiles are encoded by the writer thread, then committed or discarded."""

    def __init__(self, model: Committer, file: str) -> None:
        self.file = file
        self._model = model
        self._temporary = temporary_path(model.folder)
        self._writer: TileFileWriter | None = None
        self._discarded = False

    def append(self, tile: Tile) -> None:
        """Queue one tile; its arrays must not change afterwards."""
        self._model.submit(lambda: self._append(tile))

    def _append(self, tile: Tile) -> None:
        if self._discarded:
            return
        if self._writer is None:
            self._writer = TileFileWriter(self._temporary)
        self._writer.append(tile)

    def commit(
        self,
        key: str,
        metadata: Mapping[str, Any],
        describe: Callable[[list[TileReference]], dict[str, dict[str, Any]]],
        reports: dict[str, dict[str, Any]],
    ) -> None:
        """Queue the commit: finish, fsync, rename, journal. `describe` turns tile places into manifest entries."""
        self._model.submit(lambda: self._finish(key, metadata, describe, reports))

    def _finish(
        self,
        key: str,
        metadata: Mapping[str, Any],
        describe: Callable[[list[TileReference]], dict[str, dict[str, Any]]],
        reports: dict[str, dict[str, Any]],
    ) -> None:
        if self._writer is None:
            raise OutputError(f"{self.file} has no tile: an empty tensor cannot be stored as quantized")
        references = self._writer.close(metadata)
        self._writer = None
        self._model.publish(lambda: self._publish(key, describe(references), reports))

    def _publish(self, key: str, entries: dict[str, dict[str, Any]], reports: dict[str, dict[str, Any]]) -> None:
        try:
            digest = hash_file(self._temporary)
            nbytes = self._temporary.stat().st_size
            self._model.unseal()
            publish(self._temporary, self._model.folder / self.file)
        except OSError as error:
            drop(self._temporary)
            raise as_output_error(error, self._model.folder / self.file) from error
        self._model.record(Commit(self.file, nbytes, digest, key, entries, reports))

    def discard(self) -> None:
        """Forget the file and its queued tiles. Raises nothing: the caller may be on its way out of an error.

        Where earlier work of the writer thread failed, its error comes out at the next call, and the temporary file
        goes when the folder is closed.
        """
        self._discarded = True
        with contextlib.suppress(ArrowQuantError, OSError):
            self._model.submit(self._abort)

    def release(self) -> None:
        """Close what an unfinished file still holds, once the writer thread has ended: after an error it did not."""
        if self._writer is not None:
            self._writer.abort()
            self._writer = None

    def _abort(self) -> None:
        self.release()
        self._temporary.unlink(missing_ok=True)
