/* A batch of groups and the choice of its scales and zero points. Part of the rows.h template. */

typedef struct {
    const float *w[BATCH];            /* elements, zero padded to a multiple of sixteen */
    uint8_t *packed[BATCH];           /* their codes */
    const uint8_t *ahead[BATCH];      /* weights that the next batch will probably need */
    int64_t row[BATCH], group[BATCH]; /* where each group belongs */
    int n, length, item;              /* groups in use, elements each, bytes of a stored weight */
} ISA(batch);

INLINE int ISA(in_one_row)(const ISA(batch) *b) { return b->row[0] == b->row[b->n - 1]; }

typedef struct {
    float lo[BATCH], hi[BATCH];
    float scale[BATCH], zero[BATCH]; /* as stored; a1 and mu of levels */
    float minor[BATCH];              /* a2 of levels */
    float ww[BATCH], wq[BATCH], ee[BATCH];
    int32_t misfit[BATCH];
} ISA(results);

INLINE void ISA(put_found)(ISA(results) *r, int p, ISA(found) f) {
    ISA(v_store)(r->scale + p * LANES, f.scale);
    ISA(v_store)(r->zero + p * LANES, f.zero);
    memcpy(r->misfit + p * LANES, &f.misfit, sizeof f.misfit);
}

INLINE void ISA(put_planes)(ISA(results) *r, int p, ISA(planes) f, vi misfit) {
    ISA(put_found)(r, p, (ISA(found)){f.a1, f.mu, misfit});
    ISA(v_store)(r->minor + p * LANES, f.a2);
}

INLINE void ISA(extend)(vf *lo, vf *hi, const float *w) {
    *lo = v_min(*lo, ISA(v_load)(w));
    *hi = v_max(*hi, ISA(v_load)(w));
}

/* rtn: the range that holds every weight and 0, elements in lanes. */
INLINE void ISA(search_range)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    ISA(partials) low, high;
    for (int g = 0; g < b->n; g++) {
        vf lo[PIECES] = {(vf){0}}, hi[PIECES] = {(vf){0}};
        const float *w = b->w[g], *stop = w + b->length;
        for (; stop - w >= 4 * STEP; w += 4 * STEP)
            for (int k = 0; k < 4 * STEP; k += STEP) EACH_PIECE ISA(extend)(&lo[p], &hi[p], w + k + p * LANES);
        for (; w < stop; w += STEP) EACH_PIECE ISA(extend)(&lo[p], &hi[p], w + p * LANES);
        EACH_PIECE {
            ISA(v_store)(&low[g][p * LANES], lo[p]);
            ISA(v_store)(&high[g][p * LANES], hi[p]);
        }
    }
    memset(low[b->n], 0, sizeof low[0] * (size_t)(BATCH - b->n));
    memset(high[b->n], 0, sizeof high[0] * (size_t)(BATCH - b->n));
    ISA(fold_min)(low, r->lo);
    ISA(fold_max)(high, r->hi);
    EACH_TILE {
        const vf lo = ISA(v_load)(r->lo + p * LANES), hi = ISA(v_load)(r->hi + p * LANES), one = ISA(v_splat)(1.0f);
        ISA(put_found)(r, p, ISA(range_grid)(lo, hi, one, one, (1 << job->bits) - 1, job->wide));
    }
}

/* 2^e for the exponents a float32 can have. */
INLINE double ISA(power_of_two)(int e) {
    uint64_t bits = (uint64_t)(e + 1023) << 52;
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

/* Scale each lane by a power of two to max abs in [1, 2): squares neither overflow nor vanish. */
static void ISA(normalise)(float *x, int length, vf lo, vf hi, int exponent[LANES]) {
    for (int i = 0; i < LANES; i++) {
        float largest = -lo[i] > hi[i] ? -lo[i] : hi[i];
        exponent[i] = 0;
        if (largest > 0.0f && largest <= MAX_WEIGHT) {
            (void)__builtin_frexp((double)largest, &exponent[i]);
            exponent[i]--;
        }
        const double factor = ISA(power_of_two)(-exponent[i]);
        for (int k = 0; k < length; k++) x[k * LANES + i] = (float)((double)x[k * LANES + i] * factor);
    }
}

INLINE ISA(planes) ISA(denormalise_planes)(ISA(planes) f, const int exponent[LANES]) {
    for (int i = 0; i < LANES; i++) {
        const double back = ISA(power_of_two)(exponent[i]);
        f.a1[i] = (float)((double)f.a1[i] * back);
        f.a2[i] = (float)((double)f.a2[i] * back);
        f.mu[i] = (float)((double)f.mu[i] * back);
    }
    return f;
}

INLINE ISA(found) ISA(denormalise)(ISA(found) f, const int exponent[LANES]) {
    for (int i = 0; i < LANES; i++) {
        const double back = ISA(power_of_two)(exponent[i]);
        const float s = (float)((double)f.scale[i] * back);
        f.scale[i] = s > FLOAT32_TINY ? s : FLOAT32_TINY;
        f.zero[i] = (float)((double)f.zero[i] * back);
    }
    return f;
}

/* All but rtn: LANES groups become a tile that stays in the first-level cache. */
static void ISA(search_tiles)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    float x[MAX_GROUP * LANES] __attribute__((aligned(64))), weights[MAX_GROUP * LANES] __attribute__((aligned(64)));
    const float *v = job->importance ? weights : NULL;
    const int n = (1 << job->bits) - 1;
    for (int p = 0; p * LANES < b->n; p++) {
        int exponent[LANES];
        vf lo, hi, a, c;
        for (int i = 0; i < LANES; i++) {
            const int g = p * LANES + i < b->n ? p * LANES + i : p * LANES; /* idle lanes repeat a group */
            const float *w = b->w[g];
            for (int k = 0; k < b->length; k++) x[k * LANES + i] = w[k];
            if (v)
                for (int k = 0; k < b->length; k++) weights[k * LANES + i] = job->importance[b->group[g] * job->group_size + k];
        }
        ISA(tile_range)(x, b->length, &lo, &hi);
        ISA(v_store)(r->lo + p * LANES, lo);
        ISA(v_store)(r->hi + p * LANES, hi);
        if (job->wide) ISA(normalise)(x, b->length, lo, hi, exponent);
        if (job->method == METHOD_MSE) {
            ISA(search_mse)(x, v, b->length, n, job->wide, &a, &c);
            ISA(put_found)(r, p, ISA(range_grid)(v_min(lo, (vf){0}), v_max(hi, (vf){0}), a, c, n, job->wide));
        } else if (job->method == METHOD_R2Q) {
            vi misfit;
            const ISA(planes) f = ISA(search_r2q)(x, v, b->length, job->wide, &misfit);
            ISA(put_planes)(r, p, job->wide ? ISA(denormalise_planes)(f, exponent) : f, misfit);
        } else {
            const int shifts = job->bits == 4 && job->group_size == 32 && !job->wide; /* where they pay */
            ISA(found) f = job->method == METHOD_HQQ ? ISA(search_hqq)(x, b->length, n, job->wide)
                                                     : ISA(search_uls)(x, v, b->length, n, job->wide, shifts);
            ISA(put_found)(r, p, job->wide ? ISA(denormalise)(f, exponent) : f);
        }
    }
}
