"""The k format in the NumPy path: scales and minima of every block of 256 weights chosen together.

Every group is fitted by least squares with minimum <= 0; then the block gets the float pair whose multiples lie nearest
to its fits, each group its integers, and one sweep tries neighbouring integers with the codes assigned anew.
Works on whole rows; the meaning of `kernels/k_search.h`, in the same order of operations.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels.k_format import BLOCK, INTEGER_BITS
from arrowquant_nb._kernels.numpy_search import (
    F32,
    FLOAT16_FLUSH,
    FLOAT16_TINY,
    FLOAT32_TINY,
    SEARCH_FLOOR,
    Centred,
    Floats,
    search_shifts,
    stored,
    stored_scale,
    total,
)

__all__ = ["Pairs", "refit", "rescale", "search"]


class Pairs(NamedTuple):
    """What was chosen for the rows of a tile."""

    d: Floats
    """(rows, blocks), as stored."""
    dmin: Floats
    """(rows, blocks), as stored."""
    sc: NDArray[np.uint8]
    """(rows, groups)."""
    mn: NDArray[np.uint8]
    """(rows, groups)."""
    misfit: NDArray[np.bool_]
    """(rows,): float16 cannot hold a float of the row."""


class _Blocks(NamedTuple):
    """Groups of all blocks: x and v (elements, groups), the rest (blocks, groups of a block)."""

    x: Floats
    v: Floats
    used: NDArray[np.bool_]
    exponent: NDArray[np.int32]


class _Fits(NamedTuple):
    """Least-squares fits, (blocks, groups of a block); 0 where a short block has no group.

    With the codes of a fit, a change of its scale by e costs spread e^2 while the minimum follows by -follow e, and
    sv t^2 more where the minimum would have to pass zero by t.
    """

    s: Floats
    m: Floats
    sv: Floats
    follow: Floats
    spread: Floats
    span: Floats
    """Of the range; of a group without one its value, which is not positive."""


def search(weight: Floats, importance: Floats | None, bit_width: int, group_size: int, wide: bool) -> Pairs:
    """Choose floats and integers for float32 rows (rows, columns)."""
    rows, columns = weight.shape
    n, n_groups = (1 << bit_width) - 1, -(-columns // group_size)
    most = F32((1 << INTEGER_BITS[bit_width]) - 1)
    blocks = _arrange(weight, importance, group_size, wide)
    fits = _fit(blocks, n, wide)
    d, dmin, sc, mn = _choose(fits, most, wide)
    sc, mn = _sweep(blocks, d, dmin, sc, mn, n, most)
    if wide:
        back = np.ldexp(1.0, blocks.exponent)[:, None]
        d = np.where(d > 0, np.maximum((d * back).astype(F32), FLOAT32_TINY), F32(0))
        dmin = (dmin * back).astype(F32)
        misfit = np.zeros(len(d), np.bool_)
    else:
        span, flat = fits.span.max(axis=1), fits.span.min(axis=1)
        flushed = np.where(span > 0, (span / F32(n)) / most, np.where(flat < 0, -flat / most, np.inf)) <= FLOAT16_FLUSH
        misfit = flushed | ~(d <= 65504)[:, 0] | ~(dmin <= 65504)[:, 0]  # a NaN counts as one
    bad = np.asarray(misfit.reshape(rows, -1).any(axis=1))
    scales, minima = (np.nan_to_num(a).astype(np.uint8).reshape(rows, -1)[:, :n_groups] for a in (sc, mn))
    return Pairs(
        d.reshape(rows, -1), dmin.reshape(rows, -1), scales, minima, bad
    )  # fmt: skip


def refit(weight: Floats, importance: Floats, d: Floats, dmin: Floats, bit_width: int) -> tuple[Floats, Floats]:
    """Choose integers anew for one group of many rows under the float16 pairs that their blocks have.

    Parameters
    ----------
    weight : float32 (elements, rows)
    importance : float32 (elements,)
    d, dmin : float32 (rows,)

    Returns
    -------
    sc, mn : float32 (rows,)

    """
    n, most = (1 << bit_width) - 1, F32((1 << INTEGER_BITS[bit_width]) - 1)
    v = np.broadcast_to(importance[:, None], weight.shape)
    blocks = _Blocks(weight, v, np.ones((len(d), 1), np.bool_), np.zeros(len(d), np.int32))
    d, dmin = d[:, None], dmin[:, None]
    with np.errstate(all="ignore"):
        fits = _fit(blocks, n, wide=False)
        sc = _nearest(fits.s, d, most)
        mn = _nearest(fits.follow * (d * sc - fits.s) - fits.m, dmin, most)
        sc, mn = _sweep(blocks, d, dmin, sc, mn, n, most)
    return sc[:, 0], mn[:, 0]


def rescale(pairs: Pairs, gain: Floats, wide: bool) -> Pairs:
    """Multiply the floats of each row by its gain (rows,); the integers stay."""
    d = np.where(pairs.d > 0, stored_scale(pairs.d * gain[:, None], wide), F32(0))
    tiny = FLOAT32_TINY if wide else FLOAT16_TINY
    dmin = np.where(pairs.dmin > 0, np.maximum(stored(pairs.dmin * gain[:, None], wide), tiny), F32(0))
    misfit = pairs.misfit | ~np.isfinite(d + dmin).all(axis=1)
    return Pairs(d, dmin, pairs.sc, pairs.mn, misfit)


def _arrange(weight: Floats, importance: Floats | None, group_size: int, wide: bool) -> _Blocks:
    """Pad rows to whole blocks: a short group with its first weight at importance 0."""
    rows, columns = weight.shape
    padded = -(-columns // BLOCK) * BLOCK
    x, v = np.zeros((rows, padded), F32), np.zeros(padded, F32)
    x[:, :columns] = weight
    v[:columns] = F32(1) if importance is None else importance
    tail = columns % group_size
    if tail:
        x[:, columns : columns - tail + group_size] = weight[:, columns - tail, None]
    exponent = np.zeros(rows * padded // BLOCK, np.int32)
    if wide:
        largest = np.abs(x.reshape(-1, BLOCK)).max(axis=1)
        exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, 0).astype(np.int32)
        x = (x.reshape(-1, BLOCK).astype(np.float64) * np.ldexp(1.0, -exponent)[:, None]).astype(F32)
    used = np.tile(np.arange(0, padded, group_size) < columns, rows).reshape(-1, BLOCK // group_size)
    groups = np.ascontiguousarray(x.reshape(-1, group_size).T)
    return _Blocks(groups, np.tile(v.reshape(-1, group_size), (rows, 1)).T.copy(), used, exponent)


def _fit(blocks: _Blocks, n: int, wide: bool) -> _Fits:
    x, v = blocks.x, blocks.v
    lo, hi = np.minimum(x.min(axis=0), F32(0)), x.max(axis=0) + F32(0)  # -0 becomes +0
    span, centre = hi - lo, (lo + hi) * F32(0.5)
    floor = SEARCH_FLOOR if wide else FLOAT16_TINY
    step = np.maximum(span / F32(n), floor)
    fit = search_shifts(Centred(x - centre, v, lo - centre, step, F32(0) - centre, floor), n)
    sv = total(v)
    follow = np.where(sv > 0, fit.sq * (F32(1) / sv), F32(0))
    spread = np.maximum(fit.sqq - fit.sq * follow, F32(0))
    m = np.minimum(fit.m + centre, F32(0))
    shape = blocks.used.shape
    extent = np.where(span > 0, span, lo)
    found = (np.where(blocks.used, a.reshape(shape), F32(0)) for a in (fit.s, m, sv, follow, spread, extent))
    return _Fits(*found)


def _candidates(largest: Floats, most: np.float32, wide: bool) -> Floats:
    """Sixteen quotients (blocks, 16) of the largest value of each block."""
    divisors = np.array([most, most + F32(0.5), *(most - F32(0.5) * F32(i) for i in range(1, 15))], F32)
    return stored(largest[:, None] / divisors, wide)


def _nearest(x: Floats, d: Floats, most: np.float32) -> Floats:
    """Integers nearest to x / d."""
    reciprocal = np.where(d > 0, F32(1) / d, F32(0))
    return np.rint(np.clip(x * reciprocal, F32(0), most))


def _choose(fits: _Fits, most: np.float32, wide: bool) -> tuple[Floats, Floats, Floats, Floats]:
    """Return d and dmin (blocks, 1), sc and mn (blocks, groups of a block)."""
    n_groups = fits.s.shape[1]
    tried = _candidates(fits.s.max(axis=1), most, wide)
    cost = np.zeros_like(tried)
    for j in range(n_groups):
        s, m, sv, follow, spread = (a[:, j, None] for a in fits[:5])
        e = tried * _nearest(s, tried, most) - s
        beyond = np.maximum(m - follow * e, F32(0))
        cost += spread * (e * e) + sv * (beyond * beyond)
    d = np.take_along_axis(tried, cost.argmin(axis=1)[:, None], 1)
    sc = _nearest(fits.s, d, most)
    target = np.maximum(fits.follow * (d * sc - fits.s) - fits.m, F32(0))
    tried = _candidates(target.max(axis=1), most, wide)
    cost = np.zeros_like(tried)
    for j in range(n_groups):
        t = target[:, j, None]
        e = tried * _nearest(t, tried, most) - t
        cost += fits.sv[:, j, None] * (e * e)
    dmin = np.take_along_axis(tried, cost.argmin(axis=1)[:, None], 1)
    return d, dmin, sc, _nearest(target, dmin, most)


def _sweep(
    blocks: _Blocks, d: Floats, dmin: Floats, sc: Floats, mn: Floats, n: int, most: np.float32
) -> tuple[Floats, Floats]:
    """Codes anew, least squares for the scale, and the integers beside its own; a group keeps the best of four."""
    x, v = blocks.x, blocks.v
    shape = sc.shape
    d, dmin = (np.broadcast_to(a, shape).reshape(-1) for a in (d, dmin))
    sc, mn = sc.reshape(-1), mn.reshape(-1)

    def codes_of(s: Floats, m: Floats) -> tuple[Floats, Floats, Floats]:
        """Return steps above the minimum, their codes, the length of a step; a scale of 0 has the code 0 alone."""
        flat = s == 0
        s = np.where(flat, F32(1), s)
        y = (x - m) * (F32(1) / s)
        return y, np.rint(np.clip(y, F32(0), np.where(flat, F32(0), F32(n)))), s

    def judge(sc: Floats, mn: Floats) -> Floats:
        y, q, s = codes_of(d * sc, -(dmin * mn))
        return total(v * ((y - q) * (y - q))) * (s * s)

    q = codes_of(d * sc, -(dmin * mn))[1]
    vq, sv, sx = v * q, total(v), total(v * x)
    sq, sqq, sqx = total(vq), total(vq * q), total(vq * x)
    spread = sv * sqq - sq * sq
    nearest = _nearest(np.where(spread > 0, (sv * sqx - sx * sq) / spread, d * sc), d, most)
    best, first = judge(sc, mn), mn
    for near in (nearest, np.maximum(nearest - F32(1), F32(0)), np.minimum(nearest + F32(1), most)):
        trial = np.where(sv > 0, _nearest(((d * near) * sq - sx) / sv, dmin, most), first)
        sse = judge(near, trial)
        better = sse < best
        best, sc, mn = np.where(better, sse, best), np.where(better, near, sc), np.where(better, trial, mn)
    return sc.reshape(shape), mn.reshape(shape)
