// Causal attention of new tokens over the cached keys and values of their slots, and the layout of that cache.
//
// Part of decode.cpp. Rows are pairs of (new token, query head) that share a slot and a key head; up to 16 of them are
// one block, so that keys and values are read once for all of them: a long prompt is then bound by arithmetic, not by
// reading its own cache. A row sees the keys up to its own position, and its result does not depend on the other rows:
// a text gets the same bits alone, in a batch, and in a prompt read at once.
//
// Two forms, each with its own layout of a slot's cache for one key head (p position, a entry of a head):
// vectors: keys [p / 16][a][p % 16], so that scores are sums of vectors, and values [p][a];
// tiles (bfloat16, heads of a multiple of 32): keys [p / 16][a / 2][p % 16][a % 2] and values
//     [p / 32][a / 16][p % 32 / 2][a % 16][p % 2], both the tiles that the tile unit multiplies rows with. Queries and
//     weights are rounded to bfloat16 there, sums and the softmax are float.
// Axes: h query heads, k key/value heads, g = h / k, e head size.

#pragma once

#include <type_traits>

#include "tiles.h"

namespace {

constexpr int64_t KEYS = 16;        // positions side by side in the cache of keys
constexpr int64_t ROWS = 16;        // of a block, at most
constexpr int64_t VALUES = 32;      // positions of a tile of values; a slot's capacity is a multiple of it
constexpr int64_t SCORE_PAD = 16;   // floats: rows of a power of two would fall into the same lines of the cache
constexpr int64_t NEAR_KEYS = 128;  // of one pass over the rows: 32 KB of keys at 64 entries, in the level 1 cache

struct Heads {
    int64_t h, k, e, capacity, is_tiled;

    int64_t group() const { return h / k; }
    int64_t row_room() const { return capacity + SCORE_PAD; }
    int64_t scratch_floats() const { return ROWS * row_room() + ROWS * e / 2 + VALUES * e / 2; }  // of one thread
    const float* query(const float* qkv, int64_t head, int64_t row) const {  // row: token * g + head within the group
        return qkv + (row / group() * (h + 2 * k) + head * group() + row % group()) * e;
    }
    float* output(float* mixed, int64_t head, int64_t row) const {
        return mixed + (row / group() * h + head * group() + row % group()) * e;
    }
};

struct Tokens {
    const int64_t *ids, *slots, *positions;
    int64_t count;
};

struct RowBlock {
    int64_t first, count;  // rows; their tokens stand in one slot one after the other
};

// Cuts the rows of a step into blocks; `blocks` has room for `most_row_blocks`.
inline int64_t most_row_blocks(const Heads& heads, int64_t tokens) {
    return tokens * ((heads.group() + ROWS - 1) / ROWS);
}
inline int64_t cut_rows(const Heads& heads, const Tokens& tokens, RowBlock* blocks) {
    const int64_t group = heads.group();
    int64_t count = 0;
    for (int64_t start = 0, end; start < tokens.count; start = end) {
        for (end = start + 1; end < tokens.count && tokens.slots[end] == tokens.slots[start]; end++) {}
        for (int64_t row = start * group; row < end * group; row += ROWS)
            blocks[count++] = {row, std::min(ROWS, end * group - row)};
    }
    return count;
}

template <typename C>
inline void write_key(const Heads& heads, const C* key, int64_t position, C* keys) {
    C* to = keys + position / KEYS * KEYS * heads.e;
    const int64_t place = position % KEYS, together = heads.is_tiled ? 2 : 1;
    for (int64_t a = 0; a < heads.e; a += together)
        for (int64_t i = 0; i < together; i++) to[a * KEYS + place * together + i] = key[a + i];
}

template <typename C>
inline void write_value(const Heads& heads, const C* value, int64_t position, C* values) {
    if (!heads.is_tiled) {
        std::memcpy(values + position * heads.e, value, heads.e * sizeof(C));
        return;
    }
    C* to = values + position / VALUES * VALUES * heads.e + position % VALUES / 2 * 32 + position % 2;
    for (int64_t a = 0; a < heads.e; a++) to[a / 16 * 512 + a % 16 * 2] = value[a];
}

// weights = exp(scale * (score - largest)); returns their sum. They may lie where the scores lie.
template <typename W>
inline float exponentiate(const float* scores, W* weights, int64_t seen, float scale) {
    Floats tops = Floats{} - INFINITY, sums = {};
    sweep(seen, [&](int64_t j, int64_t count) {
        const Floats a = first_lanes(count) ? load(scores + j, count) : Floats{} - INFINITY;
        tops = a > tops ? a : tops;  // a nan is lost here, and comes back in the sum
    });
    const float top = largest(tops);
    sweep(seen, [&](int64_t j, int64_t count) {
        const Floats a = exponential((load(scores + j, count) - top) * scale);
        sums += first_lanes(count) ? a : Floats{};
        store(weights + j, a, count);
    });
    return sum(sums);
}

// What a block of rows needs: positions[r] + 1 keys are seen by row r, `most` by the last.
template <typename C>
struct Block {
    const Heads& heads;
    const C *keys, *values;
    const float* queries[ROWS];
    float* outputs[ROWS];
    int64_t seen[ROWS], count, most;
    float* scores;  // (rows, row_room)

