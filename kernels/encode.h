/* Quantization of a block of rows: batches of sixteen groups, elements in lanes, one read of the weights.
 * Part of the rows.h template. */

typedef struct {
    const float *w[BATCH];              /* group elements, zero padded to a multiple of sixteen */
    int64_t row[BATCH], group[BATCH];   /* where each group belongs */
    int n, length;                      /* groups in use, elements each */
} ISA(batch);

typedef struct {
    float scale[BATCH], zero[BATCH];    /* as stored */
    float lo[BATCH], hi[BATCH];
    float ww[BATCH], wq[BATCH], ee[BATCH];
    int32_t misfit[BATCH];
} ISA(results);

typedef float ISA(partials)[BATCH][BATCH];

/* Codes and error sums of one group; `zero` is the zero-point code or the minimum. */
INLINE void ISA(encode_group)(const float *w, int length, int n, float scale, float zero, int minimum, uint8_t *codes,
                              float *ww, float *wq, float *ee) {
    const vf s = ISA(v_splat)(scale), m = ISA(v_splat)(zero), magic = ISA(v_splat)(MAGIC);
    const vf low = ISA(v_splat)(minimum ? 0.0f : -zero), high = ISA(v_splat)(minimum ? (float)n : (float)n - zero);
    const vi to_code = (minimum ? 0 : (int32_t)zero) - MAGIC_BITS - (vi){0};
    vf sum_ww[PIECES] = {(vf){0}}, sum_wq[PIECES] = {(vf){0}}, sum_ee[PIECES] = {(vf){0}};
    for (int k = 0; k < length; k += BATCH) EACH_PIECE {
        vf x = ISA(v_load)(w + k + p * LANES);
        vf t = v_min(v_max((minimum ? x - m : x) / s, low), high) + magic;
        ISA(vb) code = __builtin_convertvector((vi)t + to_code, ISA(vb));
        memcpy(codes + k + p * LANES, &code, sizeof code);
        t -= magic;
        vf q = minimum ? t * s + m : t * s;
        vf e = q - x;
        if (k + BATCH > length) { /* the padding of a tail carries no error */
            vi lane;
            for (int i = 0; i < LANES; i++) lane[i] = i;
            e = (vf)((vi)e & (lane < length - k - p * LANES - (vi){0}));
        }
        sum_ww[p] += x * x;
        sum_wq[p] += x * q;
        sum_ee[p] += e * e;
    }
    EACH_PIECE {
        ISA(v_store)(ww + p * LANES, sum_ww[p]);
        ISA(v_store)(wq + p * LANES, sum_wq[p]);
        ISA(v_store)(ee + p * LANES, sum_ee[p]);
    }
    if (length & 15) memset(codes + length, 0, (size_t)(-length & 15));
}

/* Error sums from codes that stay: after the gain correction. */
INLINE void ISA(score_group)(const float *w, const uint8_t *packed, int length, int bits, float scale, float zero, int minimum,
                             float *wq, float *ee) {
    const vf s = ISA(v_splat)(scale), m = ISA(v_splat)(zero);
    vf sum_wq[PIECES] = {(vf){0}}, sum_ee[PIECES] = {(vf){0}};
    for (int k = 0; k < length; k += BATCH) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            vf x = ISA(v_load)(w + k + p * LANES), c = __builtin_convertvector(codes[p], vf);
            vf q = minimum ? c * s + m : (c - m) * s;
            vf e = q - x;
            if (k + BATCH > length) {
                vi lane;
                for (int i = 0; i < LANES; i++) lane[i] = i;
                e = (vf)((vi)e & (lane < length - k - p * LANES - (vi){0}));
            }
            sum_wq[p] += x * q;
            sum_ee[p] += e * e;
        }
    }
    EACH_PIECE {
        ISA(v_store)(wq + p * LANES, sum_wq[p]);
        ISA(v_store)(ee + p * LANES, sum_ee[p]);
    }
}

