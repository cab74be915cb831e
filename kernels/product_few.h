/* Product of few float tokens: codes go from the packed bytes through registers straight into the sums, so that the weight
 * is read once and nothing is written. Eight lanes or more. Part of the template product_rows.h.
 *
 * A step takes STEP_BYTES of a row, word i in lane i. Codes stay where they are in their word: masked out, code j is the
 * integer c 2^(bits j), exact as a float, and the inputs are laid out to match and divided by 2^(bits j). Only the codes at
 * the top are shifted down, because a word's highest bit is its sign. Of grid levels, each of the two bits selects the
 * inputs that count. Sums of a step are multiplied with the scales of their groups, which a lane never crosses, and minima
 * with the sums of the inputs of each group. Inputs below 2^-98 lose bits. */

#define FEW_ROWS 4 /* rows at a time; as many of them as the registers have room for share what is loaded of the inputs */
#define STEP_BYTES (4 * LANES)

/* How `ordered` is laid out: for each step the inputs of every token, for each token sums of groups, for each step where
 * its scales are: the first group, and how many groups further each lane is. */
typedef struct {
    int64_t n_steps, n_groups; /* groups: up to a multiple of STEP, and as many again that no step needs */
    int columns, tokens;       /* of a step; 1, 2 or 4, made up with zeros */
    float *x, *sums;
    int32_t *lanes, *start;
} ISA(few_layout);

INLINE ISA(few_layout) ISA(few_inputs)(const float_product *job) {
    const dequantize_job *w = &job->weight;
    ISA(few_layout) l;
    l.columns = LANES * 32 / w->bits;
    l.tokens = job->tokens == 3 ? 4 : (int)job->tokens;
    l.n_steps = (w->columns + l.columns - 1) / l.columns;
    l.n_groups = (w->n_groups + STEP - 1) / STEP * STEP + STEP;
    l.x = job->ordered;
    l.sums = l.x + l.n_steps * l.columns * l.tokens;
    l.lanes = (int32_t *)(l.sums + l.n_groups * l.tokens);
    l.start = l.lanes + l.n_steps * LANES;
    return l;
}

static int64_t ISA(few_ordered)(const float_product *job) {
    const ISA(few_layout) l = ISA(few_inputs)(job);
    return (l.n_steps * l.columns + l.n_groups) * l.tokens + l.n_steps * (LANES + 1);
}

static void ISA(few_order)(const float_product *job) {
    const dequantize_job *w = &job->weight;
    const ISA(few_layout) l = ISA(few_inputs)(job);
    const int per_word = 32 / w->bits;
    memset(l.x, 0, (size_t)((l.n_steps * l.columns + l.n_groups) * l.tokens) * 4);
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
    for (int64_t step = 0; step < l.n_steps; step++) {
        l.start[step] = (int32_t)(step * l.columns / w->group_size);
        for (int i = 0; i < LANES; i++)
            l.lanes[step * LANES + i] = (int32_t)((step * l.columns + i * per_word) / w->group_size) - l.start[step];
    }
}

static int64_t ISA(few_scratch)(const float_product *job) { return FEW_ROWS * 3 * ISA(few_inputs)(job).n_groups * 4 + 64; }

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

