// Vectors of floats as wide as the processor's registers, loads and stores as float or bfloat16, and exp.
//
// Part of kernels.cpp. Written with the vector extensions of gcc and clang, which compile for any processor.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)  // as wide as the processor's registers: compilers turn wider selects into scalar code
constexpr int64_t LANES = 16;
#elif defined(__AVX2__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

struct bf16 {
    uint16_t bits;
};

// `count` lanes from memory, zeros in the others. The callers' main loops pass the constant LANES.
inline Floats load(const float* from, int64_t count) {
    Floats x = {};
    std::memcpy(&x, from, count == LANES ? sizeof x : count * sizeof(float));
    return x;
}
inline Floats load(const bf16* from, int64_t count) {
    Halves x = {};
    std::memcpy(&x, from, count == LANES ? sizeof x : count * sizeof(bf16));
    return reinterpret_cast<Floats>(__builtin_convertvector(x, Words) << 16);
}
inline void store(float* to, Floats x, int64_t count) {
    std::memcpy(to, &x, count == LANES ? sizeof x : count * sizeof(float));
}
inline void store(bf16* to, Floats x, int64_t count) {  // round to nearest, ties to even
#ifdef __AVX512BF16__
    const __m256bh half = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(x));
#else
    const Words word = reinterpret_cast<Words>(x);
    const Halves half = __builtin_convertvector((word + 0x7fffu + ((word >> 16) & 1u)) >> 16, Halves);
#endif
    std::memcpy(to, &half, count == LANES ? sizeof half : count * sizeof(bf16));
}

#ifdef __AVX512F__
inline float sum(Floats x) { return _mm512_reduce_add_ps(reinterpret_cast<__m512>(x)); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(reinterpret_cast<__m512>(x)); }
#else
inline float sum(Floats x) {
    for (int64_t width = LANES / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; i++) x[i] += x[i + width];
    return x[0];
}
inline float largest(Floats x) {
    for (int64_t width = LANES / 2; width > 0; width /= 2)
        for (int64_t i = 0; i < width; i++) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
    return x[0];
}
#endif

// `count` rounded up to whole vectors, but at most `size`.
inline int64_t round_up(int64_t count, int64_t size) {
    const int64_t whole = (count + LANES - 1) / LANES * LANES;
    return whole < size ? whole : size;
}

// True in the lanes below `count`.
inline Ints first_lanes(int64_t count) {
    Ints lane;
    for (int64_t i = 0; i < LANES; i++) lane[i] = i;
    return lane < static_cast<int32_t>(count);
}

// body(j, count) for j = 0, LANES, ... < size: count is LANES, but for what is left at the end.
template <typename Body>
inline void sweep(int64_t size, Body body) {
    int64_t j = 0;
    for (; j + LANES <= size; j += LANES) body(j, LANES);
    if (j < size) body(j, size - j);
}

// exp(x) for x <= 88 = 2^whole * 2^rest, rest in [-1/2, 1/2]; relative error 3e-7 near 0, |x| 6e-8 more far from it.
// Adding 1.5 * 2^23 rounds to a whole number, which then sits in the lowest bits. The polynomial is the minimax one of
// degree 5 (Lawson's iteration; 7e-8). Below -87 the result is e^-87, which is 0 for all purposes here; nan stays nan.
inline Floats exponential(Floats x) {
    x = x < -87.0f ? Floats{} - 87.0f : x;
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
    const Floats rest = x * 1.44269504088896341f - (shifted - 12582912.0f);
    Floats p = rest * 1.3276471782e-3f + 9.6755413328e-3f;
    p = p * rest + 5.5507132741e-2f;
    p = p * rest + 2.4022119724e-1f;
    p = p * rest + 6.9314696706e-1f;
    p = p * rest + 1.0000000717f;
    return p * reinterpret_cast<Floats>((reinterpret_cast<Words>(shifted) + 127u) << 23);
}

// 1 / x for 1 <= x < 1e35, relative error 1e-7; the processor's own division takes twice as long as all else in SwiGLU.
inline Floats reciprocal(Floats x) {
#ifdef __AVX512F__
    const Floats guess = reinterpret_cast<Floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(x)));
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

inline Floats sigmoid(Floats x) {
    return reciprocal(1.0f + exponential(x < -80.0f ? Floats{} + 80.0f : -x));
}

}  // namespace
