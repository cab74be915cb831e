/* Few tokens in integers, for processors that multiply bytes. Part of product_few.h.
 *
 * Inputs of a token and group are counted in a unit, the power of two at which the largest has 22 bits: as exact as sums of
 * float32 with the largest among them are. A count has DIGITS signed bytes, so that four codes at a time are multiplied with
 * four bytes, and the sums of a word's codes, below 2^29, are put together from those of the digits. A group with an input
 * that is no number, or infinite, has no unit and spoils the token. */

enum { DIGITS = 3 };
enum { ISA(LOCALITY) = 2 }; /* codes are fetched to the second level: inputs fill the first, and a token took half as long again */
enum { COUNT_BITS = 21 }; /* a count is below 2^(COUNT_BITS + 1) */

/* Floats of digits, of the units per token and group, and of the inputs of a token in units. */
INLINE int64_t ISA(few_digits_size)(const ISA(few_layout) *l) { return l->n_steps * l->columns * DIGITS / 4 * l->tokens; }
INLINE float *ISA(few_units)(const ISA(few_layout) *l) { return l->x + ISA(few_digits_size)(l); }
INLINE int64_t ISA(few_x_size)(const ISA(few_layout) *l) {
    return ISA(few_digits_size)(l) + l->n_groups * l->tokens + l->n_steps * l->columns + MAX_GROUP;
}

/* A group's inputs become counts, still floats; IN and OUT x, OUT its unit and the sum of the inputs. */
INLINE void ISA(few_count)(float *x, int length, float *unit, float *sum) {
    vi most = (vi){0};
    vf total = (vf){0};
    int32_t bits[LANES], largest = 0;
    float parts[LANES];
    for (int k = 0; k < length; k += LANES) {
        const vf v = ISA(v_load)(x + k);
        const vi size = (vi)v & 0x7FFFFFFF; /* as integers, positive floats keep their order */
        most = (vi)ISA(v_select)(size > most, (vf)size, (vf)most);
        total += v;
    }
    memcpy(bits, &most, sizeof bits);
    ISA(v_store)(parts, total);
    *sum = 0.0f;
    for (int i = 0; i < LANES; i++) {
        largest = bits[i] > largest ? bits[i] : largest;
        *sum += parts[i];
    }
    const int32_t exponent = largest >> 23, of_unit = exponent > COUNT_BITS ? exponent - COUNT_BITS : 1;
    *unit = exponent < 255 ? bits_float((uint32_t)of_unit << 23) : bits_float(0x7FC00000u);
    const vf per_unit = ISA(v_splat)(exponent < 255 ? bits_float((uint32_t)(254 - of_unit) << 23) : 0.0f);
    for (int k = 0; k < length; k += LANES) {
        const vf v = ISA(v_load)(x + k);
        ISA(v_store)(x + k, ISA(v_select)((vi)per_unit != 0, ISA(v_nearest)(v * per_unit), per_unit));
    }
}

/* Digits of the LANES counts x[0], x[per], x[2 per] ...: byte p of each at to[p * apart]. */
INLINE void ISA(few_split)(const float *x, const int per, uint8_t *to, int64_t apart) {
    vf counts;
    for (int k = 0; k < LANES; k++) counts[k] = x[k * per];
    vi rest = __builtin_convertvector(counts, vi);
    for (int p = 0; p < DIGITS; p++, to += apart) {
        const vi digit = (rest << 24) >> 24;
        ISA(v_to_bytes)(digit, to);
        rest = (rest - digit) >> 8;
    }
}

static void ISA(few_order)(const float_product *job) {
    const dequantize_job *w = &job->weight;
    const ISA(few_layout) l = ISA(few_inputs)(job);
    const int per = 8 / w->bits;
    float *units = ISA(few_units)(&l), *x = units + l.n_groups * l.tokens;
    memset(l.x, 0, (size_t)ISA(few_x_size)(&l) * 4);
    memset(l.sums, 0, (size_t)(l.n_groups * l.tokens) * 4);
    for (int64_t t = 0; t < job->tokens; t++) {
        memcpy(x, job->x + t * w->columns, (size_t)w->columns * 4);
        for (int64_t group = 0; group < w->n_groups; group++)
            ISA(few_count)(x + group * w->group_size, w->group_size, units + t * l.n_groups + group, l.sums + t * l.n_groups + group);
        for (int64_t step = 0; step < l.n_steps; step++)
            for (int shift = 0; shift < per; shift++)
                for (int piece = 0; piece < 4; piece++)
                    ISA(few_split)(x + step * l.columns + piece * LANES * per + shift, per,
                                   (uint8_t *)l.x + (((step * l.tokens + t) * DIGITS * per + shift) * 4 + piece) * LANES, per * 4 * LANES);
    }
    ISA(few_lanes)(w, &l);
}

/* Rows that are multiplied with n tokens at a time: as many as have room for their sums. */
INLINE int ISA(few_at_once)(const int n) { return FEW_ROWS / n; }

/* Sums of a step's codes of m rows times the counts of n tokens, the high digits first. */
INLINE void ISA(few_counts)(const uint8_t *from, int64_t stride, const uint8_t *digits, const int m, const int n, const int bits,
                            vi sums[FEW_ROWS]) {
    const int per = 8 / bits;
    vi codes[4][FEW_ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
        vi word;
        memcpy(&word, from + r * stride, sizeof word);
#pragma GCC unroll 4
        for (int shift = 0; shift < per; shift++) codes[shift][r] = (word >> (shift * bits)) & (bits == 4 ? 0x0F0F0F0F : 0x03030303);
    }
#pragma GCC unroll 4
    for (int i = 0; i < m * n; i++) sums[i] = (vi){0};
#pragma GCC unroll 3
    for (int p = DIGITS - 1; p >= 0; p--) {
        if (p < DIGITS - 1)
#pragma GCC unroll 4
            for (int i = 0; i < m * n; i++) sums[i] <<= 8;
#pragma GCC unroll 4
        for (int t = 0; t < n; t++)
#pragma GCC unroll 4
            for (int shift = 0; shift < per; shift++) {
                vi digit;
                memcpy(&digit, digits + ((t * DIGITS + p) * per + shift) * sizeof digit, sizeof digit);
#pragma GCC unroll 4
                for (int r = 0; r < m; r++) sums[r * n + t] = ISA(v_dot4)(sums[r * n + t], codes[shift][r], digit, bits);
            }
    }
}

/* One step of m rows with n tokens. */
INLINE void ISA(few_step)(const ISA(few_layout) *l, int64_t step, const uint8_t *from, int64_t stride, const float *scale, int64_t apart,
                          vi lane, const int m, const int n, const int bits, const int levels, vf y[FEW_ROWS][4]) {
    vi sums[FEW_ROWS];
    vf unit[FEW_ROWS];
    (void)levels;
    ISA(few_counts)(from, stride, (const uint8_t *)l->x + step * n * l->columns * DIGITS, m, n, bits, sums);
#pragma GCC unroll 4
    for (int t = 0; t < n; t++)
        unit[t] = ISA(v_look_up)(ISA(v_load)(ISA(few_units)(l) + t * l->n_groups + l->start[step]), lane);
#pragma GCC unroll 4
    for (int r = 0; r < m; r++) {
        const vf s = ISA(v_look_up)(ISA(v_load)(scale + r * apart), lane);
#pragma GCC unroll 4
        for (int t = 0; t < n; t++) y[r][t] = ISA(v_fma)(__builtin_convertvector(sums[r * n + t], vf), s * unit[t], y[r][t]);
    }
}
