"""Grid `levels` on the NumPy path: two signed amplitudes and an offset for each group, for r2q.

A code is two sign bits: w' = (mu +- a1) +- a2, bit 1 the sign of a1, bit 0 that of a2, 1 = plus. With a1 >= a2 >= 0 the
levels rise with the code and halve at mu - a1, mu and mu + a1. Works on tiles of shape (elements, groups).
Knows groups only: no rows, no packing, no threads.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from arrowquant_nb._kernels.numpy_search import F32, Floats, Grid, GroupCodes, stored, total
from arrowquant_nb._kernels.numpy_search import _misfit as misfit
from arrowquant_nb._kernels.numpy_search import _normalise as normalise

__all__ = ["Planes", "nearest_code", "r2q", "refit", "squared_error", "value_of"]

RIDGE = F32(2.0**-20)  # weight of a level's present value, of a group's whole weight
LEAST_WEIGHT = F32(2.0**-60)  # the largest importance of a matrix is in [1, 2)
REFITS = 8


class Planes(NamedTuple):
    """Parameters of the levels of each group, float32 (groups,); a1 >= a2 >= 0."""

    a1: Floats
    a2: Floats
    mu: Floats


def nearest_code(w: Floats, planes: Planes) -> NDArray[np.uint8]:
    """Code of the level nearest to each weight."""
    t = w - planes.mu
    below, inner = t < 0, np.abs(t) < planes.a1
    code: NDArray[np.uint8] = np.uint8(3) ^ (below * np.uint8(3)) ^ (inner * np.uint8(1))
    return code


def value_of(codes: NDArray[Any], planes: Planes) -> Floats:
    """Decode: (mu +- a1) +- a2 in float32, in this order."""
    first = planes.mu + np.where(codes & 2, planes.a1, -planes.a1)
    value: Floats = first + np.where(codes & 1, planes.a2, -planes.a2)
    return value


def squared_error(w: Floats, v: Floats, planes: Planes) -> Floats:
    """Weighted squared error of each group with the codes it would get."""
    e = np.abs(np.abs(w - planes.mu) - planes.a1) - planes.a2
    return total(v * (e * e))


def refit(u: Floats, v: Floats, share: Floats, planes: Planes) -> Planes:
    """Assign every value to its nearest level, then solve the weighted normal equations for the parameters.

    Parameters
    ----------
    u, v : (elements, groups)
        Values without a -0, and the weights of their squared errors.
    share : (groups,)
        1 / sum of v.
    planes : Planes
        Present parameters. Each level counts as `RIDGE` of the group's weight at its present value, so a class without
        weights neither divides by zero nor moves, and the squared error still cannot rise.

    Notes
    -----
    With f the shares and y the value sums of the four classes, the equations are summed over triples of classes; all
    terms of the determinant are positive, so it cannot cancel. The class sums come from sums over the signs, which only
    change sign with the weights: the fit of -w is the negated fit of w.

    """
    a1, a2, mu = planes
    t = u - mu
    below, inner = t < 0, np.abs(t) < a1  # b1 = -1; b1 b2 = -1
    signs = (below, below ^ inner, inner)
    vu = v * u
    sv, su = total(v), total(vu)
    v1, v2, v12 = (total(np.where(minus, -v, v)) for minus in signs)
    u1, u2, u12 = (total(np.where(minus, -vu, vu)) for minus in signs)
    zero, quarter = F32(0), share * F32(0.25)
    in_outer, in_inner, u_outer, u_inner = sv + v12, sv - v12, su + u12, su - u12
    f0 = np.maximum(in_outer - (v1 + v2), zero) * quarter + RIDGE
    f1 = np.maximum(in_inner - (v1 - v2), zero) * quarter + RIDGE
    f2 = np.maximum(in_inner + (v1 - v2), zero) * quarter + RIDGE
    f3 = np.maximum(in_outer + (v1 + v2), zero) * quarter + RIDGE
    y0 = (u_outer - (u1 + u2)) * quarter + ((mu - a1) - a2) * RIDGE
    y1 = (u_inner - (u1 - u2)) * quarter + ((mu - a1) + a2) * RIDGE
    y2 = (u_inner + (u1 - u2)) * quarter + ((mu + a1) - a2) * RIDGE
    y3 = (u_outer + (u1 + u2)) * quarter + ((mu + a1) + a2) * RIDGE
    half = f0 * f1 * (f2 + f3) + f2 * f3 * (f0 + f1)
    d = half + half
    p = ((f0 * y2 - f2 * y0) * (f1 + f3) + (f1 * y3 - f3 * y1) * (f0 + f2)) / d
    q = ((f0 * y1 - f1 * y0) * (f2 + f3) + (f2 * y3 - f3 * y2) * (f0 + f1)) / d
    m = ((f2 * y1 + f1 * y2) * (f0 + f3) + (f3 * y0 + f0 * y3) * (f1 + f2)) / d
    return Planes(np.maximum(np.maximum(p, q), zero) + zero, np.maximum(np.minimum(p, q), zero) + zero, m)


def greedy(u: Floats, v: Floats, share: Floats, mu: Floats) -> Planes:
    """Mean distance to `mu`, and mean distance of what remains: two sign planes fitted one after the other."""
    t = np.abs(u - mu)
    a1 = total(v * t) * share
    a2 = total(v * np.abs(t - a1)) * share
    return Planes(np.maximum(a1, a2), np.minimum(a1, a2), mu)


def starts(u: Floats, v: Floats, span: Floats) -> tuple[Floats, list[Planes]]:
    """Return 1 / sum of v, and four starts for centred values.

    They are: levels spread evenly over the range; greedy about the mean; greedy about the centre of the range, which
    finds any four symmetric levels; greedy about the mean with a wider first plane.
    """
    zero = np.zeros(u.shape[1], F32)
    sv = total(v)
    share = np.where(sv > LEAST_WEIGHT, F32(1) / sv, zero)  # a group without importance keeps the even levels
    about_mean = greedy(u, v, share, total(v * u) * share)
    wider = about_mean._replace(a1=about_mean.a1 * F32(1.5))
    return share, [Planes(span / F32(3), span / F32(6), zero), about_mean, greedy(u, v, share, zero), wider]


def r2q(w: Floats, v: Floats, grid: Grid) -> GroupCodes:
    """Fit two signed amplitudes and an offset by alternating least squares from four starts; keep the best as stored.

    The lattice of R2Q (arXiv 2511.21736) with an offset, solved exactly instead of greedily. The first two starts stand
    unrefitted too, so the result is never worse than either.
    """
    wide = grid.wide
    x, exponent = normalise(w) if wide else (w, np.zeros(w.shape[1], np.int32))
    lo, hi = x.min(axis=0) + F32(0), x.max(axis=0) + F32(0)
    span, centre = hi - lo, (lo + hi) * F32(0.5)
    u = (x - centre) + F32(0)  # no -0: signs decide
    share, trials = starts(u, v, span)
    refitted = list(trials)
    for _ in range(REFITS):
        refitted = [refit(u, v, share, trial) for trial in refitted]
    best = np.full(lo.shape, np.inf, F32)
    kept = [
        Planes(stored(t.a1, wide), stored(t.a2, wide), stored(t.mu + centre, wide)) for t in (*trials[:2], *refitted)
    ]
    found = kept[0]  # stays where its offset overflows, and is reported as a misfit
    for trial in kept:
        sse = squared_error(x, v, trial)
        better = sse < best
        best = np.where(better, sse, best)
        found = Planes(*(np.where(better, new, old) for new, old in zip(trial, found, strict=True)))
    bad = misfit(lo, hi, grid)
    if wide:
        back = np.ldexp(1.0, exponent)
        found = Planes(*((part.astype(np.float64) * back).astype(F32) for part in found))
    else:
        bad = bad | (np.maximum(found.a1, np.abs(found.mu)) > F32(65504))
    return GroupCodes(nearest_code(w, found), np.stack([found.a1, found.a2], axis=1), found.mu, bad)
