/* AVX-512 F, BW, DQ, VL: sixteen lanes. Where codes are decided no FMA is used: they must round as on every other machine.
 * Included once more with WITH_VNNI, for what multiplies codes. */
#ifdef WITH_VNNI
#define ISA(name) name##_avx512vnni
#else
#define ISA(name) name##_avx512
#endif
#if defined(__clang__)
#ifdef WITH_VNNI
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c"))), apply_to = function)
#else
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c"))), apply_to = function)
#endif
#else
#pragma GCC push_options
#ifdef WITH_VNNI
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,f16c,prefer-vector-width=512")
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,f16c,prefer-vector-width=512")
#endif
#endif
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
/* Word i / (32 / bits) of `packed` in lane i, for bits 2 and 4. */
static inline ISA(vi) ISA(v_spread)(const uint8_t *packed, const int bits) {
    const __m512i first = _mm512_broadcastd_epi32(_mm_loadu_si32(packed));
    if (bits == 2) return (ISA(vi))first;
    return (ISA(vi))_mm512_mask_broadcastd_epi32(first, 0xFF00, _mm_loadu_si32(packed + 4));
}
/* Four words, four times. */
static inline ISA(vi) ISA(v_repeat_words)(const uint8_t *from) {
    return (ISA(vi))_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)from));
}
/* values[index & 15] */
static inline ISA(vf) ISA(v_look_up)(ISA(vf) values, ISA(vi) index) {
    return (ISA(vf))_mm512_permutexvar_ps((__m512i)index, (__m512)values);
}
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
/* acc, plus x in lanes whose word has the bits of `mask`. */
static inline ISA(vf) ISA(v_add_where)(ISA(vf) acc, ISA(vi) word, int32_t mask, ISA(vf) x) {
    return (ISA(vf))_mm512_mask_add_ps((__m512)acc, _mm512_test_epi32_mask((__m512i)word, _mm512_set1_epi32(mask)), (__m512)acc, (__m512)x);
}
/* Nearest integer, half to even, of what is less than 2^22. */
static inline ISA(vf) ISA(v_nearest)(ISA(vf) x) { return (ISA(vf))_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a b + c, for sums that may round as they like, or where a b is exact. */
static inline ISA(vf) ISA(v_fma)(ISA(vf) a, ISA(vf) b, ISA(vf) c) { return (ISA(vf))_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/* a + b and a - b on the multipliers, which stand idle beside the adders; the factor 1 keeps them exact. */
static inline ISA(vf) ISA(v_plus)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm512_fmadd_ps((__m512)a, _mm512_set1_ps(1.0f), (__m512)b); }
static inline ISA(vf) ISA(v_minus)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm512_fmsub_ps((__m512)a, _mm512_set1_ps(1.0f), (__m512)b); }
/* acc + the dot product of four unsigned codes of `bits` and four signed bytes in each lane, exact. */
static inline ISA(vi) ISA(v_dot4)(ISA(vi) acc, ISA(vi) codes, ISA(vi) x, const int bits) {
    const __m512i c = (__m512i)codes, s = (__m512i)x;
#ifdef WITH_VNNI
    (void)bits;
    return (ISA(vi))_mm512_dpbusd_epi32((__m512i)acc, c, s);
#else
    if (bits < 8) /* pairs fit 16 bits */
        return acc + (ISA(vi))_mm512_madd_epi16(_mm512_maddubs_epi16(c, s), _mm512_set1_epi16(1));
    const __m512i even = _mm512_madd_epi16(_mm512_and_si512(c, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(s, 8), 8));
    return acc + (ISA(vi))even + (ISA(vi))_mm512_madd_epi16(_mm512_srli_epi16(c, 8), _mm512_srai_epi16(s, 8));
#endif
}

#include KERNEL_TEMPLATE

#undef ISA
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
