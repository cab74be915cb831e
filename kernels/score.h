/* Codes and error sums of a batch, specialised by width and grid. Part of the rows.h template. */

INLINE void ISA(encode_batch_with)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r, const int bits,
                                   const int minimum, const int within) {
    ISA(partials) ww, wq, ee;
    ISA(grids) grids;
    uint8_t codes[BATCH][MAX_GROUP];
    const int whole = b->length % (4 * LANES) == 0;
    int g = 0;
    ISA(make_grids)(r->scale, r->zero, (1 << bits) - 1, minimum, &grids);
    for (; whole && g < b->n; g++) {
        for (int i = 0; i < b->length * b->item; i += 64) __builtin_prefetch(b->ahead[g] + i, 0, 2);
        ISA(encode_whole)(b->w[g], b->length, bits, minimum, within, &grids, g, job->wide, b->packed[g], ww[g], wq[g], ee[g]);
    }
    for (; g < b->n; g++) {
        ISA(sums) sums = {{(vf){0}}, {(vf){0}}, {(vf){0}}};
        ISA(encode_any)(b->w[g], b->length, minimum, &grids, g, codes[g], &sums);
        memcpy(ww[g], sums.ww, sizeof ww[g]);
        memcpy(wq[g], sums.wq, sizeof wq[g]);
        memcpy(ee[g], sums.ee, sizeof ee[g]);
    }
    if (!whole)
        for (g = 0; g < b->n; g++) pack_codes(codes[g], b->length, bits, b->packed[g]);
    memset(ww[b->n], 0, sizeof ww[0] * (size_t)(BATCH - b->n));
    memset(wq[b->n], 0, sizeof wq[0] * (size_t)(BATCH - b->n));
    memset(ee[b->n], 0, sizeof ee[0] * (size_t)(BATCH - b->n));
    ISA(fold_sum)(ww, r->ww);
    ISA(fold_sum)(wq, r->wq);
    ISA(fold_sum)(ee, r->ee);
}

INLINE ISA(planes) ISA(planes_of)(const ISA(results) *r, int g) {
    return (ISA(planes)){ISA(v_splat)(r->scale[g]), ISA(v_splat)(r->minor[g]), ISA(v_splat)(r->zero[g])};
}

/* Scores of the codes as packed; only wq and ee are taken. */
INLINE void ISA(score_batch_with)(const ISA(batch) *b, ISA(results) *r, const int bits, const int grid) {
    ISA(partials) wq, ee;
    for (int g = 0; g < b->n; g++) {
        ISA(sums) sums = {{(vf){0}}, {(vf){0}}, {(vf){0}}};
        const uint8_t *packed = b->packed[g];
        uint8_t tail[MAX_GROUP];
        if (b->length & 15) { /* whole steps of sixteen would read past the end of the row */
            memset(tail, 0, sizeof tail);
            packed = memcpy(tail, packed, (size_t)(b->length * bits + 7) / 8);
        }
        if (grid == GRID_LEVELS) ISA(score_levels)(b->w[g], packed, b->length, ISA(planes_of)(r, g), &sums);
        else ISA(score)(b->w[g], packed, b->length, bits, grid == GRID_MINIMUM, r->scale[g], r->zero[g], &sums);
        memcpy(wq[g], sums.wq, sizeof wq[g]);
        memcpy(ee[g], sums.ee, sizeof ee[g]);
    }
    memset(wq[b->n], 0, sizeof wq[0] * (size_t)(BATCH - b->n));
    memset(ee[b->n], 0, sizeof ee[0] * (size_t)(BATCH - b->n));
    ISA(fold_sum)(wq, r->wq);
    ISA(fold_sum)(ee, r->ee);
}

static __attribute__((noinline)) void ISA(encode_levels_batch)(const ISA(batch) *b, ISA(results) *r) {
    ISA(partials) ww, wq, ee;
    uint8_t codes[MAX_GROUP];
    for (int g = 0; g < BATCH; g++) {
        ISA(sums) sums = {{(vf){0}}, {(vf){0}}, {(vf){0}}};
        if (g < b->n) {
            for (int i = 0; i < b->length * b->item; i += 64) __builtin_prefetch(b->ahead[g] + i, 0, 2);
            ISA(encode_levels)(b->w[g], b->length, ISA(planes_of)(r, g), codes, &sums);
            pack_codes(codes, b->length, 2, b->packed[g]);
        }
        memcpy(ww[g], sums.ww, sizeof ww[g]);
        memcpy(wq[g], sums.wq, sizeof wq[g]);
        memcpy(ee[g], sums.ee, sizeof ee[g]);
    }
    ISA(fold_sum)(ww, r->ww);
    ISA(fold_sum)(wq, r->wq);
    ISA(fold_sum)(ee, r->ee);
}

#define BY_BITS(call)          \
    if (job->bits == 4) call(4) \
    else if (job->bits == 2) call(2) \
    else call(8)

static __attribute__((noinline)) void ISA(encode_batch)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
#define ULS(bits) ISA(encode_batch_with)(b, job, r, bits, 1, 0);
#define MSE(bits) ISA(encode_batch_with)(b, job, r, bits, 0, 0);
#define RTN(bits) ISA(encode_batch_with)(b, job, r, bits, 0, 1);
    if (job->method == METHOD_R2Q) ISA(encode_levels_batch)(b, r);
    else if (grid_of(job->method) == GRID_MINIMUM) { BY_BITS(ULS) }
    else if (job->method == METHOD_MSE) { BY_BITS(MSE) }
    else { BY_BITS(RTN) }
#undef ULS
#undef MSE
#undef RTN
}

static __attribute__((noinline)) void ISA(score_batch)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
#define ULS(bits) ISA(score_batch_with)(b, r, bits, GRID_MINIMUM);
#define MSE(bits) ISA(score_batch_with)(b, r, bits, GRID_ZERO_POINT);
    if (job->method == METHOD_R2Q) ISA(score_batch_with)(b, r, 2, GRID_LEVELS);
    else if (grid_of(job->method) == GRID_MINIMUM) { BY_BITS(ULS) }
    else { BY_BITS(MSE) }
#undef ULS
#undef MSE
}
#undef BY_BITS
