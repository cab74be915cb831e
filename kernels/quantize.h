/* Quantization of a block of rows: groups are collected into batches, across rows. Part of the rows.h template. */

static __attribute__((noinline)) void ISA(quantize_batch)(const ISA(batch) *b, const quantize_job *job) {
    ISA(results) r;
    if (b->n < BATCH) memset(&r, 0, sizeof r);
    if (job->k_bits) ISA(k_load_batch)(b, job, &r);
    else if (job->method == METHOD_RTN) ISA(search_range)(b, job, &r);
    else ISA(search_tiles)(b, job, &r);
    ISA(encode_batch)(b, job, &r);
    ISA(add_sums)(b, job, &r, 0);
    if (job->k_bits) return; /* the rest was done by k_search */
    ISA(store_grid)(b, job, &r);
    ISA(add_largest)(b, job, &r);
    ISA(add_misfits)(b, job, &r);
}

/* Multiply the stored parameters of a batch by the gain of its rows and take the error sums again. */
static __attribute__((noinline)) void ISA(rescale_batch)(const ISA(batch) *b, const quantize_job *job, const float *gain, int64_t first_row) {
    ISA(results) r;
    float factor[BATCH];
    const int wide = job->wide, item = wide ? 4 : 2, grid = grid_of(job->method);
    memset(&r, 0, sizeof r);
    if (job->k_bits) { /* k_rescale_row was here */
        ISA(k_load_batch)(b, job, &r);
        if (!wide) ISA(score_batch)(b, job, &r);
        ISA(add_sums)(b, job, &r, 1);
        return;
    }
    memset(factor, 0, sizeof factor);
    for (int g = 0; g < b->n; g++) {
        const int64_t row = b->row[g], at = row * job->n_groups + b->group[g], bit = b->group[g] * job->bits;
        factor[g] = gain[row - first_row];
        if (grid == GRID_LEVELS) ISA(load_one)(job->scales + (2 * at + 1) * item, wide, r.minor + g);
        ISA(load_one)(job->scales + (grid == GRID_LEVELS ? 2 * at : at) * item, wide, r.scale + g);
        if (grid != GRID_ZERO_POINT) ISA(load_one)(job->zeros + at * item, wide, r.zero + g);
        else r.zero[g] = (float)(job->zeros[row * job->zeros_stride + (bit >> 3)] >> (bit & 7) & ((1 << job->bits) - 1));
    }
    EACH_TILE {
        const vf c = ISA(v_load)(factor + p * LANES), floor = ISA(v_splat)(grid == GRID_LEVELS ? 0.0f : wide ? FLOAT32_TINY : FLOAT16_TINY);
        vf s = v_max(ISA(v_stored)(ISA(v_load)(r.scale + p * LANES) * c, wide), floor), m = ISA(v_load)(r.zero + p * LANES);
        if (grid != GRID_ZERO_POINT) m = ISA(v_stored)(m * c, wide);
        vi misfit = (((vi)s & 0x7F800000) == 0x7F800000 - (vi){0}) | (((vi)m & 0x7F800000) == 0x7F800000 - (vi){0});
        ISA(put_found)(&r, p, (ISA(found)){s, m, misfit});
        ISA(v_store)(r.minor + p * LANES, ISA(v_stored)(ISA(v_load)(r.minor + p * LANES) * c, wide));
    }
    if (grid == GRID_LEVELS) ISA(store_pairs)(b, job, &r);
    else ISA(store_values)(b, job, r.scale, job->scales);
    if (grid != GRID_ZERO_POINT) ISA(store_values)(b, job, r.zero, job->zeros);
    if (!wide) ISA(score_batch)(b, job, &r);
    ISA(add_sums)(b, job, &r, 1);
    ISA(add_misfits)(b, job, &r);
}

/* Walk over the groups [first, first + count) of every row; with `gain`, correct what the first walk stored. */
static void ISA(walk)(const quantize_job *job, int64_t start, int64_t stop, int64_t first, int64_t count, int length,
                      const float *gain) {
    float tile[BATCH * MAX_GROUP] __attribute__((aligned(64)));
    const int item = job->kind == KIND_FLOAT32 ? 4 : 2;
    const int direct = job->kind == KIND_FLOAT32 && length % STEP == 0 && ((uintptr_t)job->weight & 3) == 0;
    const int64_t group_bytes = job->group_size * job->bits / 8;
    ISA(batch) b;
    b.n = 0;
    b.length = length;
    b.item = item;
    for (int64_t row = start; row < stop; row++) {
        const uint8_t *from = job->weight + (row * job->columns + first * job->group_size) * item;
        uint8_t *packed = job->packed + row * job->packed_stride + first * group_bytes;
        for (int64_t group = first; group < first + count; group++) {
            b.row[b.n] = row;
            b.group[b.n] = group;
            b.packed[b.n] = packed;
            b.ahead[b.n] = (const uint8_t *)((uintptr_t)from + (uintptr_t)(BATCH * length * item)); /* never read, only prefetched */
            b.w[b.n] = direct ? (const float *)from : tile + b.n * MAX_GROUP;
            if (!direct) ISA(widen)(from, job->kind, length, tile + b.n * MAX_GROUP);
            from += length * item;
            packed += group_bytes;
            if (++b.n < BATCH && !(row == stop - 1 && group == first + count - 1)) continue;
            if (gain) ISA(rescale_batch)(&b, job, gain, start);
            else ISA(quantize_batch)(&b, job);
            b.n = 0;
        }
    }
}

/* Rows [start, stop) of a job; `gain` is room for one float a row. */
static void ISA(quantize_block)(const quantize_job *job, int64_t start, int64_t stop, float *gain) {
    const int64_t full = job->columns / job->group_size;
    const int tail = (int)(job->columns % job->group_size);
    memset(job->sums + 4 * start, 0, (size_t)(stop - start) * 4 * sizeof(double));
    memset(job->status + start, 0, (size_t)(stop - start));
    if (grid_of(job->method) == GRID_ZERO_POINT) memset(job->zeros + start * job->zeros_stride, 0, (size_t)((stop - start) * job->zeros_stride));
    if (job->k_bits) ISA(k_search)(job, start, stop);
    if (full) ISA(walk)(job, start, stop, 0, full, job->group_size, NULL);
    if (tail) ISA(walk)(job, start, stop, full, 1, tail, NULL);
    if (job->gain && job->method != METHOD_RTN && job->method != METHOD_HQQ) {
        for (int64_t row = start; row < stop; row++) {
            double *sums = job->sums + 4 * row, c = sums[0] > 0 && sums[1] > 0 ? sums[0] / sums[1] : 1.0;
            gain[row - start] = (float)(c < 0.5 ? 0.5 : c > 2.0 ? 2.0 : c);
            sums[1] = sums[2] = 0.0;
            if (job->k_bits) ISA(k_rescale_row)(job, row, gain[row - start]);
        }
        if (full) ISA(walk)(job, start, stop, 0, full, job->group_size, gain);
        if (tail) ISA(walk)(job, start, stop, full, 1, tail, gain);
    }
    for (int64_t row = start; row < stop; row++) {
        const double *sums = job->sums + 4 * row;
        if (!(sums[3] <= MAX_WEIGHT) || sums[0] != sums[0]) job->status[row] = STATUS_NOT_USABLE;
    }
}
