// One inference step of a Qwen3 or Llama model on a CPU: new tokens in, logits out, keys and values cached.
//
// Compiled on first use by `compiling.py` and called through ctypes from `decoding.py`. A step takes a flat list of new
// tokens, each with its slot (a text) and its position there: decoding is one token for each of several slots, a prompt
// is many tokens of one slot, and a draft's guesses are a few. All the same arithmetic, so all give the same bits.
// Weights are float, bfloat16 or int8 (products.h); the residual stream, norms, softmax and all sums are float.
// Axes: n new tokens, d width, h query heads, k key/value heads, g = h / k, e head size, f feed-forward width, v vocab.
// Nothing here allocates: `step_scratch_bytes` says how much room a step needs.

#include <chrono>

#include "tiles.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

constexpr int64_t KEYS = 16;  // positions side by side in the cache of keys, so that scores are sums of vectors

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *attention_norm, *feed_forward_norm, *query_norm, *key_norm;  // the last two null without QK-norm
    void *keys, *values;  // (slots, k, capacity / 16, e, 16) and (slots, k, capacity, e), float or bfloat16
};

struct Network {
    Kind kind;                // of the weights
    int64_t is_cache_bf16, may_tile;
    int64_t n_layers, d, h, k, e, f, vocab, capacity;  // capacity: of a slot, a multiple of 16
    Matrix embedding, head;
    const float *norm, *cosine, *sine;  // tables of (capacity, e / 2)
    const Layer* layers;
    double epsilon;
    double* seconds;  // null, or where the time of each Part is added
};

enum Part { PROJECTIONS, ATTENTION, FEED_FORWARD, HEAD, REST, PARTS };

struct Tokens {
    const int64_t *ids, *slots, *positions;
    int64_t count;
};

struct Scratch {
    float *x, *normed, *qkv, *mixed, *gate_up, *active, *scores, *scales;
    uint8_t* packed;
    int64_t bytes;
    int64_t score_room;  // floats of one thread

    Scratch(const Network& net, int64_t n, int threads, char* base) {
        char* next = base;
        const auto take = [&](int64_t size) {
            char* at = next;
            next += (size + 63) / 64 * 64;
            return at;
        };
        const auto floats = [&](int64_t count) { return reinterpret_cast<float*>(take(4 * count)); };
        const int64_t widest = std::max({net.d, net.f, net.h * net.e});
        x = floats(n * net.d), normed = floats(n * net.d), mixed = floats(n * std::max(net.h * net.e, net.d));
        qkv = floats(n * (net.h + 2 * net.k) * net.e), gate_up = floats(n * 2 * net.f), active = floats(n * net.f);
        score_room = 4 * net.capacity;
        scores = floats(threads * score_room), scales = floats(n);
        packed = reinterpret_cast<uint8_t*>(take(n * widest * 2));
        bytes = next - base;
    }
};

class Watch {
  public:
    Watch(const Network& net) : seconds(net.seconds) {
        if (seconds) last = now();
    }
    void note(Part part) {  // what passed since the last note belongs to `part`
        if (!seconds) return;
        const double time = now();
        seconds[part] += time - last;
        last = time;
    }

  private:
    static double now() {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    }
    double* seconds;
    double last = 0;
};

inline float inverse_rms(const float* x, int64_t size, float epsilon) {
    Floats squares = {};
    sweep(size, [&](int64_t j, int64_t count) {
        const Floats a = load(x + j, count);
        squares += a * a;
    });
    return 1.0f / std::sqrt(sum(squares) / size + epsilon);
}

void norm_rows(const float* x, const float* weight, float* y, int64_t n, int64_t d, float epsilon, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const float r = inverse_rms(x + i * d, d, epsilon);
        sweep(d, [&](int64_t j, int64_t count) {
            store(y + i * d + j, load(x + i * d + j, count) * r * load(weight + j, count), count);
        });
    }
}

void multiply(const Network& net, const Matrix& m, const float* x, float* y, int64_t n, const Scratch& scratch,
              int threads) {
    if (net.kind == FLOAT32) return multiply_vectors<float>(m, x, y, n, threads);
#ifdef HAS_TILES
    const int64_t inputs_a_tile = net.kind == BFLOAT16 ? 32 : 64;
    if (net.may_tile && m.inputs % inputs_a_tile == 0 && m.outputs >= TILE)
        return multiply_tiles(net.kind, m, x, y, n, scratch.packed, scratch.scales, threads);
#endif
    if (net.kind == BFLOAT16) return multiply_vectors<bf16>(m, x, y, n, threads);
    return multiply_vectors<int8_t>(m, x, y, n, threads);
}

