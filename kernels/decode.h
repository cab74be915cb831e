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

INLINE void ISA(decode_group)(const uint8_t *packed, int length, const int bits, float scale, float zero, int minimum,
                              const int kind, uint8_t *to) {
    const vf s = ISA(v_splat)(scale), m = ISA(v_splat)(zero);
    for (int k = 0; k < length; k += STEP) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            vf c = __builtin_convertvector(codes[p], vf);
            vf x = minimum ? c * s + m : (c - m) * s;
            if (kind == KIND_FLOAT32) {
                memcpy(to + 4 * (k + p * LANES), &x, sizeof x);
            } else {
                vh h = kind == KIND_FLOAT16 ? ISA(v_to_half)(x) : ISA(v_to_bfloat16)(x);
                memcpy(to + 2 * (k + p * LANES), &h, sizeof h);
            }
        }
    }
}

/* Scales and zero points of n <= STEP groups from `group` on, a multiple of STEP. */
INLINE void ISA(load_grids)(const dequantize_job *job, int64_t row, int64_t group, int n, const int bits, float scale[STEP],
                            float zero[STEP]) {
    const int64_t first = (row * job->n_groups + group) * (job->wide ? 4 : 2);
    if (job->k_bits) {
        ISA(k_load_values)(job->scales + row * job->k_stride, job, group, n, scale);
        ISA(k_load_values)(job->zeros + row * job->k_stride, job, group, n, zero);
        EACH_PIECE ISA(v_store)(zero + p * LANES, -ISA(v_load)(zero + p * LANES));
        return;
    }
    ISA(load_stored)(job->scales + first, n, job->wide, scale);
    if (job->minimum) ISA(load_stored)(job->zeros + first, n, job->wide, zero);
    else ISA(load_codes)(job->zeros + row * job->zeros_stride + group * bits / 8, n, bits, zero);
}

INLINE void ISA(decode_rows)(const dequantize_job *job, int64_t start, int64_t stop, const int bits, const int kind) {
    const int item = kind == KIND_FLOAT32 ? 4 : 2, group_bytes = job->group_size * bits / 8;
    const int64_t full = job->columns / job->group_size;
    const int tail = (int)(job->columns % job->group_size);
    float scale[STEP], zero[STEP];
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
            ISA(load_grids)(job, row, group, n, bits, scale, zero);
            for (int g = 0; g < whole; g++, from += group_bytes) {
                ISA(decode_group)(from, job->group_size, bits, scale[g], zero[g], job->minimum, kind, out.stage + out.held);
                out.held += job->group_size * item;
                if (out.held >= ISA(STAGE)) ISA(flush)(&out, 0);
            }
            if (whole < n) { /* whole steps of sixteen would read past the end of the row */
                memcpy(codes, from, (size_t)(tail * bits + 7) / 8);
                ISA(decode_group)(codes, tail, bits, scale[whole], zero[whole], job->minimum, kind, out.stage + out.held);
                out.held += tail * item;
                if (out.held >= ISA(STAGE)) ISA(flush)(&out, 0);
            }
        }
    ISA(flush)(&out, 1);
    ISA(stream_fence)();
}

static void ISA(dequantize_block)(const dequantize_job *job, int64_t start, int64_t stop) {
#define KINDS(bits)                                                                                       \
    if (job->kind == KIND_FLOAT32) ISA(decode_rows)(job, start, stop, bits, KIND_FLOAT32);                \
    else if (job->kind == KIND_FLOAT16) ISA(decode_rows)(job, start, stop, bits, KIND_FLOAT16);           \
    else ISA(decode_rows)(job, start, stop, bits, KIND_BFLOAT16);
    if (job->bits == 2) { KINDS(2) } else if (job->bits == 4) { KINDS(4) } else { KINDS(8) }
#undef KINDS
}
