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


def rtn_grid(w, v, n, wide, shifts=False):
    lo, hi = min(F(0), *w), max(F(0), *w)
    s = scale_of(lo, hi, n, wide)
    return s, zero_of(lo, s, n)


def mse_grid(w, v, n, wide, shifts=False):
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


SHIFTS = [(0.0, 0.0), (0.0, 0.4), (-0.2, 0.6), (0.2, -0.2), (0.4, -0.4), (0.4, 0.6), (0.6, 0.4), (0.8, 0.2)]


def shifted_ranges(u, v, lo, step, top, floor, n):
    """Least squares with m <= top on the codes of eight ranges, and of the best twice more: s, m, sum vq, sum vqq."""
    sv, su = in_order(v), in_order([F(a * b) for a, b in zip(v, u, strict=True)])
    best = (F(np.inf), step, lo, F(0), F(0))
    for k in range(10):
        s0, m0 = best[1:3]
        if k < 8:
            a, b = SHIFTS[k]
            s0, m0 = max(F(step * F(1 - (a + b) / n)), floor), min(F(lo + F(step * F(a))), top)
        r = F(F(1) / s0)
        q = [rint(clip(F(F(y - m0) * r), F(0), F(n))) for y in u]
        vq = [F(a * b) for a, b in zip(v, q, strict=True)]
        sq, sqq = in_order(vq), in_order([F(a * b) for a, b in zip(vq, q, strict=True)])
        squ = in_order([F(a * b) for a, b in zip(vq, u, strict=True)])
        d = F(F(sv * sqq) - F(sq * sq))
        if d > 0 and F(F(sqq * su) - F(sq * squ)) <= F(top * d):
            s = F(F(F(sv * squ) - F(su * sq)) / d)
            m = F(F(su - F(s * sq)) * F(F(1) / sv))
        else:
            s, m = F(F(squ - F(top * sq)) / sqq), top
        if not s >= floor:
            s, m = s0, m0
        error = F(F(s * F(F(s * sqq) + F(F(F(m * sq) - squ) * F(2)))) + F(m * F(F(m * sv) - F(su * F(2)))))
        if error < best[0]:
            best = (error, s, m, sq, sqq)
    return best[1:]


def uls_grid(w, v, n, wide, shifts=False):
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
    if shifts:
        s, m, _, _ = shifted_ranges(u, v, F(span * F(-0.5)), max(F(span / F(n)), floor), F(np.inf), floor, n)
        s, m = max(stored(s), floor), stored(F(m + centre))
        if squared_error(s, m) < best:
            best_s, best_m = s, m
    if wide:
        best_s = max(F(D(best_s) * 2.0**exponent), F(2.0**-149))
        best_m = F(D(best_m) * 2.0**exponent)
    return best_s, best_m


def hqq_grid(w, v, n, wide, shifts=False):
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


def r2q_grid(w, v, n, wide, shifts=False):
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
            s, zero = GRIDS[method](w, v, n, wide, bits == 4 and group_size == 32 and not wide)
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


@dataclass
class KRow:
    """One row in the k format: w' = d * sc * code - dmin * mn."""

    codes: list[int]
    d: list[np.float32]  # one per 256 weights
    dmin: list[np.float32]
    sc: list[int]  # one per group
    mn: list[int]
    sums: tuple[float, float, float]


def k_fit(w, v, n, wide):
    """One group: s, m <= 0, sum v, sum vq / sum v, sum vqq - (sum vq)^2 / sum v."""
    floor = F(2.0**-48) if wide else F(2.0**-24)
    lo, hi = min(F(0), F(min(w) + F(0))), F(max(w) + F(0))
    span, centre = F(hi - lo), F(F(lo + hi) * F(0.5))
    u = [F(x - centre) for x in w]
    s, m, sq, sqq = shifted_ranges(u, v, F(lo - centre), max(F(span / F(n)), floor), F(F(0) - centre), floor, n)
    sv = in_order(v)
    follow = F(sq * F(F(1) / sv)) if sv > 0 else F(0)
    return s, min(F(m + centre), F(0)), sv, follow, max(F(sqq - F(sq * follow)), F(0))


def k_quotients(largest, most, wide):
    divisors = [F(most), F(most + 0.5)] + [F(most - 0.5 * i) for i in range(1, 15)]
    return [F(largest / t) if wide else half(F(largest / t)) for t in divisors]


def k_nearest(x, d, most):
    return rint(clip(F(x * F(F(1) / d)), F(0), F(most))) if d > 0 else F(0)


def k_pair(fits, most, wide):
    """d and dmin of a block, sc and mn of its groups, from the fits alone."""
    best = None
    for d in k_quotients(max(f[0] for f in fits), most, wide):
        cost = F(0)
        for s, m, sv, follow, spread in fits:
            e = F(F(d * k_nearest(s, d, most)) - s)
            beyond = max(F(m - F(follow * e)), F(0))
            cost = F(cost + F(F(spread * F(e * e)) + F(sv * F(beyond * beyond))))
        if best is None or cost < best[0]:
            best = (cost, d)
    d = best[1]
    sc = [k_nearest(f[0], d, most) for f in fits]
    target = [max(F(F(f[3] * F(F(d * c) - f[0])) - f[1]), F(0)) for f, c in zip(fits, sc, strict=True)]
    best = None
    for dmin in k_quotients(max(target), most, wide):
        cost = F(0)
        for t, f in zip(target, fits, strict=True):
            e = F(F(dmin * k_nearest(t, dmin, most)) - t)
            cost = F(cost + F(f[2] * F(e * e)))
        if best is None or cost < best[0]:
            best = (cost, dmin)
    return d, best[1], sc, [k_nearest(t, best[1], most) for t in target]


