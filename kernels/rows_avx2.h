/* AVX2, FMA and F16C: eight lanes. Where codes are decided no FMA is used: they must round as on every other machine. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define ISA(name) name##_avx2
#define LANES 8

typedef float ISA(vf) __attribute__((vector_size(32)));
typedef int32_t ISA(vi) __attribute__((vector_size(32)));
typedef uint16_t ISA(vh) __attribute__((vector_size(16)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_min_ps((__m256)a, (__m256)b); }
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_max_ps((__m256)a, (__m256)b); }
/* Larger of abs(a), abs(b); whether any lane of a comparison holds. */
static inline ISA(vf) ISA(v_max_abs)(ISA(vf) a, ISA(vf) b) {
    return ISA(v_max)((ISA(vf))((ISA(vi))a & 0x7FFFFFFF), (ISA(vf))((ISA(vi))b & 0x7FFFFFFF));
}
static inline ISA(vf) ISA(v_sqrt)(ISA(vf) x) { return (ISA(vf))_mm256_sqrt_ps((__m256)x); }
static inline int ISA(v_any)(ISA(vi) mask) { return !_mm256_testz_si256((__m256i)mask, (__m256i)mask); }
/* Element code (0 to 3) of each four lanes of `four`, which repeats every four lanes. */
static inline ISA(vf) ISA(v_pick)(ISA(vf) four, ISA(vi) code) { return (ISA(vf))_mm256_permutevar_ps((__m256)four, (__m256i)code); }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))_mm256_cvtph_ps((__m128i)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT); }
static inline ISA(vi) ISA(v_from_bytes)(const uint8_t *from) {
    return (ISA(vi))_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)from));
}
static inline void ISA(v_to_bytes)(ISA(vi) x, uint8_t *to) {
    __m128i words = _mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    _mm_storel_epi64((__m128i *)to, _mm_packus_epi16(words, words));
}
/* values[index & 7] */
static inline ISA(vf) ISA(v_look_up)(ISA(vf) values, ISA(vi) index) {
    return (ISA(vf))_mm256_permutevar8x32_ps((__m256)values, (__m256i)index);
}
/* acc, plus x in lanes whose word has the bits of `mask`. */
static inline ISA(vf) ISA(v_add_where)(ISA(vf) acc, ISA(vi) word, int32_t mask, ISA(vf) x) {
    const __m256i bits = _mm256_set1_epi32(mask), chosen = _mm256_cmpeq_epi32(_mm256_and_si256((__m256i)word, bits), bits);
    return acc + (ISA(vf))_mm256_and_ps((__m256)x, _mm256_castsi256_ps(chosen));
}
/* Packs 4 * LANES codes; OUT 4 * bits bytes. */
static inline void ISA(store_codes)(const ISA(vi) c[4], const int bits, uint8_t *out) {
    __m256i low = _mm256_packus_epi32((__m256i)c[0], (__m256i)c[1]), high = _mm256_packus_epi32((__m256i)c[2], (__m256i)c[3]);
    __m256i x = _mm256_packus_epi16(low, high); /* 32-bit word 4 h + i holds half h of c[i] */
    x = _mm256_permutevar8x32_epi32(x, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if (bits == 8) { _mm256_storeu_si256((__m256i *)out, x); return; }
    x = _mm256_maddubs_epi16(x, _mm256_set1_epi16(bits == 4 ? 0x1001 : 0x0401)); /* a + (b << bits) in 16 bits */
    if (bits == 2) {
        x = _mm256_madd_epi16(x, _mm256_set1_epi32(0x00100001)); /* four codes in 32 bits */
        x = _mm256_packus_epi32(x, x);
    }
    x = _mm256_packus_epi16(x, x);
    if (bits == 4) _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(_mm256_permute4x64_epi64(x, 8)));
    else _mm_storel_epi64((__m128i *)out, _mm_unpacklo_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}
/* Nearest integer, half to even, of what is less than 2^22. */
static inline ISA(vf) ISA(v_nearest)(ISA(vf) x) { return (ISA(vf))_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a b + c, for sums that may round as they like, or where a b is exact. */
static inline ISA(vf) ISA(v_fma)(ISA(vf) a, ISA(vf) b, ISA(vf) c) { return (ISA(vf))_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
/* a + b and a - b on the multipliers, which stand idle beside the adders; the factor 1 keeps them exact. */
static inline ISA(vf) ISA(v_plus)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_fmadd_ps((__m256)a, _mm256_set1_ps(1.0f), (__m256)b); }
static inline ISA(vf) ISA(v_minus)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))_mm256_fmsub_ps((__m256)a, _mm256_set1_ps(1.0f), (__m256)b); }
/* acc + the dot product of four unsigned codes of `bits` and four signed bytes in each lane, exact. */
static inline ISA(vi) ISA(v_dot4)(ISA(vi) acc, ISA(vi) codes, ISA(vi) x, const int bits) {
    const __m256i c = (__m256i)codes, s = (__m256i)x;
    if (bits < 8) /* pairs fit 16 bits */
        return acc + (ISA(vi))_mm256_madd_epi16(_mm256_maddubs_epi16(c, s), _mm256_set1_epi16(1));
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(c, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
    return acc + (ISA(vi))even + (ISA(vi))_mm256_madd_epi16(_mm256_srli_epi16(c, 8), _mm256_srai_epi16(s, 8));
}

#include KERNEL_TEMPLATE

#undef ISA
#undef LANES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
