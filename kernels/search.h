/* Choice of scale and zero point, groups in lanes: no horizontal sums, and a lane never sees its neighbour.
 * Part of the rows.h template. Tiles are [element][LANES]; sums over the elements run one after the other.
 *
 * The loops work on two candidates and a few elements at once, each stage over all of them before the next: the chain of
 * operations on one element is longer than the processor can look ahead. Bounds and rounding keep the adders busy, so some
 * sums and differences go to the multipliers (`v_plus`, `v_minus`): which ones was measured. */

#define CANDIDATES 2 /* divides the 12 of uls and the 8 shifted ranges */
#define STRIDE 2     /* elements at once */
#define EACH_STEP(count) for (int j = 0; j < (count); j++)
#define EACH_CANDIDATE for (int c = 0; c < candidates; c++) /* `candidates` is 1 or CANDIDATES, known when compiling */

typedef struct { vf scale, zero; vi misfit; } ISA(found);
typedef struct { vf s, m, low, high; } ISA(trial); /* codes are clipped to [low, high] before rounding */
typedef struct { vf q, qq, qu; } ISA(code_sums);   /* weighted: codes, their squares, codes times weights */
typedef struct { vf s, m, error, sq, sqq; } ISA(fit); /* error: less the part that no grid changes */

INLINE vf ISA(v_stored)(vf x, int wide) { return wide ? x : ISA(v_round_half)(x); }

/* (hi - lo) / n rounded up to the stored type, at least its smallest value. */
INLINE vf ISA(scale_up)(vf lo, vf hi, int n, int wide) {
    vf exact = (hi - lo) / ISA(v_splat)((float)n);
    if (wide) {
        for (int i = 0; i < LANES; i++) {
            float s = exact[i];
            if ((double)s * n < (double)hi[i] - (double)lo[i]) s = bits_float(float_bits(s) + 1);
            exact[i] = s > FLOAT32_TINY ? s : FLOAT32_TINY;
        }
        return exact;
    }
    vh half = ISA(v_to_half)(exact);
    vi up = ISA(v_from_half)(half) < exact; /* -1 where rounding went down */
    half -= __builtin_convertvector(up, vh);
    return v_max(ISA(v_from_half)(half), ISA(v_splat)(FLOAT16_TINY));
}

/* Whether float16 cannot hold the scale of a range, or the one value of a group without a range. */
INLINE vi ISA(misfit)(vf lo, vf hi, int n, int wide) {
    if (wide) return (vi){0};
    const vf exact = (hi - lo) / ISA(v_splat)((float)n), flush = ISA(v_splat)(FLOAT16_FLUSH), size = v_max(lo, -lo);
    const vi flushed = ((hi > lo) & (exact <= flush)) | ((hi == lo) & (size > (vf){0}) & (size <= flush));
    return flushed | (ISA(v_round_half)(exact) > ISA(v_splat)(65504.0f));
}

/* Zero-point code of a range that holds 0. */
INLINE vf ISA(zero_code)(vf lo, vf scale, float n) {
    vf z = (-lo / scale + ISA(v_splat)(MAGIC)) - ISA(v_splat)(MAGIC);
    return v_min(v_max(z, (vf){0}), ISA(v_splat)(n));
}

/* Grid of the range [a lo, b hi], which holds 0. */
INLINE ISA(found) ISA(range_grid)(vf lo, vf hi, vf a, vf b, int n, int wide) {
    ISA(found) f;
    f.misfit = ISA(misfit)(lo, hi, n, wide);
    f.scale = ISA(scale_up)(a * lo, b * hi, n, wide);
    f.zero = ISA(zero_code)(a * lo, f.scale, (float)n);
    if (!wide) f.misfit |= f.scale > ISA(v_splat)(65504.0f);
    return f;
}

INLINE void ISA(tile_range)(const float *x, int length, vf *lo, vf *hi) {
    *lo = *hi = ISA(v_load)(x);
    for (int k = 1; k < length; k++) {
        vf w = ISA(v_load)(x + k * LANES);
        *lo = v_min(*lo, w);
        *hi = v_max(*hi, w);
    }
    *lo += (vf){0}; /* -0 becomes +0 */
    *hi += (vf){0};
}

