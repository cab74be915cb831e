/* Grid `levels`: a code is two sign bits, w' = (mu +- a1) +- a2; bit 1 is the sign of a1, bit 0 that of a2, 1 = plus.
 * Part of the rows.h template. With a1 >= a2 >= 0 the four levels rise with the code and halve at mu - a1, mu, mu + a1, so
 * the nearest one is found without a division: the sign of t = w - mu, then that of r = abs(t) - a1, and the error is
 * abs(abs(r) - a2).
 *
 * Choice of the parameters: groups in lanes as in search.h. Every start is refitted by alternating least squares (nearest
 * level, then the exact weighted normal equations), rounded as stored and judged. */

INLINE vf ISA(v_abs)(vf x) { return (vf)((vi)x & 0x7FFFFFFF); }

/* Weighted squared error of each trial. */
INLINE void ISA(judge_levels)(const float *u, const float *v, int length, const ISA(planes) *trial, vf *sse) {
    const int candidates = CANDIDATES;
    EACH_CANDIDATE sse[c] = (vf){0};
    for (int k = 0; k < length; k++) {
        const vf w = ISA(v_load)(u + k * LANES);
        EACH_CANDIDATE {
            vf e = ISA(v_abs)(ISA(v_minus)(ISA(v_abs)(w - trial[c].mu), trial[c].a1)) - trial[c].a2;
            e *= e;
            sse[c] += v ? ISA(v_load)(v + k * LANES) * e : e;
        }
    }
}

/* Least squares for the parameters of one trial. IN per class k of weights, in order of its level: its share f[k] of the
 * weight and the sum y[k] of its share of the values; both already hold LEVELS_RIDGE of the present level, so that classes
 * without a weight neither divide by zero nor move. The normal equations are summed over triples of classes: all terms of
 * the determinant are positive. */
INLINE ISA(planes) ISA(solve_levels)(const vf f[4], const vf y[4]) {
    const vf d01 = f[0] * y[1] - f[1] * y[0], d23 = f[2] * y[3] - f[3] * y[2];
    const vf d02 = f[0] * y[2] - f[2] * y[0], d13 = f[1] * y[3] - f[3] * y[1];
    const vf s12 = f[2] * y[1] + f[1] * y[2], s03 = f[3] * y[0] + f[0] * y[3];
    const vf f01 = f[0] + f[1], f23 = f[2] + f[3], f02 = f[0] + f[2], f13 = f[1] + f[3], f03 = f[0] + f[3], f12 = f[1] + f[2];
    const vf half = f[0] * f[1] * f23 + f[2] * f[3] * f01, d = half + half;
    const vf p = (d02 * f13 + d13 * f02) / d, q = (d01 * f23 + d23 * f01) / d, m = (s12 * f03 + s03 * f12) / d;
    ISA(planes) t; /* adding 0 turns -0 into +0 */
    t.a1 = v_max(v_max(p, q), (vf){0}) + (vf){0};
    t.a2 = v_max(v_min(p, q), (vf){0}) + (vf){0};
    t.mu = m;
    return t;
}

/* Sums over all weights of one trial, each weight v and value v u times one of its signs: b1, b2 or b1 b2. Without
 * importance the minus signs are counted. */
typedef struct { vf v1, v2, v12, u1, u2, u12; vi minus1, minus2, minus12; } ISA(sign_sums);

/* x times -1 where the sign bit of `sign` is set. */
INLINE vf ISA(v_flip)(vf x, vi sign) { return (vf)((vi)x ^ (sign & ~((vi){0} + 0x7FFFFFFF))); }

/* Assign every weight to its nearest level and fit the levels to their weights. Negated weights give negated sums, so the
 * fit of -w is that of w. */
