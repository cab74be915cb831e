/* A batch of sixteen groups from weights to codes: search, encode, sum, correct the gain. Part of the rows.h template. */

typedef struct {
    const float *w[BATCH];            /* elements, zero padded to a multiple of sixteen */
    uint8_t *packed[BATCH];           /* their codes */
    int64_t row[BATCH], group[BATCH]; /* where each group belongs */
    int n, length;                    /* groups in use, elements each */
} ISA(batch);

INLINE int ISA(in_one_row)(const ISA(batch) *b) { return b->row[0] == b->row[b->n - 1]; }

typedef struct {
    float lo[BATCH], hi[BATCH];
    float scale[BATCH], zero[BATCH]; /* as stored */
    float ww[BATCH], wq[BATCH], ee[BATCH];
    int32_t misfit[BATCH];
} ISA(results);

INLINE void ISA(put_found)(ISA(results) *r, int p, ISA(found) f) {
    ISA(v_store)(r->scale + p * LANES, f.scale);
    ISA(v_store)(r->zero + p * LANES, f.zero);
    memcpy(r->misfit + p * LANES, &f.misfit, sizeof f.misfit);
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
        for (; stop - w >= 4 * BATCH; w += 4 * BATCH)
            for (int k = 0; k < 4 * BATCH; k += BATCH) EACH_PIECE ISA(extend)(&lo[p], &hi[p], w + k + p * LANES);
        for (; w < stop; w += BATCH) EACH_PIECE ISA(extend)(&lo[p], &hi[p], w + p * LANES);
        EACH_PIECE {
            ISA(v_store)(&low[g][p * LANES], lo[p]);
            ISA(v_store)(&high[g][p * LANES], hi[p]);
        }
    }
    memset(low[b->n], 0, sizeof low[0] * (size_t)(BATCH - b->n));
    memset(high[b->n], 0, sizeof high[0] * (size_t)(BATCH - b->n));
    ISA(fold_min)(low, r->lo);
    ISA(fold_max)(high, r->hi);
    EACH_PIECE {
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

INLINE ISA(found) ISA(denormalise)(ISA(found) f, const int exponent[LANES]) {
    for (int i = 0; i < LANES; i++) {
        const double back = ISA(power_of_two)(exponent[i]);
        const float s = (float)((double)f.scale[i] * back);
        f.scale[i] = s > FLOAT32_TINY ? s : FLOAT32_TINY;
        f.zero[i] = (float)((double)f.zero[i] * back);
    }
    return f;
}

/* mse and uls: LANES groups become a tile that stays in the first-level cache. */
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
        } else {
            ISA(found) f = ISA(search_uls)(x, v, b->length, n, job->wide);
            ISA(put_found)(r, p, job->wide ? ISA(denormalise)(f, exponent) : f);
        }
    }
}

INLINE void ISA(encode_batch_with)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r, const int bits, const int minimum) {
    ISA(partials) ww, wq, ee;
    uint8_t codes[BATCH][MAX_GROUP];
    const int whole = b->length % (4 * LANES) == 0;
    for (int g = 0; g < b->n; g++) {
        ISA(sums) sums = {{(vf){0}}, {(vf){0}}, {(vf){0}}};
        const ISA(grid) grid = ISA(make_grid)(r->scale[g], r->zero[g], (1 << bits) - 1, minimum);
        if (whole) ISA(encode_whole)(b->w[g], b->length, bits, &grid, job->wide, b->packed[g], &sums);
        else ISA(encode_any)(b->w[g], b->length, &grid, codes[g], &sums);
        memcpy(ww[g], sums.ww, sizeof ww[g]);
        memcpy(wq[g], sums.wq, sizeof wq[g]);
        memcpy(ee[g], sums.ee, sizeof ee[g]);
    }
    if (!whole)
        for (int g = 0; g < b->n; g++) pack_codes(codes[g], b->length, bits, b->packed[g]);
    memset(ww[b->n], 0, sizeof ww[0] * (size_t)(BATCH - b->n));
    memset(wq[b->n], 0, sizeof wq[0] * (size_t)(BATCH - b->n));
    memset(ee[b->n], 0, sizeof ee[0] * (size_t)(BATCH - b->n));
    ISA(fold_sum)(ww, r->ww);
    ISA(fold_sum)(wq, r->wq);
    ISA(fold_sum)(ee, r->ee);
}

