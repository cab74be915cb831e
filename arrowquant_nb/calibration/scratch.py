"""Room for the statistics of a model: in memory up to a limit, beyond it in an unnamed file that is mapped.

The file lies in the folder for temporary files (`TMPDIR`), has no name, and is gone when the last array is.
"""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from arrowquant_nb.errors import ConfigurationError, OutputError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

# Small arrays share a map: a process may have 65,530 of them.
SLAB_NBYTES: Final = 1 << 26
ALIGNMENT: Final = 64


class Scratch:
    """Hands out arrays of zeros.

    Parameters
    ----------
    memory_nbytes : bytes of arrays that are held in memory; those handed out later lie on disk. None is no limit.
    """

    def __init__(self, memory_nbytes: int | None = None) -> None:
        if memory_nbytes is not None and memory_nbytes < 0:
            raise ConfigurationError(f"calibration: a memory limit of {memory_nbytes:,} bytes; it must not be negative")
        self._left = memory_nbytes
        self._slab: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._used = 0
        self.disk_nbytes = 0
        """Bytes of the arrays that lie on disk."""

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array of zeros.

        Raises
        ------
        OutputError
            It is to lie on disk, and there is no room.

        """
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._left is None or nbytes <= self._left:
            if self._left is not None:
                self._left -= nbytes
            return np.zeros(shape, dtype)
        self.disk_nbytes += nbytes
        if nbytes > SLAB_NBYTES // 4:
            return self._mapped(nbytes).view(dtype).reshape(shape)
        if self._used + nbytes > len(self._slab):
            self._slab, self._used = self._mapped(SLAB_NBYTES), 0
        place = self._slab[self._used : self._used + nbytes]
        self._used += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return place.view(dtype).reshape(shape)

    def _mapped(self, nbytes: int) -> NDArray[np.uint8]:
        folder = tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                # The room is taken now: a map into a full disk would end the process when it is written to.
                os.posix_fallocate(file.fileno(), 0, nbytes)
                return np.memmap(file, np.uint8, "r+", shape=(nbytes,))
        except OSError as error:
            raise OutputError(
                f"calibration: no room for {nbytes:,} bytes in {folder} ({error.strerror or error}); free space there, "
                "set TMPDIR to another folder, or calibrate fewer layers at a time"
            ) from error
