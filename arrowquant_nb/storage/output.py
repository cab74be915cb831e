"""The output folder of a run: locked, resumable, committed file by file, sealed by a manifest.

One thread encodes tiles while the next layer is quantized, a second one hashes, fsyncs and renames finished files, so
that neither the kernels nor the encoder wait for the disk; at most a few tiles and files wait for them. The small files
at the end are made durable side by side, the manifest after all of them.
Knows nothing of quantization; it stores tiles and the JSON that it is handed.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

import xxhash
from filelock import FileLock, Timeout

from arrowquant_nb.errors import ArrowQuantError, OutputError
from arrowquant_nb.fsync import fsync_path
from arrowquant_nb.storage.data_file import DataFile
from arrowquant_nb.storage.durable import (
    as_output_error,
    hash_file,
    is_temporary,
    real_path,
    remove_stale,
    write_file,
)
from arrowquant_nb.storage.journal import JOURNAL_NAME, Commit, Journal, read_commits
from arrowquant_nb.storage.manifest import MANIFEST_NAME, Manifest, read_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

LOCK_NAME = ".lock"
KEPT_NAME = "kept.parquet"
# Tiles that may wait for the writer thread; bounds memory at a few times the tile size.
_QUEUE_DEPTH = 2
# Finished files that may wait for the disk.
_PUBLISH_DEPTH = 4
# Small files on their way at a time: a disk that syncs several in one go takes no longer than for one.
_SIDE_BY_SIDE = 4
_SLUG_LENGTH = 60
_DATA_FILE = re.compile(r"\d{5,}-\w+-[0-9a-f]{8}\.parquet")
# Records of a run; times and hosts may stand only here and in the journal.
EVENTS_NAME = "events.jsonl"
RUN_NAME = "run.json"


def data_file_name(index: int, tensor_name: str) -> str:
    """Return NNNNN-slug-hash8.parquet; the hash keeps `a.b` and `a_b` apart, the slug is only for readers."""
    slug = re.sub(r"[^A-Za-z0-9]+", "_", tensor_name[: 4 * _SLUG_LENGTH]).strip("_")[:_SLUG_LENGTH] or "tensor"
    digest = xxhash.xxh3_64_hexdigest(tensor_name.encode("utf-8", "surrogatepass"))
    return f"{index:05d}-{slug}-{digest[:8]}.parquet"


def is_being_written(folder: Path) -> bool:
    """Tell whether a run holds the folder's lock now."""
    if not (folder / LOCK_NAME).is_file():
        return False
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    except OSError:  # where nobody may write, nobody does
        return False
    lock.release()
    return False


