/* NEON (AArch64 baseline): four lanes, hardware float16 conversion. */
#define ISA(name) name##_neon
#define LANES 4

typedef float ISA(vf) __attribute__((vector_size(16)));
typedef int32_t ISA(vi) __attribute__((vector_size(16)));
typedef uint16_t ISA(vh) __attribute__((vector_size(8)));

static inline ISA(vf) ISA(v_min)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))vminq_f32((float32x4_t)a, (float32x4_t)b); }
static inline ISA(vf) ISA(v_max)(ISA(vf) a, ISA(vf) b) { return (ISA(vf))vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
static inline ISA(vf) ISA(v_from_half)(ISA(vh) h) { return (ISA(vf))vcvt_f32_f16((float16x4_t)h); }
static inline ISA(vh) ISA(v_to_half)(ISA(vf) x) { return (ISA(vh))vcvt_f16_f32((float32x4_t)x); }
/* Arm's non-temporal pair store has no intrinsic; ordinary stores already detect streams there. */
static inline void ISA(stream_line)(uint8_t *to, const uint8_t *from) { memcpy(to, from, 64); }
static inline void ISA(stream_fence)(void) {}

#include "rows.h"

#undef ISA
#undef LANES