INLINE void ISA(refit_levels)(const float *u, const float *v, int length, vf share, vf sv, vf su, ISA(planes) *trial) {
    const int candidates = CANDIDATES;
    ISA(sign_sums) sums[CANDIDATES];
    memset(sums, 0, sizeof sums);
    for (int k = 0; k < length; k++) {
        const vf w = ISA(v_load)(u + k * LANES), weight = v ? ISA(v_load)(v + k * LANES) : (vf){0}, vw = v ? weight * w : w;
        EACH_CANDIDATE {
            ISA(sign_sums) *s = sums + c;
            const vf t = w - trial[c].mu, r = ISA(v_abs)(t) - trial[c].a1;
            const vi b1 = (vi)t, b12 = (vi)r, b2 = b1 ^ b12; /* sign bits; neither t nor r is ever -0 */
            if (v) {
                s->v1 += ISA(v_flip)(weight, b1);
                s->v2 += ISA(v_flip)(weight, b2);
                s->v12 += ISA(v_flip)(weight, b12);
            } else {
                s->minus1 -= b1 >> 31;
                s->minus2 -= b2 >> 31;
                s->minus12 -= b12 >> 31;
            }
            s->u1 = ISA(v_plus)(ISA(v_flip)(vw, b1), s->u1);
            s->u2 = ISA(v_plus)(ISA(v_flip)(vw, b2), s->u2);
            s->u12 = ISA(v_plus)(ISA(v_flip)(vw, b12), s->u12);
        }
    }
    const vf zero = (vf){0}, ridge = ISA(v_splat)(LEVELS_RIDGE), quarter = share * ISA(v_splat)(0.25f);
    EACH_CANDIDATE {
        const ISA(sign_sums) *s = sums + c;
        const ISA(planes) t = trial[c];
        const vf v1 = v ? s->v1 : sv - __builtin_convertvector(2 * s->minus1, vf);
        const vf v2 = v ? s->v2 : sv - __builtin_convertvector(2 * s->minus2, vf);
        const vf v12 = v ? s->v12 : sv - __builtin_convertvector(2 * s->minus12, vf);
        const vf outer = sv + v12, inner = sv - v12, u_outer = su + s->u12, u_inner = su - s->u12;
        const vf f[4] = {
            v_max(outer - (v1 + v2), zero) * quarter + ridge, v_max(inner - (v1 - v2), zero) * quarter + ridge,
            v_max(inner + (v1 - v2), zero) * quarter + ridge, v_max(outer + (v1 + v2), zero) * quarter + ridge};
        const vf y[4] = {
            (u_outer - (s->u1 + s->u2)) * quarter + ((t.mu - t.a1) - t.a2) * ridge,
            (u_inner - (s->u1 - s->u2)) * quarter + ((t.mu - t.a1) + t.a2) * ridge,
            (u_inner + (s->u1 - s->u2)) * quarter + ((t.mu + t.a1) - t.a2) * ridge,
            (u_outer + (s->u1 + s->u2)) * quarter + ((t.mu + t.a1) + t.a2) * ridge};
        trial[c] = ISA(solve_levels)(f, y);
    }
}

/* Mean distance to `mu`, and mean distance of what remains: two sign planes fitted one after the other. */
INLINE ISA(planes) ISA(greedy_levels)(const float *u, const float *v, int length, vf share, vf mu) {
    vf a1 = (vf){0}, a2 = (vf){0};
    for (int k = 0; k < length; k++) {
        const vf t = ISA(v_abs)(ISA(v_load)(u + k * LANES) - mu);
        a1 += v ? ISA(v_load)(v + k * LANES) * t : t;
    }
    a1 *= share;
    for (int k = 0; k < length; k++) {
        const vf r = ISA(v_abs)(ISA(v_abs)(ISA(v_load)(u + k * LANES) - mu) - a1);
        a2 += v ? ISA(v_load)(v + k * LANES) * r : r;
    }
    a2 *= share;
    return (ISA(planes)){v_max(a1, a2), v_min(a1, a2), mu};
}

/* Round the trials as stored and keep the best so far; `centre` was taken off the values. */
INLINE void ISA(keep_best)(const float *x, const float *v, int length, int wide, vf centre, const ISA(planes) *trial, vf *best,
                           ISA(planes) *found) {
    const int candidates = CANDIDATES;
    ISA(planes) t[CANDIDATES];
    vf sse[CANDIDATES];
    EACH_CANDIDATE {
        t[c].a1 = ISA(v_stored)(trial[c].a1, wide);
        t[c].a2 = ISA(v_stored)(trial[c].a2, wide);
        t[c].mu = ISA(v_stored)(trial[c].mu + centre, wide);
    }
    ISA(judge_levels)(x, v, length, t, sse);
    EACH_CANDIDATE {
        const vi better = sse[c] < *best;
        *best = ISA(v_select)(better, sse[c], *best);
        found->a1 = ISA(v_select)(better, t[c].a1, found->a1);
        found->a2 = ISA(v_select)(better, t[c].a2, found->a2);
        found->mu = ISA(v_select)(better, t[c].mu, found->mu);
    }
}

