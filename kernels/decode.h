/* Dequantization of a block of rows. Part of the rows.h template.
 * Values go straight from registers to the output with ordinary stores: on the machines measured, non-temporal stores were
 * slower, because outputs seldom begin on a cache line and had to be staged. */

/* Round float32 lanes to bfloat16, half to even; NaN stays NaN. */
INLINE vh ISA(v_to_bfloat16)(vf x) {
    vi u = (vi)x, nan = (u & 0x7FFFFFFF) > (vi){0} + 0x7F800000;
    vi rounded = ((u + 0x7FFF + ((u >> 16) & 1)) >> 16) & 0xFFFF;
    rounded = (rounded & ~nan) | ((((u >> 16) & 0x8000) | 0x7FC0) & nan);
    return __builtin_convertvector(rounded, vh);
}

INLINE void ISA(put_values)(vf x, const int kind, uint8_t *to) {
    if (kind == KIND_FLOAT32) {
        memcpy(to, &x, sizeof x);
        return;
    }
    vh h = kind == KIND_FLOAT16 ? ISA(v_to_half)(x) : ISA(v_to_bfloat16)(x);
    memcpy(to, &h, sizeof h);
}

/* Length is a multiple of sixteen, or the codes and `to` may be read and written up to one. */
INLINE void ISA(decode_group)(const uint8_t *packed, int length, const int bits, const ISA(grid_values) *v, int g,
                              const int grid, const int kind, uint8_t *to) {
    const vf s = ISA(v_splat)(v->scale[g]), m = ISA(v_splat)(v->zero[g]);
    const vf four = grid == ISA(LEVELS) ? ISA(four_levels)((ISA(planes)){s, ISA(v_splat)(v->minor[g]), m}) : s;
    const int item = kind == KIND_FLOAT32 ? 4 : 2;
#if LANES == 16
    if (bits <= 4) { /* one register holds the value of every code, and a shift leaves the code in the bits that select */
        vi shift, code;
        for (int i = 0; i < LANES; i++) {
            shift[i] = (i * bits) & 31;
            code[i] = i & ((1 << bits) - 1);
        }
        const vf c = __builtin_convertvector(code, vf);
        const vf values = grid == ISA(LEVELS) ? four : grid == ISA(MINIMUM) ? c * s + m : (c - m) * s;
#pragma GCC unroll 4
        for (int k = 0; k < length; k += STEP)
            ISA(put_values)(ISA(v_look_up)(values, ISA(v_spread)(packed + k * bits / 8, bits) >> shift), kind, to + k * item);
        return;
    }
#endif
    for (int k = 0; k < length; k += STEP) {
        vi codes[PIECES];
        ISA(unpack_sixteen)(packed + k * bits / 8, bits, codes);
        EACH_PIECE {
            const vf c = __builtin_convertvector(codes[p], vf);
            const vf x = grid == ISA(LEVELS) ? ISA(v_pick)(four, codes[p]) : grid == ISA(MINIMUM) ? c * s + m : (c - m) * s;
            ISA(put_values)(x, kind, to + (k + p * LANES) * item);
        }
    }
}

INLINE void ISA(decode_rows)(const dequantize_job *job, int64_t start, int64_t stop, const int bits, const int grid,
                             const int kind) {
    const int item = kind == KIND_FLOAT32 ? 4 : 2, group_bytes = job->group_size * bits / 8;
    const int64_t full = job->columns / job->group_size;
    const int tail = (int)(job->columns % job->group_size);
    ISA(grid_values) values = {{0}, {0}, {0}};
    uint8_t codes[MAX_GROUP] = {0}, last[4 * MAX_GROUP]; /* whole steps of sixteen would pass the end of the row */
    for (int64_t row = start; row < stop; row++) {
        uint8_t *to = job->out + row * job->columns * item;
        for (int64_t group = 0; group < job->n_groups; group += STEP) {
            const int n = job->n_groups - group < STEP ? (int)(job->n_groups - group) : STEP;
            const int whole = full - group < n ? (int)(full - group) : n;
            const uint8_t *from = job->packed + row * job->packed_stride + group * group_bytes;
            ISA(load_grid)(job, row, group, n, bits, grid, &values);
            for (int g = 0; g < whole; g++, from += group_bytes, to += job->group_size * item)
                ISA(decode_group)(from, job->group_size, bits, &values, g, grid, kind, to);
            if (whole < n) {
                memcpy(codes, from, (size_t)(tail * bits + 7) / 8);
                ISA(decode_group)(codes, tail, bits, &values, whole, grid, kind, last);
                memcpy(to, last, (size_t)(tail * item));
            }
        }
    }
}

static void ISA(dequantize_block)(const dequantize_job *job, int64_t start, int64_t stop) {
#define KINDS(bits, grid)                                                                              \
    if (job->kind == KIND_FLOAT32) ISA(decode_rows)(job, start, stop, bits, grid, KIND_FLOAT32);       \
    else if (job->kind == KIND_FLOAT16) ISA(decode_rows)(job, start, stop, bits, grid, KIND_FLOAT16);  \
    else ISA(decode_rows)(job, start, stop, bits, grid, KIND_BFLOAT16);
#define GRIDS(bits) if (job->minimum) { KINDS(bits, ISA(MINIMUM)) } else { KINDS(bits, ISA(ZERO_POINT)) }
    if (job->levels) { KINDS(2, ISA(LEVELS)) }
    else if (job->bits == 2) { GRIDS(2) }
    else if (job->bits == 4) { GRIDS(4) }
    else { GRIDS(8) }
#undef GRIDS
#undef KINDS
}
