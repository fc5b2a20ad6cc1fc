// Products of bfloat16 and int8 weights with the tile units of Intel's AMX (Sapphire Rapids and later, on Linux).
//
// Part of decode.cpp; see products.h. A tile is 16 rows of 64 bytes. A tile of weights is 16 rows as they lie in memory,
// and costs the same for 1 and for 16 tokens: decoding a batch is then as fast as reading the weights. Tokens are packed
// into tiles of [2 bfloat16 or 4 int8][token]; sums come out as [row][token].
// int8 weights meet tokens of 16 bits, as 256 * high byte + low byte, so that only the weights are rounded to 8 bits.

#pragma once

#include "products.h"

#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__) && defined(__AVX512VBMI__) && \
    defined(__linux__)
#define HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#ifdef HAS_TILES

constexpr int64_t TILE = 16;        // rows of a tile, and tokens that share a pass over the weights
constexpr int64_t TILE_BYTES = 64;  // of a row of a tile: 32 bfloat16 or 64 int8

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    // Tiles 0-3 sums, 4-5 weights, 6-7 tokens.
    TileConfig(int64_t tokens) {
        for (int tile = 0; tile < 8; tile++) {
            rows[tile] = TILE;
            row_bytes[tile] = tile == 4 || tile == 5 ? TILE_BYTES : 4 * tokens;
        }
    }
    // Tiles 0-3 sums and 4 the left side, of `count` rows; 5-7 the right side (decode_attention.h).
    static TileConfig of_rows(int64_t count) {
        TileConfig config(TILE);
        for (int tile = 0; tile <= 4; tile++) config.rows[tile] = count;
        return config;
    }
};

// Whether the kernel lets this process use the tiles (Linux 5.16; ARCH_REQ_XCOMP_PERM for XTILEDATA).
inline bool may_use_tiles() {
    static const bool may = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return may;
}

// Rows and columns of 16 x 16 words exchanged.
inline void transpose(__m512i* r) {
    __m512i s[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + 2 + j]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + 2 + j]);
        }
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 2; i++) {
            s[8 * i + j] = _mm512_shuffle_i32x4(r[8 * i + j], r[8 * i + 4 + j], 0x88);
            s[8 * i + 4 + j] = _mm512_shuffle_i32x4(r[8 * i + j], r[8 * i + 4 + j], 0xdd);
        }
    for (int j = 0; j < 8; j++) {
        r[j] = _mm512_shuffle_i32x4(s[j], s[8 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(s[j], s[8 + j], 0xdd);
    }
}

// words[w][t], w < 16, t < count, from word(t): 16 words of token t.
template <typename Word>
inline void pack_tile(int32_t* to, int64_t count, Word word) {
    if (count == 1) {
        _mm512_storeu_si512(to, word(0));
        return;
    }
    __m512i rows[16];
    for (int64_t t = 0; t < 16; t++) rows[t] = t < count ? word(t) : _mm512_setzero_si512();
    transpose(rows);
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    for (int64_t w = 0; w < 16; w++) _mm512_mask_storeu_epi32(to + w * count, mask, rows[w]);
}

// y[t][row + r] for 16 rows from a tile of sums [r][t].
inline void unpack_tile(const float* sums, float* y, int64_t outputs, int64_t count) {
    if (count == 1) {
        _mm512_storeu_ps(y, _mm512_loadu_ps(sums));
        return;
    }
    __m512i rows[16];
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    for (int64_t r = 0; r < 16; r++) rows[r] = _mm512_maskz_loadu_epi32(mask, sums + r * count);
    transpose(rows);
    for (int64_t t = 0; t < count; t++) _mm512_storeu_ps(y + t * outputs, _mm512_castsi512_ps(rows[t]));
}

// Tokens as bfloat16 pairs: for each block of 16 tokens and 32 inputs a tile of [pair][token].
inline void pack_bf16(const float* x, int64_t inputs, int64_t tokens, uint8_t* packed) {
    for (int64_t first = 0; first < tokens; first += TILE) {
        const int64_t count = std::min(TILE, tokens - first);
        for (int64_t j = 0; j < inputs; j += 32)
            pack_tile(reinterpret_cast<int32_t*>(packed + (first * inputs + j * count) * 2), count, [&](int64_t t) {
                const float* from = x + (first + t) * inputs + j;
                return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)));
            });
    }
}

