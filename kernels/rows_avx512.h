/* AVX-512 F, BW, DQ, VL: sixteen lanes. FMA is not used: codes and sums must round as on every other machine. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512")
#endif
#define ISA(name) name##_avx512
#define LANES 16

typedef float ISA(vf) __attribute__((vector_size(64)));
typedef int32_t ISA(vi) __attribute__((vector_size(64)));
typedef uint16_t ISA(vh) __attribute__((vector_size(32)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm512_min_ps((__m512)a, (__m512)b); }
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm512_max_ps((__m512)a, (__m512)b); }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))_mm512_cvtph_ps((__m256i)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
static inline void ISA(stream_line)(uint8_t *to, const uint8_t *from) {
    _mm512_stream_si512((__m512i *)to, _mm512_loadu_si512(from));
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