    Block(const Heads& heads, const Tokens& tokens, const RowBlock& rows, int64_t head, const C* all_keys,
          const C* all_values, const float* qkv, float* mixed, float* scratch)
        : heads(heads), count(rows.count), scores(scratch) {
        const int64_t slot = tokens.slots[rows.first / heads.group()];
        const int64_t start = (slot * heads.k + head) * heads.capacity * heads.e;
        keys = all_keys + start, values = all_values + start;
        for (int64_t r = 0; r < count; r++) {
            queries[r] = heads.query(qkv, head, rows.first + r), outputs[r] = heads.output(mixed, head, rows.first + r);
            seen[r] = tokens.positions[(rows.first + r) / heads.group()] + 1;
        }
        most = seen[count - 1];
    }
    float* row(int64_t r) const { return scores + r * heads.row_room(); }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(heads.e)); }
};

// Scores of R rows from the first on, for B blocks of keys from key s on.
template <int R, int B, typename C>
inline void score_keys(const Block<C>& block, int64_t first, int64_t s) {
    const int64_t e = block.heads.e;
    const C* keys = block.keys + s * e;
    for (int64_t part = 0; part < KEYS; part += LANES) {
        Floats sums[R][B] = {};
        for (int64_t a = 0; a < e; a++) {
            Floats key[B];
            for (int i = 0; i < B; i++) key[i] = load(keys + i * KEYS * e + a * KEYS + part, LANES);
            for (int r = 0; r < R; r++)
                for (int i = 0; i < B; i++) sums[r][i] += key[i] * block.queries[first + r][a];
        }
        for (int r = 0; r < R; r++)
            for (int i = 0; i < B; i++) store(block.row(first + r) + s + i * KEYS + part, sums[r][i], LANES);
    }
}

