/* Prints a hash of the bytes that each instruction set produces for a fixed list of jobs, one line a job.
 * Built for the host and for AArch64 by test_other_machines.py; all outputs must be equal. */
#include <stdio.h>
#include <stdlib.h>

#include "dispatch.h"
#include "harness.h"

enum { ROWS = 5, MAX_COLUMNS = 330 };

/* Weights without library functions, so that both machines see the same: a sum of uniforms, some rows odd. */
static void fill(float *w, int columns, float unit) {
    for (int row = 0; row < ROWS; row++)
        for (int k = 0; k < columns; k++) {
            int64_t sum = 0;
            for (int i = 0; i < 4; i++) sum += (int64_t)(next_random() & 0xFFFFF) - 0x80000;
            float x = (float)sum * 0x1p-20f * unit;
            if (row == 1 && k % 7 == 0) x *= 40.0f;
            if (row == 2) x = x < 0 ? -x : x;
            if (row == 3) x = columns % 2 ? 0.0f : 0.37f * unit;
            w[row * columns + k] = x;
        }
}

static uint64_t run_job(const instruction_set *isa, quantize_job job, const float *w, uint64_t hash) {
    /* exact sizes, so that a sanitizer sees a byte too many */
    const int64_t columns = job.columns, stored = job.wide ? 4 : 2, item = job.kind == KIND_FLOAT32 ? 4 : 2;
    const int grid = grid_of(job.method);
    const int64_t zeros = ROWS * (grid != GRID_ZERO_POINT ? job.n_groups * stored : job.zeros_stride);
    const int64_t scales = ROWS * job.n_groups * stored * (grid == GRID_LEVELS ? 2 : 1);
    uint8_t *weight = malloc((size_t)(ROWS * columns * item));
    for (int64_t i = 0; i < ROWS * columns; i++) {
        uint32_t bits = float_bits(w[i]);
        uint16_t half = job.kind == KIND_FLOAT16 ? float_to_half(w[i]) : (uint16_t)(bits >> 16);
        memcpy(weight + i * item, item == 4 ? (const void *)&w[i] : (const void *)&half, (size_t)item);
    }
    float *gain = malloc(ROWS * sizeof(float));
    job.weight = weight;
    job.packed = calloc((size_t)(ROWS * job.packed_stride), 1);
    job.scales = calloc((size_t)scales, 1);
    job.zeros = calloc((size_t)zeros, 1);
    job.sums = calloc(ROWS * 4, sizeof(double));
    job.status = calloc(ROWS, 1);
    run_quantize(isa, &job, 0, 2, gain);
    run_quantize(isa, &job, 2, ROWS, gain);
    hash = hash_bytes(hash, job.status, ROWS);
    int usable = 1;
    for (int i = 0; i < ROWS; i++) usable &= job.status[i] == 0;
    if (usable) {
        hash = hash_bytes(hash, job.packed, (size_t)(ROWS * job.packed_stride));
        hash = hash_bytes(hash, job.scales, (size_t)scales);
        hash = hash_bytes(hash, job.zeros, (size_t)zeros);
        hash = hash_bytes(hash, job.sums, ROWS * 4 * sizeof(double));
        for (int kind = 0; kind < 3; kind++) {
            const size_t nbytes = (size_t)(ROWS * columns * (kind == KIND_FLOAT32 ? 4 : 2));
            dequantize_job back = {
                .packed = job.packed, .scales = job.scales, .zeros = job.zeros, .out = calloc(nbytes, 1), .rows = ROWS,
                .columns = columns, .n_groups = job.n_groups, .packed_stride = job.packed_stride,
                .zeros_stride = job.zeros_stride, .kind = kind, .bits = job.bits, .group_size = job.group_size,
                .minimum = grid != GRID_ZERO_POINT, .levels = grid == GRID_LEVELS, .wide = job.wide};
            run_dequantize(isa, &back, 0, 3);
            run_dequantize(isa, &back, 3, ROWS);
            hash = hash_bytes(hash, back.out, nbytes);
            free(back.out);
        }
    }
    free(weight); free(gain); free(job.packed); free(job.scales); free(job.zeros); free(job.sums); free(job.status);
    return hash;
}

int main(int argc, char **argv) {
    static const int widths[] = {1, 16, 37, 64, 130, 330}, groups[] = {16, 32, 64, 256};
    instruction_set sets[4];
    const int n_sets = supported_sets(sets);
    float *w = malloc(ROWS * MAX_COLUMNS * sizeof(float)), importance[MAX_COLUMNS];
    for (int s = 0; s < n_sets; s++) {
        if (argc > 1 && strcmp(argv[1], sets[s].name) != 0) continue;
        state = 1;
        for (int c = 0; c < 6; c++) for (int g = 0; g < 4; g++) for (int bits = 2; bits <= 8; bits *= 2)
            for (int method = 0; method < 5; method++) for (int kind = 0; kind < 3; kind++) {
                const int wide = (c + g + method) % 2, weighted = method != METHOD_RTN && method != METHOD_HQQ && kind == 1;
                if (method == METHOD_R2Q && bits != 2) continue;
                quantize_job job = {
                    .rows = ROWS, .columns = widths[c], .kind = kind, .bits = bits, .group_size = groups[g], .method = method,
                    .gain = g % 2, .wide = wide, .importance = weighted ? importance : NULL};
                job.n_groups = (job.columns + job.group_size - 1) / job.group_size;
                job.packed_stride = (job.columns * bits + 7) / 8;
                job.zeros_stride = (job.n_groups * bits + 7) / 8;
                fill(w, widths[c], wide && kind != KIND_FLOAT16 ? 0x1p-60f : 1.0f);
                for (int k = 0; k < widths[c]; k++) importance[k] = (float)(next_random() & 0xFFFF) * 0x1p-16f;
                printf("%d %d %d %d %d %016llx\n", widths[c], groups[g], bits, method, kind,
                       (unsigned long long)run_job(&sets[s], job, w, 14695981039346656037u));
            }
    }
    free(w);
    return n_sets ? 0 : 1;
}
