/* AVX2 and F16C: eight lanes. FMA is not used: codes and sums must round as on every other machine. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,f16c")
#endif
#define ISA(name) name##_avx2
#define LANES 8

typedef float ISA(vf) __attribute__((vector_size(32)));
typedef int32_t ISA(vi) __attribute__((vector_size(32)));
typedef uint16_t ISA(vh) __attribute__((vector_size(16)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_min_ps((__m256)a, (__m256)b); }
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_max_ps((__m256)a, (__m256)b); }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))_mm256_cvtph_ps((__m128i)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
static inline void ISA(stream_line)(uint8_t *to, const uint8_t *from) {
    _mm256_stream_si256((__m256i *)to, _mm256_loadu_si256((const __m256i *)from));
    _mm256_stream_si256((__m256i *)to + 1, _mm256_loadu_si256((const __m256i *)from + 1));
}
static inline void ISA(stream_fence)(void) { _mm_sfence(); }

#include "rows.h"

#undef ISA
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