/* Scores of the codes as packed; only wq and ee are taken. */
INLINE void ISA(score_batch_with)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r, const int bits, const int minimum) {
    (void)job;
    ISA(partials) wq, ee;
    for (int g = 0; g < b->n; g++) {
        ISA(sums) sums = {{(vf){0}}, {(vf){0}}, {(vf){0}}};
        const ISA(grid) grid = ISA(make_grid)(r->scale[g], r->zero[g], (1 << bits) - 1, minimum);
        const uint8_t *packed = b->packed[g];
        uint8_t tail[MAX_GROUP];
        if (b->length & 15) { /* whole steps of sixteen would read past the end of the row */
            memset(tail, 0, sizeof tail);
            packed = memcpy(tail, packed, (size_t)(b->length * bits + 7) / 8);
        }
        ISA(score)(b->w[g], packed, b->length, bits, &grid, &sums);
        memcpy(wq[g], sums.wq, sizeof wq[g]);
        memcpy(ee[g], sums.ee, sizeof ee[g]);
    }
    memset(wq[b->n], 0, sizeof wq[0] * (size_t)(BATCH - b->n));
    memset(ee[b->n], 0, sizeof ee[0] * (size_t)(BATCH - b->n));
    ISA(fold_sum)(wq, r->wq);
    ISA(fold_sum)(ee, r->ee);
}

