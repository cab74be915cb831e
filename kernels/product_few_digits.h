/* A single token in integers, for processors that multiply bytes. Part of product_few.h.
 *
 * Inputs of a group are counted in a unit, the power of two at which the largest has 22 bits: as exact as sums of float32
 * with the largest among them are. A count has DIGITS signed bytes, so that four codes at a time are multiplied with four
 * bytes, and the sums of a word's codes, below 2^29, are put together from those of the digits. Scales are multiplied with
 * the unit when they are decoded. A group with an input that is no number, or infinite, has no unit and spoils the token. */

enum { DIGITS = 3, ISA(HAS_UNITS) = 1 };
enum { COUNT_BITS = 21 }; /* a count is below 2^(COUNT_BITS + 1) */

/* Floats of digits, and of the inputs in units before that. */
INLINE int64_t ISA(few_digits_size)(const ISA(few_layout) *l) { return l->n_steps * l->columns * DIGITS / 4; }
INLINE int64_t ISA(few_x_size)(const ISA(few_layout) *l) { return ISA(few_digits_size)(l) + l->n_steps * l->columns + MAX_GROUP; }
INLINE const void *ISA(few_at)(const ISA(few_layout) *l, int64_t step, const int n) {
    (void)n;
    return (const uint8_t *)l->x + step * l->columns * DIGITS;
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
    float *x = l.x + ISA(few_digits_size)(&l);
    memset(l.units, 0, (size_t)l.n_groups * 4);
    memset(l.sums, 0, (size_t)l.n_groups * 4);
    memcpy(x, job->x, (size_t)w->columns * 4);
    memset(x + w->columns, 0, (size_t)(l.n_steps * l.columns + MAX_GROUP - w->columns) * 4);
    for (int64_t group = 0; group < w->n_groups; group++)
        ISA(few_count)(x + group * w->group_size, w->group_size, l.units + group, l.sums + group);
    for (int64_t step = 0; step < l.n_steps; step++)
        for (int shift = 0; shift < per; shift++)
            for (int piece = 0; piece < 4; piece++)
                ISA(few_split)(x + step * l.columns + piece * LANES * per + shift, per,
                               (uint8_t *)l.x + ((step * DIGITS * per + shift) * 4 + piece) * LANES, per * 4 * LANES);
    ISA(few_lanes)(w, &l);
}

/* One step of FEW_ROWS rows. */
INLINE void ISA(few_step)(const uint8_t *from, int64_t stride, const void *x, const float *scale, int64_t apart, vi lane, const int m,
                          const int n, const int bits, const int levels, vf y[FEW_ROWS][4]) {
    const int per = 8 / bits;
    const uint8_t *digits = x;
    vi word[FEW_ROWS], sums[FEW_ROWS][DIGITS];
    (void)m, (void)n, (void)levels;
#pragma GCC unroll 4
    for (int r = 0; r < FEW_ROWS; r++) {
        memcpy(word + r, from + r * stride, sizeof word[r]);
        for (int p = 0; p < DIGITS; p++) sums[r][p] = (vi){0};
    }
#pragma GCC unroll 4
    for (int shift = 0; shift < per; shift++) {
        vi codes[FEW_ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < FEW_ROWS; r++) codes[r] = (word[r] >> (shift * bits)) & (bits == 4 ? 0x0F0F0F0F : 0x03030303);
#pragma GCC unroll 3
        for (int p = 0; p < DIGITS; p++) {
            vi digit;
            memcpy(&digit, digits + (p * per + shift) * sizeof digit, sizeof digit);
#pragma GCC unroll 4
            for (int r = 0; r < FEW_ROWS; r++) sums[r][p] = ISA(v_dot4)(sums[r][p], codes[r], digit, bits);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < FEW_ROWS; r++) {
        const vi counts = sums[r][0] + (sums[r][1] << 8) + (sums[r][2] << 16);
        const vf s = ISA(v_look_up)(ISA(v_load)(scale + r * apart), lane);
        y[r][0] = ISA(v_fma)(__builtin_convertvector(counts, vf), s, y[r][0]);
    }
}
