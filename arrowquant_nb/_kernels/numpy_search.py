"""The affine grids of the NumPy path: how scale and zero point of a group are chosen, for rtn, mse, uls and hqq.

Works on tiles of shape (elements, groups), so that sums over the elements of a group run in order.
Knows groups only: no rows, no packing, no threads.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "F32", "FLOAT16_FLUSH", "FLOAT16_TINY", "FLOAT32_TINY", "METHODS", "SEARCH_FLOOR", "Centred", "Floats", "Grid",
    "GroupCodes", "search_shifts", "stored", "stored_scale", "total",
]  # fmt: skip

F32 = np.float32
Floats = NDArray[np.float32]

FLOAT16_TINY = F32(2.0**-24)  # smallest float16 above 0: the floor of every float16 scale
FLOAT16_FLUSH = F32(2.0**-25)  # at or below, float16 rounds to 0
FLOAT32_TINY = F32(2.0**-149)
SEARCH_FLOOR = F32(2.0**-48)  # floor of a scale while groups are normalised to [1, 2): its square is a float32

MSE_SHRINKS = tuple(F32(1.0 - 0.075 * i) for i in range(9))
ULS_SHRINKS = tuple(F32(1.0 - 0.05 * i) for i in range(12))
ULS_REFITS = 3
HQQ_STEPS = 20
HQQ_BETA, HQQ_GROWTH = 10.0, 1.01  # of the paper's code
RANGE_SHIFTS = (
    (0.0, 0.0), (0.0, 0.4), (-0.2, 0.6), (0.2, -0.2), (0.4, -0.4), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2),
)  # fmt: skip
"""Steps by which the ends of a range move inwards: of 64 pairs the eight that leave the least error, measured."""


class Grid(NamedTuple):
    """Codes 0..n; wide = scales stored as float32; shifts = uls tries ranges with moved ends too."""

    n: int
    wide: bool
    shifts: bool = False


class GroupCodes(NamedTuple):
    """What was chosen for every group of a tile."""

    codes: NDArray[np.uint8]
    """(elements, groups)."""
    scale: Floats
    """(groups,), as stored; r2q: (groups, 2)."""
    zero: Floats
    """(groups,): zero-point code, or minimum or offset as stored."""
    misfit: NDArray[np.bool_]
    """(groups,): float16 cannot hold the parameters."""


class Centred(NamedTuple):
    """Groups in the form that `search_shifts` works on: (elements, groups), and (groups,) for the rest."""

    u: Floats
    """Weights less the centre of their range."""
    v: Floats
    """Importance."""
    lo: Floats
    """Lower end of the range, less the centre."""
    step: Floats
    """Range over levels."""
    top: Floats
    """What the minimum may be at most, less the centre."""
    floor: np.float32
    """What the scale may be at least."""


class Fit(NamedTuple):
    """A scale and minimum by least squares for given codes, and the sums over these codes."""

    s: Floats
    m: Floats
    """Less the centre."""
    sq: Floats
    """Sum of v * code."""
    sqq: Floats
    """Sum of v * code * code."""


def stored(values: Floats, wide: bool) -> Floats:
    """Round to the stored dtype."""
    return values if wide else values.astype(np.float16).astype(F32)


def stored_scale(values: Floats, wide: bool) -> Floats:
    """Round to the stored dtype, never to 0."""
    return np.maximum(stored(values, wide), FLOAT32_TINY if wide else FLOAT16_TINY)


def _scale_up(lo: Floats, hi: Floats, grid: Grid) -> Floats:
    """Return (hi - lo) / n rounded up to the stored dtype, so that n steps always reach."""
    exact = (hi - lo) / F32(grid.n)
    if grid.wide:
        short = exact.astype(np.float64) * grid.n < hi.astype(np.float64) - lo.astype(np.float64)
        return np.maximum(np.where(short, np.nextafter(exact, F32(np.inf)), exact), FLOAT32_TINY)
    half = exact.astype(np.float16)
    up = np.where(half.astype(F32) < exact, np.nextafter(half, np.float16(np.inf)), half)
    return np.maximum(up.astype(F32), FLOAT16_TINY)


def _misfit(lo: Floats, hi: Floats, grid: Grid) -> NDArray[np.bool_]:
    """Tell whether float16 cannot hold the scale of a range, or the one value of a group without a range."""
    if grid.wide:
        return np.zeros(lo.shape, np.bool_)
    exact, size = (hi - lo) / F32(grid.n), np.abs(lo)
    flushed = ((hi > lo) & (exact <= FLOAT16_FLUSH)) | ((hi == lo) & (size > 0) & (size <= FLOAT16_FLUSH))
    return np.asarray(np.isinf(exact.astype(np.float16)) | flushed)


def total(values: Floats) -> Floats:
    """Sum over the elements of each group, one after the other, in float32."""
    result: Floats = np.add.accumulate(values, axis=0)[-1] + F32(0)  # a sum that starts at +0 is never -0
    return result


def _normalise(w: Floats) -> tuple[Floats, NDArray[Any]]:
    """Scale each group by a power of two to max abs(w) in [1, 2): squares neither overflow nor vanish."""
    largest = np.abs(w).max(axis=0)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1, 0)
    return (w.astype(np.float64) * np.ldexp(1.0, -exponent)).astype(F32), exponent


def _zero_point_codes(w: Floats, lo: Floats, hi: Floats, grid: Grid, misfit: NDArray[np.bool_]) -> GroupCodes:
    scale = _scale_up(lo, hi, grid)
    zero = np.clip(np.rint(-lo / scale), 0, grid.n)
    codes = np.clip(np.rint(w / scale) + zero, 0, grid.n)
    misfit = misfit | ~np.isfinite(scale)
    return GroupCodes(_bytes(codes), scale, np.nan_to_num(zero), misfit)


def _bytes(codes: Floats) -> NDArray[np.uint8]:
    return np.nan_to_num(codes).astype(np.uint8)


def rtn(w: Floats, v: Floats, grid: Grid) -> GroupCodes:
    """Round to nearest on the range that holds every weight and 0."""
    del v
    lo, hi = np.minimum(w.min(axis=0), F32(0)), np.maximum(w.max(axis=0), F32(0))
    return _zero_point_codes(w, lo, hi, grid, _misfit(lo, hi, grid))


def mse(w: Floats, v: Floats, grid: Grid) -> GroupCodes:
    """Shrink both ends of the rtn range by 81 pairs of factors; keep the least squared error, first wins."""
    x = _normalise(w)[0] if grid.wide else w
    lo, hi = np.minimum(x.min(axis=0), F32(0)), np.maximum(x.max(axis=0), F32(0))
    best = np.full(lo.shape, np.inf, F32)
    best_a, best_b = np.full(lo.shape, F32(1)), np.full(lo.shape, F32(1))
    for a in MSE_SHRINKS:
        for b in MSE_SHRINKS:
            scale = _scale_up(a * lo, b * hi, grid)
            zero = np.clip(np.rint(-(a * lo) / scale), 0, grid.n)
            y = x * (F32(1) / scale)
            e = y - np.rint(np.clip(y, -zero, F32(grid.n) - zero))
            sse = total(v * (e * e)) * (scale * scale)
            better = sse < best
            best[better], best_a[better], best_b[better] = sse[better], a, b
    lo, hi = np.minimum(w.min(axis=0), F32(0)), np.maximum(w.max(axis=0), F32(0))
    return _zero_point_codes(w, best_a * lo, best_b * hi, grid, _misfit(lo, hi, grid))


def search_shifts(g: Centred, n: int) -> Fit:
    """Move the ends of the range by fractions of a step: least squares on the codes of each; two more for the best."""
    sv, su = total(g.v), total(g.v * g.u)
    reciprocal = F32(1) / sv
    error = np.full(su.shape, np.inf, F32)
    best = Fit(g.step, g.lo, np.zeros_like(su), np.zeros_like(su))
    ranges = ((F32(1.0 - (a + b) / n), F32(a)) for a, b in RANGE_SHIFTS)
    trials = [(np.maximum(g.step * c, g.floor), np.minimum(g.lo + g.step * a, g.top)) for c, a in ranges]
    for k in range(len(trials) + 2):
        s0, m0 = trials[k] if k < len(trials) else (best.s, best.m)
        q = np.rint(np.clip((g.u - m0) * (F32(1) / s0), F32(0), F32(n)))
        vq = g.v * q
        sq, sqq, squ = total(vq), total(vq * q), total(vq * g.u)
        d = sv * sqq - sq * sq
        free = (d > 0) & (sqq * su - sq * squ <= g.top * d)
        s = np.where(free, sv * squ - su * sq, squ - g.top * sq) / np.where(free, d, sqq)
        m = np.where(free, (su - s * sq) * reciprocal, g.top)
        usable = s >= g.floor
        s, m = np.where(usable, s, s0), np.where(usable, m, m0)
        changed = s * (s * sqq + (m * sq - squ) * F32(2)) + m * (m * sv - su * F32(2))
        better = changed < error
        error = np.where(better, changed, error)
        best = Fit(
            np.where(better, s, best.s),
            np.where(better, m, best.m),
            np.where(better, sq, best.sq),
            np.where(better, sqq, best.sqq),
        )
    return best


def uls(w: Floats, v: Floats, grid: Grid) -> GroupCodes:
    """Least-squares scale and minimum from 12 shrunken ranges, three refits each; the plain range stands too.

    With `grid.shifts` also from the ranges of `search_shifts`.
    """
    n, wide = F32(grid.n), grid.wide
    x, exponent = _normalise(w) if wide else (w, np.zeros(w.shape[1], np.int32))
    floor = SEARCH_FLOOR if wide else FLOAT16_TINY
    lo, hi = x.min(axis=0) + F32(0), x.max(axis=0) + F32(0)  # -0 becomes +0
    span, centre = hi - lo, (lo + hi) * F32(0.5)
    u = x - centre
    sv, su = total(v), total(v * u)

    def judge(s: Floats, m: Floats) -> Floats:
        y = (x - m) * (F32(1) / s)
        e = y - np.rint(np.clip(y, F32(0), n))
        return total(v * (e * e)) * (s * s)

    best_s, best_m = np.maximum(stored(span / n, wide), floor), stored(lo, wide)
    best = judge(best_s, best_m)
    misfit = _misfit(lo, hi, grid) | ~np.isfinite(best_m)
    for c in ULS_SHRINKS:
        s, m = np.maximum((c * span) / n, floor), (c * span) * F32(-0.5)
        for _ in range(ULS_REFITS):
            q = np.rint(np.clip((u - m) * (F32(1) / s), F32(0), n))
            vq = v * q
            sq, sqq, squ = total(vq), total(vq * q), total(vq * u)
            d = sv * sqq - sq * sq
            s1, m1 = (sv * squ - su * sq) / d, (sqq * su - sq * squ) / d
            usable = (d > 0) & (s1 >= floor)
            s, m = np.where(usable, s1, s), np.where(usable, m1, m)
        trial_s, trial_m = np.maximum(stored(s, wide), floor), stored(m + centre, wide)
        sse = judge(trial_s, trial_m)
        better = sse < best
        best = np.where(better, sse, best)
        best_s, best_m = np.where(better, trial_s, best_s), np.where(better, trial_m, best_m)
    if grid.shifts:
        top = np.full_like(span, np.inf)
        fit = search_shifts(Centred(u, v, span * F32(-0.5), np.maximum(span / n, floor), top, floor), grid.n)
        trial_s, trial_m = np.maximum(stored(fit.s, wide), floor), stored(fit.m + centre, wide)
        better = judge(trial_s, trial_m) < best
        best_s, best_m = np.where(better, trial_s, best_s), np.where(better, trial_m, best_m)
    if wide:
        back = np.ldexp(1.0, exponent)
        best_s = np.maximum((best_s.astype(np.float64) * back).astype(F32), FLOAT32_TINY)
        best_m = (best_m.astype(np.float64) * back).astype(F32)
    codes = np.clip(np.rint((w - best_m) / best_s), F32(0), n)
    return GroupCodes(_bytes(codes), best_s, best_m, misfit)


def hqq(w: Floats, v: Floats, grid: Grid) -> GroupCodes:
    """Half-quadratic minimum under the scale of the plain range (Badri and Shaji 2023).

    Each step moves the minimum by the mean error after large errors were shrunk by the generalised soft threshold of
    the l_p norm, and a group stops when its mean absolute error stops falling; the best minimum as stored is kept.
    p is 1/2, where the paper has 0.7: its threshold needs a square root only, which every machine rounds alike, and the
    SQNR differs by less than 0.03 dB (normal and heavy-tailed weights, 2, 4 and 8 bits, groups of 32 and 64). Errors
    are measured in steps of the scale, so that the threshold does not depend on the size of the weights.
    """
    del v
    n, wide = F32(grid.n), grid.wide
    x, exponent = _normalise(w) if wide else (w, np.zeros(w.shape[1], np.int32))
    lo, hi = x.min(axis=0) + F32(0), x.max(axis=0) + F32(0)
    scale = np.maximum(stored((hi - lo) / n, wide), SEARCH_FLOOR if wide else FLOAT16_TINY)
    m = best_m = stored(lo, wide)
    misfit = _misfit(lo, hi, grid) | ~np.isfinite(m)
    best, active = np.full(lo.shape, np.inf, F32), np.ones(lo.shape, np.bool_)
    beta = HQQ_BETA
    for _ in range(HQQ_STEPS):
        y = (x - m) * (F32(1) / scale)
        d = y - np.rint(np.clip(y, F32(0), n))
        size = np.abs(d)
        error = total(size)
        active &= error < best
        best, best_m = np.where(active, error, best), np.where(active, m, best_m)
        if not active.any():
            break
        kept = np.minimum(F32(1.0 / beta) / np.sqrt(size), size)
        m = stored(m + scale * (total(np.copysign(kept, d)) / F32(len(x))), wide)
        beta *= HQQ_GROWTH
    if wide:
        back = np.ldexp(1.0, exponent)
        scale = np.maximum((scale.astype(np.float64) * back).astype(F32), FLOAT32_TINY)
        best_m = (best_m.astype(np.float64) * back).astype(F32)
    codes = np.clip(np.rint((w - best_m) / scale), F32(0), n)
    return GroupCodes(_bytes(codes), scale, best_m, misfit)


METHODS: Mapping[str, Callable[[Floats, Floats, Grid], GroupCodes]] = {"rtn": rtn, "mse": mse, "uls": uls, "hqq": hqq}
