/* Quantization of a block of rows: groups are collected into batches of sixteen, across rows. Part of the rows.h template. */

/* Walk over the groups [first, first + count) of every row; with `gain`, correct what the first walk stored. */
static void ISA(walk)(const quantize_job *job, int64_t start, int64_t stop, int64_t first, int64_t count, int length,
                      const float *gain) {
    float tile[BATCH * MAX_GROUP] __attribute__((aligned(64)));
    const int item = job->kind == KIND_FLOAT32 ? 4 : 2;
    const int direct = job->kind == KIND_FLOAT32 && length % BATCH == 0 && ((uintptr_t)job->weight & 3) == 0;
    const int64_t group_bytes = job->group_size * job->bits / 8;
    ISA(batch) b;
    b.n = 0;
    b.length = length;
    for (int64_t row = start; row < stop; row++) {
        const uint8_t *from = job->weight + (row * job->columns + first * job->group_size) * item;
        uint8_t *packed = job->packed + row * job->packed_stride + first * group_bytes;
        for (int64_t group = first; group < first + count; group++) {
            b.row[b.n] = row;
            b.group[b.n] = group;
            b.packed[b.n] = packed;
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
    if (job->method != METHOD_ULS) memset(job->zeros + start * job->zeros_stride, 0, (size_t)((stop - start) * job->zeros_stride));
    if (full) ISA(walk)(job, start, stop, 0, full, job->group_size, NULL);
    if (tail) ISA(walk)(job, start, stop, full, 1, tail, NULL);
    if (job->gain && job->method != METHOD_RTN) {
        for (int64_t row = start; row < stop; row++) {
            double *sums = job->sums + 4 * row, c = sums[0] > 0 && sums[1] > 0 ? sums[0] / sums[1] : 1.0;
            gain[row - start] = (float)(c < 0.5 ? 0.5 : c > 2.0 ? 2.0 : c);
            sums[1] = sums[2] = 0.0;
        }
        if (full) ISA(walk)(job, start, stop, 0, full, job->group_size, gain);
        if (tail) ISA(walk)(job, start, stop, full, 1, tail, gain);
    }
    for (int64_t row = start; row < stop; row++) {
        const double *sums = job->sums + 4 * row;
        if (!(sums[3] <= MAX_WEIGHT) || sums[0] != sums[0]) job->status[row] = STATUS_NOT_USABLE;
    }
}
