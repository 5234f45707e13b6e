// One vector of W floats for the instruction set this file is compiled for, and the few operations the kernels need.
//
// Knows nothing of splats. Arithmetic is the compiler's vector extension; intrinsics stand only where the extension
// has no word for it (masks, reciprocal, horizontal sums). Everything is in an unnamed namespace and nothing comes
// from std::, so no inline function compiled for AVX can be merged by the linker into code that must run without it.
//
// Fused multiply-add is always spelled fma() and the files are compiled with -ffp-contract=off: rounding is then a
// property of this source, not of the compiler's mood, and forward and backward agree.
#pragma once

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define SIMD_LANES 16
#elif defined(__AVX2__)
#define SIMD_LANES 8
#else
#define SIMD_LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

constexpr int W = SIMD_LANES;
typedef float F __attribute__((vector_size(W * 4)));
typedef int32_t I __attribute__((vector_size(W * 4)));
typedef float F_unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t I_unaligned __attribute__((vector_size(W * 4), aligned(4), may_alias));

INLINE F splat(float value) { return value - F{}; }
INLINE I splat(int32_t value) { return value - I{}; }
INLINE F load(const float* p) { return *(const F_unaligned*)p; }
INLINE void store(float* p, F v) { *(F_unaligned*)p = v; }
INLINE void store(int32_t* p, I v) { *(I_unaligned*)p = v; }

#if SIMD_LANES == 16

