"""Writing that survives a kill: temporary file, fsync, rename, fsync of the folder; and hashing of what was written.

A file is under its final name whole, or not at all. Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from arrowquant_nb.errors import OutputError
from arrowquant_nb.fsync import fsync_path

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPORARY_PREFIX = ".tmp-"
TEMPORARY_NAME = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{32}")
_CHUNK_NBYTES = 1 << 22


def temporary_path(folder: Path) -> Path:
    """Return a fresh name in `folder` that a later run recognises as stale."""
    return folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def is_temporary(path: Path) -> bool:
    """Tell whether a path is a temporary file of ours, by its exact form of name."""
    return TEMPORARY_NAME.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


def remove_stale(folder: Path) -> None:
    """Delete temporaries that a killed run left; call only while holding the folder's lock."""
    for path in folder.rglob(f"{TEMPORARY_PREFIX}*"):
        if is_temporary(path):
            path.unlink(missing_ok=True)


def publish(temporary: Path, final: Path) -> None:
    """Fsync a finished temporary file and give it its final name durably."""
    try:
        fsync_path(temporary)
        temporary.replace(final)
        fsync_path(final.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise as_output_error(error, final) from error


def write_file(final: Path, content: bytes) -> None:
    """Write a small file atomically and durably."""
    temporary = temporary_path(final.parent)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise as_output_error(error, final) from error
    publish(temporary, final)


def real_path(path: Path) -> Path:
    """Return where a path leads, its links followed; one that leads in a circle comes back as it is."""
    return Path(os.path.realpath(path))


def refuse_used(folder: Path) -> None:
    """Raise `OutputError` unless `folder` is new or an empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"the output {folder} exists and is not an empty folder: choose another one")


@contextlib.contextmanager
def emptied_on_failure(folder: Path) -> Iterator[None]:
    """Leave nothing in a folder that was new or empty where the block ends in an error: so it can be tried again."""
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        for path in folder.iterdir() if folder.is_dir() else ():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not was_there and folder.is_dir():
            folder.rmdir()
        raise


def hash_file(path: Path) -> str:
    """Return the xxh3-128 of a file as 32 hex digits, read in chunks."""
    digest = xxhash.xxh3_128()
    buffer = bytearray(_CHUNK_NBYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            digest.update(view[:n])
    return digest.hexdigest()


def as_output_error(error: OSError | ValueError, path: Path) -> OutputError:
    """Turn an operating-system error into one that names the file and the fix."""
    fixes = {
        errno.ENOSPC: "the disk is full: free space and run again to resume",
        errno.EDQUOT: "the quota is used up: free space and run again to resume",
        errno.EFBIG: "the file-size limit is reached: raise it (ulimit -f) and run again to resume",
        errno.EACCES: "permission denied: choose a folder you may write to",
        errno.EPERM: "permission denied: choose a folder you may write to",
        errno.ENAMETOOLONG: "choose a shorter path",
        errno.EROFS: "the file system is read-only: choose another output folder",
    }
    number, words = (error.errno, error.strerror) if isinstance(error, OSError) else (None, None)
    fix = fixes.get(number or 0, "fix the cause and run again to resume")
    return OutputError(f"cannot write {path.name!r} in {str(path.parent)!r}: {words or error} ({fix})")