// Tokens as whole numbers of 16 bits with one scale each, cut into a high (signed) and a low (unsigned) byte.
// Tiles of [4 inputs][token], high then low.
inline void pack_int16(const float* x, int64_t inputs, int64_t tokens, uint8_t* packed, float* scales) {
    const __m512i every_other = _mm512_set_epi64(0x7e7c7a7876747270, 0x6e6c6a6866646260, 0x5e5c5a5856545250,
                                                 0x4e4c4a4846444240, 0x3e3c3a3836343230, 0x2e2c2a2826242220,
                                                 0x1e1c1a1816141210, 0x0e0c0a0806040200);
    const __m512i one = _mm512_set1_epi8(1);
    for (int64_t first = 0; first < tokens; first += TILE) {
        const int64_t count = std::min(TILE, tokens - first);
        float inverse[TILE];
        for (int64_t t = 0; t < count; t++) {
            __m512 most = _mm512_setzero_ps();
            for (int64_t j = 0; j < inputs; j += 16)
                most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + (first + t) * inputs + j)));
            const float largest = std::max(_mm512_reduce_max_ps(most), 1e-30f);
            scales[first + t] = largest / 32767.0f;
            inverse[t] = 32767.0f / largest;
        }
        for (int64_t j = 0; j < inputs; j += 64) {
            const auto bytes = [&](int64_t t, const __m512i& which) {
                const float* from = x + (first + t) * inputs + j;
                __m512i halves[2];
                for (int i = 0; i < 2; i++) {
                    const __m512 scale = _mm512_set1_ps(inverse[t]);
                    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + 32 * i), scale));
                    const __m512i b = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(from + 32 * i + 16), scale));
                    halves[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtsepi32_epi16(a)),
                                                   _mm512_cvtsepi32_epi16(b), 1);
                }
                return _mm512_permutex2var_epi8(halves[0], which, halves[1]);
            };
            uint8_t* to = packed + (first * inputs + j * count) * 2;
            const __m512i odd = _mm512_add_epi8(every_other, one);
            pack_tile(reinterpret_cast<int32_t*>(to), count, [&](int64_t t) { return bytes(t, odd); });
            pack_tile(reinterpret_cast<int32_t*>(to + 64 * count), count, [&](int64_t t) { return bytes(t, every_other); });
        }
    }
}

// Requests the lines of the next panel one after the other while this one is computed: memory then never waits, and
// the processor's own prefetch, which follows pages in order, joins in.
struct Stream {
    const char* next;

    Stream(const Matrix& m, int64_t row, int64_t row_bytes, bool is_needed)
        : next(is_needed ? static_cast<const char*>(m.weights) + row * row_bytes : nullptr) {}

    inline void request(int64_t lines) {
        if (!next) return;
        for (int64_t i = 0; i < lines; i++) _mm_prefetch(next + 64 * i, _MM_HINT_T1);
        next += 64 * lines;
    }
};

// 64 rows of weights and up to 16 tokens: four sums at once hide the latency of the tile unit.
inline void panel_bf16(const Matrix& m, int64_t row, const uint8_t* packed, int64_t first, int64_t count, Stream& stream,
                       float* y) {
    const int64_t stride = m.inputs * 2;
    const char* w[4];
    int64_t rows[4];
    for (int i = 0; i < 4; i++) {  // the last panels overlap: the same outputs, computed twice
        rows[i] = std::min(row + i * TILE, m.outputs - TILE);
        w[i] = static_cast<const char*>(m.weights) + rows[i] * stride;
    }
    const uint8_t* x = packed + first * m.inputs * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < m.inputs; j += 32) {
        _tile_loadd(6, x + j * count * 2, 4 * count);
        _tile_loadd(4, w[0] + 2 * j, stride);
        stream.request(16);
        _tile_loadd(5, w[1] + 2 * j, stride);
        stream.request(16);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, w[2] + 2 * j, stride);
        stream.request(16);
        _tile_loadd(5, w[3] + 2 * j, stride);
        stream.request(16);
        _tile_dpbf16ps(2, 4, 6);
        _tile_dpbf16ps(3, 5, 6);
    }
    alignas(64) float sums[4][TILE * TILE];
    _tile_stored(0, sums[0], 4 * count);
    _tile_stored(1, sums[1], 4 * count);
    _tile_stored(2, sums[2], 4 * count);
    _tile_stored(3, sums[3], 4 * count);
    for (int i = 0; i < 4; i++) unpack_tile(sums[i], y + first * m.outputs + rows[i], m.outputs, count);
}

