"""Products with stored weights in NumPy: what the compiled kernels compute, for builds without them and to test them.

Products of codes equal the compiled ones byte for byte: the integer sums are exact (also as float32, where they stay
below 2**24), and what follows is float32 in the same order. Products of floats agree to rounding. What does not fit is
refused with ValueError like there.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels import k_format, numpy_rows
from arrowquant_nb._kernels.job import StoredMatrix
from arrowquant_nb._kernels.numpy_rows import unpack_codes

Floats = NDArray[np.float32]
LEAST_SCALE = np.float32(2.0**-24)


class _Plane(NamedTuple):
    """One set of codes with its scales and minima: all of a weight, or one bit of grid levels."""

    codes: Floats
    scales: Floats
    minima: Floats


def multiply_floats(
    x: Floats, weight: StoredMatrix, bias: Floats | None, out: Floats, n_threads: int, isa: str
) -> None:
    """Fill `out` (tokens, rows) with x (tokens, columns) times the weight, transposed, plus the bias."""
    _check_matrix(weight)
    _check_product(x, weight, bias, out)
    values = np.empty(weight.shape, np.float32)
    numpy_rows.dequantize_rows(*weight[:6], values, "float32", n_threads, isa)
    np.matmul(x, values.T, out=out)
    if bias is not None:
        out += bias


def multiply_codes(
    x: Floats, weight: StoredMatrix, bias: Floats | None, out: Floats, bits: int, span: int, scale: Floats | None,
    zero: Floats | None,
) -> None:  # fmt: skip
    """Do the same with x rounded to codes of `bits`: on the range of each token and `span` columns, or as given."""
    _check_matrix(weight)
    _check_product(x, weight, bias, out)
    _check_rounding(x, bits, span, scale, zero)
    with np.errstate(invalid="ignore", over="ignore"):  # what is no number spoils its token
        _multiply_codes(x, weight, bias, out, bits, span, scale, zero)


def _multiply_codes(
    x: Floats, weight: StoredMatrix, bias: Floats | None, out: Floats, bits: int, span: int, scale: Floats | None,
    zero: Floats | None,
) -> None:  # fmt: skip
    out[:] = 0 if bias is None else bias
    columns = x.shape[1]
    span = min(span, columns)
    segment = int(np.gcd(weight.group_size, span)) if span < columns else weight.group_size
    starts = range(0, columns, segment)
    grids = [_grid(x[:, k : k + span], bits) if scale is None or zero is None else (scale, zero)
             for k in range(0, columns, span)]  # fmt: skip
    for plane in _planes(weight):
        for k in starts:
            part = slice(k, k + segment)
            a, z = grids[k // span]
            q = _codes(x[:, part], a, z, bits)
            offset = np.float32(128) - z
            sums = q @ plane.codes[:, part].T + offset[:, None] * plane.codes[:, part].sum(1)
            group = k // weight.group_size
            out += (sums * plane.scales[:, group]) * a[:, None]
            total = (q.sum(1) + offset * np.float32(q.shape[1])) * a
            out += plane.minima[:, group] * total[:, None]


def _check_matrix(weight: StoredMatrix) -> None:
    """Refuse buffers that do not have the shapes of `StoredMatrix`."""
    rows, columns = weight.shape
    bits, size, grid = weight.bit_width, weight.group_size, weight.grid
    if rows < 1 or columns < 1 or bits not in (2, 4, 8) or size not in range(16, 257, 16):
        raise ValueError(f"sizes out of range: {rows} x {columns}, {bits} bits, group_size {size}")
    if (grid == "levels" and bits != 2) or (
        grid == "k" and (bits not in k_format.INTEGER_BITS or k_format.BLOCK % size)
    ):
        raise ValueError(f"no grid {grid} with {bits} bits, group_size {size}")
    n_groups = -(-columns // size)
    groups = scales = (rows, n_groups)
    if grid == "k":
        narrow, wide = (k_format.row_nbytes(columns, bits, size, wide) for wide in (False, True))
        groups = scales = (rows, wide if weight.scales.shape == (rows, wide) else narrow)
    zeros = (rows, -(-n_groups * bits // 8)) if grid == "zero_point" else groups
    expected = (
        ("packed", weight.packed, (rows, -(-columns * bits // 8))),
        ("scales", weight.scales, (*scales, 2) if grid == "levels" else scales),
        ("zero_points", weight.zero_points, zeros),
    )
    for name, array, shape in expected:
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"{name}: expected a contiguous buffer of shape {shape}, got {array.shape}")


def _check_product(x: Floats, weight: StoredMatrix, bias: Floats | None, out: Floats) -> None:
    tokens, columns = x.shape
    if tokens < 1 or (out.shape[1], columns) != weight.shape or (bias is not None and bias.shape != out.shape[1:]):
        raise ValueError(f"{tokens} x {columns} inputs do not go with {weight.shape[0]} x {weight.shape[1]} weights")
    if len(out) != tokens:
        raise ValueError(f"{len(out)} rows of outputs for {tokens} of inputs")


def _check_rounding(x: Floats, bits: int, span: int, scale: Floats | None, zero: Floats | None) -> None:
    if bits not in (4, 8) or span < 16:
        raise ValueError(f"inputs of {bits} bits, {span} columns together, cannot be")
    if span < x.shape[1] and span % 16:
        raise ValueError(f"a span of {span} columns is not a multiple of 16")
    given = [part for part in (scale, zero) if part is not None]
    if len(given) == 1 or any(part.shape != x.shape[:1] for part in given):
        raise ValueError("scale and zero must be given together, one per token")


def _planes(weight: StoredMatrix) -> list[_Plane]:
    columns = weight.shape[1]
    codes = unpack_codes(weight.packed, weight.bit_width, columns).astype(np.float32)
    if weight.grid == "levels":
        a1, a2 = (weight.scales[..., i].astype(np.float32) for i in (0, 1))
        minima = (weight.zero_points.astype(np.float32) - a1) - a2
        two = np.float32(2)
        return [_Plane(codes // 2, two * a1, minima), _Plane(codes % 2, two * a2, np.zeros_like(minima))]
    if weight.grid == "k":
        sizes = (columns, weight.bit_width, weight.group_size)
        scales, minima = (k_format.expand(part.view(np.uint8), *sizes) for part in (weight.scales, weight.zero_points))
        return [_Plane(codes, scales, -minima)]
    scales = weight.scales.astype(np.float32)
    if weight.grid == "minimum":
        return [_Plane(codes, scales, weight.zero_points.astype(np.float32))]
    zeros = unpack_codes(weight.zero_points.view(np.uint8), weight.bit_width, scales.shape[1]).astype(np.float32)
    return [_Plane(codes, scales, -(zeros * scales))]


def _grid(x: Floats, bits: int) -> tuple[Floats, Floats]:
    """Scale and zero point of each token; not a number where an input is none."""
    last = np.float32((1 << bits) - 1)
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    scale = np.maximum((high - low) / last, LEAST_SCALE)
    zero = np.clip(np.rint(-low / scale), 0, last)
    return scale + (x - x).sum(1), zero  # infinite inputs leave no scale


def _codes(x: Floats, scale: Floats, zero: Floats, bits: int) -> Floats:
    """Signed codes, as floats."""
    last = np.float32((1 << bits) - 1)
    steps = np.clip(x / scale[:, None], np.float32(-512), np.float32(512))
    codes: Floats = np.clip(np.rint(steps) + zero[:, None], 0, last) - np.float32(128)
    return codes
