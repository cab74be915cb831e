"""Files by the bytes of their names: pyarrow spells a path in UTF-8 whatever the system does, and misses others."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa

__all__ = ["arrow_file"]


def arrow_file(path: Path, mode: str = "rb") -> pa.NativeFile:
    """Open a file for pyarrow, which reads or writes it without Python's help ("rb", "wb"); OSError where it cannot."""
    import pyarrow as pa  # noqa: PLC0415 - loads slowly

    return pa.OSFile(os.fsencode(path), mode)
