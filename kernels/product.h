/* The product kernels for every instruction set, and the choice between them at run time. */
#ifndef ARROWQUANT_PRODUCT_H
#define ARROWQUANT_PRODUCT_H

#include "product_job.h"
#include "half.h"
#include "k_codes.h"
#include "packing.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define KERNEL_TEMPLATE "product_rows.h"
#include "rows_scalar.h"
#if defined(__x86_64__)
#include "rows_avx2.h"
#include "rows_avx512.h"
#define WITH_VNNI
#include "rows_avx512.h"
#undef WITH_VNNI
#elif defined(__aarch64__)
#include "rows_neon.h"
#endif

typedef struct {
    const char *name;
    int64_t (*ordered_size)(const float_product *job);
    int64_t (*ordered_parts)(const float_product *job);
    void (*order_inputs)(const float_product *job, int64_t part);
    int64_t (*float_scratch)(const float_product *job);
    void (*float_panel)(const float_product *job, int64_t panel, float *scratch);
    int (*plane_bytes)(const code_product *job);
    int64_t (*code_scratch)(const code_product *job);
    void (*code_panel)(const code_product *job, int64_t panel, uint8_t *scratch);
    void (*encode_inputs)(const input_codes *in, int64_t group, int8_t *scratch);
} product_set;

#define PRODUCT_SET(name) \
    (product_set){                                                                                    \
        #name, ordered_size_##name, ordered_parts_##name, order_inputs_##name, float_scratch_##name, \
        float_panel_##name, plane_bytes_##name, code_scratch_##name, code_panel_##name, encode_inputs_##name}

/* OUT instruction sets this machine runs, fastest last; returns how many. */
static inline int product_sets(product_set out[5]) {
    int n = 0;
    out[n++] = PRODUCT_SET(scalar);
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
        out[n++] = PRODUCT_SET(avx2);
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl")) {
            out[n++] = PRODUCT_SET(avx512);
            if (__builtin_cpu_supports("avx512vnni")) out[n++] = PRODUCT_SET(avx512vnni);
        }
    }
#elif defined(__aarch64__)
    out[n++] = PRODUCT_SET(neon);
#endif
    return n;
}

#endif
