/* Product of input codes with stored codes, exact in 32-bit integers within a segment, then float32 in a fixed order: the
 * same bytes on every instruction set. Part of the template product_rows.h.
 *
 * W is turned so that rows lie in lanes: word w of the block holds four codes of every row. A stored 32-bit word of b-bit
 * codes unpacks by 8 / b shifts, so word j of it holds the codes j, j + 8 / b, j + 16 / b, j + 24 / b; the codes of inputs
 * are stored in that order. With c a code of W, s and m scale and minimum of its group, q a signed code of the input with
 * offset o (minus its code of zero) and scale a: y += (float(sum c q + o sum c) s) a + m (sum of the input's values). */

#define TILE (LANES == 16 ? 8 : 4) /* tokens in registers */

/* Bytes of scratch for a block of LANES rows: one plane of codes, two of grid levels. */
static int64_t ISA(code_scratch)(const code_product *job) {
    return (job->inputs->words * LANES * 4 + job->inputs->n_segments * LANES * 12) * (1 + job->weight.levels) + 128;
}

/* One word of stored codes in lanes to 8 / bits words of codes, one a byte. */
INLINE void ISA(spread_word)(vi word, const int bits, vi *to) {
    if (bits == 8) to[0] = word;
    else
        for (int j = 0; j < 8 / bits; j++) to[j] = (word >> (j * bits)) & (bits == 4 ? 0x0F0F0F0F : 0x03030303);
}

/* Turn the codes of LANES rows from `first` on; rows beyond the last repeat it. */
INLINE void ISA(turn_rows)(const code_product *job, int64_t first, const int bits, vi *to) {
    const int64_t n_words = job->inputs->words / (8 / bits);
    for (int64_t at = 0; at < n_words; at += LANES) {
        vi x[LANES];
        ISA(turn_words)(&job->weight, first, at, x);
        const int64_t n = n_words - at < LANES ? n_words - at : LANES;
        for (int64_t i = 0; i < n; i++) ISA(spread_word)(x[i], bits, to + (at + i) * (8 / bits));
    }
}

/* Scales and minima of LANES rows, per segment in lanes; of levels those of sign bit `plane`. */
INLINE void ISA(turn_scales)(const code_product *job, int64_t first, const int bits, const int grid, const int plane, float *scale,
                             float *minimum) {
    const dequantize_job *w = &job->weight;
    const int per_group = w->group_size / job->inputs->segment;
    ISA(turned_grid) v;
    for (int64_t group = 0; group < w->n_groups; group += STEP) {
        const int n = w->n_groups - group < STEP ? (int)(w->n_groups - group) : STEP;
        ISA(turn_grid)(w, first, group, n, bits, grid, &v);
        for (int g = 0; g < n; g++) {
            vf s = v.scale[g], m = v.zero[g];
            if (grid == ISA(ZERO_POINT)) m = -(m * s);
            if (grid == ISA(LEVELS)) { /* (mu - a1 - a2) + 2 a1 b1 + 2 a2 b0 */
                m = plane ? (m - s) - v.minor[g] : (vf){0};
                s = 2.0f * (plane ? s : v.minor[g]);
            }
            for (int i = 0; i < per_group; i++) {
                const int64_t segment = (group + g) * per_group + i;
                if (segment >= job->inputs->n_segments) break;
                ISA(v_store)(scale + segment * LANES, s);
                ISA(v_store)(minimum + segment * LANES, m);
            }
        }
    }
}

/* Ones for those codes of a word that are not beyond the last column. */
INLINE int32_t ISA(ones_of)(const input_codes *in, int64_t word) {
    const int per_word = 8 / in->weight_bits;
    const int64_t base = word / per_word * 4 * per_word + word % per_word;
    uint32_t ones = 0;
    for (int b = 0; b < 4; b++) ones |= (uint32_t)(base + b * per_word < in->columns) << (8 * b);
    return (int32_t)ones;
}

/* Sum of the codes of each segment. */
INLINE void ISA(sum_codes)(const code_product *job, const int bits, const vi *codes, vi *sums) {
    const input_codes *in = job->inputs;
    const int64_t words = in->segment / 4, n_whole = in->columns * in->weight_bits / 32 * (8 / in->weight_bits);
    for (int64_t segment = 0, word = 0; segment < in->n_segments; segment++) {
        vi sum = (vi){0};
        for (const int64_t end = (segment + 1) * words; word < end; word++)
            sum = ISA(v_dot4)(sum, codes[word], (word < n_whole ? 0x01010101 : ISA(ones_of)(in, word)) - (vi){0}, bits);
        sums[segment] = sum;
    }
}

