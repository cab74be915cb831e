"""A hash before the footer of a Parquet file: no checksum of the format covers the footer, and readers pass over it.

pyarrow ends the process at some damaged footers instead of raising, so they are recognised before it sees them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, Final

import xxhash

from arrowquant_nb.errors import ValidationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["check_footer", "seal_footer"]

MARK: Final = b"AQFOOTER"
"""Stands before the 8 bytes of the footer's xxh3; files of version 1.0 have neither."""
TAIL_NBYTES: Final = 8
"""Length of the footer, 4 bytes, and the magic of Parquet."""
MOST_NBYTES: Final = 64 << 20
"""No footer is longer; a damaged length does not make the whole file be read."""
SEAL_NBYTES: Final = len(MARK) + 8


def seal_footer(path: Path) -> None:
    """Put the mark and the hash of the footer between the data of a finished file and its footer."""
    with path.open("r+b") as file:
        footer = _footer(file)
        file.seek(-len(footer), os.SEEK_END)
        file.write(MARK + xxhash.xxh3_64(footer).digest() + footer)


def check_footer(path: Path) -> None:
    """Refuse a file whose footer is not the one that was sealed.

    Raises
    ------
    ValidationError
        The file is cut or damaged.

    """
    with path.open("rb") as file:
        footer = _footer(file)
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(footer) - SEAL_NBYTES))
        seal = file.read(SEAL_NBYTES)
    if seal.startswith(MARK) and seal[len(MARK) :] != xxhash.xxh3_64(footer).digest():
        raise ValidationError(f"{path}: its footer does not match its hash; it was damaged: write it again")


def _footer(file: BinaryIO) -> bytes:
    """Return footer, length and magic as they stand at the end of a file; all of it where the length says more."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_NBYTES))
    nbytes = min(int.from_bytes(file.read(4), "little"), MOST_NBYTES) + TAIL_NBYTES
    file.seek(max(0, size - nbytes))
    return file.read()
