"""Quantized activations in a running model: a `linear` hook that rounds a layer's input before the product.

It wraps any hook (the float weights, dequantized ones) of any `RunnableModel`. What is rounded may be an equalized,
centred or rotated input; the values that reach the product are in the layer's own coordinates again, so the weights
need to know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError, ValidationError
from arrowquant_nb.quantizers.activation_grid import check_activation_bit_width, round_rows, round_to_grid
from arrowquant_nb.quantizers.rotation import rotate, unrotate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.time_tables import TimeAwareQuantMetadata
    from arrowquant_nb.samples import Linear

__all__ = ["ActivationQuantizer", "HadamardRotation", "InputTransform", "Rotation"]


class Rotation(Protocol):
    """An orthogonal mixing of the channels."""

    def rotate(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x R for x float32 (..., columns)."""
        ...

    def rotate_back(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x R^T."""
        ...


@dataclass(frozen=True)
class HadamardRotation:
    """The rotation that weights of the same seed are stored in (`rotation.py`)."""

    seed: int
    """Of the signs."""

    def rotate(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x R."""
        return self._apply(x, rotate)

    def rotate_back(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x R^T."""
        return self._apply(x, unrotate)

    def _apply(self, x: NDArray[np.float32], turn: Callable[[NDArray[np.float32], int], None]) -> NDArray[np.float32]:
        rows = x.reshape(-1, x.shape[-1]).astype(np.float32, order="C", copy=True)
        turn(rows, self.seed)
        return rows.reshape(x.shape)


@dataclass(frozen=True, eq=False)
class InputTransform:
    """What is done to a layer's input before rounding and undone after it: ``x -> (x / s - mean) R``."""

    equalization: NDArray[np.float32] | None = None
    """Divisor per channel, float32 (columns,)."""
    means: NDArray[np.float32] | None = None
    """What is taken off each channel after the division, float32 (G, columns): per time group of the layer's table, or
    (1, columns): the same in all."""
    rotation: Rotation | None = None
    """Mixing of the channels."""

    def apply(self, x: NDArray[np.float32], group: int = 0) -> NDArray[np.float32]:
        """Return the input, float32 (..., columns), as it will be rounded."""
        y = x if self.equalization is None else x / self.equalization
        y = y if self.means is None else y - self._mean(group)
        return y if self.rotation is None else self.rotation.rotate(y)

    def undo(self, y: NDArray[np.float32], group: int = 0) -> NDArray[np.float32]:
        """Return rounded values in the layer's own coordinates."""
        x = y if self.rotation is None else self.rotation.rotate_back(y)
        x = x if self.means is None else x + self._mean(group)
        return x if self.equalization is None else x * self.equalization

    def _mean(self, group: int) -> NDArray[np.float32] | np.float32:
        return np.float32(0) if self.means is None else self.means[group if len(self.means) > 1 else 0]


NOTHING = InputTransform()


@dataclass(frozen=True, eq=False)
class ActivationQuantizer:
    """A `Linear` hook that rounds the inputs of chosen layers to 4 or 8 bits and leaves all others alone.

    Inputs of what depends on timestep and class only (timestep embedders, adaLN linears) should stay float: they cost
    nothing and steer every channel.
    """

    product: Linear
    """The hook that multiplies: ``model.linear`` of a sample, or any other."""
    bit_width: int
    """4 or 8."""
    layers: frozenset[str]
    """Weight names whose inputs are rounded."""
    tables: TimeAwareQuantMetadata | None = None
    """Grids per layer and time group; None rounds every row (token) on a grid of its own range."""
    transforms: Mapping[str, InputTransform] = field(default_factory=dict)
    """By weight name."""
    _last: list[tuple[int, dict[str, int]]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse layers without a grid, and means that do not go with the groups."""
        check_activation_bit_width(self.bit_width)
        if self.tables is not None and self.tables.bit_width != self.bit_width:
            raise ConfigurationError(
                f"the time tables are for {self.tables.bit_width} bits, activations have {self.bit_width}"
            )
        for layer in sorted(self.layers):
            self._check_layer(layer)

    def _check_layer(self, layer: str) -> None:
        if self.tables is not None and layer not in self.tables.by_layer:
            raise ValidationError(f"{layer}: there is no time table; calibrate the layer or leave its inputs float")
        n_groups = 1 if self.tables is None else len(self.tables.by_layer[layer].groups)
        means = self.transforms.get(layer, NOTHING).means
        if means is not None and len(means) not in (1, n_groups):
            raise ShapeMismatchError(f"{layer}: means of {len(means)} time groups for a table of {n_groups}")

    def __call__(self, name: str, x: NDArray[np.float32], time: int) -> NDArray[np.float32]:
        """Return the product with the rounded input; see `Linear`."""
        if name not in self.layers:
            return self.product(name, x, time)
        transform = self.transforms.get(name, NOTHING)
        if self.tables is None:
            rounded = transform.undo(round_rows(transform.apply(x), self.bit_width))
            return self.product(name, rounded, time)
        group = self._groups_at(time)[name]
        params = self.tables.by_layer[name].groups[group]
        codes = round_to_grid(transform.apply(x, group), params.scale, params.zero_point, self.bit_width)
        return self.product(name, transform.undo(codes, group), time)

    def _groups_at(self, time: int) -> dict[str, int]:
        """Look the groups of all layers up once per model call."""
        last = self._last[0] if self._last else None
        if last is not None and last[0] == time:
            return last[1]
        groups = {} if self.tables is None else self.tables.groups_at(time)
        self._last[:] = [(time, groups)]
        return groups
