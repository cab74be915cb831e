"""What makes the input of some layers, and how its tensors change so that this input comes divided.

Arithmetic on outputs of modules; `folding_table.py` says which module of which model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Division = tuple[NDArray[np.float32], NDArray[np.float32] | None]
    """Divisor of every output, and what is added to it first."""

__all__ = ["Modulation", "ParallelBranches", "Place", "Proportional", "Source"]


@dataclass(frozen=True)
class Proportional:
    """The input is proportional to outputs of a linear layer or an affine norm, which nothing else reads."""

    module: str
    """Its name; `{}` stands for the block's prefix."""
    part: int = 0
    """Which of the equal `parts` of its outputs: of a gated layer the half that is not gated."""
    parts: int = 1

    def fits(self, inputs: int, outputs: int) -> bool:
        """Tell whether a module of so many outputs can make so many inputs."""
        return outputs == self.parts * inputs

    def divisions(self, scales: NDArray[np.float32], outputs: int) -> tuple[Division, Division]:
        """Return how its weight and its bias change."""
        divisors = np.ones(outputs, np.float32)
        divisors[_part(self.part, scales)] = scales
        return (divisors, None), (divisors, None)


@dataclass(frozen=True)
class Modulation:
    """The input is norm(x) (1 + scale) + shift, both of them parts of a linear layer's outputs."""

    module: str
    """Its name; `{}` stands for the block's prefix."""
    shift: int
    """Which of the equal `parts` of its outputs is the shift."""
    scale: int
    """Likewise the scale."""
    parts: int

    def fits(self, inputs: int, outputs: int) -> bool:
        """Tell whether a module of so many outputs can make so many inputs."""
        return outputs == self.parts * inputs

    def divisions(self, scales: NDArray[np.float32], outputs: int) -> tuple[Division, Division]:
        """Return how its weight and its bias change: 1 + scale must come out as (1 + scale) / s."""
        divisors, offset = np.ones(outputs, np.float32), np.zeros(outputs, np.float32)
        divisors[_part(self.shift, scales)] = scales
        divisors[_part(self.scale, scales)] = scales
        offset[_part(self.scale, scales)] = 1 - scales
        return (divisors, None), (divisors, offset)


@dataclass(frozen=True)
class ParallelBranches:
    """The input is what leaves an attention, joined with `act(gate) * hidden`; one layer makes all that both read.

    Its outputs are query, key and value, as wide as the attention each, then gate and hidden.
    """

    module: str
    """Its name; `{}` stands for the block's prefix."""

    def fits(self, inputs: int, outputs: int) -> bool:
        """Tell whether a module of so many outputs can make so many inputs."""
        return 0 < self._width(inputs, outputs) < inputs

    def divisions(self, scales: NDArray[np.float32], outputs: int) -> tuple[Division, Division]:
        """Return how its weight and its bias change: values and hidden come out divided."""
        width = self._width(len(scales), outputs)
        divisors = np.ones(outputs, np.float32)
        divisors[2 * width : 3 * width] = scales[:width]
        divisors[width - len(scales) :] = scales[width:]
        return (divisors, None), (divisors, None)

    def _width(self, inputs: int, outputs: int) -> int:
        """Return the attention's: 3 width + 2 hidden outputs make width + hidden inputs."""
        return outputs - 2 * inputs


Source = Proportional | Modulation | ParallelBranches


def _part(number: int, scales: NDArray[np.float32]) -> slice:
    return slice(number * len(scales), (number + 1) * len(scales))


@dataclass(frozen=True)
class Place:
    """One place of a block where inputs are made; names are those of modules, `{}` stands for the block's prefix."""

    sources: tuple[Source, ...]
    """All that makes the inputs."""
    readers: tuple[tuple[str, ...], ...]
    """Every layer that reads them, those of one input together. All must share their scales."""
    beside: str = ""
    """A module that tells the block's variants apart: this one has it."""
    without: str = ""
    """Likewise: this one has it not."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Every module of the place, sources first."""
        return (*(source.module for source in self.sources), *(name for names in self.readers for name in names))
