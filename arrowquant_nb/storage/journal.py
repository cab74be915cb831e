"""The journal of a run: one fsynced JSON line per committed file, appended, never rewritten while a run lasts.

A torn last line (power loss, kill) is ignored; any other damage is an error. The manifest is the sealed journal.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from arrowquant_nb.errors import OutputError
from arrowquant_nb.storage.durable import as_output_error

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True)
class Commit:
    """One committed file.

    Attributes
    ----------
    file : name inside the model folder; nbytes and xxh3 say what it must hold.
    key : identity of the work: source tensor, effective settings, algorithm version.
    tensors : manifest entries of the tensors inside, by name.
    reports : layer reports of those tensors that a later run takes over, by name.
    """

    file: str
    nbytes: int
    xxh3: str
    key: str
    tensors: dict[str, dict[str, Any]]
    reports: dict[str, dict[str, Any]]

    def __post_init__(self) -> None:
        """Refuse a line whose fields have other types; it is not one of ours."""
        texts, tables = (self.file, self.xxh3, self.key), (self.tensors, self.reports)
        if not (
            all(isinstance(v, str) for v in texts)
            and isinstance(self.nbytes, int)
            and all(isinstance(v, dict) for v in tables)
        ):
            raise TypeError("a field has the wrong type")


def read_commits(path: Path) -> tuple[dict[str, Commit], int]:
    """Read a journal without touching it.

    Returns
    -------
    commits, n_torn
        The commits by file name, later lines winning, and the bytes of a torn last line.

    Raises
    ------
    OutputError
        A whole line is not one of ours.
    """
    *lines, torn = path.read_bytes().split(b"\n")
    commits: dict[str, Commit] = {}
    for number, line in enumerate(lines, 1):
        try:
            commit = Commit(**json.loads(line))
        except (ValueError, TypeError, RecursionError) as error:
            raise OutputError(
                f"{path}, line {number} is damaged, or not of arrowquant_nb ({error}): choose another output folder"
            ) from error
        commits[commit.file] = commit
    return commits, len(torn)


class Journal:
    """Append-only record beside the data files; only the holder of the folder's lock may make one."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL_NAME
        try:
            self.path.touch()
            self.commits, n_torn = read_commits(self.path)
            if n_torn:
                os.truncate(self.path, self.path.stat().st_size - n_torn)
        except OSError as error:
            raise as_output_error(error, self.path) from error

    def append(self, commit: Commit) -> None:
        """Add one line and make it durable."""
        # In the order they have: what a later run takes over from here must give the same manifest, byte for byte.
        line = json.dumps(asdict(commit), separators=(",", ":")) + "\n"
        try:
            # Unbuffered: closing the stream must not write the rest of a line that failed and was taken back.
            with self.path.open("ab", buffering=0) as stream:
                start = stream.seek(0, os.SEEK_END)
                rest = memoryview(line.encode())
                try:
                    while rest:
                        rest = rest[stream.write(rest) :]
                    os.fsync(stream.fileno())
                except OSError:
                    os.ftruncate(stream.fileno(), start)
                    raise
        except OSError as error:
            raise as_output_error(error, self.path) from error
        self.commits[commit.file] = commit
