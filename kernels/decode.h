/* Dequantization of a block of rows. Part of the rows.h template.
 * Values are made in a small buffer and leave it in whole cache lines, past the cache when the output is large. */

enum { ISA(STAGE) = 512 }; /* bytes that cause a flush: few, so that stores drain while the next values are made */

typedef struct {
    uint8_t stage[ISA(STAGE) + 4 * MAX_GROUP + 64] __attribute__((aligned(64)));
    uint8_t *to; /* where stage[0] goes */
    int held, streaming;
} ISA(stream);

/* Write out what is held; all but the last call keep the part of the last cache line for later. */
INLINE void ISA(flush)(ISA(stream) *out, int last) {
    if (!out->streaming) {
        memcpy(out->to, out->stage, (size_t)out->held);
        out->to += out->held;
        out->held = 0;
        return;
    }
    int done = (int)(-(uintptr_t)out->to & 63);
    if (done > out->held) done = out->held;
    memcpy(out->to, out->stage, (size_t)done);
    for (; done + 64 <= out->held; done += 64) ISA(stream_line)(out->to + done, out->stage + done);
    if (last) {
        memcpy(out->to + done, out->stage + done, (size_t)(out->held - done));
        done = out->held;
    }
    memmove(out->stage, out->stage + done, (size_t)(out->held - done));
    out->to += done;
    out->held -= done;
}

/* Round float32 lanes to bfloat16, half to even; NaN stays NaN. */
INLINE vh ISA(v_to_bfloat16)(vf x) {
    vi u = (vi)x, nan = (u & 0x7FFFFFFF) > (vi){0} + 0x7F800000;
    vi rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16) & 0xFFFF;
    rounded = (rounded & ~nan) | ((((u >> 16) & 0x8000) | 0x7FC0) & nan);
    return __builtin_convertvector(rounded, vh);
}

/* Stored parameters of up to STEP groups; scale and minor are a1 and a2 of levels. */
typedef struct { float scale[STEP], zero[STEP], minor[STEP]; } ISA(grid_values);

INLINE void ISA(decode_group)(const uint8_t *packed, int length, const int bits, const ISA(grid_values) *v, int g, int minimum,
                              const int levels, const int kind, uint8_t *to) {
    const vf s = ISA(v_splat)(v->scale[g]), m = ISA(v_splat)(v->zero[g]);
    const vf four = levels ? ISA(four_levels)((ISA(planes)){s, ISA(v_splat)(v->minor[g]), m}) : s;
    for (int k = 0; k < length; k += STEP) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            vf c = __builtin_convertvector(codes[p], vf);
            vf x = levels ? ISA(v_pick)(four, codes[p]) : minimum ? c * s + m : (c - m) * s;
            if (kind == KIND_FLOAT32) {
                memcpy(to + 4 * (k + p * LANES), &x, sizeof x);
            } else {
                vh h = kind == KIND_FLOAT16 ? ISA(v_to_half)(x) : ISA(v_to_bfloat16)(x);
                memcpy(to + 2 * (k + p * LANES), &h, sizeof h);
            }
        }
    }
}

/* Stored parameters of groups [first, first + n) of a row. */
INLINE void ISA(load_grid)(const dequantize_job *job, int64_t row, int64_t first, int n, const int bits,
                           const int levels, ISA(grid_values) *v) {
    const int item = job->wide ? 4 : 2;
    const int64_t at = row * job->n_groups + first;
    if (levels) {
        for (int g = 0; g < n; g++) {
            ISA(load_one)(job->scales + (at + g) * 2 * item, job->wide, v->scale + g);
            ISA(load_one)(job->scales + ((at + g) * 2 + 1) * item, job->wide, v->minor + g);
        }
    } else ISA(load_stored)(job->scales + at * item, n, job->wide, v->scale);
    if (job->minimum) ISA(load_stored)(job->zeros + at * item, n, job->wide, v->zero);
    else ISA(load_codes)(job->zeros + row * job->zeros_stride + first * bits / 8, n, bits, v->zero);
}

INLINE void ISA(decode_rows)(const dequantize_job *job, int64_t start, int64_t stop, const int bits, const int kind,
                             const int levels) {
    const int item = kind == KIND_FLOAT32 ? 4 : 2, group_bytes = job->group_size * bits / 8;
    const int64_t full = job->columns / job->group_size;
    const int tail = (int)(job->columns % job->group_size);
    ISA(grid_values) values = {{0}, {0}, {0}};
    uint8_t codes[MAX_GROUP] = {0};
    ISA(stream) out; /* not initialised as a whole: the stage is large */
    out.to = job->out + start * job->columns * item;
    out.held = 0;
    out.streaming = job->streaming;
    for (int64_t row = start; row < stop; row++)
        for (int64_t group = 0; group < job->n_groups; group += STEP) {
            const int n = job->n_groups - group < STEP ? (int)(job->n_groups - group) : STEP;
            const int whole = full - group < n ? (int)(full - group) : n;
            const uint8_t *from = job->packed + row * job->packed_stride + group * group_bytes;
            ISA(load_grid)(job, row, group, n, bits, levels, &values);
            for (int g = 0; g < whole; g++, from += group_bytes) {
                ISA(decode_group)(from, job->group_size, bits, &values, g, job->minimum, levels, kind, out.stage + out.held);
                out.held += job->group_size * item;
                if (out.held >= ISA(STAGE)) ISA(flush)(&out, 0);
            }
            if (whole < n) { /* whole steps of sixteen would read past the end of the row */
                memcpy(codes, from, (size_t)(tail * bits + 7) / 8);
                ISA(decode_group)(codes, tail, bits, &values, whole, job->minimum, levels, kind, out.stage + out.held);
                out.held += tail * item;
                if (out.held >= ISA(STAGE)) ISA(flush)(&out, 0);
            }
        }
    ISA(flush)(&out, 1);
    ISA(stream_fence)();
}

static void ISA(dequantize_block)(const dequantize_job *job, int64_t start, int64_t stop) {
#define KINDS(bits, levels)                                                                               \
    if (job->kind == KIND_FLOAT32) ISA(decode_rows)(job, start, stop, bits, KIND_FLOAT32, levels);        \
    else if (job->kind == KIND_FLOAT16) ISA(decode_rows)(job, start, stop, bits, KIND_FLOAT16, levels);   \
    else ISA(decode_rows)(job, start, stop, bits, KIND_BFLOAT16, levels);
    if (job->levels) { KINDS(2, 1) }
    else if (job->bits == 2) { KINDS(2, 0) }
    else if (job->bits == 4) { KINDS(4, 0) }
    else { KINDS(8, 0) }
#undef KINDS
}