/* `n` tokens of a slot group, from `slot` on, with the rows of one block. */
INLINE void ISA(code_tile)(const input_codes *in, int64_t group, int slot, const int n, const int bits, const vi *codes,
                           const vi *sums, const float *scale, const float *minimum, vf y[TILE]) {
    const int words = in->segment / 4;
    const int32_t *q = in->codes + group * in->words * SLOTS + slot;
    const int64_t at = group * in->n_segments * SLOTS + slot;
    const float *a = in->scales + at, *total = in->sums + at;
    const int32_t *offset = in->offsets + at;
    for (int64_t segment = 0; segment < in->n_segments; segment++) {
        vi acc[TILE];
        for (int t = 0; t < n; t++) acc[t] = sums[segment] * (offset[segment * SLOTS + t] - (vi){0});
        for (int i = 0; i < words; i++, codes++, q += SLOTS)
            for (int t = 0; t < n; t++) acc[t] = ISA(v_dot4)(acc[t], *codes, q[t] - (vi){0}, bits);
        const vf s = ISA(v_load)(scale + segment * LANES), m = ISA(v_load)(minimum + segment * LANES);
        for (int t = 0; t < n; t++) {
            y[t] += (__builtin_convertvector(acc[t], vf) * s) * ISA(v_splat)(a[segment * SLOTS + t]);
            y[t] += m * ISA(v_splat)(total[segment * SLOTS + t]);
        }
    }
}

/* A block of LANES rows, decoded in `scratch`. */
typedef struct {
    vi *codes, *sums;       /* words of codes; per segment their sum */
    float *scale, *minimum; /* per segment */
} ISA(block);

