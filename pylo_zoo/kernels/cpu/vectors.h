// Vectors of floats with the compilers' vector extensions: one implementation for AVX-512, AVX2 and NEON.
//
// All functions propagate NaN, as torch does.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#else
constexpr int W = 8;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t VI __attribute__((vector_size(4 * W)));

#define INLINE inline __attribute__((always_inline))

#define INLINE_LAMBDA __attribute__((always_inline))
#define ALIGNED alignas(64)
#define UNROLL _Pragma("GCC unroll 16")  // keeps arrays of vectors in registers

INLINE V splat(float x) { return x - V{}; }  // not x + V{}, which turns -0 into 0

INLINE V load(const float* from) {
    V x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float* to, V x) { std::memcpy(to, &x, sizeof x); }

// max(x, low) and min(x, high). NaN stays: the instructions return their second operand if either is NaN.
#if defined(__AVX512F__)
INLINE V at_least(V x, float low) { return (V)_mm512_max_ps((__m512)splat(low), (__m512)x); }
INLINE V at_most(V x, float high) { return (V)_mm512_min_ps((__m512)splat(high), (__m512)x); }
INLINE V square_root(V x) { return (V)_mm512_sqrt_ps((__m512)x); }
#elif defined(__AVX__)
INLINE V at_least(V x, float low) { return (V)_mm256_max_ps((__m256)splat(low), (__m256)x); }
INLINE V at_most(V x, float high) { return (V)_mm256_min_ps((__m256)splat(high), (__m256)x); }
INLINE V square_root(V x) { return (V)_mm256_sqrt_ps((__m256)x); }
#else
INLINE V at_least(V x, float low) { return x < splat(low) ? splat(low) : x; }
INLINE V at_most(V x, float high) { return x > splat(high) ? splat(high) : x; }
INLINE V square_root(V x) {
    for (int i = 0; i < W; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
#endif

INLINE V clip(V x, float limit) { return at_most(at_least(x, -limit), limit); }
// 1 / √x. With AVX-512, y is an approximation to 2^-14, which one Newton step improves: y + y·e/2 with e = 1 − x·y², |e| ≤ 2^-13.
// Its error is at most 3/8·e² < 2^-27, half a roundoff of x·y and one of the sum: less than 2 roundoffs. If e is NaN, x is
// 0, infinite, negative or NaN, and y is exact.
#if defined(__AVX512F__)
INLINE V rsqrt(V x) {
    const V y = (V)_mm512_rsqrt14_ps((__m512)x);
    const V error = 1.0f - x * y * y;
    return error == error ? y + 0.5f * y * error : y;
}
#else
INLINE V rsqrt(V x) { return 1.0f / square_root(x); }
#endif

INLINE float sum(V x) {
    for (int half = W / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x[i] += x[i + half];
    return x[0];
}

INLINE VI bits(V x) { return (VI)x; }

// All ones in the first `count` lanes.
INLINE VI first_lanes(int count) {
    VI lane;
    for (int i = 0; i < W; ++i) lane[i] = i;
    return lane < (VI{} + count);
}

// 2^n for n from -126 to 127.
INLINE V power_of_two(VI n) { return (V)((n + 127) << 23); }

// e^x to 1 ulp (Cephes' expf: 2^n times a polynomial on ±ln 2 / 2). Infinite above 88.7, 0 below -103.9.
INLINE V exponential(V x) {
    x = at_most(at_least(x, -104.0f), 89.0f);
    const V shift = splat(12582912.0f);  // 1.5 · 2^23: adding it rounds to an integer
    V n = (x * 1.44269504088896341f + shift) - shift;
    V r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    V y = splat(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    VI whole = __builtin_convertvector(n, VI), half = whole >> 1;  // two factors, because the result can be subnormal
    return y * power_of_two(half) * power_of_two(whole - half);
}

// tanh x to 2 ulp (Cephes' tanhf): a polynomial near 0, 1 - 2 / (e^2|x| + 1) elsewhere.
INLINE V hyperbolic_tangent(V x) {
    const VI sign = bits(x) & INT32_MIN;
    const V size = (V)(bits(x) & INT32_MAX);
    const V z = x * x;
    V near = splat(-5.70498872745e-3f);
    near = near * z + 2.06390887954e-2f;
    near = near * z + -5.37397155531e-2f;
    near = near * z + 1.33314422036e-1f;
    near = near * z + -3.33332819422e-1f;
    near = near * z * x + x;
    const V far = 1.0f - 2.0f / (exponential(size + size) + 1.0f);
    return size < splat(0.625f) ? near : (V)(bits(far) | sign);
}

}  // namespace
