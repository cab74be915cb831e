/* Product of float inputs: rows lie in lanes. A panel of rows is decoded DEPTH columns at a time, column by column, and every
 * token is multiplied with that before the next columns are decoded, so that weights stay in the nearest caches. Part of the
 * template product_rows.h. Sums are float32: column after column within DEPTH, then block after block. */

#if LANES == 16 || defined(__aarch64__)
#define TILE_TOKENS 12 /* with two vectors of rows: as many sums as there are registers for */
#else
#define TILE_TOKENS 6
#endif
#define TILE_ROWS (2 * LANES)
#define TILE_STEP (TILE_TOKENS / 3) /* tokens are made up to a multiple with zeros */

INLINE int64_t ISA(whole_tokens)(int64_t tokens) { return (tokens + TILE_STEP - 1) / TILE_STEP * TILE_STEP; }
INLINE int64_t ISA(n_depths)(const dequantize_job *w) { return (w->columns + DEPTH - 1) / DEPTH; }

/* Inputs of columns [part, part + 1) * DEPTH side by side, token after token. */
INLINE void ISA(pack_inputs)(const float_product *job, int64_t part) {
    const int64_t k = part * DEPTH, columns = job->weight.columns, whole = ISA(whole_tokens)(job->tokens);
    const int64_t depth = columns - k < DEPTH ? columns - k : DEPTH;
    float *to = job->ordered + k * whole;
    for (int64_t t = 0; t < job->tokens; t++) memcpy(to + t * DEPTH, job->x + t * columns + k, (size_t)depth * 4);
    memset(to + job->tokens * DEPTH, 0, (size_t)((whole - job->tokens) * DEPTH * 4));
}

/* Columns [k, k + DEPTH) of LANES rows from `first` on, or what there is of them: to[column][row]. */
INLINE void ISA(decode_columns)(const dequantize_job *w, int64_t first, int64_t k, const int bits, const int grid,
                                const float *parameters, float *to) {
    const int per_word = 32 / bits;
    const int64_t end = k + DEPTH < w->columns ? k + DEPTH : w->columns;
    int64_t group = k / w->group_size, next = (group + 1) * w->group_size;
    for (int64_t column = k; column < end; column += LANES * per_word) {
        vi word[LANES];
        ISA(turn_words)(w, first, column / per_word, word);
        for (int i = 0; i < LANES && column + i * per_word < end; i++) {
            if (column + i * per_word == next) {
                group++;
                next += w->group_size;
            }
            const float *p = parameters + group * 3 * PANEL_ROWS;
            const vf s = ISA(v_load)(p), m = ISA(v_load)(p + PANEL_ROWS);
            const ISA(planes) planes = {s, grid == ISA(LEVELS) ? ISA(v_load)(p + 2 * PANEL_ROWS) : s, m};
            for (int j = 0; j < per_word; j++, to += PANEL_ROWS) {
                const vi code = (word[i] >> (j * bits)) & ((1 << bits) - 1);
                const vf c = __builtin_convertvector(code, vf);
                ISA(v_store)(to, grid == ISA(LEVELS) ? ISA(level_of)(code, planes) : grid == ISA(MINIMUM) ? ISA(v_fma)(c, s, m) : (c - m) * s);
            }
        }
    }
}

/* Parameters of LANES rows from `first` on: to[group][scale, zero, minor][row]. */
INLINE void ISA(decode_parameters)(const dequantize_job *w, int64_t first, const int bits, const int grid, float *to) {
    ISA(turned_grid) v;
    for (int64_t group = 0; group < w->n_groups; group += STEP) {
        const int n = w->n_groups - group < STEP ? (int)(w->n_groups - group) : STEP;
        ISA(turn_grid)(w, first, group, n, bits, grid, &v);
        for (int g = 0; g < n; g++, to += 3 * PANEL_ROWS) {
            ISA(v_store)(to, v.scale[g]);
            ISA(v_store)(to + PANEL_ROWS, v.zero[g]);
            if (grid == ISA(LEVELS)) ISA(v_store)(to + 2 * PANEL_ROWS, v.minor[g]);
        }
    }
}

/* One copy of both for each grid. */
static __attribute__((noinline)) void ISA(decode_lanes)(const dequantize_job *w, int64_t first, int64_t k, float *parameters, float *to) {
#define GRID(bits, grid)                                                       \
    {                                                                          \
        if (k == 0) ISA(decode_parameters)(w, first, bits, grid, parameters);  \
        ISA(decode_columns)(w, first, k, bits, grid, parameters, to);          \
    }
#define BITS(n) if (w->minimum) GRID(n, ISA(MINIMUM)) else GRID(n, ISA(ZERO_POINT))
    if (w->levels) GRID(2, ISA(LEVELS))
    else if (w->bits == 2) BITS(2)
    else if (w->bits == 4) BITS(4)
    else BITS(8)
#undef BITS
#undef GRID
}

