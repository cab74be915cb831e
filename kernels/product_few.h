/* Product of few float tokens: codes go from the packed bytes through registers straight into the sums, so that the weight
 * is read once and nothing is written. Eight lanes or more. Part of the template product_rows.h.
 *
 * A step takes STEP_BYTES of a row, word i in lane i. What is summed of it, and how inputs are laid out for that, is in
 * product_few_floats.h, and for processors that multiply bytes in product_few_digits.h. Sums of a step are multiplied with
 * the scales of their groups, which a lane never crosses, and minima with the sums of the inputs of each group. */

#define FEW_ROWS 4 /* rows at a time; as many of them as the registers have room for share what is loaded of the inputs */

/* How `ordered` is laid out: for each step the inputs of every token, for each token sums of groups, for each step where
 * its scales are: the first group, and how many groups further each lane is. */
typedef struct {
    int64_t n_steps, n_groups; /* groups: up to a multiple of STEP, and as many again that no step needs */
    int columns, tokens;       /* of a step; 1, 2 or 4, made up with zeros */
    float *x, *sums;
    int32_t *lanes, *start;
} ISA(few_layout);

INLINE ISA(few_layout) ISA(few_inputs)(const float_product *job);

INLINE void ISA(few_lanes)(const dequantize_job *w, const ISA(few_layout) *l) {
    const int per_word = 32 / w->bits;
    for (int64_t step = 0; step < l->n_steps; step++) {
        l->start[step] = (int32_t)(step * l->columns / w->group_size);
        for (int i = 0; i < LANES; i++)
            l->lanes[step * LANES + i] = (int32_t)((step * l->columns + i * per_word) / w->group_size) - l->start[step];
    }
}

#ifdef WITH_VNNI
#include "product_few_digits.h"
#else
#include "product_few_floats.h"
#endif

INLINE ISA(few_layout) ISA(few_inputs)(const float_product *job) {
    const dequantize_job *w = &job->weight;
    ISA(few_layout) l;
    l.columns = LANES * 32 / w->bits;
    l.tokens = job->tokens == 3 ? 4 : (int)job->tokens;
    l.n_steps = (w->columns + l.columns - 1) / l.columns;
    l.n_groups = (w->n_groups + STEP - 1) / STEP * STEP + STEP;
    l.x = job->ordered;
    l.sums = l.x + ISA(few_x_size)(&l);
    l.lanes = (int32_t *)(l.sums + l.n_groups * l.tokens);
    l.start = l.lanes + l.n_steps * LANES;
    return l;
}

static int64_t ISA(few_ordered)(const float_product *job) {
    const ISA(few_layout) l = ISA(few_inputs)(job);
    return ISA(few_x_size)(&l) + l.n_groups * l.tokens + l.n_steps * (LANES + 1);
}

static int64_t ISA(few_scratch)(const float_product *job) { return FEW_ROWS * 3 * ISA(few_inputs)(job).n_groups * 4 + 64; }

/* Scales and minima of n <= STEP groups of a row, minima as what a group's sum of inputs is multiplied with. */
INLINE void ISA(few_scales)(const dequantize_job *w, int64_t row, int64_t group, int n, const int bits, const int grid, int64_t apart,
                            float *to) {
    ISA(grid_values) v;
    if (n < STEP) memset(&v, 0, sizeof v);
    ISA(load_grid)(w, row, group, n, bits, grid, &v);
    EACH_PIECE {
        vf s = ISA(v_load)(v.scale + p * LANES), m = ISA(v_load)(v.zero + p * LANES);
        float *place = to + group + p * LANES;
        if (grid == ISA(LEVELS)) { /* (mu - a1 - a2) + 2 a1 b1 + 2 a2 b0 */
            const vf minor = ISA(v_load)(v.minor + p * LANES);
            m = (m - s) - minor;
            s = 2.0f * s;
            ISA(v_store)(place + 2 * apart, 2.0f * minor);
        }
        if (grid == ISA(ZERO_POINT)) m = -(m * s);
        ISA(v_store)(place, s);
        ISA(v_store)(place + apart, m);
    }
    for (int i = n; i < STEP; i++) to[apart + group + i] = 0.0f;
}

