"""Spatial quantization: even out a layer's channels before its weights and inputs are rounded.

`channel_equalization` divides input channels and multiplies weight columns, `activation_smoothing` takes the channels'
means off; both leave the float layer as it is. `per_group_quantize` rounds the weights. Knows arrays of layers that
share an input; `folding.py` knows their neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from arrowquant_nb.errors import ConfigurationError, ShapeMismatchError
from arrowquant_nb.quantizers.activation_fit import group_means
from arrowquant_nb.quantizers.activation_grid import (
    check_activation_bit_width,
    grid_of_range,
    round_rows,
    round_to_grid,
)
from arrowquant_nb.quantizers.affine import MatrixJob, quantize_matrices
from arrowquant_nb.quantizers.equalization import ALPHAS, search_equalization, search_weight_equalization
from arrowquant_nb.quantizers.scaled_columns import storable_scales
from arrowquant_nb.quantizers.spatial_metadata import SpatialQuantMetadata

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.equalization import Equalization
    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["SpatialQuantMetadata", "SpatialQuantizer", "smoothed_bias"]


@dataclass(frozen=True)
class SpatialQuantizer:
    """Evens out channels and quantizes weights in groups, layer by layer."""

    bit_width: int = 4
    """Bits of a weight: 2, 4 or 8."""
    group_size: int = 64
    """Weights along a row that share a scale."""
    method: str = "uls"
    """rtn, mse, uls, hqq or, at 2 bits, r2q."""
    gain_correction: bool = True
    """As in `quantize_tensor`."""
    activation_bit_width: int | None = None
    """Bits of an activation, 4 or 8; None: they stay float."""
    per_token: bool = False
    """Whether inputs are rounded with scales of each row's own instead of static ones."""
    n_threads: int = 0
    """For the weight kernels; 0 = the cores this process may use."""
    scale_format: str = "float16"
    """As in `quantize_tensor`."""

    def __post_init__(self) -> None:
        """Refuse widths that do not exist; weight settings are checked with the first matrix."""
        if self.activation_bit_width is not None:
            check_activation_bit_width(self.activation_bit_width)

    def channel_equalization(
        self,
        weights: Mapping[str, NDArray[Any]],
        channel_min: NDArray[np.float32],
        channel_max: NDArray[np.float32],
        rows: NDArray[np.float32],
        time_groups: Sequence[tuple[int, int]] | None = None,
        hessian: NDArray[np.float64] | None = None,
        alphas: Sequence[float] = ALPHAS,
    ) -> Equalization:
        """Search the scales of layers that read the same input (DiTAS: the largest value over all steps counts).

        Parameters
        ----------
        weights
            Matrices (outputs, columns) by name, of any float dtype: query, key and value together, others alone.
        channel_min, channel_max
            float32 (T, columns): extremes of the input per step.
        rows
            float32 (T, R, columns): a sample of the input, steps in the same order.
        time_groups
            Half-open index ranges of steps that share a static grid; None: all do.
        hessian
            float64 (columns, columns), mean of x x^T: with it and float inputs the error is tr(E H E^T) instead of that
            on `rows`, which is quicker.
        alphas
            Exponents to try; "off" is always one more.

        Returns
        -------
        Equalization
            Never worse than off at the layers' output, on `rows`, with this object's quantizers.

        Raises
        ------
        ShapeMismatchError, ConfigurationError
            Widths that differ; NaN or infinite inputs.

        """
        names = ", ".join(weights)
        matrices = [np.ascontiguousarray(w, np.float32).reshape(len(w), -1) for w in weights.values()]
        columns = rows.shape[-1]
        fits = rows.ndim == 3 and channel_min.shape == channel_max.shape == (len(rows), columns)
        if not fits or not weights or any(w.shape[1] != columns for w in matrices):
            raise ShapeMismatchError(
                f"{names}: weights {[w.shape for w in matrices]}, rows {rows.shape} and ranges {channel_min.shape} and "
                f"{channel_max.shape} must agree in columns and steps"
            )
        absmax = np.maximum(np.abs(channel_min), np.abs(channel_max)).max(0)
        if not (np.isfinite(absmax).all() and np.isfinite(rows).all()):
            raise ConfigurationError(f"{names}: captured ranges or calibration rows hold NaN or infinity")
        groups = list(time_groups or [(0, len(rows))])
        round_input = None if self.activation_bit_width is None else lambda x: self._round_input(x, groups)
        with threadpool_limits(1, user_api="blas"):  # the sums of a product depend on its number of threads
            if hessian is not None and round_input is None:
                return search_weight_equalization(matrices, absmax, hessian, self._round_weight, alphas)
            return search_equalization(matrices, absmax, rows, self._round_weight, round_input, alphas)

    def _round_weight(self, weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.per_group_quantize("equalized weight", weight).dequantize(n_threads=self.n_threads)

    def _round_input(self, x: NDArray[np.float32], groups: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        bit_width = self.activation_bit_width or 8
        if self.per_token:
            return round_rows(x, bit_width)
        parts = [x[i:j] for i, j in groups]
        grids = [grid_of_range(float(part.min()), float(part.max()), bit_width) for part in parts]
        return np.concatenate([round_to_grid(p, *grid, bit_width) for p, grid in zip(parts, grids, strict=True)])

    def activation_smoothing(
        self, rows: NDArray[np.float32], time_groups: Sequence[tuple[int, int]] | None = None
    ) -> NDArray[np.float32]:
        """Return what to take off each channel, per time group: rows (T, R, columns) -> means, float32 (G, columns).

        The product with the means goes into the bias (`smoothed_bias`), so the float layer does not change. For skewed
        inputs, such as those behind a GELU.
        """
        return group_means(rows, time_groups or [(0, len(rows))])

    def per_group_quantize(
        self, name: str, weight: NDArray[Any], equalization: NDArray[np.float32] | None = None
    ) -> QuantizedTensor:
        """Quantize a weight in groups along its rows, its columns multiplied by `equalization` (columns,) first.

        The scales are stored with the codes, and dequantize divides by them.
        """
        shape = weight.shape
        matrix = np.ascontiguousarray(weight.reshape(len(weight), -1) if weight.ndim != 1 else weight[None])
        scales = None if equalization is None else storable_scales(equalization)
        job = MatrixJob(
            matrix, name, shape, self.bit_width, self.group_size, self.method, self.gain_correction,
            scale_format=self.scale_format, equalization=scales,
        )  # fmt: skip
        return quantize_matrices([job], self.n_threads)[0]


def smoothed_bias(
    weight: NDArray[np.float32], bias: NDArray[np.float32] | None, means: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the bias per time group that makes up for centred inputs: ``bias + W mean``, float32 (G, outputs)."""
    with threadpool_limits(1, user_api="blas"):
        shift: NDArray[np.float32] = means @ weight.reshape(len(weight), -1).T
    return shift if bias is None else shift + bias
