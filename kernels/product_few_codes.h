/* Few tokens of codes: stored codes go from the packed bytes through registers into the sums, which then are turned, not the
 * codes. The same integers as in product_codes.h, and the same float32 after them. Eight lanes or more. Part of
 * product_codes.h.
 *
 * A unit is a step of a row, word i in lane i, that holds `parts` segments, or so many steps as one segment has. A byte of a
 * step has the codes of neighbouring columns, so codes of inputs lie in planes of a step's bytes: see ISA(place). */

enum { ISA(ONES) = FEW_TOKENS }; /* after the tokens' codes: 1 for each column, which sums the stored codes */

typedef struct { int steps, parts; } ISA(few_unit);

/* Steps and segments of a unit; 0 steps where lanes of a segment cannot be folded. */
INLINE ISA(few_unit) ISA(unit_of)(int segment, int bits) {
    const int lanes = segment * bits / 32;
    if (lanes % LANES == 0) return (ISA(few_unit)){lanes / LANES, 1};
    if (lanes < 2 || lanes & (lanes - 1) || lanes > LANES) return (ISA(few_unit)){0, 0};
    return (ISA(few_unit)){1, LANES / lanes};
}

/* Bytes of a plane of codes: a step's for few tokens. */
static int ISA(plane_bytes)(const code_product *job) {
    const int is_few = job->inputs->tokens <= FEW_TOKENS && !job->weight.levels;
    return is_few && ISA(unit_of)(job->inputs->segment, job->weight.bits).steps ? STEP_BYTES : 4;
}

/* Lanes of x[0..LANES-1] folded within the segments of each; OUT x[0..parts-1] what each segment of all of them gave. */
INLINE void ISA(fold_parts)(vi x[LANES], const int parts) {
    int n = LANES;
#if LANES == 16
    if (parts == 1) {
        n = 8;
        for (int i = 0; i < 8; i++) x[i] = STEP8(x[2 * i], x[2 * i + 1], ADD);
    }
#endif
    if (parts <= LANES / 8) {
        n /= 2;
        for (int i = 0; i < n; i++) x[i] = STEP4(x[2 * i], x[2 * i + 1], ADD);
    }
    if (parts <= LANES / 4) {
        n /= 2;
        for (int i = 0; i < n; i++) x[i] = STEP2(x[2 * i], x[2 * i + 1], ADD);
    }
    n /= 2;
    for (int i = 0; i < n; i++) x[i] = STEP1(x[2 * i], x[2 * i + 1], ADD);
#define EVEN(a, b) (a)
#define ODD(a, b) (b)
    for (int stage = 1; stage < parts; stage *= 2) {
        vi y[LANES / 2];
        for (int i = 0; i < n / 2; i++) {
            y[i] = STEP1(x[2 * i], x[2 * i + 1], EVEN);
            y[n / 2 + i] = STEP1(x[2 * i], x[2 * i + 1], ODD);
        }
        for (int i = 0; i < n; i++) x[i] = y[i];
    }
#undef EVEN
#undef ODD
}

/* Where LANES rows from `first` on lie; rows beyond the last repeat it. */
INLINE void ISA(few_starts)(const dequantize_job *w, int64_t first, const uint8_t *to[LANES]) {
    for (int r = 0; r < LANES; r++) to[r] = w->packed + row_or_last(w, first + r) * w->packed_stride;
}

/* Lanes of the products of one step of LANES rows with n tokens and with ones; `again` adds to what is there. */
INLINE void ISA(few_products)(const uint8_t *const from[LANES], int64_t at, int64_t left, const int8_t *q, int64_t apart, const int n,
                              const int bits, int again, vi to[FEW_TOKENS + 1][LANES]) {
    const int per = 8 / bits;
    vi x[FEW_TOKENS + 1][4];
#pragma GCC unroll 5
    for (int t = 0; t <= n; t++)
#pragma GCC unroll 4
        for (int shift = 0; shift < per; shift++) memcpy(&x[t][shift], q + (t < n ? t : ISA(ONES)) * apart + shift * STEP_BYTES, sizeof x[t][shift]);
    for (int r = 0; r < LANES; r++) {
        vi word = (vi){0};
        if (left >= STEP_BYTES) memcpy(&word, from[r] + at, sizeof word);
        else memcpy(&word, from[r] + at, (size_t)left);
        __builtin_prefetch(from[LANES - 1] + (from[LANES - 1] - from[LANES - 2]) * (r + 1) + at, 0, 2);
        vi acc[FEW_TOKENS + 1];
#pragma GCC unroll 5
        for (int t = 0; t <= n; t++) acc[t] = again ? to[t][r] : (vi){0};
#pragma GCC unroll 4
        for (int shift = 0; shift < per; shift++) {
            const vi codes = bits == 8 ? word : (word >> (shift * bits)) & (bits == 4 ? 0x0F0F0F0F : 0x03030303);
#pragma GCC unroll 5
            for (int t = 0; t <= n; t++) acc[t] = ISA(v_dot4)(acc[t], codes, x[t][shift], bits);
        }
#pragma GCC unroll 5
        for (int t = 0; t <= n; t++) to[t][r] = acc[t];
    }
}