// output = sum of weights[s] * values[s] / total, for R rows and V vectors of each from entry a on.
template <int R, int V, typename C>
inline void mix_values(const Block<C>& block, int64_t first, const float* totals, int64_t a, int64_t count) {
    const int64_t e = block.heads.e;
    Floats sums[R][V] = {};
    const int64_t most = block.seen[first + R - 1];
    for (int64_t s = 0; s < most; s++) {
        Floats value[V];
        for (int v = 0; v < V; v++) value[v] = load(block.values + s * e + a + v * LANES, count);
        for (int r = 0; r < R; r++) {
            const float weight = block.row(first + r)[s];
            for (int v = 0; v < V; v++) sums[r][v] += value[v] * weight;
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            store(block.outputs[first + r] + a + v * LANES, sums[r][v] * (1.0f / totals[first + r]), count);
}

// body(first, R) for groups of 6 rows (4 where registers are few) and what is left; R is a constant in the body.
template <typename Body>
inline void sweep_rows(int64_t count, Body body) {
    constexpr int MOST = LANES == 16 ? 6 : 4;
    int64_t r = 0;
    for (; r + MOST <= count; r += MOST) body(r, std::integral_constant<int, MOST>{});
    switch (count - r) {
        case 5: return body(r, std::integral_constant<int, 5>{});
        case 4: return body(r, std::integral_constant<int, 4>{});
        case 3: return body(r, std::integral_constant<int, 3>{});
        case 2: return body(r, std::integral_constant<int, 2>{});
        case 1: return body(r, std::integral_constant<int, 1>{});
        default: return;
    }
}

template <typename C>
void attend_vectors(const Block<C>& block) {
    constexpr int WIDE = LANES == 16 ? 4 : 2;
    const int64_t e = block.heads.e;
    for (int64_t start = 0; start < block.most; start += NEAR_KEYS) {
        const int64_t end = std::min(block.most, start + NEAR_KEYS);
        sweep_rows(block.count, [&](int64_t first, auto rows) {
            constexpr int R = decltype(rows)::value;
            int64_t s = start;
            for (; s + (WIDE - 1) * KEYS < end; s += WIDE * KEYS) score_keys<R, WIDE, C>(block, first, s);
            for (; s < end; s += KEYS) score_keys<R, 1, C>(block, first, s);
        });
    }
    float totals[ROWS];
    for (int64_t r = 0; r < block.count; r++) {
        totals[r] = exponentiate(block.row(r), block.row(r), block.seen[r], block.scale());
        std::fill(block.row(r) + block.seen[r], block.row(r) + block.most, 0.0f);
    }
    sweep_rows(block.count, [&](int64_t first, auto rows) {
        constexpr int R = decltype(rows)::value;
        int64_t a = 0;
        for (; a + WIDE * LANES <= e; a += WIDE * LANES) mix_values<R, WIDE, C>(block, first, totals, a, LANES);
        for (; a + LANES <= e; a += LANES) mix_values<R, 1, C>(block, first, totals, a, LANES);
        if (a < e) mix_values<R, 1, C>(block, first, totals, a, e - a);
    });
}

#ifdef HAS_TILES

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Scores of all rows, from queries that are bfloat16 (rows, e).
inline void score_tiles(const Block<bf16>& block, const bf16* queries) {
    const int64_t e = block.heads.e, row_bytes = 4 * block.heads.row_room();
    for (int64_t s = 0; s < block.most; s += 4 * KEYS) {
        const bf16* keys = block.keys + s * e;
        const int64_t left = (block.most - s + KEYS - 1) / KEYS;
        zero_sums();
        for (int64_t a = 0; a < e; a += 32, keys += 32 * KEYS) {
            _tile_loadd(4, queries + a, 2 * e);
            _tile_loadd(5, keys, TILE_BYTES);
            _tile_dpbf16ps(0, 4, 5);
            if (left > 1) {
                _tile_loadd(6, keys + KEYS * e, TILE_BYTES);
                _tile_dpbf16ps(1, 4, 6);
            }
            if (left > 2) {
                _tile_loadd(5, keys + 2 * KEYS * e, TILE_BYTES);
                _tile_dpbf16ps(2, 4, 5);
            }
            if (left > 3) {
                _tile_loadd(6, keys + 3 * KEYS * e, TILE_BYTES);
                _tile_dpbf16ps(3, 4, 6);
            }
        }
        _tile_stored(0, block.scores + s, row_bytes);
        if (left > 1) _tile_stored(1, block.scores + s + KEYS, row_bytes);
        if (left > 2) _tile_stored(2, block.scores + s + 2 * KEYS, row_bytes);
        if (left > 3) _tile_stored(3, block.scores + s + 3 * KEYS, row_bytes);
    }
}

// The last values that are seen, up to a whole tile: what lies beyond them was never written, or by another text, and
// 0 times a nan is a nan.
inline void copy_last_values(const Block<bf16>& block, bf16* tail) {
    const int64_t e = block.heads.e, whole = block.most / VALUES * VALUES, rest = block.most - whole;
    std::memset(tail, 0, VALUES * e * sizeof(bf16));
    for (int64_t i = 0; i < e / 16; i++) {
        const bf16* from = block.values + whole * e + i * 512;
        bf16* to = tail + i * 512;
        std::memcpy(to, from, rest / 2 * 64);
        if (rest % 2)  // the first of a pair
            for (int64_t a = rest / 2 * 32; a < rest / 2 * 32 + 32; a += 2) to[a] = from[a];
    }
}

// Outputs of all rows; weights are bfloat16, in the first half of each row of scores.
inline void mix_tiles(const Block<bf16>& block, const float* totals, const bf16* tail) {
    const int64_t e = block.heads.e, row_bytes = 4 * block.heads.row_room(), whole = block.most / VALUES * VALUES;
    const bf16* weights = reinterpret_cast<const bf16*>(block.scores);
    alignas(64) float sums[ROWS * 64];
    for (int64_t a = 0; a < e; a += 64) {
        const bool is_wide = a + 64 <= e;  // else 32 are left
        zero_sums();
        for (int64_t s = 0; s < block.most; s += VALUES) {
            const bf16* values = (s < whole ? block.values + s * e : tail) + a * VALUES;
            _tile_loadd(4, weights + s, row_bytes);
            _tile_loadd(5, values, TILE_BYTES);
            _tile_dpbf16ps(0, 4, 5);
            _tile_loadd(6, values + 512, TILE_BYTES);
            _tile_dpbf16ps(1, 4, 6);
            if (is_wide) {
                _tile_loadd(5, values + 1024, TILE_BYTES);
                _tile_dpbf16ps(2, 4, 5);
                _tile_loadd(6, values + 1536, TILE_BYTES);
                _tile_dpbf16ps(3, 4, 6);
            }
        }
        _tile_stored(0, sums, 256);
        _tile_stored(1, sums + 16, 256);
        _tile_stored(2, sums + 32, 256);
        _tile_stored(3, sums + 48, 256);
        for (int64_t r = 0; r < block.count; r++)
            sweep(is_wide ? 64 : 32, [&](int64_t j, int64_t) {
                store(block.outputs[r] + a + j, load(sums + r * 64 + j, LANES) * (1.0f / totals[r]), LANES);
            });
    }
}

inline void attend_tiles(const Block<bf16>& block) {
    const int64_t e = block.heads.e, end = (block.most + VALUES - 1) / VALUES * VALUES;
    bf16 *queries = reinterpret_cast<bf16*>(block.scores + ROWS * block.heads.row_room()), *tail = queries + ROWS * e;
    for (int64_t r = 0; r < block.count; r++)
        sweep(e, [&](int64_t a, int64_t) { store(queries + r * e + a, load(block.queries[r] + a, LANES), LANES); });
    const TileConfig config = TileConfig::of_rows(block.count);
    _tile_loadconfig(&config);
    score_tiles(block, queries);
    float totals[ROWS];
    for (int64_t r = 0; r < block.count; r++) {
        bf16* weights = reinterpret_cast<bf16*>(block.row(r));
        totals[r] = exponentiate(block.row(r), weights, block.seen[r], block.scale());
        std::memset(weights + block.seen[r], 0, (end - block.seen[r]) * sizeof(bf16));
    }
    if (block.most % VALUES) copy_last_values(block, tail);
    mix_tiles(block, totals, tail);
    _tile_release();
}

#endif

template <typename C>
inline void attend_block(const Block<C>& block) {
    attend_vectors(block);
}

#ifdef HAS_TILES
template <>
inline void attend_block(const Block<bf16>& block) {
    block.heads.is_tiled ? attend_tiles(block) : attend_vectors(block);
}
#endif

// All rows of a step. `scratch` has heads.scratch_floats() for each thread.
template <typename C>
void attend(const Heads& heads, const Tokens& tokens, const RowBlock* blocks, int64_t count, const void* keys,
            const void* values, const float* qkv, float* mixed, float* scratch, int threads) {
    PARALLEL
    for (int64_t i = 0; i < count * heads.k; i++) {
        const int64_t head = i % heads.k;
        attend_block(Block<C>(heads, tokens, blocks[i / heads.k], head, static_cast<const C*>(keys),
                              static_cast<const C*>(values), qkv, mixed, scratch + team_index() * heads.scratch_floats()));
    }
}

}  // namespace