/* One step of m rows with n tokens. */
INLINE void ISA(few_step)(const uint8_t *from, int64_t stride, const float *x, const float *scale, int64_t apart, vi lane, const int m,
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

/* Scales and minima of FEW_ROWS rows from `first` on, minima as what a group's sum of inputs is multiplied with. */
INLINE void ISA(few_grid)(const dequantize_job *w, int64_t first, int64_t n_groups, const int bits, const int grid, float *to) {
    ISA(grid_values) v;
    memset(&v, 0, sizeof v);
    for (int r = 0; r < FEW_ROWS; r++, to += 3 * n_groups)
        for (int64_t group = 0; group < w->n_groups; group += STEP) {
            const int n = w->n_groups - group < STEP ? (int)(w->n_groups - group) : STEP;
            ISA(load_grid)(w, first + r < w->rows ? first + r : w->rows - 1, group, n, bits, grid, &v);
            EACH_PIECE {
                vf s = ISA(v_load)(v.scale + p * LANES), m = ISA(v_load)(v.zero + p * LANES);
                float *place = to + group + p * LANES;
                if (grid == ISA(LEVELS)) { /* (mu - a1 - a2) + 2 a1 b1 + 2 a2 b0 */
                    const vf minor = ISA(v_load)(v.minor + p * LANES);
                    m = (m - s) - minor;
                    s = 2.0f * s;
                    ISA(v_store)(place + 2 * n_groups, 2.0f * minor);
                }
                if (grid == ISA(ZERO_POINT)) m = -(m * s);
                ISA(v_store)(place, s);
                ISA(v_store)(place + n_groups, m);
            }
            for (int i = n; i < STEP; i++) to[n_groups + group + i] = 0.0f;
        }
}

static __attribute__((noinline)) void ISA(few_grids)(const dequantize_job *w, int64_t first, int64_t n_groups, float *to) {
#define BITS(n)                                                            \
    if (w->minimum) ISA(few_grid)(w, first, n_groups, n, ISA(MINIMUM), to); \
    else ISA(few_grid)(w, first, n_groups, n, ISA(ZERO_POINT), to);
    if (w->levels) ISA(few_grid)(w, first, n_groups, 2, ISA(LEVELS), to);
    else if (w->bits == 2) BITS(2)
    else if (w->bits == 4) BITS(4)
    else BITS(8)
#undef BITS
}

/* Rows that the thread at `first` will probably take next; the last ones where there are no more. */
INLINE int64_t ISA(few_next)(const float_product *job, int64_t first) {
    const int64_t within = first + FEW_ROWS, last = job->weight.rows - FEW_ROWS;
    const int64_t next = within % PANEL_ROWS ? within : within + (job->n_threads - 1) * PANEL_ROWS;
    return next <= last ? next : last > 0 ? last : 0;
}

/* Ask for scales and minima of FEW_ROWS rows: nothing else tells the processor that they will be read. */
INLINE void ISA(few_ask)(const dequantize_job *w, int64_t first) {
    const int64_t floats = w->n_groups * (w->wide ? 4 : 2);
    const int64_t scales = w->k_bits ? w->k_stride : floats * (1 + w->levels);
    const int64_t zeros = w->k_bits ? w->k_stride : w->minimum ? floats : w->zeros_stride;
    for (int64_t i = 0; i < FEW_ROWS * scales; i += 64) __builtin_prefetch(w->scales + first * scales + i);
    for (int64_t i = 0; i < FEW_ROWS * zeros; i += 64) __builtin_prefetch(w->zeros + first * zeros + i);
}

/* FEW_ROWS rows from `first` on with n tokens: their sums, row after row. Asks for the codes of those from `next` on. */
INLINE void ISA(few_rows)(const dequantize_job *w, const ISA(few_layout) *l, int64_t first, int64_t next, const int n, const int bits,
                          const int levels, const float *grids, vf y[FEW_ROWS][4]) {
    const int64_t stride = w->packed_stride, n_groups = l->n_groups;
    const int m = LANES < 16 ? (n == 1 ? 2 : FEW_ROWS / n) : n == 4 ? 2 : FEW_ROWS; /* rows whose sums fit the registers */
    /* Rows that are all there are read in place, but for their last bytes, which may be the last of the buffer. */
    const int64_t whole = first + FEW_ROWS <= w->rows ? stride / STEP_BYTES : 0;
    for (int r = 0; r < FEW_ROWS; r++)
        for (int64_t group = 0; group < w->n_groups; group += LANES)
            for (int t = 0; t < n; t++)
                y[r][t] = ISA(v_fma)(ISA(v_load)(grids + (3 * r + 1) * n_groups + group), ISA(v_load)(l->sums + t * n_groups + group), y[r][t]);
    for (int64_t step = 0; step < l->n_steps; step++) {
        uint8_t copy[FEW_ROWS * STEP_BYTES];
        const uint8_t *from = w->packed + first * stride + STEP_BYTES * step;
        int64_t between = stride;
        if (step < whole)
            for (int r = 0; r < FEW_ROWS; r++) __builtin_prefetch(from + (next - first + r) * stride);
        else {
            memset(copy, 0, sizeof copy);
            for (int r = 0; r < FEW_ROWS; r++) {
                const int64_t row = first + r < w->rows ? first + r : w->rows - 1, left = stride - STEP_BYTES * step;
                const int64_t n_bytes = left < STEP_BYTES ? left : STEP_BYTES;
                memcpy(copy + STEP_BYTES * r, w->packed + row * stride + STEP_BYTES * step, (size_t)n_bytes);
            }
            from = copy;
            between = STEP_BYTES;
        }
        vi lane;
        memcpy(&lane, l->lanes + step * LANES, sizeof lane);
        const float *x = l->x + step * n * l->columns, *scales = grids + l->start[step];
        for (int r = 0; r < FEW_ROWS; r += m) {
            const uint8_t *rows = from + r * between;
            const float *scale = scales + 3 * r * n_groups;
            if (levels) {
                ISA(few_signs)(rows, between, x, scale, 3 * n_groups, lane, m, n, 1, y + r);
                ISA(few_signs)(rows, between, x, scale + 2 * n_groups, 3 * n_groups, lane, m, n, 0, y + r);
            } else ISA(few_step)(rows, between, x, scale, 3 * n_groups, lane, m, n, bits, y + r);
        }
    }
}

INLINE void ISA(few_panel)(const float_product *job, int64_t panel, const int n, const int bits, const int levels, float *scratch) {
    const dequantize_job *w = &job->weight;
    const ISA(few_layout) l = ISA(few_inputs)(job);
    for (int64_t first = panel * PANEL_ROWS; first < (panel + 1) * PANEL_ROWS && first < w->rows; first += FEW_ROWS) {
        vf y[FEW_ROWS][4], all[4 * FEW_ROWS];
        float folded[4 * FEW_ROWS];
        const int64_t next = ISA(few_next)(job, first);
        for (int i = 0; i < 4 * FEW_ROWS; i++) y[i / 4][i % 4] = (vf){0};
        ISA(few_ask)(w, next);
        ISA(few_grids)(w, first, l.n_groups, scratch);
        ISA(few_rows)(w, &l, first, next, n, bits, levels, scratch, y);
        for (int i = 0; i < 4 * FEW_ROWS; i++) all[i] = y[i / 4][i % 4];
        for (vf *four = all; four < all + 4 * FEW_ROWS; four += LANES) ISA(v_store)(folded + (four - all), FOLD_TREE(four, ADD));
        for (int64_t row = first; row < first + FEW_ROWS && row < w->rows; row++)
            for (int64_t t = 0; t < job->tokens; t++)
                job->out[t * w->rows + row] = folded[(row - first) * 4 + t] + (job->bias ? job->bias[row] : 0.0f);
    }
}

/* One copy for each number of tokens and width. */
static __attribute__((noinline)) void ISA(few)(const float_product *job, int64_t panel, float *scratch) {
    const dequantize_job *w = &job->weight;
#define TOKENS(bits, levels)                                                                \
    if (job->tokens == 1) ISA(few_panel)(job, panel, 1, bits, levels, scratch);             \
    else if (job->tokens == 2) ISA(few_panel)(job, panel, 2, bits, levels, scratch);        \
    else ISA(few_panel)(job, panel, 4, bits, levels, scratch);
    if (w->levels) { TOKENS(2, 1) }
    else if (w->bits == 2) { TOKENS(2, 0) }
    else if (w->bits == 4) { TOKENS(4, 0) }
    else { TOKENS(8, 0) }
#undef TOKENS
}

#undef FEW_ROWS
#undef STEP_BYTES
