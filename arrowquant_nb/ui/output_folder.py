"""What stands where the output is to go, in one sentence, and whether a run may go there."""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from arrowquant_nb.errors import ArrowQuantError
from arrowquant_nb.storage.journal import JOURNAL_NAME, read_commits
from arrowquant_nb.storage.manifest import MANIFEST_NAME, read_manifest
from arrowquant_nb.storage.output import EVENTS_NAME, LOCK_NAME, is_being_written

__all__ = ["OutputFolder", "free_name"]


@dataclass(frozen=True)
class OutputFolder:
    """One folder, looked at without changing it."""

    words: str = ""
    """What stands there; "" for nothing."""
    usable: bool = True
    """Whether a run may begin, or go on, there."""
    resumable: bool = False
    """Whether layers of an unfinished run are there."""

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
            if is_being_written(folder):
                return cls("Another run is writing this folder now. Choose another name.", usable=False)
            return cls._occupied(folder, names, model, layers)
        except (OSError, ValueError) as error:
            return cls(f"This folder cannot be looked at: {error}. Choose another name.", usable=False)

    @classmethod
    def _occupied(cls, folder: Path, names: set[str], model: str, layers: Iterable[str]) -> "OutputFolder":
        if MANIFEST_NAME in names:
            try:
                found = str(read_manifest(folder).model.get("name"))
            except ArrowQuantError as error:
                return cls(f"{error} Choose another name.", usable=False)
            if found != model:
                return cls(f"This folder holds a finished model of {found!r}. Choose another name.", usable=False)
            return cls("A finished model of this source is here: a run redoes only layers whose settings changed.")
        commits = {}
        with contextlib.suppress(ArrowQuantError):
            commits = read_commits(folder / JOURNAL_NAME)[0] if JOURNAL_NAME in names else {}
        if not commits:
            # A run that was stopped before its first layer is in nobody's way.
            stopped = JOURNAL_NAME in names and names <= {JOURNAL_NAME, EVENTS_NAME}
            words = "" if stopped else "This folder is not empty and holds no run of ours. Choose another name."
            return cls(words, usable=stopped)
        wanted = set(layers)
        done = len(wanted & {name for commit in commits.values() for name in commit.tensors})
        if not done:
            return cls("This folder holds another run. Choose another name.", usable=False)
        return cls(f"{done} of {len(wanted)} layers are already here. Resume takes over those with the same settings.",
                   resumable=True)  # fmt: skip


def free_name(path: str) -> str:
    """Return the path with the first free number behind it."""
    stem = path.rstrip("/") or "model"
    number = 2
    while Path(f"{stem}-{number}").exists():
        number += 1
    return f"{stem}-{number}"
