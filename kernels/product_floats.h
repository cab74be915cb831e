/* Product of float inputs: a panel of rows is decoded to floats, then multiplied with every token. Part of the template
 * product_rows.h. Sums are float32 in an order of their own per instruction set. */

#define TILE_ROWS 4
#define TILE_TOKENS (LANES / TILE_ROWS) /* a tile of LANES sums, which one fold turns into one vector */

/* Columns of a row up to a multiple of LANES, zeros at the end. */
INLINE int64_t ISA(padded)(int64_t columns) { return (columns + LANES - 1) / LANES * LANES; }

INLINE void ISA(decode_float_row)(const dequantize_job *job, int64_t row, float *to) {
    dequantize_job one = *job;
    one.packed += row * job->packed_stride;
    one.scales += row * (job->k_bits ? job->k_stride : job->n_groups * (job->wide ? 4 : 2) * (1 + job->levels));
    one.zeros += row * (job->k_bits ? job->k_stride : job->minimum ? job->n_groups * (job->wide ? 4 : 2) : job->zeros_stride);
    one.out = (uint8_t *)to;
    if (job->levels) ISA(decode_rows)(&one, 0, 1, 2, ISA(LEVELS), KIND_FLOAT32);
#define BITS(n)                                                                                           \
    else if (job->bits == n && job->minimum) ISA(decode_rows)(&one, 0, 1, n, ISA(MINIMUM), KIND_FLOAT32); \
    else if (job->bits == n) ISA(decode_rows)(&one, 0, 1, n, ISA(ZERO_POINT), KIND_FLOAT32);
    BITS(2)
    BITS(4)
    BITS(8)
#undef BITS
    for (int64_t k = job->columns; k < ISA(padded)(job->columns); k++) to[k] = 0.0f;
}

/* Sums of TILE_ROWS rows with n tokens over `depth` columns, added to sums[token][row]. */
INLINE void ISA(float_tile)(const float *w, int64_t w_stride, const float *x, int64_t x_stride, const int n, int64_t depth,
                            float sums[TILE_TOKENS][TILE_ROWS]) {
    vf acc[LANES];
    for (int i = 0; i < LANES; i++) acc[i] = (vf){0};
    for (int64_t k = 0; k < depth; k += LANES) {
        vf row[TILE_ROWS];
        for (int r = 0; r < TILE_ROWS; r++) row[r] = ISA(v_load)(w + r * w_stride + k);
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_load)(x + t * x_stride + k);
            for (int r = 0; r < TILE_ROWS; r++) acc[t * TILE_ROWS + r] = ISA(v_fma)(row[r], a, acc[t * TILE_ROWS + r]);
        }
    }
    float folded[LANES];
    ISA(v_store)(folded, FOLD_TREE(acc, ADD));
    for (int t = 0; t < n; t++)
        for (int r = 0; r < TILE_ROWS; r++) sums[t][r] += folded[t * TILE_ROWS + r];
}

static __attribute__((noinline)) void ISA(float_tiles)(const float *panel, int64_t w_stride, const float *x, int64_t x_stride,
                                                       int64_t tokens, int64_t depth, float *sums) {
    for (int64_t t = 0; t < tokens; t += TILE_TOKENS)
        for (int r = 0; r < PANEL_ROWS; r += TILE_ROWS) {
            const float *w = panel + r * w_stride, *a = x + t * x_stride;
            float tile[TILE_TOKENS][TILE_ROWS];
            const int n = tokens - t < TILE_TOKENS ? (int)(tokens - t) : TILE_TOKENS;
            for (int i = 0; i < n; i++) memcpy(tile[i], sums + (t + i) * PANEL_ROWS + r, sizeof tile[i]);
            if (n == TILE_TOKENS) ISA(float_tile)(w, w_stride, a, x_stride, TILE_TOKENS, depth, tile);
#if LANES == 16
            else if (n == 3) ISA(float_tile)(w, w_stride, a, x_stride, 3, depth, tile);
            else if (n == 2) ISA(float_tile)(w, w_stride, a, x_stride, 2, depth, tile);
#endif
            else ISA(float_tile)(w, w_stride, a, x_stride, 1, depth, tile);
            for (int i = 0; i < n; i++) memcpy(sums + (t + i) * PANEL_ROWS + r, tile[i], sizeof tile[i]);
        }
}

/* Columns of `ordered` that the job wants, 0 where a panel is decoded. */
static int64_t ISA(few_width)(const float_product *job) {
#if LANES == 16
    if (job->tokens <= FEW_TOKENS && ISA(few_fits)(&job->weight)) return ISA(few_columns)(&job->weight);
#endif
    (void)job;
    return 0;
}

static void ISA(order_inputs)(const float_product *job) {
#if LANES == 16
    const int64_t width = ISA(few_columns)(&job->weight);
    for (int64_t t = 0; t < job->tokens; t++)
        ISA(order_token)(&job->weight, job->x + t * job->weight.columns, job->ordered + t * width);
#endif
    (void)job;
}

/* Bytes of scratch that a thread needs. */
static int64_t ISA(float_scratch)(const float_product *job) {
    if (ISA(few_width)(job)) return 0;
    return 4 * (PANEL_ROWS * ISA(padded)(job->weight.columns) + PANEL_ROWS * job->tokens) + 64;
}

/* Rows [panel, panel + 1) * PANEL_ROWS of W. */
static void ISA(float_panel)(const float_product *job, int64_t panel, float *scratch) {
#if LANES == 16
    if (job->ordered) {
        ISA(few)(job, panel);
        return;
    }
#endif
    const int64_t first = panel * PANEL_ROWS, columns = job->weight.columns, stride = ISA(padded)(columns);
    const int rows = job->weight.rows - first < PANEL_ROWS ? (int)(job->weight.rows - first) : PANEL_ROWS;
    float *sums = scratch + PANEL_ROWS * stride;
    for (int r = 0; r < PANEL_ROWS; r++) {
        if (r < rows) ISA(decode_float_row)(&job->weight, first + r, scratch + r * stride);
        else memset(scratch + r * stride, 0, (size_t)stride * 4);
    }
    memset(sums, 0, (size_t)(job->tokens * PANEL_ROWS * 4));
    for (int64_t k = 0; k < columns; k += DEPTH) {
        const int64_t depth = columns - k < DEPTH ? columns - k : DEPTH, whole = depth / LANES * LANES;
        ISA(float_tiles)(scratch + k, stride, job->x + k, columns, job->tokens, whole, sums);
        if (whole < depth) /* the end of a row of x: no whole vector can be read there */
            for (int64_t t = 0; t < job->tokens; t++)
                for (int r = 0; r < PANEL_ROWS; r++)
                    for (int64_t i = k + whole; i < columns; i++)
                        sums[t * PANEL_ROWS + r] += scratch[r * stride + i] * job->x[t * columns + i];
    }
    for (int64_t t = 0; t < job->tokens; t++)
        for (int r = 0; r < rows; r++)
            job->out[t * job->weight.rows + first + r] = sums[t * PANEL_ROWS + r] + (job->bias ? job->bias[first + r] : 0.0f);
}

#undef TILE_ROWS
#undef TILE_TOKENS
