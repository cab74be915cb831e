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
    scales: list  # one float32 a group; r2q: (a1, a2)
    zeros: list[np.float32]  # zero-point codes, minima or offsets
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


def hqq_grid(w, v, n, wide):
    x, exponent = normalised(w) if wide else (w, 0)
    stored = (lambda y: y) if wide else half
    lo, hi = F(min(x) + F(0)), F(max(x) + F(0))
    s = max(stored(F(F(hi - lo) / F(n))), F(2.0**-48) if wide else F(2.0**-24))
    r = F(F(1) / s)
    m = best_m = stored(lo)
    best, beta = F(np.inf), 10.0
    for _ in range(20):
        steps = [F(F(y - m) * r) for y in x]
        d = [F(t - rint(clip(t, F(0), F(n)))) for t in steps]
        error = in_order([abs(e) for e in d])
        if not error < best:
            break
        best, best_m = error, m
        threshold = F(1.0 / beta)
        kept = [min(F(threshold / np.sqrt(abs(e))), abs(e)) for e in d]
        mean = F(in_order([-k if e < 0 else k for k, e in zip(kept, d, strict=True)]) / F(len(x)))
        m = stored(F(m + F(s * mean)))
        beta *= 1.01
    if wide:
        s = max(F(D(s) * 2.0**exponent), F(2.0**-149))
        best_m = F(D(best_m) * 2.0**exponent)
    return s, best_m


def levels_of(a1, a2, mu):
    return [F(F(mu + a) + b) for a in (-a1, a1) for b in (-a2, a2)]


def level_code(w, a1, a2, mu):
    """Nearest of the four levels, by the midpoints mu - a1, mu, mu + a1."""
    t = F(w - mu)
    if t >= 0:
        return 2 if t < a1 else 3
    return 1 if -t < a1 else 0


def r2q_classes(total, one, two, both):
    """Sums over the four codes from the sum over all and those times b1, b2 and b1 b2, four times as large."""
    outer, inner, far, near = F(total + both), F(total - both), F(one + two), F(one - two)
    return [F(outer - far), F(inner - near), F(inner + near), F(outer + far)]


def r2q_refit(u, v, share, a1, a2, mu):
    """Assign every value to its nearest level, then fit the levels: one round of alternating least squares."""
    vu = [F(a * b) for a, b in zip(v, u, strict=True)]
    codes = [level_code(y, a1, a2, mu) for y in u]

    def signed(values):
        for row in ((1, 1, 1, 1), (-1, -1, 1, 1), (-1, 1, -1, 1), (1, -1, -1, 1)):  # 1, b1, b2 and b1 b2 of each code
            yield in_order([y * F(row[c]) for y, c in zip(values, codes, strict=True)])

    ridge, quarter = F(2.0**-20), F(share * F(0.25))
    levels = levels_of(a1, a2, mu)
    f = [F(F(max(a, F(0)) * quarter) + ridge) for a in r2q_classes(*signed(v))]
    y = [F(F(a * quarter) + F(level * ridge)) for a, level in zip(r2q_classes(*signed(vu)), levels, strict=True)]

    def cross(i, j):
        return F(F(f[i] * y[j]) - F(f[j] * y[i]))

    def mixed(i, j):
        return F(F(f[j] * y[i]) + F(f[i] * y[j]))

    def pair(i, j):
        return F(f[i] + f[j])

    # The 3x3 normal equations, expanded over triples of classes: every determinant of three sign rows is +-4.
    triples = F(F(F(f[0] * f[1]) * pair(2, 3)) + F(F(f[2] * f[3]) * pair(0, 1)))
    d = F(triples + triples)
    p = F(F(F(cross(0, 2) * pair(1, 3)) + F(cross(1, 3) * pair(0, 2))) / d)
    q = F(F(F(cross(0, 1) * pair(2, 3)) + F(cross(2, 3) * pair(0, 1))) / d)
    m = F(F(F(mixed(1, 2) * pair(0, 3)) + F(mixed(0, 3) * pair(1, 2))) / d)
    return F(max(p, q, F(0)) + F(0)), F(max(min(p, q), F(0)) + F(0)), m


def r2q_greedy(u, v, share, mu):
    t = [abs(F(y - mu)) for y in u]
    a1 = F(in_order([F(a * b) for a, b in zip(v, t, strict=True)]) * share)
    a2 = F(in_order([F(a * abs(F(b - a1))) for a, b in zip(v, t, strict=True)]) * share)
    return max(a1, a2), min(a1, a2), mu


def r2q_error(x, v, a1, a2, mu):
    e = [F(abs(F(abs(F(y - mu)) - a1)) - a2) for y in x]
    return in_order([F(a * F(b * b)) for a, b in zip(v, e, strict=True)])


def r2q_grid(w, v, n, wide):
    x, exponent = normalised(w) if wide else (w, 0)
    stored = (lambda y: y) if wide else half
    lo, hi = F(min(x) + F(0)), F(max(x) + F(0))
    span, centre = F(hi - lo), F(F(lo + hi) * F(0.5))
    u = [F(F(y - centre) + F(0)) for y in x]
    sv, su = in_order(v), in_order([F(a * b) for a, b in zip(v, u, strict=True)])
    share = F(F(1) / sv) if sv > F(2.0**-60) else F(0)
    about_mean = r2q_greedy(u, v, share, F(su * share))
    trials = [(F(span / F(3)), F(span / F(6)), F(0)), about_mean]
    for planes in (*trials, r2q_greedy(u, v, share, F(0)), (F(about_mean[0] * F(1.5)), *about_mean[1:])):
        refitted = planes
        for _ in range(8):
            refitted = r2q_refit(u, v, share, *refitted)
        trials.append(refitted)
    kept = [(stored(a1), stored(a2), stored(F(mu + centre))) for a1, a2, mu in trials]
    a1, a2, mu = min(kept, key=lambda planes: r2q_error(x, v, *planes))  # the first of equals
    if wide:
        a1, a2, mu = (F(D(part) * 2.0**exponent) for part in (a1, a2, mu))
    return (a1, a2), mu


GRIDS = {"rtn": rtn_grid, "mse": mse_grid, "uls": uls_grid, "hqq": hqq_grid, "r2q": r2q_grid}
MINIMUM = ("uls", "hqq")


def encode_one(x, s, zero, n, method):
    if method == "r2q":
        return level_code(x, *s, zero)
    steps = F(F(x - zero) / s) if method in MINIMUM else F(F(x / s))
    code = rint(steps) if method in MINIMUM else rint(steps) + zero
    return int(clip(code, F(0), F(n)))


def decode_one(code, s, zero, method):
    if method == "r2q":
        return levels_of(*s, zero)[code]
    if method in MINIMUM:
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
            codes += [encode_one(x, s, zero, n, method) for x in w]
            scales.append(s)
            zeros.append(zero)

        def sums():
            decoded, k = [], 0
            for g, w in enumerate(groups):
                decoded.append([decode_one(codes[k + i], scales[g], zeros[g], method) for i in range(len(w))])
                k += len(w)
            return row_sums(groups, decoded, wide)

        totals = sums()
        if gain and method not in ("rtn", "hqq"):
            c = totals[0] / totals[1] if totals[0] > 0 and totals[1] > 0 else 1.0
            c = F(clip(c, 0.5, 2.0))
            stored = (lambda y: y) if wide else half
            if method == "r2q":
                scales = [(stored(F(a1 * c)), stored(F(a2 * c))) for a1, a2 in scales]
            else:
                scales = [max(stored(F(s * c)), F(2.0**-149) if wide else F(2.0**-24)) for s in scales]
            if method in ("uls", "r2q"):
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