// One head of one token: RMSNorm (if weight), then rotation, in place.
inline void turn(float* x, const float* weight, const float* cosine, const float* sine, int64_t e, float epsilon) {
    const int64_t half = e / 2;
    const float r = weight ? inverse_rms(x, e, epsilon) : 1.0f;
    sweep(half, [&](int64_t j, int64_t count) {
        Floats a = load(x + j, count) * r, b = load(x + half + j, count) * r;
        if (weight) a *= load(weight + j, count), b *= load(weight + half + j, count);
        const Floats c = load(cosine + j, count), s = load(sine + j, count);
        store(x + j, a * c - b * s, count);
        store(x + half + j, b * c + a * s, count);
    });
}

// Queries stay in `qkv`, normed and turned; keys and values go to the cache.
template <typename C>
void write_cache(const Network& net, const Layer& layer, const Tokens& tokens, float* qkv, int threads) {
    const int64_t e = net.e, h = net.h, k = net.k;
    PARALLEL
    for (int64_t i = 0; i < tokens.count; i++) {
        const int64_t position = tokens.positions[i];
        float* x = qkv + i * (h + 2 * k) * e;
        const float *c = net.cosine + position * (e / 2), *s = net.sine + position * (e / 2);
        for (int64_t j = 0; j < h; j++) turn(x + j * e, layer.query_norm, c, s, e, net.epsilon);
        for (int64_t j = 0; j < k; j++) {
            float *key = x + (h + j) * e, *value = x + (h + k + j) * e;
            turn(key, layer.key_norm, c, s, e, net.epsilon);
            const int64_t start = (tokens.slots[i] * k + j) * net.capacity * e;
            C* to_key = static_cast<C*>(layer.keys) + start + position / KEYS * KEYS * e + position % KEYS;
            C* dense = reinterpret_cast<C*>(key);  // rounded in place, then spread
            sweep(e, [&](int64_t a, int64_t count) { store(dense + a, load(key + a, count), count); });
            for (int64_t a = 0; a < e; a++) to_key[a * KEYS] = dense[a];
            C* to_value = static_cast<C*>(layer.values) + start + position * e;
            sweep(e, [&](int64_t a, int64_t count) { store(to_value + a, load(value + a, count), count); });
        }
    }
}

// Scores of G query heads that share a key head, for B blocks of keys.
template <int G, int B, typename C>
inline void score_blocks(const float* q, const C* keys, float* scores, int64_t room, int64_t e) {
    for (int64_t part = 0; part < KEYS; part += LANES) {
        Floats sums[G][B] = {};
        for (int64_t a = 0; a < e; a++)
            for (int i = 0; i < B; i++) {
                const Floats key = load(keys + i * KEYS * e + a * KEYS + part, LANES);
                for (int g = 0; g < G; g++) sums[g][i] += key * q[g * e + a];
            }
        for (int g = 0; g < G; g++)
            for (int i = 0; i < B; i++) store(scores + g * room + i * KEYS + part, sums[g][i], LANES);
    }
}

// The same for keys 0 ... seen - 1 and on to a multiple of 16.
template <int G, typename C>
inline void score(const float* q, const C* keys, float* scores, int64_t room, int64_t seen, int64_t e) {
    int64_t s = 0;
    for (; s + 3 * KEYS < seen; s += 4 * KEYS) score_blocks<G, 4, C>(q, keys + s * e, scores + s, room, e);
    for (; s < seen; s += KEYS) score_blocks<G, 1, C>(q, keys + s * e, scores + s, room, e);
}

// In place: exp(scale * (score - largest)); returns the sum.
inline float exponentiate(float* scores, int64_t seen, float scale) {
    Floats tops = Floats{} - INFINITY, sums = {};
    sweep(seen, [&](int64_t j, int64_t count) {
        const Floats a = first_lanes(count) ? load(scores + j, count) : Floats{} - INFINITY;
        tops = a > tops ? a : tops;  // a nan is lost here, and comes back in the sum
    });
    const float top = largest(tops);
    sweep(seen, [&](int64_t j, int64_t count) {
        const Floats a = exponential((load(scores + j, count) - top) * scale);
        sums += first_lanes(count) ? a : Floats{};
        store(scores + j, a, count);
    });
    return sum(sums);
}