typedef __mmask16 Mask;
INLINE F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }    // a * b + c
INLINE F fnma(F a, F b, F c) { return (F)_mm512_fnmadd_ps((__m512)a, (__m512)b, (__m512)c); }  // c - a * b
INLINE F min(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE F max(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE F sqrt(F a) { return (F)_mm512_sqrt_ps((__m512)a); }
INLINE F abs(F a) { return (F)_mm512_abs_ps((__m512)a); }
INLINE Mask greater(F a, F b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
INLINE Mask at_least(F a, F b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
INLINE Mask both(Mask a, Mask b) { return a & b; }
INLINE F select(Mask m, F a, F b) { return (F)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INLINE F keep(Mask m, F a) { return (F)_mm512_maskz_mov_ps(m, (__m512)a); }  // a where m, else 0
INLINE I keep(Mask m, I a) { return (I)_mm512_maskz_mov_epi32(m, (__m512i)a); }
INLINE uint32_t bits(Mask m) { return m; }
INLINE bool any(Mask m) { return m != 0; }
INLINE F round_nearest(F a) {
    return (F)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// a * 2^n for a whole number n.
INLINE F scale_by_power(F a, F n) { return (F)_mm512_scalef_ps((__m512)a, (__m512)n); }

#else

typedef I Mask;
INLINE F select(Mask m, F a, F b) { return m ? a : b; }
INLINE Mask greater(F a, F b) { return a > b; }
INLINE Mask at_least(F a, F b) { return a >= b; }
INLINE Mask both(Mask a, Mask b) { return a & b; }
INLINE F keep(Mask m, F a) { return (F)(m & (I)a); }
INLINE I keep(Mask m, I a) { return m & a; }
INLINE F abs(F a) { return (F)((I)a & splat(int32_t(0x7fffffff))); }

#if SIMD_LANES == 8

INLINE F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE F fnma(F a, F b, F c) { return (F)_mm256_fnmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE F min(F a, F b) { return (F)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE F max(F a, F b) { return (F)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE F sqrt(F a) { return (F)_mm256_sqrt_ps((__m256)a); }
INLINE uint32_t bits(Mask m) { return (uint32_t)_mm256_movemask_ps((__m256)m); }

#else

INLINE F fma(F a, F b, F c) { return a * b + c; }
INLINE F fnma(F a, F b, F c) { return c - a * b; }

#if defined(__SSE2__)

INLINE F min(F a, F b) { return (F)_mm_min_ps((__m128)a, (__m128)b); }
INLINE F max(F a, F b) { return (F)_mm_max_ps((__m128)a, (__m128)b); }
INLINE F sqrt(F a) { return (F)_mm_sqrt_ps((__m128)a); }
INLINE uint32_t bits(Mask m) { return (uint32_t)_mm_movemask_ps((__m128)m); }

#else

INLINE F min(F a, F b) { return a < b ? a : b; }
INLINE F max(F a, F b) { return a > b ? a : b; }
INLINE F sqrt(F a) {
    F r;
    for (int i = 0; i < W; ++i) r[i] = __builtin_sqrtf(a[i]);
    return r;
}
INLINE uint32_t bits(Mask m) {
    uint32_t r = 0;
    for (int i = 0; i < W; ++i) r |= (uint32_t)(m[i] & 1) << i;
    return r;
}

#endif
#endif

INLINE bool any(Mask m) { return bits(m) != 0; }
// Adding 1.5 * 2^23 leaves the rounded value in the low mantissa bits; good for |a| < 2^22.
INLINE F round_nearest(F a) { return (a + splat(12582912.0f)) - splat(12582912.0f); }
INLINE F scale_by_power(F a, F n) {
    const I exponent = (I)(n + splat(12582912.0f));
    return (F)((I)a + (exponent << 23));
}

#endif

// 2^a to 2e-7 relative for -126 < a < 1; anything else gives a wrong value that the caller must mask.
INLINE F exp2(F a) {
    const F n = round_nearest(a);
    const F f = a - n;
    F p = splat(0.0013276472f);
    p = fma(p, f, splat(0.0096755475f));
    p = fma(p, f, splat(0.055507135f));
    p = fma(p, f, splat(0.24022120f));
    p = fma(p, f, splat(0.69314694f));
    p = fma(p, f, splat(1.0000001f));
    return scale_by_power(p, n);
}

// log2(a) for normal a > 0: a = 2^e m with m in [sqrt(1/2), sqrt(2)), ln m = 2 atanh((m - 1) / (m + 1)).
INLINE F log2(F a) {
    const I shifted = (I)a - splat(int32_t(0x3f3504f3));
    const I e = shifted >> 23;
    const F m = (F)((I)a - (e << 23));
    const F s = (m - 1.0f) / (m + 1.0f);
    const F s2 = s * s;
    F p = splat(0.32059890f);
    p = fma(p, s2, splat(0.41219858f));
    p = fma(p, s2, splat(0.57707802f));
    p = fma(p, s2, splat(0.96179669f));
    p = fma(p, s2, splat(2.88539008f));
    return fma(p, s, __builtin_convertvector(e, F));
}

// 1 / a to about 2e-7 relative.
INLINE F reciprocal(F a) {
#if SIMD_LANES == 16
    const F r = (F)_mm512_rcp14_ps((__m512)a);
#elif SIMD_LANES == 8
    const F r = (F)_mm256_rcp_ps((__m256)a);
#elif defined(__SSE2__)
    const F r = (F)_mm_rcp_ps((__m128)a);
#else
    return 1.0f / a;
#endif
#if defined(__SSE2__)
    return fma(r, fnma(a, r, splat(1.0f)), r);  // one Newton step
#endif
}

// Sum of the lanes, as a balanced tree.
INLINE float sum_lanes(F v) {
    float p[W];
    store(p, v);
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) p[i] += p[i + half];
    return p[0];
}

// out[j] = sum of the lanes of v[j], j < 8. The order of additions is fixed.
INLINE void sum_lanes8(const F* v, float* out) {
#if SIMD_LANES >= 8
    __m256 r[8];
    for (int j = 0; j < 8; ++j) {
#if SIMD_LANES == 16
        r[j] = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[j]), _mm512_extractf32x8_ps((__m512)v[j], 1));
#else
        r[j] = (__m256)v[j];
#endif
    }
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(r[0], r[1]), _mm256_hadd_ps(r[2], r[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(r[4], r[5]), _mm256_hadd_ps(r[6], r[7]));
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    _mm256_storeu_ps(out, _mm256_add_ps(low, high));
#elif defined(__SSE2__)
    for (int j = 0; j < 8; j += 4) {
        __m128 a = (__m128)v[j], b = (__m128)v[j + 1], c = (__m128)v[j + 2], d = (__m128)v[j + 3];
        _MM_TRANSPOSE4_PS(a, b, c, d);
        _mm_storeu_ps(out + j, _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d)));
    }
#else
    for (int j = 0; j < 8; ++j) out[j] = (v[j][0] + v[j][1]) + (v[j][2] + v[j][3]);
#endif
}

}  // namespace
