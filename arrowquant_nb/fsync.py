"""Making what was written outlast a crash of the machine. Knows nothing of what it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["fsync_path"]


def fsync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk; OSError where they cannot be put there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