INLINE ISA(block) ISA(block_in)(const input_codes *in, uint8_t *scratch) {
    ISA(block) b;
    b.codes = (vi *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    b.sums = b.codes + in->words;
    b.scale = (float *)(b.sums + in->n_segments);
    b.minimum = b.scale + in->n_segments * LANES;
    return b;
}

/* All tokens with a block; `again` adds to what is there. */
INLINE void ISA(all_tokens)(const code_product *job, int64_t first, const ISA(block) *b, const int bits, int again) {
    const input_codes *in = job->inputs;
    const int64_t n_rows = job->weight.rows;
    const size_t row_nbytes = (size_t)(n_rows - first < LANES ? n_rows - first : LANES) * 4;
    vf start = (vf){0};
    if (job->bias && !again) memcpy(&start, job->bias + first, row_nbytes);
    for (int64_t t = 0; t < in->tokens; t += TILE) {
        const int n = in->tokens - t < TILE ? (int)(in->tokens - t) : TILE, slot = (int)(t % SLOTS);
        float *out = job->out + t * n_rows + first;
        vf y[TILE];
        for (int i = 0; i < TILE; i++) y[i] = start;
        if (again)
            for (int i = 0; i < n; i++) memcpy(y + i, out + i * n_rows, row_nbytes);
        if (n == 1) ISA(code_tile)(in, t / SLOTS, slot, 1, bits, b->codes, b->sums, b->scale, b->minimum, y);
#if LANES == 16
        else if (n <= 4) ISA(code_tile)(in, t / SLOTS, slot, 4, bits, b->codes, b->sums, b->scale, b->minimum, y);
#endif
        else ISA(code_tile)(in, t / SLOTS, slot, TILE, bits, b->codes, b->sums, b->scale, b->minimum, y);
        for (int i = 0; i < n; i++) memcpy(out + i * n_rows, y + i, row_nbytes);
    }
}

/* Dot products need to know whether codes have eight bits, and no more. */
static __attribute__((noinline)) void ISA(multiply_bytes)(const code_product *job, int64_t first, const ISA(block) *b) {
    ISA(sum_codes)(job, 8, b->codes, b->sums);
    ISA(all_tokens)(job, first, b, 8, 0);
}

static __attribute__((noinline)) void ISA(multiply_small)(const code_product *job, int64_t first, const ISA(block) *b, int again) {
    ISA(sum_codes)(job, 4, b->codes, b->sums);
    ISA(all_tokens)(job, first, b, 4, again);
}

#if LANES >= 8
#include "product_few_codes.h"
#else
static int ISA(plane_bytes)(const code_product *job) { return (void)job, 4; }
#endif

/* Rows [panel, panel + 1) * PANEL_ROWS of W. */
static void ISA(code_panel)(const code_product *job, int64_t panel, uint8_t *scratch) {
    const dequantize_job *w = &job->weight;
    const ISA(block) b = ISA(block_in)(job->inputs, scratch);
    const int is_few = job->inputs->plane_bytes > 4;
    for (int64_t first = panel * PANEL_ROWS; first < (panel + 1) * PANEL_ROWS && first < w->rows; first += LANES) {
        if (w->levels) { /* one sign bit after the other */
            const ISA(block) low = ISA(block_in)(job->inputs, (uint8_t *)(b.minimum + job->inputs->n_segments * LANES));
            ISA(turn_rows)(job, first, 2, b.codes);
            for (int64_t i = 0; i < job->inputs->words; i++) {
                low.codes[i] = b.codes[i] & 0x01010101;
                b.codes[i] = (b.codes[i] >> 1) & 0x01010101;
            }
            ISA(turn_scales)(job, first, 2, ISA(LEVELS), 1, b.scale, b.minimum);
            ISA(turn_scales)(job, first, 2, ISA(LEVELS), 0, low.scale, low.minimum);
            ISA(multiply_small)(job, first, &b, 0);
            ISA(multiply_small)(job, first, &low, 1);
            continue;
        }
#define BITS(n)                                                                                                \
    if (w->bits == n) {                                                                                        \
        if (!is_few) ISA(turn_rows)(job, first, n, b.codes);                                                   \
        if (w->minimum) ISA(turn_scales)(job, first, n, ISA(MINIMUM), -1, b.scale, b.minimum);                   \
        else ISA(turn_scales)(job, first, n, ISA(ZERO_POINT), -1, b.scale, b.minimum);                           \
    }
        BITS(2)
        BITS(4)
        BITS(8)
#undef BITS
#if LANES >= 8
        if (is_few) {
            ISA(few_tokens)(job, first, b.scale, b.minimum);
            continue;
        }
#endif
        if (w->bits == 8) ISA(multiply_bytes)(job, first, &b);
        else ISA(multiply_small)(job, first, &b, 0);
    }
}

/* Scale and zero point of one span of a token; not a number where an input is none. */
INLINE void ISA(span_grid)(const float *x, int64_t n, int bits, float *scale, float *zero) {
    vf low = (vf){0}, high = (vf){0}, bad = (vf){0};
    int64_t k = 0;
    for (; k + LANES <= n; k += LANES) {
        const vf v = ISA(v_load)(x + k);
        low = v_min(v, low);
        high = v_max(v, high);
        bad += v - v; /* not a number for infinity too */
    }
    float lo = 0.0f, hi = 0.0f, sum = 0.0f;
    for (int i = 0; i < LANES; i++) {
        lo = low[i] < lo ? low[i] : lo;
        hi = high[i] > hi ? high[i] : hi;
        sum += bad[i];
    }
    for (; k < n; k++) {
        lo = x[k] < lo ? x[k] : lo;
        hi = x[k] > hi ? x[k] : hi;
        sum += x[k] - x[k];
    }
    const float last = (float)((1 << bits) - 1);
    float s = (hi - lo) / last;
    s = s > FLOAT16_TINY ? s : FLOAT16_TINY;
    float z = -lo / s;
    z = (z + MAGIC) - MAGIC;
    *zero = !(z >= 0.0f) ? 0.0f : z > last ? last : z;
    *scale = s + sum;
}

/* Place of code k of a token among its bytes: per_word planes of plane_bytes each, again and again. */
INLINE int64_t ISA(place)(int64_t k, const int per_word, int plane_bytes) {
    const int codes = __builtin_ctz((unsigned)per_word), bytes = __builtin_ctz((unsigned)plane_bytes);
    const int64_t within = k & ((1 << (codes + bytes)) - 1);
    return k - within + ((within & (per_word - 1)) << bytes) + (within >> codes);
}

/* One segment, of columns from k0 on: signed codes at their places, and their sum; the scale becomes not a number where an
 * input is none. */
INLINE int32_t ISA(encode_segment)(const float *x, int64_t k0, int64_t n, float *step, float zero, float last, int8_t *to,
                                   const int per_word, int plane_bytes) {
    int8_t codes[MAX_GROUP + LANES];
    int32_t sum = 0;
    const float scale = *step;
    vi odd = (vi){0};
    const vf s = ISA(v_splat)(scale), z = ISA(v_splat)(zero), top = ISA(v_splat)(last), bottom = (vf){0};
    for (int64_t k = 0; k < n; k += LANES) {
        vf v = (vf){0};
        if (k + LANES <= n) v = ISA(v_load)(x + k);
        else memcpy(&v, x + k, (size_t)(n - k) * 4);
        odd |= v != v;
        v = v / s;
        v = v_max(v_min(v, ISA(v_splat)(512.0f)), ISA(v_splat)(-512.0f)); /* beyond every code, and small enough to round */
        v = v_min(v_max(ISA(v_nearest)(v) + z, bottom), top);
        const vi code = (vi)(v + ISA(v_splat)(MAGIC)) - (MAGIC_BITS + 128);
        uint8_t bytes[LANES];
        ISA(v_to_bytes)(code & 255, bytes);
        memcpy(codes + k, bytes, LANES);
        for (int i = 0; i < LANES && k + i < n; i++) sum += code[i];
    }
    if (ISA(v_any)(odd)) *step = __builtin_nanf("");
    if (per_word == 1) memcpy(to + k0, codes, (size_t)n);
    else
        for (int64_t k = 0; k < n; k++) to[ISA(place)(k0 + k, per_word, plane_bytes)] = codes[k];
    return sum;
}

/* Codes and parameters of the tokens of one slot group; `scratch` holds the codes of one token. */
static void ISA(encode_inputs)(const input_codes *in, int64_t group, int8_t *scratch) {
    const int per_word = 8 / in->weight_bits;
    const float last = (float)((1 << in->bits) - 1);
    for (int slot = 0; slot < SLOTS; slot++) {
        const int64_t token = group * SLOTS + slot, at = group * in->n_segments * SLOTS + slot;
        memset(scratch, 0, (size_t)in->words * 4);
        if (token < in->tokens) {
            const float *x = in->x + token * in->columns;
            float scale = in->scale ? in->scale[token] : 0.0f, zero = in->scale ? in->zero[token] : 0.0f;
            for (int64_t segment = 0; segment < in->n_segments; segment++) {
                const int64_t k = segment * in->segment, n = in->columns - k < in->segment ? in->columns - k : in->segment;
                if (!in->scale && k % in->span == 0)
                    ISA(span_grid)(x + k, in->columns - k < in->span ? in->columns - k : in->span, in->bits, &scale, &zero);
                float step = scale;
                const int32_t sum = ISA(encode_segment)(x + k, k, n, &step, zero, last, scratch, per_word, in->plane_bytes);
                const int32_t offset = 128 - (int32_t)zero;
                in->scales[at + segment * SLOTS] = step;
                in->offsets[at + segment * SLOTS] = offset;
                in->sums[at + segment * SLOTS] = (float)(sum + offset * (int32_t)n) * step;
            }
        } else
            for (int64_t segment = 0; segment < in->n_segments; segment++) {
                in->scales[at + segment * SLOTS] = in->sums[at + segment * SLOTS] = 0.0f;
                in->offsets[at + segment * SLOTS] = 0;
            }
        if (in->plane_bytes > 4) { /* token after token */
            if (slot < FEW_TOKENS) memcpy(in->codes + slot * in->words, scratch, (size_t)in->words * 4);
            continue;
        }
        int32_t *to = in->codes + group * in->words * SLOTS + slot;
        for (int64_t word = 0; word < in->words; word++) memcpy(to + word * SLOTS, scratch + 4 * word, 4);
    }
    if (in->plane_bytes > 4) {
        int8_t *ones = (int8_t *)(in->codes + FEW_TOKENS * in->words);
        memset(ones, 0, (size_t)in->words * 4);
        for (int64_t k = 0; k < in->columns; k++) ones[ISA(place)(k, per_word, in->plane_bytes)] = 1;
    }
}

#undef TILE
