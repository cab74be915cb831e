/* Product of few float tokens: codes go from the packed bytes through registers straight into the sums, so that the weight
 * is read once and nothing is written. Sixteen lanes only. Part of the template product_rows.h.
 *
 * A step takes sixteen bytes of a row: 16, 32 or 64 codes, sixteen to a vector. At 8 bits they stand in order; at 2 and 4
 * bits every lane shifts its code down in the 32-bit word i % 4 of the step, code i / 4 + 4 j for lane i of vector j, and
 * one register holds the values of all codes. The inputs are laid out in the same order. */

#define FEW_ROWS 4 /* rows at a time share what is loaded of x */

/* Whether every step lies in one group, or at 2 bits in whole groups. */
INLINE int ISA(few_fits)(const dequantize_job *w) {
    const int step = 128 / w->bits;
    return w->group_size % step == 0 || (w->bits == 2 && step % w->group_size == 0);
}

/* Columns of x as steps see them, zeros at the end. */
INLINE int64_t ISA(few_columns)(const dequantize_job *w) { return (w->columns + 128 / w->bits - 1) / (128 / w->bits) * (128 / w->bits); }

INLINE void ISA(order_token)(const dequantize_job *w, const float *x, float *to) {
    const int per_word = 32 / w->bits, step = 4 * per_word;
    for (int64_t base = 0; base < ISA(few_columns)(w); base += step)
        for (int k = 0; k < step; k++) {
            const int lane = k % 16;
            const int64_t from = base + (w->bits == 8 ? k : lane % 4 * per_word + lane / 4 + 4 * (k / 16));
            to[base + k] = from < w->columns ? x[from] : 0.0f;
        }
}

/* Values of codes: at 4 bits the sixteen of a group, at 2 bits the four of each word of the step. */
INLINE vf ISA(few_values)(const ISA(grid_values) *v, int group, vi within, const int bits, const int grid) {
    vi code;
    for (int i = 0; i < LANES; i++) code[i] = i & ((1 << bits) - 1);
    vf s = ISA(v_splat)(v->scale[group]), m = ISA(v_splat)(v->zero[group]), minor = ISA(v_splat)(v->minor[group]);
    if (bits == 2) {
        s = ISA(v_look_up)(ISA(v_load)(v->scale), within + group);
        m = ISA(v_look_up)(ISA(v_load)(v->zero), within + group);
        minor = ISA(v_look_up)(ISA(v_load)(v->minor), within + group);
    }
    if (grid == ISA(LEVELS)) return ISA(level_of)(code, (ISA(planes)){s, minor, m});
    const vf c = __builtin_convertvector(code, vf);
    return grid == ISA(MINIMUM) ? ISA(v_fma)(c, s, m) : (c - m) * s;
}

/* What a step needs to know of the groups of FEW_ROWS rows: values of codes; at 8 bits scales and minima. */
typedef struct { vf values[FEW_ROWS], minimum[FEW_ROWS]; } ISA(few_group);

INLINE void ISA(few_load)(const ISA(grid_values) *v, int group, vi within, const int bits, const int grid, ISA(few_group) *to) {
    for (int r = 0; r < FEW_ROWS; r++) {
        if (bits < 8) to->values[r] = ISA(few_values)(v + r, group, within, bits, grid);
        else {
            to->values[r] = ISA(v_splat)(v[r].scale[group]);
            to->minimum[r] = ISA(v_splat)(grid == ISA(MINIMUM) ? v[r].zero[group] : -(v[r].zero[group] * v[r].scale[group]));
        }
    }
}

/* One step of FEW_ROWS rows, `stride` bytes apart, with n tokens; sums of row r and token t in acc[4 r + t]. */
INLINE void ISA(few_step)(const uint8_t *from, int64_t stride, const ISA(few_group) *g, const float *x, int64_t x_stride,
                          const int n, const int bits, vf acc[4 * FEW_ROWS]) {
    vi word[FEW_ROWS], shift, low;
    for (int i = 0; i < LANES; i++) {
        shift[i] = i / 4 * bits;
        low[i] = i % 4 * 4;
    }
    for (int r = 0; r < FEW_ROWS; r++)
        word[r] = bits == 8 ? ISA(v_from_bytes)(from + r * stride) : ISA(v_repeat_words)(from + r * stride);
    for (int j = 0; j < 8 / bits; j++) {
        vf q[FEW_ROWS];
        for (int r = 0; r < FEW_ROWS; r++) {
            const vi code = word[r] >> (shift + 4 * bits * j);
            if (bits == 8) q[r] = ISA(v_fma)(__builtin_convertvector(word[r], vf), g->values[r], g->minimum[r]);
            else if (bits == 4) q[r] = ISA(v_look_up)(g->values[r], code);
            else q[r] = ISA(v_look_up)(g->values[r], (code & 3) | low);
        }
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_load)(x + t * x_stride + j * LANES);
            for (int r = 0; r < FEW_ROWS; r++) acc[r * 4 + t] = ISA(v_fma)(q[r], a, acc[r * 4 + t]);
        }
    }
}

