/* Products of made-up stored matrices on each instruction set. Of products of codes it prints a hash, one line a job: all
 * must be equal. Products of floats it compares with double sums over weights decoded here. Built for the host, for AArch64
 * and with sanitizers by test_other_machines.py. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "product_run.h"
#include "harness.h"

enum { THREADS = 3 }; /* of them without OpenMP only the first works */

typedef struct { int bits, group_size, grid, wide; } form; /* grid: 0 zero point, 1 minimum, 2 levels, 3 k */

static uint8_t *random_bytes(int64_t n) {
    uint8_t *to = malloc((size_t)n);
    for (int64_t i = 0; i < n; i++) to[i] = (uint8_t)next_random();
    return to;
}

/* Stored floats between 1/32 and 2; exact sizes, so that a sanitizer sees a byte too many. */
static uint8_t *random_stored(int64_t n, int wide) {
    uint8_t *to = malloc((size_t)(n * (wide ? 4 : 2)));
    for (int64_t i = 0; i < n; i++) {
        const uint16_t half = (uint16_t)(0x2800 + next_random() % 0x1800);
        const float x = half_to_float(half);
        memcpy(to + i * (wide ? 4 : 2), wide ? (const void *)&x : (const void *)&half, wide ? 4 : 2);
    }
    return to;
}

static float *random_floats(int64_t n) {
    float *to = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) to[i] = (float)((int32_t)(next_random() & 0xFFFF) - 0x8000) * 0x1p-14f;
    return to;
}

static dequantize_job made_matrix(form f, int64_t rows, int64_t columns) {
    dequantize_job w = {.rows = rows, .columns = columns, .bits = f.bits, .group_size = f.group_size, .minimum = f.grid > 0,
                        .levels = f.grid == 2, .wide = f.wide, .k_bits = f.grid != 3 ? 0 : f.bits == 4 ? 6 : 4};
    w.n_groups = (columns + f.group_size - 1) / f.group_size;
    w.packed_stride = (columns * f.bits + 7) / 8;
    w.zeros_stride = (w.n_groups * f.bits + 7) / 8;
    w.packed = random_bytes(rows * w.packed_stride);
    if (f.grid == 3) {
        const int item = f.wide ? 4 : 2;
        w.n_blocks = (columns + 255) / 256;
        w.k_stride = w.n_blocks * item + (w.n_groups * w.k_bits + 7) / 8;
        for (int part = 0; part < 2; part++) {
            uint8_t *to = random_bytes(rows * w.k_stride), *floats = random_stored(rows * w.n_blocks, f.wide);
            for (int64_t r = 0; r < rows; r++)
                memcpy(to + r * w.k_stride, floats + r * w.n_blocks * item, (size_t)(w.n_blocks * item));
            free(floats);
            *(part ? &w.zeros : &w.scales) = to;
        }
    } else {
        w.scales = random_stored(rows * w.n_groups * (1 + w.levels), f.wide);
        w.zeros = f.grid ? random_stored(rows * w.n_groups, f.wide) : random_bytes(rows * w.zeros_stride);
    }
    return w;
}

static double stored(const uint8_t *from, int64_t i, int wide) {
    float x;
    uint16_t half;
    if (wide) memcpy(&x, from + 4 * i, 4);
    else {
        memcpy(&half, from + 2 * i, 2);
        x = half_to_float(half);
    }
    return x;
}

static int packed_code(const uint8_t *from, int64_t i, int bits) { return from[i * bits / 8] >> (i * bits % 8) & ((1 << bits) - 1); }

static double k_value(const dequantize_job *w, const uint8_t *rows, int64_t row, int64_t group) {
    const uint8_t *from = rows + row * w->k_stride;
    int integer = 0;
    for (int b = 0; b < w->k_bits; b++) {
        const int64_t bit = group * w->k_bits + b;
        integer |= (from[w->n_blocks * (w->wide ? 4 : 2) + bit / 8] >> (bit % 8) & 1) << b;
    }
    return stored(from, group * w->group_size / 256, w->wide) * integer;
}

static double weight_of(const dequantize_job *w, int64_t row, int64_t column) {
    const int64_t group = column / w->group_size, at = row * w->n_groups + group;
    const int code = packed_code(w->packed + row * w->packed_stride, column, w->bits);
    if (w->k_bits) return code * k_value(w, w->scales, row, group) - k_value(w, w->zeros, row, group);
    if (w->levels)
        return stored(w->zeros, at, w->wide) + (code & 2 ? 1 : -1) * stored(w->scales, 2 * at, w->wide) +
               (code & 1 ? 1 : -1) * stored(w->scales, 2 * at + 1, w->wide);
    if (w->minimum) return code * stored(w->scales, at, w->wide) + stored(w->zeros, at, w->wide);
    return (code - packed_code(w->zeros + row * w->zeros_stride, group, w->bits)) * stored(w->scales, at, w->wide);
}