/* Add the weighted squared error, in steps of the scale, of `count` elements to sse[]. */
INLINE void ISA(judge_steps)(const float *x, const float *v, const int count, const int candidates, const int minimum,
                             const ISA(trial) *trial, const vf *r, vf *sse) {
    vf w, y[CANDIDATES][STRIDE], t[CANDIDATES][STRIDE];
    EACH_STEP(count) {
        w = ISA(v_load)(x + j * LANES);
        EACH_CANDIDATE y[c][j] = minimum ? ISA(v_minus)(w, trial[c].m) : w;
    }
    EACH_STEP(count) EACH_CANDIDATE y[c][j] *= r[c];
    EACH_STEP(count) EACH_CANDIDATE t[c][j] = v_max(y[c][j], trial[c].low);
    EACH_STEP(count) EACH_CANDIDATE t[c][j] = v_min(t[c][j], trial[c].high);
    EACH_STEP(count) EACH_CANDIDATE t[c][j] = ISA(v_minus)(y[c][j], ISA(v_nearest)(t[c][j]));
    EACH_STEP(count) EACH_CANDIDATE t[c][j] *= t[c][j];
    if (v) EACH_STEP(count) EACH_CANDIDATE t[c][j] *= ISA(v_load)(v + j * LANES);
    EACH_STEP(count) EACH_CANDIDATE sse[c] += t[c][j];
}

/* Squared error of each trial grid with the codes it would get. */
INLINE void ISA(judge)(const float *x, const float *v, int length, const int candidates, const int minimum,
                       const ISA(trial) *trial, vf *sse) {
    vf r[CANDIDATES];
    EACH_CANDIDATE {
        r[c] = ISA(v_splat)(1.0f) / trial[c].s;
        sse[c] = (vf){0};
    }
    const float *stop = x + (length & -STRIDE) * LANES;
    for (; x < stop; x += STRIDE * LANES, v += v ? STRIDE * LANES : 0)
        ISA(judge_steps)(x, v, STRIDE, candidates, minimum, trial, r, sse);
    for (stop += (length & (STRIDE - 1)) * LANES; x < stop; x += LANES, v += v ? LANES : 0)
        ISA(judge_steps)(x, v, 1, candidates, minimum, trial, r, sse);
    EACH_CANDIDATE sse[c] *= trial[c].s * trial[c].s;
}

/* Both ends of the rtn range shrunk by 81 pairs of factors; least squared error, first wins.
 * IN x: weights (normalised when wide), v: importance or NULL; OUT factors a, b. */
INLINE void ISA(search_mse_with)(const float *x, const float *v, int length, int n, int wide, vf *out_a, vf *out_b) {
    const int candidates = CANDIDATES;
    vf lo, hi, best = ISA(v_splat)(__builtin_inff()), best_a = ISA(v_splat)(1.0f), best_b = best_a;
    ISA(tile_range)(x, length, &lo, &hi);
    lo = v_min(lo, (vf){0});
    hi = v_max(hi, (vf){0});
    for (int i = 0; i < 81; i += CANDIDATES) {
        ISA(trial) trial[CANDIDATES];
        vf a[CANDIDATES], b[CANDIDATES], sse[CANDIDATES];
        EACH_CANDIDATE {
            const int pair = i + c < 81 ? i + c : 80; /* the last one twice does no harm: the first wins */
            a[c] = ISA(v_splat)(MSE_SHRINKS[pair / 9]);
            b[c] = ISA(v_splat)(MSE_SHRINKS[pair % 9]);
            trial[c].s = ISA(scale_up)(a[c] * lo, b[c] * hi, n, wide);
            trial[c].m = ISA(zero_code)(a[c] * lo, trial[c].s, (float)n);
            trial[c].low = -trial[c].m;
            trial[c].high = ISA(v_splat)((float)n) - trial[c].m;
        }
        ISA(judge)(x, v, length, candidates, 0, trial, sse);
        EACH_CANDIDATE {
            vi better = sse[c] < best;
            best = ISA(v_select)(better, sse[c], best);
            best_a = ISA(v_select)(better, a[c], best_a);
            best_b = ISA(v_select)(better, b[c], best_b);
        }
    }
    *out_a = best_a;
    *out_b = best_b;
}

