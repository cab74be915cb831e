"""Blocks of GGUF, made from stored codes or from values: the bytes of Q8_0, Q4_0, Q4_1, Q4_K, Q2_K and Q6_K.

The layouts are those of llama.cpp's `ggml-quants.c`, as the `gguf` package decodes them. A block is 32 weights of a
row, 256 for the K types. Knows arrays; nothing of files, and nothing of which type suits a tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from arrowquant_nb._kernels import k_format
from arrowquant_nb._kernels.numpy_rows import unpack_codes
from arrowquant_nb.quantizers.affine import quantize_array

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from arrowquant_nb.quantizers.tensor import QuantizedTensor

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["BLOCK_BITS", "BLOCK_WEIGHTS", "blocks_of_codes", "blocks_of_values", "code_parameters", "row_nbytes"]

BLOCK_WEIGHTS = {"Q8_0": 32, "Q4_0": 32, "Q4_1": 32, "Q4_K": 256, "Q2_K": 256, "Q6_K": 256}
"""Weights of a block."""
BLOCK_NBYTES = {"Q8_0": 34, "Q4_0": 18, "Q4_1": 20, "Q4_K": 144, "Q2_K": 84, "Q6_K": 210}
BLOCK_BITS = {"Q8_0": 8, "Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q2_K": 2, "Q6_K": 6}
"""Bits of a code."""
CENTRE = {"Q8_0": 128, "Q4_0": 8}
"""Zero point that a type without minima means."""
Q6_GROUP = 16
FLOAT16_TINY = np.float32(2.0**-24)


def row_nbytes(kind: str, columns: int) -> int:
    """Bytes of a row of `columns` weights, a multiple of the block."""
    return columns // BLOCK_WEIGHTS[kind] * BLOCK_NBYTES[kind]


def code_parameters(tile: QuantizedTensor) -> tuple[Floats, Floats]:
    """Return scale and offset of every block of 32, float32 (rows, columns / 32): w = scale * code + offset.

    For the grids minimum, zero_point and k, groups being whole numbers of blocks. Not rounded to float16 yet.
    """
    scales = tile.scales.astype(np.float32)
    if tile.grid == "k":
        sizes = (tile.columns, tile.bit_width, tile.group_size)
        scales, minima = (k_format.expand(part.view(np.uint8), *sizes) for part in (tile.scales, tile.zero_points))
        offsets = -minima
    elif tile.grid == "minimum":
        offsets = tile.zero_points.astype(np.float32)
    else:
        zeros = unpack_codes(tile.zero_points.view(np.uint8), tile.bit_width, tile.layout.n_groups)
        offsets = -(zeros.astype(np.float32) * scales)
    n_blocks = tile.columns // 32
    per_group = tile.group_size // 32
    return np.repeat(scales, per_group, axis=1)[:, :n_blocks], np.repeat(offsets, per_group, axis=1)[:, :n_blocks]


def blocks_of_codes(tile: QuantizedTensor, kind: str) -> Bytes:
    """Return uint8 (rows, row_nbytes): the codes of a tile in another order, nothing rounded but parameters to float16.

    Parameters
    ----------
    tile : grid k for Q4_K and Q2_K; zero_point for Q8_0 and Q4_0 with zero points in the centre; any of them or minimum
        for Q4_1. No rotation, branch or equalization.
    kind : one of those types.
    """
    codes = unpack_codes(tile.packed, tile.bit_width, tile.columns)
    if kind in ("Q4_K", "Q2_K"):
        sizes = (tile.columns, tile.bit_width, tile.group_size)
        d, sc = k_format.split(tile.scales.view(np.uint8), *sizes)
        dmin, mn = k_format.split(tile.zero_points.view(np.uint8), *sizes)
        repeats = tile.group_size // (32 if kind == "Q4_K" else 16)
        sc, mn = np.repeat(sc, repeats, axis=1), np.repeat(mn, repeats, axis=1)
        pack = _q4_k if kind == "Q4_K" else _q2_k
        return _rows(pack(_half(d), _half(dmin), sc, mn, codes), tile.rows)
    scales, offsets = code_parameters(tile)
    if kind == "Q4_1":
        return _rows(_q4(codes, _half(scales), _half(offsets)), tile.rows)
    # INT2 and INT4 codes count from their own centre, 2 or 8; the type's is fixed.
    shift = CENTRE[kind] - (1 << (tile.bit_width - 1))
    moved = codes.astype(np.int16) + shift
    if kind == "Q4_0":
        return _rows(_q4(moved.astype(np.uint8), _half(scales)), tile.rows)
    signed = (moved - CENTRE[kind]).astype(np.int8).view(np.uint8).reshape(-1, 32)
    return _rows(np.hstack([_half(scales), signed]), tile.rows)


def blocks_of_values(values: Floats, kind: str, n_threads: int = 0) -> Bytes:
    """Return uint8 (rows, row_nbytes): float32 (rows, columns) rounded to blocks; `columns` is a whole number of them.

    Q8_0, Q4_0 and Q4_1 are rounded by the `gguf` package, Q4_K and Q2_K by our least-squares search for the k format,
    Q6_K per group of 16 by its value of largest magnitude.
    """
    if kind in ("Q4_K", "Q2_K"):
        bits, group = (4, 32) if kind == "Q4_K" else (2, 16)
        tensor = quantize_array(
            values, bit_width=bits, group_size=group, method="uls", scale_format="k", gain_correction=False,
            importance=None, n_threads=n_threads,
        )  # fmt: skip
        return blocks_of_codes(tensor, kind)
    if kind == "Q6_K":
        return _rows(_q6_k(values.reshape(-1, 256)), len(values))
    import gguf  # noqa: PLC0415 - an optional extra

    with np.errstate(over="ignore"):  # as in `_half`
        done: Bytes = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    return done


def _rows(blocks: Bytes, rows: int) -> Bytes:
    return np.ascontiguousarray(blocks).reshape(rows, -1)


def _half(floats: Floats) -> Bytes:
    """Two bytes for each float, (n, 2)."""
    with np.errstate(over="ignore"):  # the caller has looked at what does not fit
        return floats.astype("<f2").reshape(-1, 1).view(np.uint8)


def _planes(codes: NDArray[Any], shape: tuple[int, ...], bits: int) -> Bytes:
    """Join codes: `shape` is (..., fields of a byte, bytes), field i in bits [i * bits, (i + 1) * bits)."""
    fields = codes.reshape(-1, *shape).astype(np.uint8, copy=False)
    joined = fields[..., 0, :].copy()
    for i in range(1, fields.shape[-2]):
        joined |= fields[..., i, :] << np.uint8(i * bits)
    return joined.reshape(len(fields), -1)


def _q4(codes: Bytes, *parameters: Bytes) -> Bytes:
    """Q4_0 and Q4_1: the first 16 codes in the low halves of the bytes, the others in the high ones."""
    return np.hstack([*parameters, _planes(codes, (2, 16), 4)])


def _q4_k(d: Bytes, dmin: Bytes, sc: Bytes, mn: Bytes, codes: Bytes) -> Bytes:
    sc, mn = sc.reshape(-1, 8), mn.reshape(-1, 8)
    low, high = slice(0, 4), slice(4, 8)
    first = sc[:, low] | (sc[:, high] >> 4) << 6
    second = mn[:, low] | (mn[:, high] >> 4) << 6
    third = (sc[:, high] & 15) | (mn[:, high] & 15) << 4
    return np.hstack([d, dmin, first, second, third, _planes(codes, (4, 2, 32), 4)])


def _q2_k(d: Bytes, dmin: Bytes, sc: Bytes, mn: Bytes, codes: Bytes) -> Bytes:
    scales = sc.reshape(-1, 16) | mn.reshape(-1, 16) << 4
    return np.hstack([scales, _planes(codes, (2, 4, 32), 2), d, dmin])


def _q6_k(blocks: Floats) -> Bytes:
    """Round float32 (n, 256): 6-bit codes under 8-bit scales of 16 weights under one float16."""
    groups = blocks.reshape(-1, 256 // Q6_GROUP, Q6_GROUP)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1, keepdims=True), -1)[..., 0]
    wanted = largest / np.float32(-32)  # the value of largest magnitude becomes the code -32
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(-1, keepdims=True), -1)[:, 0]
    with np.errstate(over="ignore"):
        d = (peak / np.float32(-128)).astype(np.float16).astype(np.float32)
    steps = np.rint(np.divide(wanted, d[:, None], out=np.zeros_like(wanted), where=d[:, None] != 0))
    steps = np.clip(steps, -128, 127).astype(np.int8)
    scale = (d[:, None] * steps.astype(np.float32))[..., None]
    ratio = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
    codes = (np.clip(np.rint(ratio), -32, 31) + 32).astype(np.uint8).reshape(-1, 256)
    low = _planes(codes & 15, (2, 2, 64), 4)
    high = _planes(codes >> 4, (2, 4, 32), 2)
    return np.hstack([low, high, steps.view(np.uint8), _half(d)])