// y = sum of weights[s] * values[s] / total, for G heads and V vectors of each.
template <int G, int V, typename C>
inline void mix_vectors(const float* weights, const float* totals, const C* values, float* y, int64_t room, int64_t seen,
                        int64_t e, int64_t count) {
    Floats sums[G][V] = {};
    for (int64_t s = 0; s < seen; s++)
        for (int v = 0; v < V; v++) {
            const Floats value = load(values + s * e + v * LANES, count);
            for (int g = 0; g < G; g++) sums[g][v] += value * weights[g * room + s];
        }
    for (int g = 0; g < G; g++)
        for (int v = 0; v < V; v++) store(y + g * e + v * LANES, sums[g][v] * (1.0f / totals[g]), count);
}

template <int G, typename C>
inline void mix(const float* weights, const float* totals, const C* values, float* y, int64_t room, int64_t seen,
                int64_t e) {
    int64_t a = 0;
    for (; a + 4 * LANES <= e; a += 4 * LANES)
        mix_vectors<G, 4, C>(weights, totals, values + a, y + a, room, seen, e, LANES);
    for (; a + LANES <= e; a += LANES)
        mix_vectors<G, 1, C>(weights, totals, values + a, y + a, room, seen, e, LANES);
    if (a < e) mix_vectors<G, 1, C>(weights, totals, values + a, y + a, room, seen, e, e - a);
}

template <int G, typename C>
inline void attend_heads(const Network& net, const float* q, const C* keys, const C* values, float* y, float* scores,
                         int64_t seen) {
    const int64_t room = net.capacity;
    const float scale = 1.0f / std::sqrt(static_cast<float>(net.e));
    float totals[G];
    score<G, C>(q, keys, scores, room, seen, net.e);
    for (int g = 0; g < G; g++) totals[g] = exponentiate(scores + g * room, seen, scale);
    mix<G, C>(scores, totals, values, y, room, seen, net.e);
}

template <typename C>
void attend(const Network& net, const Layer& layer, const Tokens& tokens, const Scratch& scratch, int threads) {
    const int64_t e = net.e, group = net.h / net.k;
    PARALLEL
    for (int64_t i = 0; i < tokens.count * net.k; i++) {
        const int64_t token = i / net.k, head = i % net.k, seen = tokens.positions[token] + 1;
        const int64_t start = (tokens.slots[token] * net.k + head) * net.capacity * e;
        const C *keys = static_cast<const C*>(layer.keys) + start, *values = static_cast<const C*>(layer.values) + start;
        const float* q = scratch.qkv + (token * (net.h + 2 * net.k) + head * group) * e;
        float* y = scratch.mixed + (token * net.h + head * group) * e;
        float* scores = scratch.scores + team_index() * scratch.score_room;
        for (int64_t g = 0; g < group;) {
            const int64_t left = group - g;
            if (left >= 4)
                attend_heads<4, C>(net, q + g * e, keys, values, y + g * e, scores, seen), g += 4;
            else if (left == 3)
                attend_heads<3, C>(net, q + g * e, keys, values, y + g * e, scores, seen), g += 3;
            else if (left == 2)
                attend_heads<2, C>(net, q + g * e, keys, values, y + g * e, scores, seen), g += 2;
            else
                attend_heads<1, C>(net, q + g * e, keys, values, y + g * e, scores, seen), g += 1;
        }
    }
}

void activate(const float* gate_up, float* y, int64_t n, int64_t f, int threads) {  // SwiGLU
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const float *gate = gate_up + i * 2 * f, *up = gate + f;
        sweep(f, [&](int64_t j, int64_t count) {
            const Floats g = load(gate + j, count);
            store(y + i * f + j, g * sigmoid(g) * load(up + j, count), count);
        });
    }
}

void add(float* x, const float* branch, int64_t size) {
    sweep(size, [&](int64_t j, int64_t count) { store(x + j, load(x + j, count) + load(branch + j, count), count); });
}

template <typename W>
void embed(const Network& net, const Tokens& tokens, float* x) {
    for (int64_t i = 0; i < tokens.count; i++) {
        const W* row = static_cast<const W*>(net.embedding.weights) + tokens.ids[i] * net.d;
        const float scale = net.embedding.scale ? net.embedding.scale[tokens.ids[i]] : 1.0f;
        sweep(net.d, [&](int64_t j, int64_t count) { store(x + i * net.d + j, load(row + j, count) * scale, count); });
    }
}