/* Sums of TILE_ROWS rows with n tokens over `depth` columns, added to sums[token][row]. */
INLINE void ISA(float_tile)(const float *w, const float *x, const int n, int depth, float *sums) {
    vf acc[TILE_TOKENS][2];
    for (int t = 0; t < n; t++) acc[t][0] = acc[t][1] = (vf){0};
    for (int k = 0; k < depth; k++, w += PANEL_ROWS, x++) {
        const vf first = ISA(v_load)(w), second = ISA(v_load)(w + LANES);
#pragma GCC unroll 12
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_splat)(x[t * DEPTH]);
            acc[t][0] = ISA(v_fma)(first, a, acc[t][0]);
            acc[t][1] = ISA(v_fma)(second, a, acc[t][1]);
        }
    }
    for (int t = 0; t < n; t++, sums += PANEL_ROWS) {
        ISA(v_store)(sums, ISA(v_load)(sums) + acc[t][0]);
        ISA(v_store)(sums + LANES, ISA(v_load)(sums + LANES) + acc[t][1]);
    }
}

static __attribute__((noinline)) void ISA(float_tiles)(const float *w, const float *x, int64_t tokens, int rows, int depth, float *sums) {
    for (int64_t t = 0; t < tokens; t += TILE_TOKENS)
        for (int r = 0; r < rows; r += TILE_ROWS) {
            float *to = sums + t * PANEL_ROWS + r;
            if (tokens - t > 2 * TILE_STEP) ISA(float_tile)(w + r, x + t * DEPTH, TILE_TOKENS, depth, to);
            else if (tokens - t > TILE_STEP) ISA(float_tile)(w + r, x + t * DEPTH, 2 * TILE_STEP, depth, to);
            else ISA(float_tile)(w + r, x + t * DEPTH, TILE_STEP, depth, to);
        }
}

/* Whether few tokens are multiplied straight from the packed bytes: as many as are faster so. */
INLINE int ISA(is_few)(const float_product *job) {
    return LANES >= 8 && job->tokens <= (LANES == 8 && job->weight.levels ? 1 : FEW_TOKENS);
}

/* Floats of `ordered`, and the parts that fill it. */
static int64_t ISA(ordered_size)(const float_product *job) {
#if LANES >= 8
    if (ISA(is_few)(job)) return ISA(few_ordered)(job);
#endif
    return ISA(n_depths)(&job->weight) * DEPTH * ISA(whole_tokens)(job->tokens);
}

static int64_t ISA(ordered_parts)(const float_product *job) { return ISA(is_few)(job) ? 1 : ISA(n_depths)(&job->weight); }

static void ISA(order_inputs)(const float_product *job, int64_t part) {
#if LANES >= 8
    if (ISA(is_few)(job)) {
        ISA(few_order)(job);
        return;
    }
#endif
    ISA(pack_inputs)(job, part);
}

/* Bytes of scratch that a thread needs. */
static int64_t ISA(float_scratch)(const float_product *job) {
#if LANES >= 8
    if (ISA(is_few)(job)) return ISA(few_scratch)(job);
#endif
    return 4 * PANEL_ROWS * (3 * job->weight.n_groups + DEPTH + ISA(whole_tokens)(job->tokens)) + 64;
}

/* Rows [panel, panel + 1) * PANEL_ROWS of W. */
static void ISA(float_panel)(const float_product *job, int64_t panel, float *scratch) {
#if LANES >= 8
    if (ISA(is_few)(job)) {
        ISA(few)(job, panel, scratch);
        return;
    }
#endif
    const dequantize_job *w = &job->weight;
    const int64_t first = panel * PANEL_ROWS, whole = ISA(whole_tokens)(job->tokens);
    const int rows = w->rows - first < PANEL_ROWS ? (int)(w->rows - first) : PANEL_ROWS;
    float *decoded = (float *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63), *sums = decoded + DEPTH * PANEL_ROWS;
    float *parameters = sums + whole * PANEL_ROWS;
    for (int64_t t = 0; t < whole; t++) {
        memset(sums + t * PANEL_ROWS, 0, PANEL_ROWS * 4);
        if (job->bias) memcpy(sums + t * PANEL_ROWS, job->bias + first, (size_t)rows * 4);
    }
    for (int64_t k = 0; k < w->columns; k += DEPTH) {
        const int depth = w->columns - k < DEPTH ? (int)(w->columns - k) : DEPTH;
        for (int r = 0; r < (rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS; r += LANES)
            ISA(decode_lanes)(w, first + r, k, parameters + r, decoded + r);
        ISA(float_tiles)(decoded, job->ordered + k * whole, whole, rows, depth, sums);
    }
    for (int64_t t = 0; t < job->tokens; t++) memcpy(job->out + t * w->rows + first, sums + t * PANEL_ROWS, (size_t)rows * 4);
}

#undef TILE_TOKENS
#undef TILE_ROWS
#undef TILE_STEP
