"""One array instead of a model: `quantize_tensor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from arrowquant_nb.config import QuantMethod
from arrowquant_nb.quantizers.affine import quantize_array
from arrowquant_nb.quantizers.transforms import quantize_rotated_array

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.tensor import QuantizedTensor

__all__ = ["quantize_tensor"]


def quantize_tensor(
    array: NDArray[Any],
    bit_width: int = 4,
    group_size: int = 64,
    method: str = "uls",
    scale_format: str = "float16",
    rotation: str = "none",
    gain_correction: bool = True,
    importance: NDArray[np.float32] | None = None,
    seed: int = 0,
    out: QuantizedTensor | None = None,
    n_threads: int = 0,
) -> QuantizedTensor:
    """Quantize one array and measure the error in the same pass.

    Parameters
    ----------
    array : array of float32, float16, bfloat16 or float64, shape [O, ...]
        Seen as the matrix [O, rest]; 1-D counts as one row. Strided, big-endian and read-only arrays work; the
        caller's array is never written.
    bit_width : 2, 4 or 8.
    group_size : weights along a row that share a scale; a multiple of 16 from 16 to 256 (see scale_format).
    method : "uls" (least-squares scale and minimum), "mse" (clipped ranges), "rtn" (min/max), "hqq" (minimum fitted to
        small errors), "r2q" (two sign planes and an offset, 2 bits only), or "auto" (= uls).
    scale_format : "float16", one float16 scale and minimum per group; or "k" (method uls; INT2 with group_size 16 or
        32, INT4 with 32 or 64): integers under one float16 pair per 256 weights, which Q2_K and Q4_K blocks can take.
    rotation : "none", "hadamard" (spreads outliers over their row; undone by `dequantize`), or "auto": hadamard where
        the squared error of the weights is lower by it, at equal bytes; `.rotation_seed` of the result says which.
        Rows need a length that 16 divides; otherwise "auto" leaves them, and "hadamard" is an error.
    gain_correction : rescale each row of uls, mse and r2q grids so that <w, w'> = <w, w>.
    importance : float32 (columns,), optional
        Weight of each column's squared error; uls, mse and r2q only.
    seed : signs of the rotation, 0 to 2**63 - 1.
    out : a result of the same layout whose buffers are filled; what is returned views them with its own statistics.
    n_threads : 0 = all cores this process may use.

    Returns
    -------
    QuantizedTensor
        `.packed .scales .zero_points .shape .bits_per_weight .nbytes .statistics .dequantize()`.

    Raises
    ------
    ConfigurationError, ShapeMismatchError, CheckpointError, TypeError
        A setting out of range or not available yet; sizes that do not fit; NaN or infinite weights; a dtype that is
        not a float.

    Examples
    --------
    >>> import numpy as np
    >>> tensor = quantize_tensor(np.linspace(-1, 1, 256, dtype=np.float32).reshape(2, 128))
    >>> tensor.bits_per_weight
    4.5
    """
    settings: dict[str, Any] = {
        "bit_width": bit_width, "group_size": group_size, "gain_correction": gain_correction, "importance": importance,
        "method": "uls" if method == str(QuantMethod.AUTO) else method, "scale_format": str(scale_format),
    }  # fmt: skip
    if rotation == "none":
        return quantize_array(array, **settings, out=out, n_threads=n_threads)
    return quantize_rotated_array(array, settings, rotation, seed, out=out, n_threads=n_threads)
