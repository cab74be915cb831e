"""The NumPy path: the meaning of every kernel, and the fallback where nothing was compiled.

Same functions and the same bytes as the compiled `rows` module: float32 arithmetic, rounding half to even,
sums in the order written here. Rows are taken a tile at a time, so no widened copy of a matrix is made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels import k_format, numpy_k, numpy_levels, numpy_search
from arrowquant_nb._kernels.job import (
    LEAST_SQUARES_METHODS,
    METHODS,
    STATUS_NEEDS_FLOAT32,
    STATUS_NOT_USABLE,
    RowsJob,
)
from arrowquant_nb._kernels.numpy_search import F32, Grid

__all__ = ["dequantize_rows", "quantize_rows"]

TILE_WEIGHTS = 1 << 17
SEARCHES = {**numpy_search.METHODS, "r2q": numpy_levels.r2q}
MAX_WEIGHT = F32(2.0**125)  # twice the range of a group still is a float32


def quantize_rows(jobs: Sequence[RowsJob], n_threads: int, isa: str = "numpy") -> None:
    """Fill the OUT arrays of every job; `n_threads` and `isa` are accepted for the compiled module's sake."""
    del n_threads, isa
    for job in jobs:
        rows, columns = job.weight.shape
        step = max(1, TILE_WEIGHTS // columns)
        with np.errstate(all="ignore"):  # infinities mark scales that do not fit; status reports them
            for start in range(0, rows, step):
                _quantize_tile(job, slice(start, min(start + step, rows)))


def dequantize_rows(
    packed: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[Any],
    grid: str,
    bit_width: int,
    group_size: int,
    out: NDArray[Any],
    kind: str,
    n_threads: int,
    isa: str = "numpy",
) -> None:
    """Decode into `out` (rows, columns) of dtype `kind`."""
    del kind, n_threads, isa
    rows, columns = out.shape
    step = max(1, TILE_WEIGHTS // columns)
    groups = -(-columns // group_size)
    with np.errstate(over="ignore"):  # a float16 output may overflow to inf, as any conversion does
        for start in range(0, rows, step):
            tile = slice(start, start + step)
            codes = unpack_codes(packed[tile], bit_width, columns)
            s, z = scales[tile], zero_points[tile]
            if grid == "k":
                s, z = (k_format.expand(a, columns, bit_width, group_size) for a in (s, z))
                z = -z
            elif grid == "zero_point":
                z = unpack_codes(z, bit_width, groups)
            out[tile] = _decode(codes, s.astype(F32), z.astype(F32), grid, group_size).astype(out.dtype)


def pack_codes(codes: NDArray[np.uint8], bit_width: int) -> NDArray[np.uint8]:
    """Pack codes (rows, n) into bytes; code i of a byte in bits [i * bit_width, (i + 1) * bit_width)."""
    per_byte = 8 // bit_width
    padded = np.zeros((codes.shape[0], -(-codes.shape[1] // per_byte) * per_byte), np.uint8)
    padded[:, : codes.shape[1]] = codes
    packed = padded[:, 0::per_byte].copy()
    for i in range(1, per_byte):
        packed |= padded[:, i::per_byte] << np.uint8(i * bit_width)
    return packed


def unpack_codes(packed: NDArray[np.uint8], bit_width: int, n: int) -> NDArray[np.uint8]:
    """Reverse `pack_codes`: (rows, n) codes."""
    per_byte = 8 // bit_width
    codes = np.empty((packed.shape[0], packed.shape[1] * per_byte), np.uint8)
    for i in range(per_byte):
        codes[:, i::per_byte] = (packed >> np.uint8(i * bit_width)) & np.uint8((1 << bit_width) - 1)
    return codes[:, :n]


def group_sums(values: NDArray[Any]) -> NDArray[Any]:
    """Sum the last axis: element k goes to partial sum k % 16 in order, then the partials pairwise 8, 4, 2, 1 apart."""
    length = -(-values.shape[-1] // 16) * 16
    padded = np.zeros((*values.shape[:-1], length), values.dtype)
    padded[..., : values.shape[-1]] = values
    partial = np.zeros((*values.shape[:-1], 16), values.dtype)
    for start in range(0, length, 16):
        partial += padded[..., start : start + 16]
    for half in (8, 4, 2, 1):
        partial = partial[..., :half] + partial[..., half : 2 * half]
    return partial[..., 0]


def _spans(columns: int, group_size: int) -> list[tuple[slice, slice]]:
    """Return (columns, groups) of the full groups and of the shorter last one, as far as each exists."""
    full = columns // group_size
    spans = [(slice(0, full * group_size), slice(0, full))] if full else []
    if columns % group_size:
        spans.append((slice(full * group_size, columns), slice(full, full + 1)))
    return spans


def _decode(
    codes: NDArray[np.uint8], scales: NDArray[np.float32], zeros: NDArray[np.float32], grid: str, group_size: int
) -> NDArray[np.float32]:
    out = np.empty(codes.shape, F32)
    for columns, groups in _spans(codes.shape[1], group_size):
        shape = (codes.shape[0], groups.stop - groups.start, -1)
        q = codes[:, columns].reshape(shape).astype(F32)
        s, z = scales[:, groups, None], zeros[:, groups, None]
        if grid == "levels":
            planes = numpy_levels.Planes(s[..., 0], s[..., 1], z)
            values = numpy_levels.value_of(codes[:, columns].reshape(shape), planes)
        else:
            values = (q - z) * s if grid == "zero_point" else q * s + z
        out[:, columns] = values.reshape(codes.shape[0], -1)
    return out


def _row_sums(
    weight: NDArray[np.float32], decoded: NDArray[np.float32], group_size: int, wide: bool
) -> NDArray[np.float64]:
    """Sum ww, wq, ee and take max abs(w) of each row: groups in float32 (float64 when wide), rows in float64."""
    pieces: list[NDArray[np.float64]] = []
    dtype = np.dtype(np.float64 if wide else F32)
    for columns, _ in _spans(weight.shape[1], group_size):
        length = min(group_size, columns.stop - columns.start)
        w: NDArray[Any] = weight[:, columns].reshape(weight.shape[0], -1, length).astype(dtype)
        q: NDArray[Any] = decoded[:, columns].reshape(w.shape).astype(dtype)
        e = q - w
        pieces.append(np.stack([group_sums(p).astype(np.float64) for p in (w * w, w * q, e * e)]))
    total = np.concatenate(pieces, axis=2).cumsum(axis=2)[:, :, -1]
    return np.concatenate([total, np.abs(weight).max(axis=1).astype(np.float64)[None]]).T


def _quantize_tile(job: RowsJob, tile: slice) -> None:
    weight = job.weight[tile].astype(F32)
    unusable = ~(np.abs(weight) <= MAX_WEIGHT).all(axis=1)
    job.status[tile] = unusable * np.uint8(STATUS_NOT_USABLE)
    weight[unusable] = 0.0
    (_quantize_tile_k if job.scale_format == "k" else _quantize_tile_groups)(job, tile, weight)


def _quantize_tile_groups(job: RowsJob, tile: slice, weight: NDArray[np.float32]) -> None:
    """Scales and zero points stored one per group."""
    rows, n_groups = weight.shape[0], job.scales.shape[1]
    wide = job.scales.dtype == np.float32
    grid_name = METHODS[job.method]
    codes = np.empty(weight.shape, np.uint8)
    scales, zeros = np.empty(job.scales[tile].shape, F32), np.empty((rows, n_groups), F32)
    bad = np.zeros((rows, n_groups), np.bool_)
    shifts = job.bit_width == 4 and job.group_size == 32 and not wide  # where they pay
    for columns, groups in _spans(weight.shape[1], job.group_size):
        shape = (rows, groups.stop - groups.start, -1)
        w = np.ascontiguousarray(weight[:, columns].reshape(rows * shape[1], -1).T)  # elements x groups
        v = np.ones(1, F32)
        if job.importance is not None:
            v = np.tile(job.importance[columns].reshape(shape[1], -1), (rows, 1)).T.copy()
        grid = Grid((1 << job.bit_width) - 1, wide, shifts)
        found = SEARCHES[job.method](w, np.broadcast_to(v, w.shape), grid)
        codes[:, columns] = found.codes.T.reshape(rows, -1)
        scales[:, groups] = found.scale.reshape(scales[:, groups].shape)
        zeros[:, groups] = found.zero.reshape(shape[:2])
        bad[:, groups] = found.misfit.reshape(shape[:2])
    sums = _row_sums(weight, _decode(codes, scales, zeros, grid_name, job.group_size), job.group_size, wide)
    if job.gain_correction and job.method in LEAST_SQUARES_METHODS:
        bad |= _correct_gain(scales, zeros, grid_name, _gain(sums), wide)[:, None]
        sums = _row_sums(weight, _decode(codes, scales, zeros, grid_name, job.group_size), job.group_size, wide)
    job.status[tile] |= bad.any(axis=1) * np.uint8(STATUS_NEEDS_FLOAT32)
    job.packed[tile] = pack_codes(codes, job.bit_width)
    job.scales[tile] = scales
    job.zero_points[tile] = zeros if grid_name != "zero_point" else pack_codes(zeros.astype(np.uint8), job.bit_width)
    job.sums[tile] = sums


def _quantize_tile_k(job: RowsJob, tile: slice, weight: NDArray[np.float32]) -> None:
    """Integers per group under a pair of floats per block."""
    bits, size, columns = job.bit_width, job.group_size, weight.shape[1]
    wide = job.scales.shape[1] == k_format.row_nbytes(columns, bits, size, wide=True)
    pairs = numpy_k.search(weight, job.importance, bits, size, wide)
    scales, minima = _k_bytes(pairs, bits, wide)
    codes = _codes_of(weight, *_k_grid(scales, minima, columns, bits, size), (1 << bits) - 1, size)

    def sums() -> NDArray[np.float64]:
        grid = _k_grid(scales, minima, columns, bits, size)
        return _row_sums(weight, _decode(codes, *grid, "k", size), size, wide)

    job.sums[tile] = sums()
    if job.gain_correction:
        pairs = numpy_k.rescale(pairs, _gain(job.sums[tile]), wide)
        scales, minima = _k_bytes(pairs, bits, wide)
        job.sums[tile] = sums()
    job.status[tile] |= pairs.misfit * np.uint8(STATUS_NEEDS_FLOAT32)
    job.packed[tile] = pack_codes(codes, bits)
    job.scales[tile], job.zero_points[tile] = scales, minima


def _k_bytes(pairs: numpy_k.Pairs, bits: int, wide: bool) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    n = k_format.INTEGER_BITS[bits]
    return k_format.join(pairs.d, pairs.sc, n, wide), k_format.join(pairs.dmin, pairs.mn, n, wide)


def _k_grid(
    scales: NDArray[np.uint8], minima: NDArray[np.uint8], columns: int, bits: int, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Scale and minimum of every group, from the stored bytes."""
    return k_format.expand(scales, columns, bits, size), -k_format.expand(minima, columns, bits, size)


def _codes_of(
    weight: NDArray[np.float32], scales: NDArray[np.float32], minima: NDArray[np.float32], n: int, group_size: int
) -> NDArray[np.uint8]:
    """Nearest code of every weight; a scale of 0 has the code 0 alone."""
    s, m = (np.repeat(a, group_size, axis=1)[:, : weight.shape[1]] for a in (scales, minima))
    flat = s == 0
    codes = np.rint(np.clip((weight - m) / np.where(flat, F32(1), s), F32(0), np.where(flat, F32(0), F32(n))))
    return np.nan_to_num(codes).astype(np.uint8)


def _gain(sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return sum ww / sum wq of each row, at most a factor of two."""
    ww, wq = sums[:, 0], sums[:, 1]
    usable = (ww > 0) & (wq > 0)
    return np.where(usable, ww / np.where(usable, wq, 1.0), 1.0).clip(0.5, 2.0).astype(F32)


def _correct_gain(
    scales: NDArray[np.float32], zeros: NDArray[np.float32], grid: str, gain: NDArray[np.float32], wide: bool
) -> NDArray[np.bool_]:
    """Multiply the stored parameters of each row by its gain, in place; return the rows that overflow."""
    round_scale = numpy_search.stored if grid == "levels" else numpy_search.stored_scale  # a plane may be 0 wide
    scales[...] = round_scale((scales.T * gain).T, wide)
    if grid != "zero_point":
        zeros[...] = numpy_search.stored(zeros * gain[:, None], wide)
    finite = np.isfinite(scales.reshape(len(scales), -1)).all(axis=1) & np.isfinite(zeros).all(axis=1)
    return np.asarray(~finite)