static void check_floats(const product_set *isa, const dequantize_job *w, const float *x, const float *bias, int64_t tokens) {
    float_product job = {.weight = *w, .x = x, .bias = bias, .tokens = tokens, .n_threads = THREADS, .out = malloc((size_t)(tokens * w->rows) * 4)};
    job.ordered = aligned_alloc(64, (size_t)(isa->ordered_size(&job) * 4 + 63) / 64 * 64);
    const int64_t nbytes = isa->float_scratch(&job);
    uint8_t *scratch = malloc((size_t)(THREADS * nbytes));
    run_floats(isa, &job, tokens < 9, scratch, nbytes, THREADS);
    for (int64_t r = 0; r < w->rows; r++)
        for (int64_t t = 0; t < tokens; t++) {
            double sum = bias[r], size = 1;
            for (int64_t k = 0; k < w->columns; k++) {
                const double part = weight_of(w, r, k) * x[t * w->columns + k];
                sum += part;
                size += fabs(part);
            }
            /* scale and minimum of a group are summed apart, which adds what a code of the largest size would */
            if (!(fabs(job.out[t * w->rows + r] - sum) <= 1e-5 * size)) {
                fprintf(stderr, "%s: %d bits, groups of %d, %lld x %lld, token %lld of %lld, row %lld: %.9g, not %.9g\n", isa->name,
                        w->bits, w->group_size, (long long)w->rows, (long long)w->columns, (long long)t, (long long)tokens,
                        (long long)r, (double)job.out[t * w->rows + r], sum);
                exit(1);
            }
        }
    free(scratch); free(job.ordered); free(job.out);
}

static uint64_t code_hash(const product_set *isa, const dequantize_job *w, const float *x, const float *bias, int64_t tokens, int bits,
                          int span) {
    input_codes in = {.x = x, .tokens = tokens, .columns = w->columns, .bits = bits, .weight_bits = w->bits};
    int a = w->group_size, b = span >= w->columns ? 0 : span;
    while (b) { const int rest = a % b; a = b; b = rest; }
    in.segment = a;
    in.span = span < w->columns ? span : (int)w->columns;
    in.n_segments = (in.columns + a - 1) / a;
    code_product job = {.weight = *w, .inputs = &in, .bias = bias, .out = malloc((size_t)(tokens * w->rows) * 4)};
    in.plane_bytes = isa->plane_bytes(&job);
    in.words = (in.n_segments * a / 4 + in.plane_bytes - 1) / in.plane_bytes * in.plane_bytes;
    const int64_t slots = (tokens + SLOTS - 1) / SLOTS, n = slots * SLOTS * in.n_segments;
    in.codes = malloc((size_t)(slots * SLOTS * in.words) * 4);
    in.scales = malloc((size_t)n * 4);
    in.sums = malloc((size_t)n * 4);
    in.offsets = malloc((size_t)n * 4);
    const int64_t need = isa->code_scratch(&job), nbytes = need > in.words * 4 ? need : in.words * 4;
    uint8_t *scratch = malloc((size_t)(THREADS * nbytes));
    run_codes(isa, &job, slots, scratch, nbytes, THREADS);
    const uint64_t hash = hash_bytes(14695981039346656037u, job.out, (size_t)(tokens * w->rows) * 4);
    free(in.codes); free(in.scales); free(in.sums); free(in.offsets); free(scratch); free(job.out);
    return hash;
}

int main(int argc, char **argv) {
    static const form forms[] = {{8, 64, 0, 0}, {4, 32, 0, 1}, {2, 16, 0, 0}, {8, 128, 1, 0}, {4, 64, 1, 0}, {4, 48, 1, 1},
                                 {2, 16, 1, 0}, {2, 256, 1, 1}, {2, 32, 2, 0}, {2, 128, 2, 1}, {4, 32, 3, 0}, {4, 64, 3, 1},
                                 {2, 16, 3, 0}, {2, 32, 3, 0}};
    static const int sizes[][2] = {{1, 16}, {5, 37}, {40, 256}, {37, 330}, {33, 1040}}, counts[] = {1, 2, 3, 4, 5, 9, 17};
    product_set sets[5];
    const int n_sets = product_sets(sets);
    for (int s = 0; s < n_sets; s++) {
        if (argc > 1 && strcmp(argv[1], sets[s].name) != 0) continue;
        state = 1;
        for (int f = 0; f < (int)(sizeof forms / sizeof *forms); f++)
            for (int c = 0; c < 5; c++) {
                dequantize_job w = made_matrix(forms[f], sizes[c][0], sizes[c][1]);
                float *bias = random_floats(w.rows);
                for (int t = 0; t < 7; t++) {
                    float *x = random_floats(counts[t] * w.columns);
                    check_floats(&sets[s], &w, x, bias, counts[t]);
                    printf("%d %d %d", f, c, counts[t]);
                    for (int span = 16; span <= 4096; span *= 16)
                        printf(" %016llx", (unsigned long long)code_hash(&sets[s], &w, x, bias, counts[t], span == 16 ? 4 : 8, span));
                    printf("\n");
                    free(x);
                }
                free(bias); free((void *)w.packed); free((void *)w.scales); free((void *)w.zeros);
            }
    }
    return n_sets ? 0 : 1;
}