class ModelFolder:
    """Writes one model; a context manager that holds the folder's lock.

    Parameters
    ----------
    folder : where the model goes; created, or empty, or a folder of an earlier run of ours.
    source : folder or file of the source model; output inside it, or equal to it, is refused.
    needed_nbytes : estimate of the output, checked against the free space.

    Raises
    ------
    OutputError
        Locked by another run, not ours, not writable, too little space, inside the source.
    """

    def __init__(self, folder: Path, source: Path, needed_nbytes: int) -> None:
        self.folder = folder
        self._previous: Manifest | None = None
        try:
            self._check_place(source)
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise as_output_error(error, folder) from error
        self._lock = FileLock(folder / LOCK_NAME, timeout=0)
        self._needed_nbytes = needed_nbytes
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arrowquant-writer")
        self._started: list[DataFile] = []
        self._waiting: list[Future[None]] = []
        self._publisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="arrowquant-publisher")
        self._publishing: list[Future[None]] = []
        self._small_files = ThreadPoolExecutor(max_workers=_SIDE_BY_SIDE, thread_name_prefix="arrowquant-files")

    def _check_place(self, source: Path) -> None:
        folder, origin = real_path(self.folder), real_path(source)
        if folder == origin or (origin.is_dir() and origin in folder.parents):
            raise OutputError(f"the output {self.folder} lies inside the source model {source}: choose another folder")
        if origin.is_relative_to(folder):
            raise OutputError(f"the source model {source} lies inside the output {self.folder}: choose another folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputError(f"the output {self.folder} is a file: choose a folder")
        if self.folder.is_dir() and not self._is_ours():
            raise OutputError(f"the output {self.folder} is not empty and not a model of ours: choose an empty folder")

    def _is_ours(self) -> bool:
        """Tell whether a folder is empty, a run of ours that has just begun, or one that committed something."""
        names = {p.name for p in self.folder.iterdir() if not is_temporary(p)} - {LOCK_NAME}
        # A kill may come between the first rename and its line in the journal.
        foreign = {n for n in names - {JOURNAL_NAME, EVENTS_NAME, KEPT_NAME} if not _DATA_FILE.fullmatch(n)}
        if not names or (JOURNAL_NAME in names and not foreign):
            return True
        with contextlib.suppress(ArrowQuantError):
            self._previous = read_manifest(self.folder)
            return True
        # Without a manifest the journal must have a commit; a damaged journal is an error of its own.
        return JOURNAL_NAME in names and bool(read_commits(self.folder / JOURNAL_NAME)[0])

    def refuse_other_model(self, tensors: Mapping[str, Sequence[int]], name: str) -> None:
        """Raise when a finished model stands here that was made from another model (its name or tensors differ)."""
        if self._previous is None:
            return
        there = {n: list(entry.get("shape", ())) for n, entry in self._previous.tensors.items()}
        if self._previous.model.get("name") != name or there != {n: list(shape) for n, shape in tensors.items()}:
            raise OutputError(
                f"the output {self.folder} holds a finished model of {self._previous.model.get('name')!r}: "
                "choose another folder, or pass overwrite=True (--overwrite) to replace it"
            )

    def __enter__(self) -> Self:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise OutputError(f"another run is writing {self.folder}: wait for it, or choose another folder") from error
        except OSError as error:
            raise as_output_error(error, self.folder / LOCK_NAME) from error
        try:
            remove_stale(self.folder)
            self._journal = Journal(self.folder)
            self._check_space()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for file in self._started:
                file.release()
            self._publisher.shutdown(wait=True)  # finished files are worth keeping whatever ended the run
            self._small_files.shutdown(wait=True)
            remove_stale(self.folder)
        finally:
            self._lock.release()

    def _check_space(self) -> None:
        there = (c.nbytes for c in self._journal.commits.values() if (self.folder / c.file).is_file())
        committed = sum(there)
        free = shutil.disk_usage(self.folder).free
        if free + committed < self._needed_nbytes:
            raise OutputError(
                f"the output {self.folder} needs about {self._needed_nbytes / 1e6:.1f} MB, but only "
                f"{free / 1e6:.1f} MB are free: free space or choose another disk"
            )

    # -- committed work ----------------------------------------------------------------------------------------------

    def find(self, file: str) -> Commit | None:
        """Return the journal's entry for a file name, unverified."""
        return self._journal.commits.get(file)

    def committed(self, file: str) -> Commit:
        """Return the journal's entry of a file that this run committed or took over."""
        return self._journal.commits[file]

    def intact(self, commit: Commit) -> bool:
        """Tell whether the committed file is there with the bytes the journal recorded."""
        path = self.folder / commit.file
        return path.is_file() and path.stat().st_size == commit.nbytes and hash_file(path) == commit.xxh3

    @property
    def sealed(self) -> bool:
        """Whether the folder still holds (or holds again) a finished model."""
        return (self.folder / MANIFEST_NAME).exists()

    # -- writing -----------------------------------------------------------------------------------------------------

    def start_file(self, file: str) -> DataFile:
        """Begin one data file."""
        self._started.append(DataFile(self, file))
        return self._started[-1]

    def submit(self, work: Callable[[], None]) -> None:
        """Hand work to the writer thread; an error of earlier work is raised here."""
        while len(self._waiting) >= _QUEUE_DEPTH:
            self._waiting.pop(0).result()
        self._waiting.append(self._pool.submit(work))

    def publish(self, work: Callable[[], None]) -> None:
        """Hand a finished file to the publisher thread, in order; an error of earlier files is raised here."""
        while len(self._publishing) >= _PUBLISH_DEPTH:
            self._publishing.pop(0).result()
        self._publishing.append(self._publisher.submit(work))

    def drain(self) -> None:
        """Wait until everything handed over is durable; raise the first error."""
        errors = []
        for name in ("_waiting", "_publishing"):  # the writer thread fills the second while the first is waited for
            waiting: list[Future[None]] = getattr(self, name)
            errors += [e for e in (f.exception() for f in waiting) if e is not None]
            setattr(self, name, [])
        if errors:
            raise errors[0]

    def record(self, commit: Commit) -> None:
        """Journal a published file (publisher thread only)."""
        self._journal.append(commit)

    def unseal(self) -> None:
        """Take the manifest away before the first file changes: from here on the folder is a run, not a model."""
        path = self.folder / MANIFEST_NAME
        if path.exists():
            path.unlink()
            fsync_path(self.folder)

    def write(self, name: str, content: bytes, listed: bool = True) -> dict[str, Any]:
        """Hand over a small file and return its manifest entry; unchanged content is left alone.

        It is written atomically, and durable after `drain`, which raises its errors. A file that is not `listed` in the
        manifest may change under a finished model.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise OutputError(f"{name!r} lies outside the output {self.folder}: the source model names a foreign file")
        if not (path.is_file() and path.read_bytes() == content):
            if listed:
                self.unseal()
            self._publishing.append(self._small_files.submit(write_file, path, content))
        return {"nbytes": len(content), "xxh3": xxhash.xxh3_128_hexdigest(content)}

    def seal(self, manifest: Manifest) -> None:
        """Write the manifest after all else is durable; drop files of earlier runs that it does not name, no others."""
        self.drain()
        self.write(MANIFEST_NAME, manifest.encode(), listed=False)
        self.drain()
        earlier = set(self._journal.commits) | set(self._previous.files if self._previous else ())
        for name in earlier - set(manifest.files):
            path = self.folder / name
            if path.resolve().is_relative_to(self.folder.resolve()):
                path.unlink(missing_ok=True)

    def size_nbytes(self, manifest: Manifest) -> int:
        """Bytes on disk of the files of a model, its manifest and the records of its run."""
        names = [*manifest.files, MANIFEST_NAME, JOURNAL_NAME, EVENTS_NAME, RUN_NAME]
        return sum((self.folder / n).stat().st_size for n in names if (self.folder / n).is_file())