/* The same sums in double, for tensors whose weights would overflow or vanish when squared in float32. */
static void ISA(wide_sums)(const float *w, const uint8_t *packed, int length, int bits, float scale, float zero, int minimum,
                           double sums[3]) {
    double partial[3][BATCH] = {{0}};
    for (int k = 0; k < length; k++) {
        int bit = k * bits, code = packed[bit >> 3] >> (bit & 7) & ((1 << bits) - 1);
        float q = minimum ? (float)code * scale + zero : ((float)code - zero) * scale;
        double x = w[k], e = (double)q - x;
        partial[0][k & 15] += x * x;
        partial[1][k & 15] += x * (double)q;
        partial[2][k & 15] += e * e;
    }
    for (int i = 0; i < 3; i++) {
        for (int half = 8; half; half /= 2)
            for (int l = 0; l < half; l++) partial[i][l] += partial[i][l + half];
        sums[i] = partial[i][0];
    }
}

INLINE float ISA(stored_one)(float x, int wide) { return wide ? x : half_to_float(float_to_half(x)); }

/* ldexp(1, e) for the exponents a float32 can have. */
INLINE double ISA(power_of_two)(int e) {
    uint64_t bits = (uint64_t)(e + 1023) << 52;
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

INLINE void ISA(search_range)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    ISA(partials) low, high;
    const int n = (1 << job->bits) - 1;
    for (int g = 0; g < b->n; g++) {
        vf lo[PIECES] = {(vf){0}}, hi[PIECES] = {(vf){0}};
        for (int k = 0; k < b->length; k += BATCH) EACH_PIECE {
            vf x = ISA(v_load)(b->w[g] + k + p * LANES);
            lo[p] = v_min(lo[p], x);
            hi[p] = v_max(hi[p], x);
        }
        EACH_PIECE {
            ISA(v_store)(&low[g][p * LANES], lo[p]);
            ISA(v_store)(&high[g][p * LANES], hi[p]);
        }
    }
    for (int g = b->n; g < BATCH; g++) {
        memset(low[g], 0, sizeof low[g]);
        memset(high[g], 0, sizeof high[g]);
    }
    ISA(fold_min)(low, r->lo);
    ISA(fold_max)(high, r->hi);
    EACH_PIECE {
        const vf one = ISA(v_splat)(1.0f);
        ISA(found) f = ISA(range_grid)(ISA(v_load)(r->lo + p * LANES), ISA(v_load)(r->hi + p * LANES), one, one, n, job->wide);
        ISA(v_store)(r->scale + p * LANES, f.scale);
        ISA(v_store)(r->zero + p * LANES, f.zero);
        memcpy(r->misfit + p * LANES, &f.misfit, sizeof f.misfit);
    }
}

/* mse and uls: transpose LANES groups into a tile that stays in the first-level cache, then search. */
static void ISA(search_tiles)(const ISA(batch) *b, const quantize_job *job, ISA(results) *r) {
    float x[MAX_GROUP * LANES] __attribute__((aligned(64))), v[MAX_GROUP * LANES] __attribute__((aligned(64)));
    const int n = (1 << job->bits) - 1;
    for (int p = 0; p * LANES < b->n; p++) {
        int exponent[LANES];
        vf lo, hi, a, c;
        for (int i = 0; i < LANES; i++) {
            int g = p * LANES + i < b->n ? p * LANES + i : p * LANES; /* idle lanes repeat a group */
            for (int k = 0; k < b->length; k++) x[k * LANES + i] = b->w[g][k];
            if (job->importance)
                for (int k = 0; k < b->length; k++) v[k * LANES + i] = job->importance[b->group[g] * job->group_size + k];
        }
        ISA(tile_range)(x, b->length, &lo, &hi);
        ISA(v_store)(r->lo + p * LANES, lo);
        ISA(v_store)(r->hi + p * LANES, hi);
        if (job->wide)
            for (int i = 0; i < LANES; i++) {
                float largest = -lo[i] > hi[i] ? -lo[i] : hi[i];
                exponent[i] = 0;
                if (largest > 0.0f && largest <= MAX_WEIGHT) (void)__builtin_frexp((double)largest, &exponent[i]), exponent[i]--;
                double factor = ISA(power_of_two)(-exponent[i]);
                for (int k = 0; k < b->length; k++) x[k * LANES + i] = (float)((double)x[k * LANES + i] * factor);
            }
        ISA(found) f;
        if (job->method == METHOD_MSE) {
            ISA(search_mse)(x, job->importance ? v : NULL, b->length, n, job->wide, &a, &c);
            lo = v_min(lo, (vf){0});
            hi = v_max(hi, (vf){0});
            f = ISA(range_grid)(lo, hi, a, c, n, job->wide);
        } else {
            f = ISA(search_uls)(x, job->importance ? v : NULL, b->length, n, job->wide);
            if (job->wide)
                for (int i = 0; i < LANES; i++) {
                    double back = ISA(power_of_two)(exponent[i]);
                    float s = (float)((double)f.scale[i] * back);
                    f.scale[i] = s > FLOAT32_TINY ? s : FLOAT32_TINY;
                    f.zero[i] = (float)((double)f.zero[i] * back);
                }
        }
        ISA(v_store)(r->scale + p * LANES, f.scale);
        ISA(v_store)(r->zero + p * LANES, f.zero);
        memcpy(r->misfit + p * LANES, &f.misfit, sizeof f.misfit);
    }
}