/* Add the sums of the least squares over `count` elements. */
INLINE void ISA(code_sums_steps)(const float *u, const float *v, const int count, const int candidates, const ISA(trial) *trial,
                                 const vf *r, ISA(code_sums) *sums) {
    vf w[STRIDE], q[CANDIDATES][STRIDE], t[CANDIDATES][STRIDE];
    EACH_STEP(count) w[j] = ISA(v_load)(u + j * LANES);
    EACH_STEP(count) EACH_CANDIDATE q[c][j] = w[j] - trial[c].m;
    EACH_STEP(count) EACH_CANDIDATE q[c][j] *= r[c];
    EACH_STEP(count) EACH_CANDIDATE q[c][j] = v_max(q[c][j], trial[c].low);
    EACH_STEP(count) EACH_CANDIDATE q[c][j] = v_min(q[c][j], trial[c].high);
    EACH_STEP(count) EACH_CANDIDATE q[c][j] = ISA(v_nearest)(q[c][j]);
    EACH_STEP(count) EACH_CANDIDATE t[c][j] = v ? ISA(v_load)(v + j * LANES) * q[c][j] : q[c][j];
    EACH_STEP(count) EACH_CANDIDATE sums[c].q += t[c][j];
    if (v) EACH_STEP(count) EACH_CANDIDATE sums[c].qq += q[c][j] * t[c][j];
    else EACH_STEP(count) EACH_CANDIDATE sums[c].qq = ISA(v_fma)(q[c][j], q[c][j], sums[c].qq); /* squares are exact */
    EACH_STEP(count) EACH_CANDIDATE sums[c].qu = ISA(v_plus)(t[c][j] * w[j], sums[c].qu);
}

/* Sums over the codes that each trial grid gives: all that least squares needs. */
INLINE void ISA(sum_codes)(const float *u, const float *v, int length, const int candidates, const ISA(trial) *trial,
                           ISA(code_sums) *sums) {
    vf r[CANDIDATES];
    EACH_CANDIDATE {
        r[c] = ISA(v_splat)(1.0f) / trial[c].s;
        sums[c] = (ISA(code_sums)){(vf){0}, (vf){0}, (vf){0}};
    }
    const float *stop = u + (length & -STRIDE) * LANES;
    for (; u < stop; u += STRIDE * LANES, v += v ? STRIDE * LANES : 0)
        ISA(code_sums_steps)(u, v, STRIDE, candidates, trial, r, sums);
    for (stop += (length & (STRIDE - 1)) * LANES; u < stop; u += LANES, v += v ? LANES : 0)
        ISA(code_sums_steps)(u, v, 1, candidates, trial, r, sums);
}

/* Re-round and solve the weighted least squares for (s, m); lanes without a usable solution keep theirs. */
INLINE void ISA(refit)(const float *u, const float *v, int length, vf floor, vf sv, vf su, ISA(trial) *trial) {
    const int candidates = CANDIDATES;
    ISA(code_sums) sums[CANDIDATES];
    ISA(sum_codes)(u, v, length, candidates, trial, sums);
    EACH_CANDIDATE {
        const vf sq = sums[c].q, sqq = sums[c].qq, squ = sums[c].qu;
        vf d = sv * sqq - sq * sq;
        vf s1 = (sv * squ - su * sq) / d, m1 = (sqq * su - sq * squ) / d;
        vi usable = (d > (vf){0}) & (s1 >= floor);
        trial[c].s = ISA(v_select)(usable, s1, trial[c].s);
        trial[c].m = ISA(v_select)(usable, m1, trial[c].m);
    }
}

/* A group in the form the searches work on: weights less their centre, and the sums that do not depend on codes. */
typedef struct { vf lo, step, top, floor, sv, su, reciprocal; } ISA(centred); /* reciprocal: 1 / sv */