def k_steps(x, s, m, n):
    """Steps above the minimum, the code, and the length of a step; the scale 0 has the code 0 alone."""
    step = s if s > 0 else F(1)
    y = F(F(x - m) * F(F(1) / step))
    return y, rint(clip(y, F(0), F(n if s > 0 else 0))), step


def k_sweep(w, v, d, dmin, sc, mn, n, most):
    """Integers of one group after one sweep."""

    def squared_error(sc, mn):
        terms = []
        for weight, x in zip(v, w, strict=True):
            y, q, step = k_steps(x, F(d * sc), -F(dmin * mn), n)
            terms.append(F(weight * F(F(y - q) * F(y - q))))
        return F(in_order(terms) * F(step * step))

    q = [k_steps(x, F(d * sc), -F(dmin * mn), n)[1] for x in w]
    vq = [F(a * b) for a, b in zip(v, q, strict=True)]
    sv, sx = in_order(v), in_order([F(a * b) for a, b in zip(v, w, strict=True)])
    sq, sqq = in_order(vq), in_order([F(a * b) for a, b in zip(vq, q, strict=True)])
    sqx = in_order([F(a * b) for a, b in zip(vq, w, strict=True)])
    spread = F(F(sv * sqq) - F(sq * sq))
    s = F(F(F(sv * sqx) - F(sx * sq)) / spread) if spread > 0 else F(d * sc)
    nearest = k_nearest(s, d, most)
    best = (squared_error(sc, mn), sc, mn)
    for near in (nearest, max(F(nearest - F(1)), F(0)), min(F(nearest + F(1)), F(most))):
        low = k_nearest(F(F(F(F(d * near) * sq) - sx) / sv), dmin, most) if sv > 0 else mn
        sse = squared_error(near, low)
        if sse < best[0]:
            best = (sse, near, low)
    return best[1:]


def quantize_row_k(weights, bits, group_size, gain=True, importance=None, wide=False):
    """Quantize one row of float32 weights in the k format; `wide` = float32 instead of float16 per block."""
    n, most, size = 2**bits - 1, {2: 15, 4: 63}[bits], group_size
    weights = [F(x) for x in weights]
    importance = [F(1)] * len(weights) if importance is None else [F(x) for x in importance]
    ds, dmins, scs, mns, codes = [], [], [], [], []
    with np.errstate(all="ignore"):
        for start in range(0, len(weights), 256):
            block = weights[start : start + 256]
            x, exponent = normalised(block) if wide else (block, 0)
            groups = [x[i : i + size] for i in range(0, len(x), size)]
            v = [importance[start + i : start + i + len(g)] for i, g in zip(range(0, 256, size), groups, strict=False)]
            d, dmin, sc, mn = k_pair([k_fit(g, u, n, wide) for g, u in zip(groups, v, strict=True)], most, wide)
            swept = [k_sweep(g, u, d, dmin, *z, n, most) for g, u, *z in zip(groups, v, sc, mn, strict=True)]
            if wide:
                d = max(F(D(d) * 2.0**exponent), F(2.0**-149)) if d > 0 else d
                dmin = F(D(dmin) * 2.0**exponent)
            ds.append(d)
            dmins.append(dmin)
            for k, (c, low) in enumerate(swept):
                scs.append(int(c))
                mns.append(int(low))
                s, m = F(d * c), -F(dmin * low)
                for w in block[k * size : (k + 1) * size]:
                    codes.append(int(rint(clip(F(F(w - m) / s), F(0), F(n)))) if s > 0 else 0)

        def sums():
            per_block = 256 // size
            starts = range(0, len(weights), size)
            grids = [(F(ds[g // per_block] * F(c)), -F(dmins[g // per_block] * F(m))) for g, (c, m) in
                     enumerate(zip(scs, mns, strict=True))]  # fmt: skip
            decoded = [
                [decode_one(c, *grid, "uls") for c in codes[i : i + size]]
                for i, grid in zip(starts, grids, strict=True)
            ]
            return row_sums([weights[i : i + size] for i in starts], decoded, wide)

        totals = sums()
        if gain:
            c = totals[0] / totals[1] if totals[0] > 0 and totals[1] > 0 else 1.0
            c, tiny = F(clip(c, 0.5, 2.0)), F(2.0**-149) if wide else F(2.0**-24)
            stored = (lambda y: y) if wide else half
            ds, dmins = ([max(stored(F(x * c)), tiny) if x > 0 else x for x in xs] for xs in (ds, dmins))
            totals = sums()
    return KRow(codes, ds, dmins, scs, mns, totals)


def pack(codes, bits):
    """Code i of a byte in bits [i * bits, (i + 1) * bits)."""
    out = bytearray(-(-len(codes) * bits // 8))
    for i, code in enumerate(codes):
        wide = code << (i * bits % 8)
        out[i * bits // 8] |= wide & 255
        if wide > 255:
            out[i * bits // 8 + 1] |= wide >> 8
    return bytes(out)


def unpack(packed, bits, n):
    return [(packed[i * bits // 8] >> (i * bits % 8)) & (2**bits - 1) for i in range(n)]