INLINE float ISA(read_stored)(const uint8_t *p, int64_t i, int wide) {
    float x;
    uint16_t h;
    if (wide) { memcpy(&x, p + 4 * i, 4); return x; }
    memcpy(&h, p + 2 * i, 2);
    return half_to_float(h);
}

INLINE void ISA(write_stored)(uint8_t *p, int64_t i, int wide, float x) {
    uint16_t h = float_to_half(x);
    if (wide) memcpy(p + 4 * i, &x, 4);
    else memcpy(p + 2 * i, &h, 2);
}

INLINE uint8_t *ISA(codes_at)(const quantize_job *job, int64_t row, int64_t group) {
    return job->packed + row * job->packed_stride + group * job->group_size * job->bits / 8;
}

INLINE void ISA(store_parameters)(const quantize_job *job, int64_t row, int64_t group, float scale, float zero) {
    const int64_t at = row * job->n_groups + group;
    ISA(write_stored)(job->scales, at, job->wide, scale);
    if (job->method == METHOD_ULS) {
        ISA(write_stored)(job->zeros, at, job->wide, zero);
    } else {
        const int64_t bit = group * job->bits;
        job->zeros[row * job->zeros_stride + (bit >> 3)] |= (uint8_t)((unsigned)(int)zero << (bit & 7));
    }
}

/* Search, encode, pack and sum one batch. */
INLINE void ISA(quantize_batch)(const ISA(batch) *b, const quantize_job *job) {
    ISA(results) r;
    ISA(partials) ww, wq, ee;
    uint8_t codes[MAX_GROUP];
    const int n = (1 << job->bits) - 1, minimum = job->method == METHOD_ULS;
    if (job->method == METHOD_RTN) ISA(search_range)(b, job, &r);
    else ISA(search_tiles)(b, job, &r);
    for (int g = 0; g < b->n; g++) {
        if (minimum) ISA(encode_group)(b->w[g], b->length, n, r.scale[g], r.zero[g], 1, codes, ww[g], wq[g], ee[g]);
        else ISA(encode_group)(b->w[g], b->length, n, r.scale[g], r.zero[g], 0, codes, ww[g], wq[g], ee[g]);
        ISA(pack_codes)(codes, b->length, job->bits, ISA(codes_at)(job, b->row[g], b->group[g]));
    }
    for (int g = b->n; g < BATCH; g++) {
        memset(ww[g], 0, sizeof ww[g]);
        memset(wq[g], 0, sizeof wq[g]);
        memset(ee[g], 0, sizeof ee[g]);
    }
    ISA(fold_sum)(ww, r.ww);
    ISA(fold_sum)(wq, r.wq);
    ISA(fold_sum)(ee, r.ee);
    for (int g = 0; g < b->n; g++) {
        double *sums = job->sums + 4 * b->row[g], wide[3] = {r.ww[g], r.wq[g], r.ee[g]};
        double largest = -r.lo[g] > r.hi[g] ? -r.lo[g] : r.hi[g];
        ISA(store_parameters)(job, b->row[g], b->group[g], r.scale[g], r.zero[g]);
        if (job->wide)
            ISA(wide_sums)(b->w[g], ISA(codes_at)(job, b->row[g], b->group[g]), b->length, job->bits, r.scale[g], r.zero[g],
                           minimum, wide);
        for (int i = 0; i < 3; i++) sums[i] += wide[i];
        if (largest > sums[3]) sums[3] = largest;
        if (r.misfit[g]) job->status[b->row[g]] |= STATUS_NEEDS_FLOAT32;
    }
}

