"""What stands where the output is to go, in one sentence, and whether a run may go there."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.storage.journal import JOURNAL_NAME, read_commits
from arrowquant_nb.storage.manifest import MANIFEST_NAME, read_manifest
from arrowquant_nb.storage.output import EVENTS_NAME, LOCK_NAME, is_being_written

__all__ = ["OutputFolder", "free_name", "unfinished_runs"]

_BUSY: Final = (
    "A run is writing this folder now: of another page or program, or of this page before it was loaded again. "
    "Wait until it ends, or choose another name."
)
_MOST_LISTED: Final = 3


@dataclass(frozen=True)
class OutputFolder:
    """One folder, looked at without changing it."""

    words: str = ""
    """What stands there; "" for nothing."""
    usable: bool = True
    """Whether a run may begin, or go on, there."""
    resumable: bool = False
    """Whether layers of an unfinished run are there."""
    busy: bool = False
    """Whether a run is writing there now."""
    logged: bool = False
    """Whether a run has left its log there, to be shown again."""

    @classmethod
    def look(cls, path: str, model: str, layers: Iterable[str]) -> "OutputFolder":
        """Look at a folder for a run over `model` with these quantized layers.

        Parameters
        ----------
        path : as typed.
        model : the model's name.
        layers : full names of the layers that the plan quantizes.
        """
        if not path.strip():
            return cls("Type a folder for the output.", usable=False)
        folder = Path(path)
        try:
            if folder.is_file():
                return cls("This is a file. Choose a folder.", usable=False)
            names = {p.name for p in folder.iterdir()} - {LOCK_NAME} if folder.is_dir() else set()
            if not names:
                return cls()
            logged = EVENTS_NAME in names
            if is_being_written(folder):
                return cls(_BUSY, usable=False, busy=True, logged=logged)
            return replace(cls._occupied(folder, names, model, layers), logged=logged)
        except (OSError, ValueError) as error:
            return cls(f"This folder cannot be looked at: {error}. Choose another name.", usable=False)

    @classmethod
    def _occupied(cls, folder: Path, names: set[str], model: str, layers: Iterable[str]) -> "OutputFolder":
        if MANIFEST_NAME in names:
            return cls._finished(folder, model)
        commits = {}
        with contextlib.suppress(ArrowQuantError):
            commits = read_commits(folder / JOURNAL_NAME)[0] if JOURNAL_NAME in names else {}
        if not commits:
            if JOURNAL_NAME in names and names <= {JOURNAL_NAME, EVENTS_NAME}:
                return cls("A run stopped here before its first layer. Run begins it again.")
            return cls("This folder is not empty and holds no run of ours. Choose another name.", usable=False)
        wanted = set(layers)
        done = len(wanted & {name for commit in commits.values() for name in commit.tensors})
        if not done:
            return cls("This folder holds another run. Choose another name.", usable=False)
        return cls(f"{done} of {len(wanted)} layers are already here. Resume takes over those with the same settings.",
                   resumable=True)  # fmt: skip

    @classmethod
    def _finished(cls, folder: Path, model: str) -> "OutputFolder":
        try:
            found = str(read_manifest(folder).model.get("name"))
        except ArrowQuantError as error:
            return cls(f"{error} Choose another name.", usable=False)
        if found != model:
            return cls(f"This folder holds a finished model of {found!r}. Choose another name.", usable=False)
        return cls("A finished model of this source is here: a run redoes only layers whose settings changed.")


def free_name(path: str) -> str:
    """Return the path with the first free number behind it."""
    stem = path.rstrip("/") or "model"
    number = 2
    while Path(f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"


def unfinished_runs(place: Path) -> list[Path]:
    """Return the folders in a place that hold the log of a run and no finished model: the latest ones first."""
    found = []
    with contextlib.suppress(OSError):
        for folder in place.iterdir():
            log = folder / EVENTS_NAME
            if log.is_file() and not (folder / MANIFEST_NAME).exists():
                found.append((log.stat().st_mtime_ns, folder))
    return [folder for _, folder in sorted(found, reverse=True)][:_MOST_LISTED]
