/* Chooses an instruction set at run time. Every entry computes the same bytes; only what the machine has is listed. */
#ifndef ARROWQUANT_DISPATCH_H
#define ARROWQUANT_DISPATCH_H

#include "job.h"
#include "half.h"
#include "k_codes.h"
#include "packing.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "rounding.h"
#define KERNEL_TEMPLATE "rows.h"
#include "rows_scalar.h"
#if defined(__x86_64__)
#include "rows_avx2.h"
#include "rows_avx512.h"
#elif defined(__aarch64__)
#include "rows_neon.h"
#endif

typedef struct {
    const char *name;
    void (*quantize)(const quantize_job *job, int64_t start, int64_t stop, float *gain);
    void (*dequantize)(const dequantize_job *job, int64_t start, int64_t stop);
} instruction_set;

/* OUT instruction sets this machine runs, fastest last; returns how many. */
static inline int supported_sets(instruction_set out[4]) {
    int n = 0;
    out[n++] = (instruction_set){"scalar", quantize_block_scalar, dequantize_block_scalar};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        out[n++] = (instruction_set){"avx2", quantize_block_avx2, dequantize_block_avx2};
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl"))
            out[n++] = (instruction_set){"avx512", quantize_block_avx512, dequantize_block_avx512};
    }
#elif defined(__aarch64__)
    out[n++] = (instruction_set){"neon", quantize_block_neon, dequantize_block_neon};
#endif
    return n;
}

static inline void run_quantize(const instruction_set *isa, const quantize_job *job, int64_t start, int64_t stop, float *gain) {
    uint64_t before = default_rounding();
    isa->quantize(job, start, stop, gain);
    restore_rounding(before);
}

static inline void run_dequantize(const instruction_set *isa, const dequantize_job *job, int64_t start, int64_t stop) {
    uint64_t before = default_rounding();
    isa->dequantize(job, start, stop);
    restore_rounding(before);
}

#endif