/* Multiply the stored parameters of a batch by the gain of its rows and take the error sums again. */
static void ISA(rescale_batch)(const ISA(batch) *b, const quantize_job *job, const float *gain, int64_t first_row) {
    ISA(results) r;
    ISA(partials) wq, ee;
    uint8_t packed[MAX_GROUP];
    const int minimum = job->method == METHOD_ULS, wide = job->wide, bits = job->bits;
    const float floor = wide ? FLOAT32_TINY : FLOAT16_TINY;
    memset(wq, 0, sizeof wq);
    memset(ee, 0, sizeof ee);
    for (int g = 0; g < b->n; g++) {
        const int64_t row = b->row[g], at = row * job->n_groups + b->group[g], bit = b->group[g] * bits;
        const float c = gain[row - first_row];
        float scale = ISA(stored_one)(ISA(read_stored)(job->scales, at, wide) * c, wide), zero;
        if (!(scale > floor)) scale = floor;
        ISA(write_stored)(job->scales, at, wide, scale);
        if (minimum) {
            zero = ISA(stored_one)(ISA(read_stored)(job->zeros, at, wide) * c, wide);
            ISA(write_stored)(job->zeros, at, wide, zero);
        } else {
            zero = (float)(job->zeros[row * job->zeros_stride + (bit >> 3)] >> (bit & 7) & ((1 << bits) - 1));
        }
        r.scale[g] = scale;
        r.zero[g] = zero;
        if ((float_bits(scale) & 0x7F800000u) == 0x7F800000u || (minimum && (float_bits(zero) & 0x7F800000u) == 0x7F800000u))
            job->status[row] |= STATUS_NEEDS_FLOAT32;
        memset(packed, 0, sizeof packed);
        memcpy(packed, ISA(codes_at)(job, row, b->group[g]), (size_t)(b->length * bits + 7) / 8);
        if (wide) continue;
        if (minimum) ISA(score_group)(b->w[g], packed, b->length, bits, scale, zero, 1, wq[g], ee[g]);
        else ISA(score_group)(b->w[g], packed, b->length, bits, scale, zero, 0, wq[g], ee[g]);
    }
    ISA(fold_sum)(wq, r.wq);
    ISA(fold_sum)(ee, r.ee);
    for (int g = 0; g < b->n; g++) {
        double *sums = job->sums + 4 * b->row[g], three[3] = {0.0, r.wq[g], r.ee[g]};
        if (wide)
            ISA(wide_sums)(b->w[g], ISA(codes_at)(job, b->row[g], b->group[g]), b->length, bits, r.scale[g], r.zero[g], minimum,
                           three);
        sums[1] += three[1];
        sums[2] += three[2];
    }
}

/* Walk over the groups [first, first + count) of every row, sixteen at a time; lanes fill across rows. */
INLINE void ISA(walk)(const quantize_job *job, int64_t start, int64_t stop, int64_t first, int64_t count, int length,
                      const float *gain) {
    float tile[BATCH * MAX_GROUP] __attribute__((aligned(64)));
    const int item = job->kind == KIND_FLOAT32 ? 4 : 2;
    const int direct = job->kind == KIND_FLOAT32 && length % BATCH == 0 && ((uintptr_t)job->weight & 3) == 0;
    ISA(batch) b = {.n = 0, .length = length};
    for (int64_t row = start; row < stop; row++)
        for (int64_t group = first; group < first + count; group++) {
            const uint8_t *from = job->weight + (row * job->columns + group * job->group_size) * item;
            b.row[b.n] = row;
            b.group[b.n] = group;
            b.w[b.n] = tile + b.n * MAX_GROUP;
            if (direct) b.w[b.n] = (const float *)from;
            else ISA(widen)(from, job->kind, length, tile + b.n * MAX_GROUP);
            b.n++;
            if (b.n < BATCH && !(row == stop - 1 && group == first + count - 1)) continue;
            if (gain) ISA(rescale_batch)(&b, job, gain, start);
            else ISA(quantize_batch)(&b, job);
            b.n = 0;
        }
}

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
