/* Few tokens as floats. Part of product_few.h.
 *
 * Codes stay where they are in their word: masked out, code j is the integer c 2^(bits j), exact as a float, and the inputs
 * are laid out to match and divided by 2^(bits j). Only the codes at the top are shifted down, because a word's highest bit
 * is its sign. Of grid levels, each of the two bits selects the inputs that count. Inputs below 2^-98 lose bits. */

enum { ISA(LOCALITY) = 3 };

INLINE int64_t ISA(few_x_size)(const ISA(few_layout) *l) { return l->n_steps * l->columns * l->tokens; }

/* Rows that are multiplied with n tokens at a time: as many as have room for their sums. */
INLINE int ISA(few_at_once)(const int n) { return LANES < 16 ? (n == 1 ? 2 : FEW_ROWS / n) : n == 4 ? 2 : FEW_ROWS; }

static void ISA(few_order)(const float_product *job) {
    const dequantize_job *w = &job->weight;
    const ISA(few_layout) l = ISA(few_inputs)(job);
    const int per_word = 32 / w->bits;
    memset(l.x, 0, (size_t)ISA(few_x_size)(&l) * 4);
    memset(l.sums, 0, (size_t)(l.n_groups * l.tokens) * 4);
    for (int64_t t = 0; t < job->tokens; t++) {
        const float *x = job->x + t * w->columns;
        for (int64_t word = 0; word * per_word < w->columns; word++) {
            const int64_t column = word * per_word;
            const int n = w->columns - column < per_word ? (int)(w->columns - column) : per_word;
            float *to = l.x + (word / LANES * l.tokens + t) * l.columns + word % LANES, sum = 0.0f;
            for (int j = 0; j < n; j++) {
                const int in_place = !w->levels && j < per_word - 1;
                to[j * LANES] = x[column + j] * bits_float((uint32_t)(127 - in_place * j * w->bits) << 23);
                sum += x[column + j];
            }
            l.sums[t * l.n_groups + column / w->group_size] += sum;
        }
    }
    ISA(few_lanes)(w, &l);
}

/* Code j of every word as a float, times 2^(bits j) but for the last. */
INLINE vf ISA(few_code)(vi word, int j, const int bits) {
    const int last = j == 32 / bits - 1, ones = (1 << bits) - 1;
    const vi code = last ? (word >> (j * bits)) & ones : word & (int32_t)((uint32_t)ones << (j * bits));
    return __builtin_convertvector(code, vf);
}

/* Add sums of a step times their scales: those of lane i are at scale[lane[i]], of the next row `apart` further. */
INLINE void ISA(few_add)(vf part[FEW_ROWS][4], const float *scale, int64_t apart, vi lane, const int m, const int n, vf y[FEW_ROWS][4]) {
    for (int r = 0; r < m; r++) {
        const vf s = ISA(v_look_up)(ISA(v_load)(scale + r * apart), lane);
        for (int t = 0; t < n; t++) y[r][t] = ISA(v_fma)(part[r][t], s, y[r][t]);
    }
}

/* Words of a step of m rows, `stride` bytes apart, and sums to begin with. */
INLINE void ISA(few_words)(const uint8_t *from, int64_t stride, const int m, const int n, vi word[FEW_ROWS], vf part[FEW_ROWS][4]) {
    for (int r = 0; r < m; r++) {
        memcpy(word + r, from + r * stride, sizeof word[r]);
        for (int t = 0; t < n; t++) part[r][t] = (vf){0};
    }
}

/* One step of m rows with n tokens, whose codes are numbers. */
INLINE void ISA(few_numbers)(const uint8_t *from, int64_t stride, const float *x, const float *scale, int64_t apart, vi lane, const int m,
                          const int n, const int bits, vf y[FEW_ROWS][4]) {
    vi word[FEW_ROWS];
    vf part[FEW_ROWS][4];
    ISA(few_words)(from, stride, m, n, word, part);
#pragma GCC unroll 16
    for (int j = 0; j < 32 / bits; j++) {
        vf q[FEW_ROWS];
        for (int r = 0; r < m; r++) q[r] = ISA(few_code)(word[r], j, bits);
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_load)(x + (t * (32 / bits) + j) * LANES);
            for (int r = 0; r < m; r++) part[r][t] = ISA(v_fma)(q[r], a, part[r][t]);
        }
    }
    ISA(few_add)(part, scale, apart, lane, m, n, y);
}

/* The same with the inputs whose code of grid levels has the bit `plane`. */
INLINE void ISA(few_signs)(const uint8_t *from, int64_t stride, const float *x, const float *scale, int64_t apart, vi lane, const int m,
                           const int n, const int plane, vf y[FEW_ROWS][4]) {
    vi word[FEW_ROWS];
    vf part[FEW_ROWS][4];
    ISA(few_words)(from, stride, m, n, word, part);
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++)
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_load)(x + (t * 16 + j) * LANES);
            for (int r = 0; r < m; r++) part[r][t] = ISA(v_add_where)(part[r][t], word[r], (int32_t)(1u << (2 * j + plane)), a);
        }
    ISA(few_add)(part, scale, apart, lane, m, n, y);
}

/* One step of m rows with n tokens. */
INLINE void ISA(few_step)(const ISA(few_layout) *l, int64_t step, const uint8_t *from, int64_t stride, const float *scale, int64_t apart,
                          vi lane, const int m, const int n, const int bits, const int levels, vf y[FEW_ROWS][4]) {
    const float *x = l->x + step * n * l->columns;
    if (levels) {
        ISA(few_signs)(from, stride, x, scale, apart, lane, m, n, 1, y);
        ISA(few_signs)(from, stride, x, scale + apart / 3 * 2, apart, lane, m, n, 0, y);
    } else ISA(few_numbers)(from, stride, x, scale, apart, lane, m, n, bits, y);
}
