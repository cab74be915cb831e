/* Scales and minima of a batch in the k format; and their gain. Part of the rows.h template. */

/* Scales and minima of the groups of a batch; the floats are read once for the groups of a block that follow each other. */
INLINE void ISA(k_load_batch)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    const int64_t integers = job->n_blocks * (job->wide ? 4 : 2), per_block = BLOCK / job->group_size;
    float d = 0.0f, dmin = 0.0f;
    for (int g = 0; g < b->n; g++) {
        const uint8_t *scales = job->scales + b->row[g] * job->k_stride, *minima = job->zeros + b->row[g] * job->k_stride;
        if (g == 0 || b->row[g] != b->row[g - 1] || b->group[g] % per_block == 0) {
            d = k_float(scales, b->group[g] / per_block, job->wide);
            dmin = k_float(minima, b->group[g] / per_block, job->wide);
        }
        r->scale[g] = d * (float)k_integer(scales + integers, b->group[g], job->k_bits);
        r->zero[g] = -(dmin * (float)k_integer(minima + integers, b->group[g], job->k_bits));
        r->misfit[g] = 0;
    }
}

/* Multiply the floats of a row by its gain; the integers stay. */
static void ISA(k_rescale_row)(const quantize_job *job, int64_t row, float gain) {
    for (int64_t block = 0; block < job->n_blocks; block++)
        for (int which = 0; which < 2; which++) {
            uint8_t *values = (which ? job->zeros : job->scales) + row * job->k_stride;
            const float before = k_float(values, block, job->wide), tiny = job->wide ? FLOAT32_TINY : FLOAT16_TINY;
            float x = before * gain;
            if (!job->wide) x = half_to_float(float_to_half(x));
            if (before > 0.0f && x < tiny) x = tiny;
            if (!(x - x == 0.0f)) job->status[row] |= STATUS_NEEDS_FLOAT32;
            put_k_float(values, block, job->wide, x);
        }
}
