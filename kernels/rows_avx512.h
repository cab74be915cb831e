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
/* Larger of abs(a), abs(b); whether any lane of a comparison holds. */
static inline ISA(vf) ISA(v_max_abs)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm512_range_ps((__m512)a, (__m512)b, 11); }
static inline ISA(vf) ISA(v_sqrt)(ISA(vf) x) { return (ISA(vf))_mm512_sqrt_ps((__m512)x); }
static inline int ISA(v_any)(ISA(vi) mask) { return _mm512_movepi32_mask((__m512i)mask) != 0; }
/* Element code (0 to 3) of each four lanes of `four`, which repeats every four lanes. */
static inline ISA(vf) ISA(v_pick)(ISA(vf) four, ISA(vi) code) { return (ISA(vf))_mm512_permutevar_ps((__m512)four, (__m512i)code); }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))_mm512_cvtph_ps((__m256i)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT); }
static inline ISA(vi) ISA(v_from_bytes)(const uint8_t *from) {
    return (ISA(vi))_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)from));
}
static inline void ISA(v_to_bytes)(ISA(vi) x, uint8_t *to) { _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8((__m512i)x)); }
/* Packs 4 * LANES codes; OUT 8 * bits bytes. */
static inline void ISA(store_codes)(const ISA(vi) c[4], const int bits, uint8_t *out) {
    __m512i low = _mm512_packus_epi32((__m512i)c[0], (__m512i)c[1]), high = _mm512_packus_epi32((__m512i)c[2], (__m512i)c[3]);
    __m512i x = _mm512_packus_epi16(low, high); /* 32-bit word 4 q + i holds quarter q of c[i] */
    x = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), x);
    if (bits == 8) { _mm512_storeu_si512(out, x); return; }
    x = _mm512_maddubs_epi16(x, _mm512_set1_epi16(bits == 4 ? 0x1001 : 0x0401)); /* a + (b << bits) in 16 bits */
    if (bits == 4) { _mm256_storeu_si256((__m256i *)out, _mm512_cvtepi16_epi8(x)); return; }
    x = _mm512_madd_epi16(x, _mm512_set1_epi32(0x00100001)); /* four codes in 32 bits */
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8(x));
}
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
