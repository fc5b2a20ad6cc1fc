// Products of weight matrices with a few or many token vectors: y[t][o] = sum over i of w[o][i] x[t][i].
//
// Part of decode.cpp. Weights are row-major, as torch has them, in float, bfloat16, or int8 with one scale for each row.
// Decoding is bound by the bytes of weights, so each row of weights is read once for all tokens of a block.
// An output is summed in an order that does not depend on how many tokens there are or which thread computes it: a text
// gets the same bits alone, in a batch, and in a prompt read at once.
// Here with vectors of floats, on any processor; tiles.h has the products with the tile units of Intel's AMX.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

#ifdef _OPENMP
#include <omp.h>
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")
static inline int team_index() { return omp_get_thread_num(); }
#else
#define PARALLEL
static inline int team_index() { return 0; }
#endif

namespace {

enum Kind : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2 };

struct Matrix {
    const void* weights;
    const float* scale;  // of each row, int8 only
    int64_t outputs, inputs;
};

inline Floats load(const int8_t* from, int64_t count) {
    typedef int8_t Bytes __attribute__((vector_size(LANES)));
    Bytes x = {};
    std::memcpy(&x, from, count == LANES ? sizeof x : count);
    return __builtin_convertvector(__builtin_convertvector(x, Ints), Floats);
}

constexpr int64_t AHEAD_BYTES = 16384;  // of prefetch: the processor's own stops at the end of a page

// The sums of 16 vectors, each in the order of `sum`.
inline Floats sum_each(const Floats* x) {
#ifdef __AVX512F__
    __m512 r[16];
    for (int i = 0; i < 16; i++) r[i] = reinterpret_cast<__m512>(x[i]);
    for (int i = 0; i < 8; i++)  // lanes j and j + 8, of vectors i and i + 8
        r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[i], r[i + 8], 0x44), _mm512_shuffle_f32x4(r[i], r[i + 8], 0xee));
    for (int i = 0; i < 4; i++)  // j and j + 4; quarters are now of vectors i, i + 8, i + 4, i + 12
        r[i] = _mm512_add_ps(_mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd));
    for (int i = 0; i < 2; i++) {  // j and j + 2
        const __m512d a = _mm512_castps_pd(r[i]), b = _mm512_castps_pd(r[i + 2]);
        r[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(r[0], r[1], 0x88), _mm512_shuffle_ps(r[0], r[1], 0xdd));
    // Quarter q, lane j now is vector {0, 8, 4, 12}[q] + {0, 2, 1, 3}[j].
    const __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return reinterpret_cast<Floats>(_mm512_permutexvar_ps(order, sums));
#else
    Floats sums = {};
    for (int64_t i = 0; i < LANES; i++) sums[i] = sum(x[i]);
    return sums;
#endif
}

// y[t][r] for R rows of weights and T tokens; `IS_AHEAD` requests later rows, which once for all tokens is enough.
template <int R, int T, bool IS_AHEAD, typename W>
inline void dots(const W* w, const float* scale, const float* x, float* y, int64_t inputs, int64_t outputs) {
    constexpr int WHOLE = (R * T + 15) / 16 * 16;  // of zeros beyond R * T, for sum_each
    Floats sums[WHOLE] = {};
    sweep(inputs, [&](int64_t j, int64_t count) {
        Floats a[R];
        for (int r = 0; r < R; r++) {
            a[r] = load(w + r * inputs + j, count);
            if (IS_AHEAD) __builtin_prefetch(reinterpret_cast<const char*>(w + r * inputs + j) + AHEAD_BYTES);
        }
        for (int t = 0; t < T; t++) {
            const Floats b = load(x + t * inputs + j, count);
            for (int r = 0; r < R; r++) sums[r * T + t] += a[r] * b;
        }
    });
    float totals[WHOLE];
    if (R * T >= 4 && LANES == 16)
        for (int i = 0; i < WHOLE; i += 16) store(totals + i, sum_each(sums + i), LANES);
    else
        for (int i = 0; i < R * T; i++) totals[i] = sum(sums[i]);
    for (int r = 0; r < R; r++)
        for (int t = 0; t < T; t++) y[t * outputs + r] = totals[r * T + t] * (scale ? scale[r] : 1.0f);
}

template <int R, typename W>
inline void row_block(const Matrix& m, int64_t row, const float* x, float* y, int64_t tokens) {
    const W* w = static_cast<const W*>(m.weights) + row * m.inputs;
    const float* scale = m.scale ? m.scale + row : nullptr;
    int64_t t = 0;
    if (tokens >= 4) {
        dots<R, 4, true>(w, scale, x, y + row, m.inputs, m.outputs);
        t = 4;
    } else {
        dots<R, 1, true>(w, scale, x, y + row, m.inputs, m.outputs);
        t = 1;
    }
    for (; t + 4 <= tokens; t += 4)
        dots<R, 4, false>(w, scale, x + t * m.inputs, y + t * m.outputs + row, m.inputs, m.outputs);
    for (; t < tokens; t++) dots<R, 1, false>(w, scale, x + t * m.inputs, y + t * m.outputs + row, m.inputs, m.outputs);
}

template <typename W>
void multiply_vectors(const Matrix& m, const float* x, float* y, int64_t tokens, int threads) {
    constexpr int64_t ROWS = LANES == 16 ? 6 : 3;  // 4 tokens of 6 rows fill 24 of 32 registers (3 rows: 12 of 16)
    const int64_t blocks = (m.outputs + ROWS - 1) / ROWS;
    PARALLEL
    for (int64_t block = 0; block < blocks; block++) {
        int64_t row = block * ROWS;
        if (row + ROWS <= m.outputs)
            row_block<ROWS, W>(m, row, x, y, tokens);
        else
            for (; row < m.outputs; row++) row_block<1, W>(m, row, x, y, tokens);
    }
}

}  // namespace