// 32 rows and 32 tokens: two tiles of each, so that a tile loaded is used twice.
inline void square_bf16(const Matrix& m, int64_t row, const uint8_t* packed, int64_t first, float* y) {
    const int64_t stride = m.inputs * 2;
    const int64_t rows[2] = {std::min(row, m.outputs - TILE), std::min(row + TILE, m.outputs - TILE)};
    const char *w0 = static_cast<const char*>(m.weights) + rows[0] * stride,
               *w1 = static_cast<const char*>(m.weights) + rows[1] * stride;
    const uint8_t *x0 = packed + first * m.inputs * 2, *x1 = x0 + TILE * m.inputs * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < m.inputs; j += 32) {
        _tile_loadd(6, x0 + j * TILE * 2, 4 * TILE);
        _tile_loadd(4, w0 + 2 * j, stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, w1 + 2 * j, stride);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(7, x1 + j * TILE * 2, 4 * TILE);
        _tile_dpbf16ps(2, 4, 7);
        _tile_dpbf16ps(3, 5, 7);
    }
    alignas(64) float sums[4][TILE * TILE];
    _tile_stored(0, sums[0], 4 * TILE);
    _tile_stored(1, sums[1], 4 * TILE);
    _tile_stored(2, sums[2], 4 * TILE);
    _tile_stored(3, sums[3], 4 * TILE);
    for (int i = 0; i < 4; i++)
        unpack_tile(sums[i], y + (first + i / 2 * TILE) * m.outputs + rows[i % 2], m.outputs, TILE);
}

// 32 rows and up to 16 tokens: 256 * (w . high) + w . low, whole numbers throughout.
inline void panel_int8(const Matrix& m, int64_t row, const uint8_t* packed, const float* scales, int64_t first,
                       int64_t count, Stream& stream, float* y) {
    const int64_t rows[2] = {std::min(row, m.outputs - TILE), std::min(row + TILE, m.outputs - TILE)};
    const char* w[2];
    for (int i = 0; i < 2; i++) w[i] = static_cast<const char*>(m.weights) + rows[i] * m.inputs;
    const uint8_t* x = packed + first * m.inputs * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t j = 0; j < m.inputs; j += 64) {
        _tile_loadd(6, x + j * count * 2, 4 * count);
        _tile_loadd(7, x + j * count * 2 + 64 * count, 4 * count);
        _tile_loadd(4, w[0] + j, m.inputs);
        stream.request(16);
        _tile_loadd(5, w[1] + j, m.inputs);
        stream.request(16);
        _tile_dpbssd(0, 4, 6);
        _tile_dpbsud(1, 4, 7);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbsud(3, 5, 7);
    }
    alignas(64) int32_t sums[4][TILE * TILE];
    _tile_stored(0, sums[0], 4 * count);
    _tile_stored(1, sums[1], 4 * count);
    _tile_stored(2, sums[2], 4 * count);
    _tile_stored(3, sums[3], 4 * count);
    for (int i = 0; i < 2; i++) {
        alignas(64) float whole[TILE * TILE];
        for (int64_t r = 0; r < TILE; r++)
            for (int64_t t = 0; t < count; t++) {
                const int64_t j = r * count + t;
                const float high = static_cast<float>(sums[2 * i][j]), low = static_cast<float>(sums[2 * i + 1][j]);
                whole[j] = (high * 256.0f + low) * (m.scale[rows[i] + r] * scales[first + t]);
            }
        unpack_tile(whole, y + first * m.outputs + rows[i], m.outputs, count);
    }
}

// `packed` has room for 2 bytes and `scales` for one float for each input and token.
void multiply_tiles(Kind kind, const Matrix& m, const float* x, float* y, int64_t tokens, uint8_t* packed,
                    float* scales, int threads) {
    if (kind == BFLOAT16)
        pack_bf16(x, m.inputs, tokens, packed);
    else
        pack_int16(x, m.inputs, tokens, packed, scales);
    const int64_t panel = kind == BFLOAT16 ? 4 * TILE : 2 * TILE, panels = (m.outputs + panel - 1) / panel;
    const int64_t row_bytes = m.inputs * (kind == BFLOAT16 ? 2 : 1), whole = tokens / TILE * TILE;
    const TileConfig full(TILE), rest(tokens - whole);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
    {
        int64_t configured = 0;
#ifdef _OPENMP
#pragma omp for schedule(static)
#endif
        for (int64_t p = 0; p < panels; p++) {
            const int64_t row = p * panel;
            for (int64_t first = 0; first < tokens;) {
                const int64_t count = std::min(TILE, tokens - first);
                if (configured != count) _tile_loadconfig(count == TILE ? &full : &rest);
                configured = count;
                Stream stream(m, row + panel, row_bytes, first == 0 && tokens <= TILE);
                if (kind == INT8) {
                    panel_int8(m, row, packed, scales, first, count, stream, y);
                } else if (tokens - first < 2 * TILE) {
                    panel_bf16(m, row, packed, first, count, stream, y);
                } else {
                    square_bf16(m, row, packed, first, y);
                    if (row + 2 * TILE < m.outputs) square_bf16(m, row + 2 * TILE, packed, first, y);
                    first += TILE;
                }
                first += TILE;
            }
        }
        _tile_release();
    }
}

#else

inline bool may_use_tiles() { return false; }

#endif

}  // namespace
