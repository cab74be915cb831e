"""What folding does to one tensor: its outputs are shifted and divided, then its input columns multiplied.

Arithmetic on rows, so that a large tensor can be folded tile by tile; `folding.py` says which tensors and by what.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FoldedTensor"]


@dataclass(frozen=True, eq=False)
class FoldedTensor:
    """How one tensor changes; every step in float32."""

    divisors: tuple[tuple[NDArray[np.float32], NDArray[np.float32] | None], ...] = ()
    """One after the other: divisor of every output (outputs,), and what is added first; () where nothing divides."""
    columns: NDArray[np.float32] | None = None
    """Multiplier of every column of the matrix view (columns,), None: as they are."""

    def whole(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return the folded tensor, in its own shape: a vector of outputs, a matrix or a convolution."""
        outputs = array.reshape(len(array), -1)
        return self.rows(outputs).reshape(array.shape)

    def rows(self, rows: NDArray[Any], row_start: int = 0) -> NDArray[np.float32]:
        """Return rows of the matrix view (n, columns) folded; the first is output `row_start`."""
        found: NDArray[np.float32] = rows.astype(np.float32)
        part = slice(row_start, row_start + len(rows))
        for divisor, offset in self.divisors:
            if offset is not None:
                found += offset[part, None]
            found /= divisor[part, None]
        if self.columns is not None:
            found *= self.columns
        return found

    def undone(self, rows: NDArray[np.float32], row_start: int = 0) -> NDArray[np.float32]:
        """Return folded rows as they were before, to float32 rounding."""
        found: NDArray[np.float32] = rows.astype(np.float32)
        part = slice(row_start, row_start + len(rows))
        if self.columns is not None:
            found /= self.columns
        for divisor, offset in reversed(self.divisors):
            found *= divisor[part, None]
            if offset is not None:
                found -= offset[part, None]
        return found

    @property
    def words(self) -> str:
        """What happens, in plain words."""
        done = (["its outputs are divided"] if self.divisors else []) + (
            ["its columns are multiplied"] if self.columns is not None else []
        )
        return " and ".join(done)

    @property
    def key(self) -> str:
        """Hash of every number in it."""
        digest = xxhash.xxh3_128()
        for divisor, offset in self.divisors:
            digest.update(b"divided" + divisor.tobytes() + (b"" if offset is None else b"after" + offset.tobytes()))
        if self.columns is not None:
            digest.update(b"multiplied" + self.columns.tobytes())
        return digest.hexdigest()
