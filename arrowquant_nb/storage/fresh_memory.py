"""Memory for bytes that are copied into it once and then kept. Knows nothing of what they are."""

from __future__ import annotations

import mmap
from typing import Final

__all__ = ["fresh_memory"]

_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)


def fresh_memory(nbytes: int) -> memoryview:
    """Return writable zeros of this process's own; views of them keep them alive.

    Its pages are there at once where the system can do that, and are small: NumPy's memory asks for huge pages, which
    the kernel may first have to put together, and shared memory, Python's default, is slower to hand out. Copying 1 GB
    into it took 0.45 s of processor time, 0.75 s into shared memory, 1.5 to 2.0 s into an array of NumPy's.
    """
    return memoryview(mmap.mmap(-1, max(1, nbytes), flags=_FLAGS))[:nbytes]