/* FEW_ROWS rows from `first_row` on with n tokens; rows beyond the last are the last again. */
INLINE void ISA(few_rows)(const dequantize_job *w, int64_t first_row, const float *x, const int n, const int bits, const int grid,
                          vf acc[4 * FEW_ROWS]) {
    const int step = 128 / bits, per_group = w->group_size >= step ? w->group_size / step : 1; /* steps in a group */
    const int per_step = w->group_size >= step ? 1 : step / w->group_size;                     /* groups in a step */
    const int64_t n_columns = ISA(few_columns)(w), n_steps = n_columns / step, last_row = w->rows - 1;
    /* Rows that are all there are read in place, but for their last bytes, which may be the last of the buffer. */
    const int64_t stride = w->packed_stride, whole = first_row + FEW_ROWS <= w->rows ? stride / 16 : 0;
    const uint8_t *from = w->packed + first_row * stride;
    ISA(grid_values) v[FEW_ROWS];
    ISA(few_group) values;
    memset(v, 0, sizeof v);
    vi within; /* which of the groups of a step the words have */
    for (int i = 0; i < LANES; i++) within[i] = i / 4 * per_step / 4;
    int64_t at = 0;
    for (int64_t first = 0; first < w->n_groups; first += STEP) {
        const int count = w->n_groups - first < STEP ? (int)(w->n_groups - first) : STEP;
        for (int r = 0; r < FEW_ROWS; r++)
            ISA(load_grid)(w, first_row + r < last_row ? first_row + r : last_row, first, count, bits, grid, v + r);
        for (int g = 0; g < count; g += per_step) {
            ISA(few_load)(v, g, within, bits, grid, &values);
            const int64_t end = at + per_group < n_steps ? at + per_group : n_steps;
            for (; at < end && at < whole; at++) ISA(few_step)(from + 16 * at, stride, &values, x + at * step, n_columns, n, bits, acc);
            for (; at < end; at++) {
                uint8_t copy[FEW_ROWS * 16] = {0};
                const int64_t left = stride - 16 * at;
                for (int r = 0; r < FEW_ROWS; r++) {
                    const int64_t row = first_row + r < last_row ? first_row + r : last_row;
                    memcpy(copy + 16 * r, w->packed + row * stride + 16 * at, (size_t)(left < 16 ? left : 16));
                }
                ISA(few_step)(copy, 16, &values, x + at * step, n_columns, n, bits, acc);
            }
        }
    }
}

INLINE void ISA(few_panel)(const float_product *job, int64_t panel, const int n, const int bits, const int grid) {
    const dequantize_job *w = &job->weight;
    for (int64_t first = panel * PANEL_ROWS; first < (panel + 1) * PANEL_ROWS && first < w->rows; first += FEW_ROWS) {
        vf acc[4 * FEW_ROWS];
        float folded[4 * FEW_ROWS];
        for (int i = 0; i < 4 * FEW_ROWS; i++) acc[i] = (vf){0};
        ISA(few_rows)(w, first, job->ordered, n, bits, grid, acc);
        ISA(v_store)(folded, FOLD_TREE(acc, ADD));
        for (int64_t row = first; row < first + FEW_ROWS && row < w->rows; row++)
            for (int t = 0; t < n; t++)
                job->out[t * w->rows + row] = folded[(row - first) * 4 + t] + (job->bias ? job->bias[row] : 0.0f);
    }
}

/* One copy for each number of tokens and grid. */
static __attribute__((noinline)) void ISA(few)(const float_product *job, int64_t panel) {
    const dequantize_job *w = &job->weight;
#define TOKENS(bits, grid)                                                     \
    if (job->tokens == 1) ISA(few_panel)(job, panel, 1, bits, grid);           \
    else ISA(few_panel)(job, panel, 2, bits, grid);
#define GRIDS(bits)                                             \
    if (w->minimum) { TOKENS(bits, ISA(MINIMUM)) }              \
    else { TOKENS(bits, ISA(ZERO_POINT)) }
    if (w->levels) { TOKENS(2, ISA(LEVELS)) }
    else if (w->bits == 2) { GRIDS(2) }
    else if (w->bits == 4) { GRIDS(4) }
    else { GRIDS(8) }
#undef TOKENS
#undef GRIDS
}

#undef FEW_ROWS