/* The same of all groups of FEW_ROWS rows from `first` on. */
INLINE void ISA(few_grid)(const dequantize_job *w, int64_t first, int64_t n_groups, const int bits, const int grid, float *to) {
    for (int r = 0; r < FEW_ROWS; r++, to += 3 * n_groups) {
        const int64_t row = row_or_last(w, first + r);
        int64_t group = 0;
        for (; group + STEP <= w->n_groups; group += STEP) ISA(few_scales)(w, row, group, STEP, bits, grid, n_groups, to);
        if (group < w->n_groups) ISA(few_scales)(w, row, group, (int)(w->n_groups - group), bits, grid, n_groups, to);
    }
}

static __attribute__((noinline)) void ISA(few_grids)(const dequantize_job *w, int64_t first, int64_t n_groups, float *to) {
#define BITS(n)                                                             \
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

/* One step of FEW_ROWS rows. */
INLINE void ISA(few_steps)(const ISA(few_layout) *l, int64_t step, const uint8_t *from, int64_t stride, const float *grids, const int n,
                           const int bits, const int levels, vf y[FEW_ROWS][4]) {
    const int64_t apart = 3 * l->n_groups;
    const float *scale = grids + l->start[step];
    const int m = ISA(few_at_once)(n);
    vi lane;
    memcpy(&lane, l->lanes + step * LANES, sizeof lane);
#pragma GCC unroll 4
    for (int r = 0; r < FEW_ROWS; r += m)
        ISA(few_step)(l, step, from + r * stride, stride, scale + r * apart, apart, lane, m, n, bits, levels, y + r);
}

/* FEW_ROWS rows from `first` on with n tokens: their sums, row after row. Asks for the codes of those from `next` on. */
INLINE void ISA(few_rows)(const dequantize_job *w, const ISA(few_layout) *l, int64_t first, int64_t next, const int n, const int bits,
                          const int levels, const float *grids, vf y[FEW_ROWS][4]) {
    const int64_t stride = w->packed_stride, n_groups = l->n_groups;
    /* Rows that are all there are read in place, but for their last bytes, which may be the last of the buffer. */
    const int64_t whole = first + FEW_ROWS <= w->rows ? stride / STEP_BYTES : 0;
    for (int r = 0; r < FEW_ROWS; r++)
        for (int64_t group = 0; group < w->n_groups; group += LANES)
            for (int t = 0; t < n; t++)
                y[r][t] = ISA(v_fma)(ISA(v_load)(grids + (3 * r + 1) * n_groups + group), ISA(v_load)(l->sums + t * n_groups + group), y[r][t]);
    const uint8_t *from = w->packed + first * stride;
    for (int64_t step = 0; step < whole; step++) {
#pragma GCC unroll 4
        for (int r = 0; r < FEW_ROWS; r++) __builtin_prefetch(from + STEP_BYTES * step + (next - first + r) * stride, 0, ISA(LOCALITY));
        ISA(few_steps)(l, step, from + STEP_BYTES * step, stride, grids, n, bits, levels, y);
    }
    for (int64_t step = whole; step < l->n_steps; step++) {
        uint8_t copy[FEW_ROWS * STEP_BYTES] = {0};
        const int64_t left = stride - STEP_BYTES * step, n_bytes = left < STEP_BYTES ? left : STEP_BYTES;
        for (int r = 0; r < FEW_ROWS && first + r < w->rows; r++)
            memcpy(copy + STEP_BYTES * r, from + STEP_BYTES * step + r * stride, (size_t)n_bytes);
        ISA(few_steps)(l, step, copy, STEP_BYTES, grids, n, bits, levels, y);
    }
}

INLINE void ISA(few_panel)(const float_product *job, int64_t panel, const int n, const int bits, const int levels, float *scratch) {
    const dequantize_job *w = &job->weight;
    const ISA(few_layout) l = ISA(few_inputs)(job);
    for (int64_t first = panel * PANEL_ROWS; first < (panel + 1) * PANEL_ROWS && first < w->rows; first += FEW_ROWS) {
        vf y[FEW_ROWS][4], all[4 * FEW_ROWS];
        float folded[4 * FEW_ROWS];
        const int64_t next = ISA(few_next)(job, ISA(few_next)(job, first)); /* memory takes longer than FEW_ROWS rows */
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
#ifdef WITH_VNNI
    if (w->bits == 2) { TOKENS(2, 0) }
    else { TOKENS(4, 0) }
#else
    if (w->levels) { TOKENS(2, 1) }
    else if (w->bits == 2) { TOKENS(2, 0) }
    else if (w->bits == 4) { TOKENS(4, 0) }
    else { TOKENS(8, 0) }
#endif
#undef TOKENS
}

#undef FEW_ROWS