void run_layer(const Network& net, const Layer& layer, const Tokens& tokens, const Scratch& s, int threads) {
    const int64_t n = tokens.count;
    Watch watch(net);
    norm_rows(s.x, layer.attention_norm, s.normed, n, net.d, net.epsilon, threads);
    watch.note(REST);
    multiply(net, layer.qkv, s.normed, s.qkv, n, s, threads);
    watch.note(PROJECTIONS);
    if (net.is_cache_bf16) {
        write_cache<bf16>(net, layer, tokens, s.qkv, threads);
        attend<bf16>(net, layer, tokens, s, threads);
    } else {
        write_cache<float>(net, layer, tokens, s.qkv, threads);
        attend<float>(net, layer, tokens, s, threads);
    }
    watch.note(ATTENTION);
    multiply(net, layer.out, s.mixed, s.normed, n, s, threads);
    watch.note(PROJECTIONS);
    add(s.x, s.normed, n * net.d);
    norm_rows(s.x, layer.feed_forward_norm, s.normed, n, net.d, net.epsilon, threads);
    watch.note(REST);
    multiply(net, layer.gate_up, s.normed, s.gate_up, n, s, threads);
    watch.note(FEED_FORWARD);
    activate(s.gate_up, s.active, n, net.f, threads);
    watch.note(REST);
    multiply(net, layer.down, s.active, s.normed, n, s, threads);
    watch.note(FEED_FORWARD);
    add(s.x, s.normed, n * net.d);
    watch.note(REST);
}

}  // namespace

extern "C" int64_t network_bytes() { return sizeof(Network) + sizeof(Layer); }  // decoding.py declares the same fields

// Asks for pages of 2 MB, which read a fifth faster here; `is_filled` memory is moved to such pages now.
extern "C" void use_large_pages(const char* from, int64_t bytes, int is_filled) {
#ifdef __linux__
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t start = reinterpret_cast<uintptr_t>(from) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(from) + bytes + PAGE - 1) / PAGE * PAGE;
    for (uintptr_t page = start; page < end; page += PAGE) {  // one by one: a page that cannot be is left as it is
        madvise(reinterpret_cast<void*>(page), PAGE, MADV_HUGEPAGE);
        if (is_filled) madvise(reinterpret_cast<void*>(page), PAGE, 25);  // MADV_COLLAPSE, Linux 6.1
    }
#else
    (void)from, (void)bytes, (void)is_filled;
#endif
}

extern "C" int64_t tiles_allowed() { return may_use_tiles(); }

extern "C" int64_t step_scratch_bytes(const Network* net, int64_t n, int threads) {
    return Scratch(*net, n, threads, nullptr).bytes;
}

// Reads n tokens. `wanted` lists tokens, in order, whose final hidden states (wanted, d) are written, and their logits
// (wanted, v) unless `logits` is null. Tokens of one slot stand in the order of their positions.
extern "C" void run_step(const Network* net, const int64_t* ids, const int64_t* slots, const int64_t* positions,
                         int64_t n, const int64_t* wanted, int64_t n_wanted, char* scratch_base, float* hidden,
                         float* logits, int threads) {
    const Tokens tokens{ids, slots, positions, n};
    const Scratch s(*net, n, threads, scratch_base);
    if (net->kind == FLOAT32)
        embed<float>(*net, tokens, s.x);
    else if (net->kind == BFLOAT16)
        embed<bf16>(*net, tokens, s.x);
    else
        embed<int8_t>(*net, tokens, s.x);
    for (int64_t i = 0; i < net->n_layers; i++) run_layer(*net, net->layers[i], tokens, s, threads);
    Watch watch(*net);
    for (int64_t i = 0; i < n_wanted; i++)
        norm_rows(s.x + wanted[i] * net->d, net->norm, hidden + i * net->d, 1, net->d, net->epsilon, 1);
    if (logits && n_wanted) multiply(*net, net->head, hidden, logits, n_wanted, s, threads);
    watch.note(HEAD);
}

// Whether none of `count` floats is nan or infinite: times 0 they are 0, or nan.
extern "C" int all_finite(const float* x, int64_t count) {
    Floats zeros = {};
    sweep(count, [&](int64_t j, int64_t lanes) { zeros += load(x + j, lanes) * 0.0f; });
    return sum(zeros) == 0.0f;
}
