"""The k format of scales and minima: one float per 256 weights of a row, times one small integer per group.

A row of bytes holds the floats of its blocks first (float16, or float32 where float16 would overflow or flush to 0),
then the integers of its groups, integer i in bits [i * n, (i + 1) * n). The same numbers as in the Q4_K and Q2_K blocks
of llama.cpp: 6 bits with 4-bit codes, 4 bits with 2-bit codes. Knows sizes and bytes; not how values are chosen.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "INTEGER_BITS", "block_floats", "expand", "join", "parts", "row_nbytes", "split", "widen"]

BLOCK = 256
"""Weights of one row that share a float."""
INTEGER_BITS = {2: 4, 4: 6}
"""Bit width -> bits of an integer."""


def parts(columns: int, bit_width: int, group_size: int) -> tuple[int, int]:
    """Blocks of a row, and bytes of its integers."""
    return -(-columns // BLOCK), -(-(-(-columns // group_size) * INTEGER_BITS[bit_width]) // 8)


def row_nbytes(columns: int, bit_width: int, group_size: int, wide: bool = False) -> int:
    """Bytes of one row of scales, or of minima; `wide` = float32 per block."""
    n_blocks, integers = parts(columns, bit_width, group_size)
    return (4 if wide else 2) * n_blocks + integers


def join(floats: NDArray[np.float32], integers: NDArray[np.uint8], bits: int, wide: bool) -> NDArray[np.uint8]:
    """Return the bytes (rows, n) of floats (rows, blocks), already rounded, and integers (rows, groups)."""
    head = floats.astype("<f4" if wide else "<f2").view(np.uint8)
    planes = (integers[..., None] >> np.arange(bits, dtype=np.uint8)) & np.uint8(1)
    return np.hstack([head, np.packbits(planes.reshape(len(integers), -1), axis=1, bitorder="little")])


def split(
    rows: NDArray[np.uint8], columns: int, bit_width: int, group_size: int
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return floats (rows, blocks) and integers (rows, groups): the reverse of `join`."""
    n_bytes = parts(columns, bit_width, group_size)[1]
    bits, n_groups = INTEGER_BITS[bit_width], -(-columns // group_size)
    planes = np.unpackbits(rows[:, -n_bytes:], axis=1, count=n_groups * bits, bitorder="little")
    integers = np.packbits(planes.reshape(len(rows), n_groups, bits), axis=2, bitorder="little")[..., 0]
    return block_floats(rows, columns, bit_width, group_size), integers


def block_floats(rows: NDArray[np.uint8], columns: int, bit_width: int, group_size: int) -> NDArray[np.float32]:
    """Return the floats (rows, blocks) alone."""
    n_blocks, n_bytes = parts(columns, bit_width, group_size)
    wide = rows.shape[1] == 4 * n_blocks + n_bytes
    head = np.ascontiguousarray(rows[:, : rows.shape[1] - n_bytes])
    return head.view("<f4" if wide else "<f2").astype(np.float32)


def widen(rows: NDArray[np.uint8], columns: int, bit_width: int, group_size: int) -> NDArray[np.uint8]:
    """Return the bytes with float32 per block."""
    return join(*split(rows, columns, bit_width, group_size), INTEGER_BITS[bit_width], wide=True)


def expand(rows: NDArray[np.uint8], columns: int, bit_width: int, group_size: int) -> NDArray[Any]:
    """Return float32 (rows, groups): every integer times the float of its block."""
    floats, integers = split(rows, columns, bit_width, group_size)
    per_group = np.repeat(floats, BLOCK // group_size, axis=1)[:, : integers.shape[1]]
    return per_group * integers.astype(np.float32)