#define SPECIALISED(name)                                                                                       \
    static __attribute__((noinline)) void ISA(name)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) { \
        if (job->method == METHOD_ULS) {                                                                        \
            if (job->bits == 4) ISA(name##_with)(b, job, r, 4, 1);                                              \
            else if (job->bits == 2) ISA(name##_with)(b, job, r, 2, 1);                                         \
            else ISA(name##_with)(b, job, r, 8, 1);                                                             \
        } else if (job->bits == 4) ISA(name##_with)(b, job, r, 4, 0);                                           \
        else if (job->bits == 2) ISA(name##_with)(b, job, r, 2, 0);                                             \
        else ISA(name##_with)(b, job, r, 8, 0);                                                                 \
    }
SPECIALISED(encode_batch)
SPECIALISED(score_batch)
#undef SPECIALISED

/* Add the sums of every group to its row, in order. */
INLINE void ISA(add_sums)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r, const int first) {
    double *sums = job->sums + 4 * b->row[0], total[3];
    memcpy(total, sums, sizeof total);
    for (int g = 0; g < b->n; g++) {
        double three[3] = {r->ww[g], r->wq[g], r->ee[g]};
        if (job->wide)
            ISA(wide_sums)(b->w[g], b->packed[g], b->length, job->bits, r->scale[g], r->zero[g], job->method == METHOD_ULS, three);
        if (job->sums + 4 * b->row[g] != sums) {
            memcpy(sums, total, sizeof total);
            sums = job->sums + 4 * b->row[g];
            memcpy(total, sums, sizeof total);
        }
        for (int i = first; i < 3; i++) total[i] += three[i];
    }
    memcpy(sums, total, sizeof total);
}

INLINE void ISA(add_largest)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    float largest[BATCH];
    EACH_PIECE ISA(v_store)(largest + p * LANES, v_max(-ISA(v_load)(r->lo + p * LANES), ISA(v_load)(r->hi + p * LANES)));
    for (int g = 0; g < b->n; g++) {
        double *row_largest = job->sums + 4 * b->row[g] + 3;
        if (largest[g] > *row_largest) *row_largest = largest[g];
    }
}

INLINE void ISA(add_misfits)(const ISA(batch) *b, const quantize_job *job, const ISA(results) *r) {
    int32_t any = 0;
    for (int g = 0; g < b->n; g++) any |= r->misfit[g];
    if (any)
        for (int g = 0; g < b->n; g++)
            if (r->misfit[g]) job->status[b->row[g]] |= STATUS_NEEDS_FLOAT32;
}

/* Stored values of a batch to an array (row, group) of float16 or, when wide, float32. */
INLINE void ISA(store_values)(const ISA(batch) *b, const quantize_job *job, const float *values, uint8_t *to) {
    uint16_t half[BATCH];
    const uint8_t *from = (const uint8_t *)values;
    const int item = job->wide ? 4 : 2;
    if (!job->wide) {
        ISA(to_halves)(values, half);
        from = (const uint8_t *)half;
    }
    to += (b->row[0] * job->n_groups + b->group[0]) * item;
    if (b->n == BATCH && ISA(in_one_row)(b) && !job->wide) {
        memcpy(to, from, sizeof half);
        return;
    }
    for (int g = 0; g < b->n; g++)
        memcpy(to + ((b->row[g] - b->row[0]) * job->n_groups + b->group[g] - b->group[0]) * item, from + g * item, (size_t)item);
}

INLINE void ISA(store_zero_codes)(const ISA(batch) *b, const quantize_job *job, const ISA(results) *r) {
    const int bits = job->bits;
    uint8_t *row = job->zeros + b->row[0] * job->zeros_stride;
    if (b->n == BATCH && ISA(in_one_row)(b) && (b->group[0] * bits & 7) == 0) {
        uint8_t codes[BATCH];
        for (int g = 0; g < BATCH; g++) codes[g] = (uint8_t)(int)r->zero[g];
        pack_codes(codes, BATCH, bits, row + (b->group[0] * bits >> 3));
        return;
    }
    for (int g = 0; g < b->n; g++) {
        const int64_t bit = b->group[g] * bits;
        row = job->zeros + b->row[g] * job->zeros_stride;
        row[bit >> 3] |= (uint8_t)((unsigned)(int)r->zero[g] << (bit & 7));
    }
}

static __attribute__((noinline)) void ISA(quantize_batch)(const ISA(batch) *b, const quantize_job *job) {
    ISA(results) r;
    if (b->n < BATCH) memset(&r, 0, sizeof r);
    if (job->method == METHOD_RTN) ISA(search_range)(b, job, &r);
    else ISA(search_tiles)(b, job, &r);
    ISA(encode_batch)(b, job, &r);
    ISA(store_values)(b, job, r.scale, job->scales);
    if (job->method == METHOD_ULS) ISA(store_values)(b, job, r.zero, job->zeros);
    else ISA(store_zero_codes)(b, job, &r);
    ISA(add_sums)(b, job, &r, 0);
    ISA(add_largest)(b, job, &r);
    ISA(add_misfits)(b, job, &r);
}

/* Multiply the stored parameters of a batch by the gain of its rows and take the error sums again. */
static __attribute__((noinline)) void ISA(rescale_batch)(const ISA(batch) *b, const quantize_job *job, const float *gain, int64_t first_row) {
    ISA(results) r;
    float factor[BATCH];
    const int wide = job->wide, item = wide ? 4 : 2;
    memset(&r, 0, sizeof r);
    memset(factor, 0, sizeof factor);
    for (int g = 0; g < b->n; g++) {
        const int64_t row = b->row[g], at = row * job->n_groups + b->group[g], bit = b->group[g] * job->bits;
        factor[g] = gain[row - first_row];
        ISA(load_one)(job->scales + at * item, wide, r.scale + g);
        if (job->method == METHOD_ULS) ISA(load_one)(job->zeros + at * item, wide, r.zero + g);
        else r.zero[g] = (float)(job->zeros[row * job->zeros_stride + (bit >> 3)] >> (bit & 7) & ((1 << job->bits) - 1));
    }
    EACH_PIECE {
        const vf c = ISA(v_load)(factor + p * LANES), floor = ISA(v_splat)(wide ? FLOAT32_TINY : FLOAT16_TINY);
        vf s = v_max(ISA(v_stored)(ISA(v_load)(r.scale + p * LANES) * c, wide), floor), m = ISA(v_load)(r.zero + p * LANES);
        if (job->method == METHOD_ULS) m = ISA(v_stored)(m * c, wide);
        vi misfit = (((vi)s & 0x7F800000) == 0x7F800000 - (vi){0}) | (((vi)m & 0x7F800000) == 0x7F800000 - (vi){0});
        ISA(put_found)(&r, p, (ISA(found)){s, m, misfit});
    }
    ISA(store_values)(b, job, r.scale, job->scales);
    if (job->method == METHOD_ULS) ISA(store_values)(b, job, r.zero, job->zeros);
    if (!wide) ISA(score_batch)(b, job, &r);
    ISA(add_sums)(b, job, &r, 1);
    ISA(add_misfits)(b, job, &r);
}
