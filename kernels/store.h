/* What a batch leaves behind: sums and status of its rows, stored scales and zero points. Part of the rows.h template. */

/* Add the sums of every group to its row, in order. */
INLINE void ISA(add_sums)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r, const int first) {
    double *sums = job->sums + 4 * b->row[0], total[3];
    memcpy(total, sums, sizeof total);
    if (ISA(in_one_row)(b) && !job->wide) {
        for (int g = 0; g < b->n; g++) {
            if (first == 0) total[0] += (double)r->ww[g];
            total[1] += (double)r->wq[g];
            total[2] += (double)r->ee[g];
        }
        memcpy(sums, total, sizeof total);
        return;
    }
    for (int g = 0; g < b->n; g++) {
        double three[3] = {r->ww[g], r->wq[g], r->ee[g]};
        if (job->wide)
            ISA(wide_sums)(b->w[g], b->packed[g], b->length, job->bits, r->scale[g], r->zero[g], r->minor[g], grid_of(job->method), three);
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
    double *row_largest = job->sums + 4 * b->row[0] + 3;
    EACH_TILE ISA(v_store)(largest + p * LANES, v_max(-ISA(v_load)(r->lo + p * LANES), ISA(v_load)(r->hi + p * LANES)));
    if (b->n == BATCH && ISA(in_one_row)(b)) { /* as integers, positive floats keep their order and the loop vectorises */
        int32_t bits[BATCH], most = 0;
        memcpy(bits, largest, sizeof bits);
        for (int g = 0; g < BATCH; g++) most = bits[g] > most ? bits[g] : most;
        const double value = bits_float((uint32_t)most);
        if (value > *row_largest) *row_largest = value;
        return;
    }
    for (int g = 0; g < b->n; g++) {
        row_largest = job->sums + 4 * b->row[g] + 3;
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

/* Amplitudes of levels: pairs a1, a2. */
INLINE void ISA(store_pairs)(const ISA(batch) *b, const quantize_job *job, const ISA(results) *r) {
    uint16_t major[BATCH], minor[BATCH];
    ISA(to_halves)(r->scale, major);
    ISA(to_halves)(r->minor, minor);
    for (int g = 0; g < b->n; g++) {
        const int64_t at = b->row[g] * job->n_groups + b->group[g];
        const float wide[2] = {r->scale[g], r->minor[g]};
        const uint16_t half[2] = {major[g], minor[g]};
        if (job->wide) memcpy(job->scales + at * 8, wide, sizeof wide);
        else memcpy(job->scales + at * 4, half, sizeof half);
    }
}

INLINE void ISA(store_zero_codes)(const ISA(batch) *b, const quantize_job *job, const ISA(results) *r) {
    const int bits = job->bits;
    uint8_t *row = job->zeros + b->row[0] * job->zeros_stride;
    if (b->n == BATCH && ISA(in_one_row)(b) && (b->group[0] * bits & 7) == 0) {
        uint8_t codes[BATCH];
        EACH_TILE ISA(v_to_bytes)((vi)(ISA(v_load)(r->zero + p * LANES) + ISA(v_splat)(MAGIC)) - MAGIC_BITS, codes + p * LANES);
        pack_codes(codes, BATCH, bits, row + (b->group[0] * bits >> 3));
        return;
    }
    for (int g = 0; g < b->n; g++) {
        const int64_t bit = b->group[g] * bits;
        row = job->zeros + b->row[g] * job->zeros_stride;
        row[bit >> 3] |= (uint8_t)((unsigned)(int)r->zero[g] << (bit & 7));
    }
}

/* The stored parameters of a batch, whatever its grid. */
INLINE void ISA(store_grid)(const ISA(batch) *b, const quantize_job *job, const ISA(results) *r) {
    const int grid = grid_of(job->method);
    if (grid == GRID_LEVELS) ISA(store_pairs)(b, job, r);
    else ISA(store_values)(b, job, r->scale, job->scales);
    if (grid == GRID_ZERO_POINT) ISA(store_zero_codes)(b, job, r);
    else ISA(store_values)(b, job, r->zero, job->zeros);
}
