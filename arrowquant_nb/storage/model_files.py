"""The files of a finished model, as its manifest records them: checked by size and hash, then mapped.

Knows nothing of tensors.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import xxhash

from arrowquant_nb.errors import ValidationError
from arrowquant_nb.storage.durable import hash_file

if TYPE_CHECKING:
    from collections.abc import Mapping


__all__ = ["ModelFiles", "Verify"]

Verify = Literal["lazy", "full", "off"]


class ModelFiles:
    """Paths and mappings of files by their names.

    Parameters
    ----------
    folder : of the model.
    recorded : name -> {"nbytes", "xxh3"}, from the manifest.
    verify : "off" trusts the hashes.
    private : map copy-on-write: arrays over a mapping may be written, the files stay.
    """

    def __init__(self, folder: Path, recorded: Mapping[str, Any], verify: Verify, *, private: bool) -> None:
        self._folder = folder
        self._recorded = recorded
        self._verify = verify
        self._access = mmap.ACCESS_COPY if private else mmap.ACCESS_READ
        self._maps: dict[str, mmap.mmap] = {}

    def path(self, name: str, *, hashed: bool | None = None) -> Path:
        """Return the path of a file of the recorded size.

        Its hash is checked where `hashed` says so; None = unless verify is "off".

        Raises
        ------
        ValidationError
            The file is missing, another one, or none of this model.
        """
        recorded = self._recorded.get(name)
        path = self._folder / name
        if not isinstance(recorded, dict) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValidationError(f"{self._folder}: {name!r} is not a file of this model")
        if not path.is_file():
            raise ValidationError(f"{self._folder}: {name!r} is missing: restore it or run the quantization again")
        if path.stat().st_size != recorded.get("nbytes"):
            raise ValidationError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {recorded.get('nbytes')}: "
                "restore it or run the quantization again"
            )
        if self._verify != "off" if hashed is None else hashed:
            self._check_hash(name, hash_file(path))
        return path

    def mapped(self, name: str) -> mmap.mmap:
        """Map a file and check its hash by the mapping, so that what is read later is what was checked."""
        if name not in self._maps:
            with self.path(name, hashed=False).open("rb") as stream:
                mapping = mmap.mmap(stream.fileno(), 0, access=self._access)
            if self._verify != "off":
                self._check_hash(name, xxhash.xxh3_128_hexdigest(mapping))
            self._maps[name] = mapping
        return self._maps[name]

    def unmap(self, name: str) -> None:
        """Drop a mapping; arrays that view it keep it alive."""
        self._maps.pop(name, None)

    def unmap_all(self) -> None:
        """Drop all mappings."""
        self._maps.clear()

    def _check_hash(self, name: str, found: str) -> None:
        if found != self._recorded[name].get("xxh3"):
            raise ValidationError(
                f"{self._folder / name} does not match the hash in the manifest: restore it or run the quantization "
                "again"
            )
