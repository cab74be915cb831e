"""The grids written out slowly, one weight at a time, straight from their formulas: the oracle of the kernel tests.

Imports nothing from the package. Arithmetic is IEEE float32 through NumPy scalars unless a line says float64; sums run
in the order that the formats fix, so results are compared bit for bit.
"""

from dataclasses import dataclass

import numpy as np

F = np.float32
D = np.float64


@dataclass
class Row:
    """One quantized row."""

    codes: list[int]
    scales: list[np.float32]
    zeros: list[np.float32]  # zero-point codes or minima
    sums: tuple[float, float, float]  # ww, wq, ee


def half(x):
    return F(np.float16(x))


def half_up(x):
    """Smallest float16 that is not below x >= 0."""
    h = np.float16(x)
    return F(np.nextafter(h, np.float16(np.inf)) if F(h) < x else h)


def rint(x):
    """Round half to even, for any finite float."""
    return F(round(float(x)))


def clip(x, low, high):
    return max(low, min(high, x))


def in_order(values):
    total = F(0)
    for v in values:
        total = F(total + v)
    return total


def sixteen(values, zero):
    """Element k to partial sum k % 16, then the partials 8, 4, 2, 1 apart."""
    partial = [zero] * 16
    for k, v in enumerate(values):
        partial[k % 16] = type(zero)(partial[k % 16] + v)
    for apart in (8, 4, 2, 1):
        partial = [type(zero)(partial[i] + partial[i + apart]) for i in range(apart)]
    return partial[0]


def scale_of(lo, hi, n, wide):
    exact = F(F(hi - lo) / F(n))
    if wide:
        if D(exact) * n < D(hi) - D(lo):
            exact = np.nextafter(exact, F(np.inf))
        return max(exact, F(2.0**-149))
    return max(half_up(exact), F(2.0**-24))


def zero_of(lo, s, n):
    return clip(rint(F(-lo) / s), F(0), F(n))


def normalised(w):
    """Group times a power of two, max abs in [1, 2), and the exponent taken out."""
    largest = max(abs(D(x)) for x in w)
    e = int(np.floor(np.log2(largest))) if largest > 0 else 0
    if largest > 0:
        e += int(largest >= 2.0 ** (e + 1)) - int(largest < 2.0**e)
    return [F(D(x) * 2.0**-e) for x in w], e


def rtn_grid(w, v, n, wide):
    lo, hi = min(F(0), *w), max(F(0), *w)
    s = scale_of(lo, hi, n, wide)
    return s, zero_of(lo, s, n)


def mse_grid(w, v, n, wide):
    x = normalised(w)[0] if wide else w
    lo, hi = min(F(0), *x), max(F(0), *x)
    best = (F(np.inf), F(1), F(1))
    for i in range(9):
        for j in range(9):
            a, b = F(1 - 0.075 * i), F(1 - 0.075 * j)
            s = scale_of(F(a * lo), F(b * hi), n, wide)
            z = zero_of(F(a * lo), s, n)
            terms = []
            for weight, u in zip(v, x, strict=True):
                y = F(u * F(F(1) / s))
                e = F(y - rint(clip(y, -z, F(n) - z))) if np.isfinite(y) else F(np.nan)
                terms.append(F(weight * F(e * e)))
            sse = F(in_order(terms) * F(s * s))
            if sse < best[0]:
                best = (sse, a, b)
    lo, hi = F(best[1] * min(F(0), *w)), F(best[2] * max(F(0), *w))
    s = scale_of(lo, hi, n, wide)
    return s, zero_of(lo, s, n)


