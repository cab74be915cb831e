"""What a quantized layer stores besides its arrays, and which arrays those are: enough to build it empty.

JSON values, so that any folder can carry them. Knows no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from arrowquant_nb.errors import ConfigurationError, MetadataError
from arrowquant_nb.json_form import JsonForm
from arrowquant_nb.quantizers.layout import Layout
from arrowquant_nb.quantizers.low_rank import LARGEST_RANK
from arrowquant_nb.quantizers.rotation import check_rotation

if TYPE_CHECKING:
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["LayerFormat"]

FLOATS = ("float16", "float32")


@dataclass(frozen=True)
class LayerFormat(JsonForm):
    """How the weight of one layer is stored."""

    shape: tuple[int, ...]
    """Of the float weight; the matrix view is (shape[0], product of the rest)."""
    bit_width: int
    """2, 4 or 8."""
    group_size: int
    """Weights of a row that share a scale."""
    grid: str
    """zero_point, minimum, levels or k; see `QuantizedTensor`."""
    scale_dtype: str = "float16"
    """float16 or float32; in grid k, of the floats inside the bytes."""
    rotation_seed: int | None = None
    """Of the Hadamard rotation that the codes are stored in; None = not rotated."""
    low_rank: int = 0
    """Rank of the float16 branch; 0 = none."""
    equalization: str | None = None
    """Dtype of the stored divisor of every input channel; None = there is none."""

    def __post_init__(self) -> None:
        """Refuse what no layer can be."""
        try:
            layout = self.layout
            if self.rotation_seed is not None:
                check_rotation("rotation_seed", layout.columns, "hadamard", self.rotation_seed)
        except (ConfigurationError, TypeError, ValueError) as error:
            raise MetadataError(f"no layer is stored as {self!r}: {error}") from error
        if self.scale_dtype not in FLOATS or self.equalization not in (None, *FLOATS):
            raise MetadataError(f"scales are float16 or float32, not {self.scale_dtype!r} and {self.equalization!r}")
        if isinstance(self.low_rank, bool) or not 0 <= self.low_rank <= LARGEST_RANK:
            raise MetadataError(f"low_rank {self.low_rank!r} is not an integer from 0 to {LARGEST_RANK}")

    @classmethod
    def of_tensor(cls, tensor: QuantizedTensor) -> LayerFormat:
        """Describe a quantized tensor."""
        return cls(
            shape=tuple(tensor.shape),
            bit_width=tensor.bit_width,
            group_size=tensor.group_size,
            grid=tensor.grid,
            scale_dtype=str(tensor.layout.scale_dtype(tensor.scales)),
            rotation_seed=tensor.rotation_seed,
            low_rank=0 if tensor.low_rank_a is None else tensor.low_rank_a.shape[1],
            equalization=None if tensor.equalization is None else str(tensor.equalization.dtype),
        )

    @property
    def layout(self) -> Layout:
        """Sizes of codes, scales and zero points."""
        return Layout.of_shape(self.shape, self.bit_width, self.group_size, self.grid)

    def buffers(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every array the layer holds, by name: those of `QuantizedTensor`."""
        layout = self.layout
        parts = zip(("packed", "scales", "zero_points"), layout.buffers(np.dtype(self.scale_dtype)), strict=True)
        found = {name: (shape, str(dtype)) for name, (shape, dtype) in parts}
        if self.low_rank:
            found["low_rank_a"] = ((layout.rows, self.low_rank), "float16")
            found["low_rank_b"] = ((self.low_rank, layout.columns), "float16")
        if self.equalization is not None:
            found["equalization"] = ((layout.columns,), self.equalization)
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in self.buffers().values())