/* Four starts: evenly over the range, greedy about the mean, greedy about the centre of the range, and greedy about the
 * mean with wider planes; the first two stand unrefitted too. */
INLINE ISA(planes) ISA(search_r2q_with)(const float *x, const float *v, int length, int wide, vi *misfit) {
    float u[MAX_GROUP * LANES] __attribute__((aligned(64)));
    vf lo, hi, sv = (vf){0}, su = (vf){0}, best = ISA(v_splat)(__builtin_inff());
    ISA(planes) trial[CANDIDATES];
    ISA(tile_range)(x, length, &lo, &hi);
    const vf span = hi - lo, centre = (lo + hi) * ISA(v_splat)(0.5f);
    for (int k = 0; k < length; k++) {
        const vf w = (ISA(v_load)(x + k * LANES) - centre) + (vf){0}, weight = v ? ISA(v_load)(v + k * LANES) : ISA(v_splat)(1.0f);
        ISA(v_store)(u + k * LANES, w);
        sv += weight;
        su += weight * w;
    }
    const vi weighted = sv > ISA(v_splat)(LEVELS_LEAST_WEIGHT); /* a group without importance keeps the even levels */
    const vf share = ISA(v_select)(weighted, ISA(v_splat)(1.0f) / sv, (vf){0}), mean = su * share;
    trial[0] = (ISA(planes)){span / ISA(v_splat)(3.0f), span / ISA(v_splat)(6.0f), (vf){0}};
    trial[1] = ISA(greedy_levels)(u, v, length, share, mean);
    ISA(planes) f = {ISA(v_stored)(trial[0].a1, wide), ISA(v_stored)(trial[0].a2, wide), ISA(v_stored)(centre, wide)};
    ISA(planes) wider = trial[1];
    wider.a1 *= ISA(v_splat)(1.5f);
    ISA(keep_best)(x, v, length, wide, centre, trial, &best, &f);
    for (int pair = 0; pair < 2; pair++) {
        if (pair) {
            trial[0] = ISA(greedy_levels)(u, v, length, share, (vf){0});
            trial[1] = wider;
        }
        for (int step = 0; step < LEVELS_REFITS; step++) ISA(refit_levels)(u, v, length, share, sv, su, trial);
        ISA(keep_best)(x, v, length, wide, centre, trial, &best, &f);
    }
    const vi infinite = v_max_abs(f.a1, f.mu) > ISA(v_splat)(65504.0f);
    *misfit = ISA(misfit)(lo, hi, 3, wide) | (wide ? (vi){0} : infinite);
    return f;
}

static __attribute__((noinline)) ISA(planes) ISA(search_r2q)(const float *x, const float *v, int length, int wide, vi *misfit) {
    return v ? ISA(search_r2q_with)(x, v, length, wide, misfit) : ISA(search_r2q_with)(x, NULL, length, wide, misfit);
}

/* Nearest codes of a group, elements in lanes, one a byte. */
INLINE void ISA(encode_levels)(const float *w, int length, ISA(planes) g, uint8_t *codes, ISA(sums) *sums) {
    for (int k = 0; k < length; k += STEP) EACH_PIECE {
        const vf x = ISA(v_load)(w + k + p * LANES), t = x - g.mu;
        const vi below = t < (vf){0}, inner = ISA(v_abs)(t) < g.a1, code = (below & 3) ^ (inner & 1) ^ 3;
        vf q = ISA(level_of)(code, g), e = q - x;
        ISA(v_to_bytes)(code, codes + k + p * LANES);
        if (k + STEP > length) e = ISA(within)(e, k + p * LANES, length);
        sums->ww[p] += x * x;
        sums->wq[p] += x * q;
        sums->ee[p] += e * e;
    }
    if (length & 15) memset(codes + length, 0, (size_t)(-length & 15));
}

/* Error sums from codes that stay. */
INLINE void ISA(score_levels)(const float *w, const uint8_t *packed, int length, ISA(planes) g, ISA(sums) *sums) {
    for (int k = 0; k < length; k += STEP) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k / 4, 2, codes);
        EACH_PIECE {
            vf x = ISA(v_load)(w + k + p * LANES), q = ISA(level_of)(codes[p], g), e = q - x;
            if (k + STEP > length) e = ISA(within)(e, k + p * LANES, length);
            sums->wq[p] += x * q;
            sums->ee[p] += e * e;
        }
    }
}