/* Round, solve for (s, m) with m <= top, and keep what lowers the squared error of these very codes. */
INLINE void ISA(improve)(const float *u, const float *v, int length, const ISA(centred) *g, const int candidates,
                         const ISA(trial) *trial, ISA(fit) *best) {
    ISA(code_sums) sums[CANDIDATES];
    ISA(sum_codes)(u, v, length, candidates, trial, sums);
    EACH_CANDIDATE {
        const vf sq = sums[c].q, sqq = sums[c].qq, squ = sums[c].qu;
        const vf d = g->sv * sqq - sq * sq;
        const vi free = (d > (vf){0}) & (sqq * g->su - sq * squ <= g->top * d); /* the best m is at most top */
        vf s = ISA(v_select)(free, g->sv * squ - g->su * sq, squ - g->top * sq) / ISA(v_select)(free, d, sqq);
        vf m = ISA(v_select)(free, (g->su - s * sq) * g->reciprocal, g->top);
        const vi usable = s >= g->floor;
        s = ISA(v_select)(usable, s, trial[c].s);
        m = ISA(v_select)(usable, m, trial[c].m);
        const vf error = s * (s * sqq + (m * sq - squ) * ISA(v_splat)(2.0f)) + m * (m * g->sv - g->su * ISA(v_splat)(2.0f));
        const vi better = error < best->error;
        best->error = ISA(v_select)(better, error, best->error);
        best->s = ISA(v_select)(better, s, best->s);
        best->m = ISA(v_select)(better, m, best->m);
        best->sq = ISA(v_select)(better, sq, best->sq);
        best->sqq = ISA(v_select)(better, sqq, best->sqq);
    }
}

/* The range with its ends moved by fractions of a step: least squares on the codes of each of the eight, and two more
 * rounds for the best of them. */
INLINE ISA(fit) ISA(search_shifts)(const float *u, const float *v, int length, int n, const ISA(centred) *g) {
    const int candidates = CANDIDATES;
    const vf levels = ISA(v_splat)((float)n);
    ISA(fit) best = {g->step, g->lo, ISA(v_splat)(__builtin_inff()), (vf){0}, (vf){0}};
    ISA(trial) trial[CANDIDATES];
    for (int i = 0; i < 8; i += CANDIDATES) {
        EACH_CANDIDATE {
            const double a = RANGE_SHIFTS[i + c][0], b = RANGE_SHIFTS[i + c][1];
            trial[c].s = v_max(g->step * ISA(v_splat)((float)(1.0 - (a + b) / n)), g->floor);
            trial[c].m = v_min(g->lo + g->step * ISA(v_splat)((float)a), g->top);
            trial[c].low = (vf){0};
            trial[c].high = levels;
        }
        ISA(improve)(u, v, length, g, candidates, trial, &best);
    }
    for (int round = 0; round < 2; round++) {
        trial[0] = (ISA(trial)){best.s, best.m, (vf){0}, levels};
        ISA(improve)(u, v, length, g, 1, trial, &best);
    }
    return best;
}

/* Least-squares scale and minimum from 12 shrunken ranges, three refits each, and the plain range; with `shifts` from the
 * ranges with moved ends too. */
INLINE ISA(found) ISA(search_uls_with)(const float *x, const float *v, int length, int n, int wide, int shifts) {
    const int candidates = CANDIDATES;
    float u[MAX_GROUP * LANES] __attribute__((aligned(64)));
    const vf levels = ISA(v_splat)((float)n), floor = ISA(v_splat)(wide ? SEARCH_FLOOR : FLOAT16_TINY);
    vf lo, hi, sv = (vf){0}, su = (vf){0}, sse[CANDIDATES];
    ISA(trial) trial[CANDIDATES];
    ISA(found) f;
    ISA(tile_range)(x, length, &lo, &hi);
    const vf span = hi - lo, centre = (lo + hi) * ISA(v_splat)(0.5f);
    for (int k = 0; k < length; k++) {
        vf w = ISA(v_load)(x + k * LANES) - centre, weight = v ? ISA(v_load)(v + k * LANES) : ISA(v_splat)(1.0f);
        ISA(v_store)(u + k * LANES, w);
        sv += weight;
        su += weight * w;
    }
    f.scale = v_max(ISA(v_stored)(span / levels, wide), floor);
    f.zero = ISA(v_stored)(lo, wide);
    f.misfit = ISA(misfit)(lo, hi, n, wide) | (((vi)f.zero & 0x7FFFFFFF) >= (vi){0} + 0x7F800000);
    EACH_CANDIDATE trial[c] = (ISA(trial)){f.scale, f.zero, (vf){0}, levels};
    ISA(judge)(x, v, length, candidates, 1, trial, sse);
    vf best = sse[0];
    for (int i = 0; i < 12; i += CANDIDATES) {
        EACH_CANDIDATE {
            vf range = ISA(v_splat)(ULS_SHRINKS[i + c]) * span;
            trial[c].s = v_max(range / levels, floor);
            trial[c].m = range * ISA(v_splat)(-0.5f);
        }
        for (int step = 0; step < 3; step++) ISA(refit)(u, v, length, floor, sv, su, trial);
        EACH_CANDIDATE {
            trial[c].s = v_max(ISA(v_stored)(trial[c].s, wide), floor);
            trial[c].m = ISA(v_stored)(trial[c].m + centre, wide);
        }
        ISA(judge)(x, v, length, candidates, 1, trial, sse);
        EACH_CANDIDATE {
            vi better = sse[c] < best;
            best = ISA(v_select)(better, sse[c], best);
            f.scale = ISA(v_select)(better, trial[c].s, f.scale);
            f.zero = ISA(v_select)(better, trial[c].m, f.zero);
        }
    }
    if (shifts) {
        const ISA(centred) g = {span * ISA(v_splat)(-0.5f), v_max(span / levels, floor), ISA(v_splat)(__builtin_inff()), floor, sv, su,
                                ISA(v_splat)(1.0f) / sv};
        const ISA(fit) fit = ISA(search_shifts)(u, v, length, n, &g);
        trial[0].s = v_max(ISA(v_stored)(fit.s, wide), floor);
        trial[0].m = ISA(v_stored)(fit.m + centre, wide);
        ISA(judge)(x, v, length, 1, 1, trial, sse);
        const vi better = sse[0] < best;
        f.scale = ISA(v_select)(better, trial[0].s, f.scale);
        f.zero = ISA(v_select)(better, trial[0].m, f.zero);
    }
    return f;
}