def uls_grid(w, v, n, wide):
    x, exponent = normalised(w) if wide else (w, 0)
    stored = (lambda y: y) if wide else half
    floor = F(2.0**-48) if wide else F(2.0**-24)
    lo, hi = F(min(x) + F(0)), F(max(x) + F(0))
    span, centre = F(hi - lo), F(F(lo + hi) * F(0.5))
    u = [F(y - centre) for y in x]
    sv, su = in_order(v), in_order([F(a * b) for a, b in zip(v, u, strict=True)])

    def squared_error(s, m):
        r = F(F(1) / s)
        terms = []
        for weight, y in zip(v, x, strict=True):
            steps = F(F(y - m) * r)
            e = F(steps - rint(clip(steps, F(0), F(n))))
            terms.append(F(weight * F(e * e)))
        return F(in_order(terms) * F(s * s))

    def refit(s, m):
        r = F(F(1) / s)
        q = [rint(clip(F(F(y - m) * r), F(0), F(n))) for y in u]
        vq = [F(a * b) for a, b in zip(v, q, strict=True)]
        sq, sqq = in_order(vq), in_order([F(a * b) for a, b in zip(vq, q, strict=True)])
        squ = in_order([F(a * b) for a, b in zip(vq, u, strict=True)])
        d = F(F(sv * sqq) - F(sq * sq))
        if not d > 0:
            return s, m
        s1 = F(F(F(sv * squ) - F(su * sq)) / d)
        m1 = F(F(F(sqq * su) - F(sq * squ)) / d)
        return (s1, m1) if s1 >= floor else (s, m)

    best_s, best_m = max(stored(F(span / F(n))), floor), stored(lo)
    best = squared_error(best_s, best_m)
    for i in range(12):
        c = F(F(1 - 0.05 * i) * span)
        s, m = max(F(c / F(n)), floor), F(c * F(-0.5))
        for _ in range(3):
            s, m = refit(s, m)
        s, m = max(stored(s), floor), stored(F(m + centre))
        sse = squared_error(s, m)
        if sse < best:
            best, best_s, best_m = sse, s, m
    if wide:
        best_s = max(F(D(best_s) * 2.0**exponent), F(2.0**-149))
        best_m = F(D(best_m) * 2.0**exponent)
    return best_s, best_m


GRIDS = {"rtn": rtn_grid, "mse": mse_grid, "uls": uls_grid}


def decode_one(code, s, zero, method):
    if method == "uls":
        return F(F(F(code) * s) + zero)
    return F(F(F(code) - zero) * s)


def row_sums(groups, decoded, wide):
    kind = D if wide else F
    totals = [0.0, 0.0, 0.0]
    for weights, values in zip(groups, decoded, strict=True):
        w, q = [kind(x) for x in weights], [kind(x) for x in values]
        e = [kind(b - a) for a, b in zip(w, q, strict=True)]
        for k, (left, right) in enumerate(((w, w), (w, q), (e, e))):
            totals[k] += float(sixteen([kind(a * b) for a, b in zip(left, right, strict=True)], kind(0)))
    return tuple(totals)


def quantize_row(weights, bits, group_size, method, gain=True, importance=None, wide=False):
    """Quantize one row of float32 weights."""
    n = 2**bits - 1
    weights = [F(x) for x in weights]
    importance = [F(1)] * len(weights) if importance is None else [F(x) for x in importance]
    groups = [weights[i : i + group_size] for i in range(0, len(weights), group_size)]
    codes, scales, zeros = [], [], []
    with np.errstate(all="ignore"):
        for g, w in enumerate(groups):
            v = importance[g * group_size : g * group_size + len(w)]
            s, zero = GRIDS[method](w, v, n, wide)
            for x in w:
                steps = F(F(x - zero) / s) if method == "uls" else F(F(x / s))
                code = rint(steps) if method == "uls" else rint(steps) + zero
                codes.append(int(clip(code, F(0), F(n))))
            scales.append(s)
            zeros.append(zero)

        def sums():
            decoded, k = [], 0
            for g, w in enumerate(groups):
                decoded.append([decode_one(codes[k + i], scales[g], zeros[g], method) for i in range(len(w))])
                k += len(w)
            return row_sums(groups, decoded, wide)

        totals = sums()
        if gain and method != "rtn":
            c = totals[0] / totals[1] if totals[0] > 0 and totals[1] > 0 else 1.0
            c = F(clip(c, 0.5, 2.0))
            stored = (lambda y: y) if wide else half
            scales = [max(stored(F(s * c)), F(2.0**-149) if wide else F(2.0**-24)) for s in scales]
            if method == "uls":
                zeros = [stored(F(m * c)) for m in zeros]
            totals = sums()
    return Row(codes, scales, zeros, totals)


def pack(codes, bits):
    """Code i of a byte in bits [i * bits, (i + 1) * bits)."""
    out = bytearray(-(-len(codes) * bits // 8))
    for i, code in enumerate(codes):
        out[i * bits // 8] |= code << (i * bits % 8)
    return bytes(out)


def unpack(packed, bits, n):
    return [(packed[i * bits // 8] >> (i * bits % 8)) & (2**bits - 1) for i in range(n)]
