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
    return grid == ISA(MINIMUM) ? c * s + m : (c - m) * s;
}

/* One step of FEW_ROWS rows with n tokens; sums of row r and token t in acc[4 r + t]. */
INLINE void ISA(few_step)(const uint8_t *from[FEW_ROWS], const ISA(grid_values) *v, int group, vi within, const float *x,
                          int64_t x_stride, const int n, const int bits, const int grid, vf acc[4 * FEW_ROWS]) {
    vi word[FEW_ROWS], shift, low;
    vf values[FEW_ROWS], minimum[FEW_ROWS];
    for (int i = 0; i < LANES; i++) {
        shift[i] = i / 4 * bits;
        low[i] = i % 4 * 4;
    }
    for (int r = 0; r < FEW_ROWS; r++) {
        if (bits == 8) {
            word[r] = ISA(v_from_bytes)(from[r]);
            values[r] = ISA(v_splat)(v[r].scale[group]);
            minimum[r] = ISA(v_splat)(grid == ISA(MINIMUM) ? v[r].zero[group] : -(v[r].zero[group] * v[r].scale[group]));
        } else {
            word[r] = ISA(v_repeat_words)(from[r]);
            values[r] = ISA(few_values)(v + r, group, within, bits, grid);
        }
    }
    for (int j = 0; j < 8 / bits; j++) {
        vf q[FEW_ROWS];
        for (int r = 0; r < FEW_ROWS; r++) {
            const vi code = word[r] >> (shift + 4 * bits * j);
            if (bits == 8) q[r] = ISA(v_fma)(__builtin_convertvector(word[r], vf), values[r], minimum[r]);
            else if (bits == 4) q[r] = ISA(v_look_up)(values[r], code);
            else q[r] = ISA(v_look_up)(values[r], (code & 3) | low);
        }
        for (int t = 0; t < n; t++) {
            const vf a = ISA(v_load)(x + t * x_stride + j * LANES);
            for (int r = 0; r < FEW_ROWS; r++) acc[r * 4 + t] = ISA(v_fma)(q[r], a, acc[r * 4 + t]);
        }
    }
}

/* FEW_ROWS rows with n tokens. */
INLINE void ISA(few_rows)(const dequantize_job *w, const int64_t row[FEW_ROWS], const float *x, const int n, const int bits,
                          const int grid, vf acc[4 * FEW_ROWS]) {
    const int step = 128 / bits, per_group = w->group_size >= step ? w->group_size / step : 1; /* steps in a group */
    const int per_step = w->group_size >= step ? 1 : step / w->group_size;                     /* groups in a step */
    const int64_t n_columns = ISA(few_columns)(w), n_steps = n_columns / step, whole = w->packed_stride / 16;
    ISA(grid_values) v[FEW_ROWS];
    uint8_t last[FEW_ROWS][16] = {{0}};
    memset(v, 0, sizeof v);
    vi within; /* which of the groups of a step the words have */
    for (int i = 0; i < LANES; i++) within[i] = i / 4 * per_step / 4;
    int64_t at = 0;
    for (int64_t first = 0; first < w->n_groups; first += STEP) {
        const int count = w->n_groups - first < STEP ? (int)(w->n_groups - first) : STEP;
        for (int r = 0; r < FEW_ROWS; r++) ISA(load_grid)(w, row[r], first, count, bits, grid, v + r);
        for (int g = 0; g < count; g += per_step)
            for (int i = 0; i < per_group && at < n_steps; i++, at++) {
                const uint8_t *from[FEW_ROWS];
                for (int r = 0; r < FEW_ROWS; r++) {
                    from[r] = w->packed + row[r] * w->packed_stride + 16 * at;
                    if (at >= whole) { /* the end of the last row may be the end of the buffer */
                        memcpy(last[r], from[r], (size_t)(w->packed_stride - 16 * at));
                        from[r] = last[r];
                    }
                }
                ISA(few_step)(from, v, g, within, x + at * step, n_columns, n, bits, grid, acc);
            }
    }
}

INLINE void ISA(few_panel)(const float_product *job, int64_t panel, const int n, const int bits, const int grid) {
    const dequantize_job *w = &job->weight;
    for (int64_t first = panel * PANEL_ROWS; first < (panel + 1) * PANEL_ROWS && first < w->rows; first += FEW_ROWS) {
        int64_t row[FEW_ROWS]; /* beyond the last one, it again */
        for (int r = 0; r < FEW_ROWS; r++) row[r] = first + r < w->rows ? first + r : w->rows - 1;
        vf acc[4 * FEW_ROWS];
        float folded[4 * FEW_ROWS];
        for (int i = 0; i < 4 * FEW_ROWS; i++) acc[i] = (vf){0};
        ISA(few_rows)(w, row, job->ordered, n, bits, grid, acc);
        ISA(v_store)(folded, FOLD_TREE(acc, ADD));
        for (int r = 0; r < FEW_ROWS; r++)
            for (int t = 0; t < n; t++)
                job->out[t * w->rows + row[r]] = folded[r * 4 + t] + (job->bias ? job->bias[row[r]] : 0.0f);
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