/* Half-quadratic minimum under the scale of the plain range: each step moves it by the mean error after large errors were
 * shrunk (generalised soft threshold of the l_1/2 norm, in steps of the scale), until the mean absolute error stops falling. */
static __attribute__((noinline)) ISA(found) ISA(search_hqq)(const float *x, int length, int n, int wide) {
    const vf levels = ISA(v_splat)((float)n), floor = ISA(v_splat)(wide ? SEARCH_FLOOR : FLOAT16_TINY);
    vf lo, hi, best = ISA(v_splat)(__builtin_inff());
    vi active = (vi){0} - 1;
    double beta = 10.0;
    ISA(found) f;
    ISA(tile_range)(x, length, &lo, &hi);
    f.scale = v_max(ISA(v_stored)((hi - lo) / levels, wide), floor);
    f.zero = ISA(v_stored)(lo, wide);
    f.misfit = ISA(misfit)(lo, hi, n, wide) | (((vi)f.zero & 0x7FFFFFFF) >= (vi){0} + 0x7F800000);
    const vf r = ISA(v_splat)(1.0f) / f.scale;
    vf m = f.zero;
    for (int step = 0; step < HQQ_STEPS && ISA(v_any)(active); step++, beta *= 1.01) {
        const vf threshold = ISA(v_splat)((float)(1.0 / beta));
        vf error = (vf){0}, move = (vf){0};
        for (int k = 0; k < length; k++) {
            const vf y = (ISA(v_load)(x + k * LANES) - m) * r;
            const vf q = ISA(v_nearest)(v_min(v_max(y, (vf){0}), levels)), d = y - q;
            const vf size = (vf)((vi)d & 0x7FFFFFFF), kept = v_min(threshold / ISA(v_sqrt)(size), size);
            error += size;
            move += (vf)((vi)kept | ((vi)d & ~((vi){0} + 0x7FFFFFFF)));
        }
        active &= error < best;
        best = ISA(v_select)(active, error, best);
        f.zero = ISA(v_select)(active, m, f.zero);
        m = ISA(v_stored)(m + f.scale * (move / ISA(v_splat)((float)length)), wide);
    }
    return f;
}

static __attribute__((noinline)) void ISA(search_mse)(const float *x, const float *v, int length, int n, int wide, vf *a, vf *b) {
    if (v) ISA(search_mse_with)(x, v, length, n, wide, a, b);
    else ISA(search_mse_with)(x, NULL, length, n, wide, a, b);
}

static __attribute__((noinline)) ISA(found) ISA(search_uls)(const float *x, const float *v, int length, int n, int wide, int shifts) {
    return v ? ISA(search_uls_with)(x, v, length, n, wide, shifts) : ISA(search_uls_with)(x, NULL, length, n, wide, shifts);
}