/* n tokens with LANES rows from `first` on, whose scales and minima are given per segment. */
INLINE void ISA(few_tile)(const code_product *job, int64_t first, const float *scale, const float *minimum, const int n, const int bits,
                          const int parts, vf y[FEW_TOKENS]) {
    const input_codes *in = job->inputs;
    const int steps = ISA(unit_of)(in->segment, bits).steps;
    const int64_t stride = job->weight.packed_stride, apart = in->words * 4;
    const uint8_t *from[LANES];
    vi sums[FEW_TOKENS + 1][LANES];
    ISA(few_starts)(&job->weight, first, from);
    for (int64_t segment = 0, at = 0; segment < in->n_segments; segment += parts) {
        for (int step = 0; step < steps && at < stride; step++, at += STEP_BYTES)
            ISA(few_products)(from, at, stride - at, (const int8_t *)in->codes + at * (8 / bits), apart, n, bits, step, sums);
#pragma GCC unroll 5
        for (int t = 0; t <= n; t++) ISA(fold_parts)(sums[t], parts);
        for (int i = 0; i < parts && segment + i < in->n_segments; i++) {
            const float *a = in->scales + (segment + i) * SLOTS, *total = in->sums + (segment + i) * SLOTS;
            const int32_t *offset = in->offsets + (segment + i) * SLOTS;
            const vf s = ISA(v_load)(scale + (segment + i) * LANES), m = ISA(v_load)(minimum + (segment + i) * LANES);
#pragma GCC unroll 4
            for (int t = 0; t < n; t++) {
                const vi sum = sums[n][i] * (offset[t] - (vi){0}) + sums[t][i];
                y[t] += (__builtin_convertvector(sum, vf) * s) * ISA(v_splat)(a[t]);
                y[t] += m * ISA(v_splat)(total[t]);
            }
        }
    }
}

/* One copy for each number of tokens, width, and number of segments in a step. */
INLINE void ISA(few_of_parts)(const code_product *job, int64_t first, const float *scale, const float *minimum, const int n, const int bits,
                              vf y[FEW_TOKENS]) {
    const int parts = ISA(unit_of)(job->inputs->segment, bits).parts;
    if (parts == 1) ISA(few_tile)(job, first, scale, minimum, n, bits, 1, y);
    else if (parts == 2) ISA(few_tile)(job, first, scale, minimum, n, bits, 2, y);
    else if (parts == 4) ISA(few_tile)(job, first, scale, minimum, n, bits, 4, y);
#if LANES == 16
    else ISA(few_tile)(job, first, scale, minimum, n, bits, 8, y);
#endif
}

static __attribute__((noinline)) void ISA(few_tokens)(const code_product *job, int64_t first, const float *scale, const float *minimum) {
    const int64_t n_rows = job->weight.rows, tokens = job->inputs->tokens;
    const size_t row_nbytes = (size_t)(n_rows - first < LANES ? n_rows - first : LANES) * 4;
    vf start = (vf){0}, y[FEW_TOKENS];
    if (job->bias) memcpy(&start, job->bias + first, row_nbytes);
    for (int t = 0; t < FEW_TOKENS; t++) y[t] = start;
#define TOKENS(bits)                                                                             \
    if (tokens == 1) ISA(few_of_parts)(job, first, scale, minimum, 1, bits, y);                  \
    else if (tokens == 2) ISA(few_of_parts)(job, first, scale, minimum, 2, bits, y);             \
    else ISA(few_of_parts)(job, first, scale, minimum, 4, bits, y);
    if (job->weight.bits == 2) { TOKENS(2) }
    else if (job->weight.bits == 4) { TOKENS(4) }
    else { TOKENS(8) }
#undef TOKENS
    for (int64_t t = 0; t < tokens; t++) memcpy(job->out + t * n_rows + first, y + t, row_nbytes);
}
