// One inference step of a Qwen3 or Llama model on a CPU: new tokens in, logits out, keys and values cached.
//
// Compiled on first use by `compiling.py` and called through ctypes from `decoding.py`. A step takes a flat list of new
// tokens, each with its slot (a text) and its position there: decoding is one token for each of several slots, a prompt
// is many tokens of one slot, and a draft's guesses are a few. All the same arithmetic, so all give the same bits.
// Weights are float, bfloat16 or int8 (products.h); the residual stream, norms, softmax and all sums are float.
// Axes: n new tokens, d width, h query heads, k key/value heads, g = h / k, e head size, f feed-forward width, v vocab.
// Nothing here allocates: `step_scratch_bytes` says how much room a step needs.

#include <chrono>

#include "decode_attention.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {

struct Layer {
    Matrix qkv, out, gate_up, down;
    const float *attention_norm, *feed_forward_norm, *query_norm, *key_norm;  // the last two null without QK-norm
    void *keys, *values;  // (slots, k, capacity, e) in the order of decode_attention.h, float or bfloat16
};

struct Network {
    Kind kind;                // of the weights
    int64_t is_cache_bf16, may_tile;
    int64_t n_layers, d, h, k, e, f, vocab, capacity;  // capacity: of a slot, a multiple of VALUES
    Matrix embedding, head;
    const float *norm, *cosine, *sine;  // tables of (capacity, e / 2)
    const Layer* layers;
    double epsilon;
    double* seconds;  // null, or where the time of each Part is added
};

enum Part { PROJECTIONS, ATTENTION, FEED_FORWARD, HEAD, REST, PARTS };

Heads heads_of(const Network& net) {
#ifdef HAS_TILES
    const int64_t is_tiled = net.is_cache_bf16 && net.may_tile && net.e % 32 == 0;
#else
    const int64_t is_tiled = 0;
#endif
    return {net.h, net.k, net.e, net.capacity, is_tiled};
}

struct Scratch {
    float *x, *normed, *qkv, *mixed, *gate_up, *active, *scores, *scales;
    uint8_t* packed;
    RowBlock* blocks;
    int64_t bytes;

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
        scores = floats(threads * heads_of(net).scratch_floats()), scales = floats(n);
        packed = reinterpret_cast<uint8_t*>(take(n * widest * 2));
        blocks = reinterpret_cast<RowBlock*>(take(most_row_blocks(heads_of(net), n) * sizeof(RowBlock)));
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
    const Heads heads = heads_of(net);
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
            for (float* x : {key, value})  // rounded in place
                sweep(e, [&](int64_t a, int64_t count) { store(reinterpret_cast<C*>(x) + a, load(x + a, count), count); });
            write_key(heads, reinterpret_cast<C*>(key), position, static_cast<C*>(layer.keys) + start);
            write_value(heads, reinterpret_cast<C*>(value), position, static_cast<C*>(layer.values) + start);
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

template <typename C>
void run_attention(const Network& net, const Layer& layer, const Tokens& tokens, int64_t blocks, const Scratch& s,
                   int threads) {
    write_cache<C>(net, layer, tokens, s.qkv, threads);
    attend<C>(heads_of(net), tokens, s.blocks, blocks, layer.keys, layer.values, s.qkv, s.mixed, s.scores, threads);
}

void run_layer(const Network& net, const Layer& layer, const Tokens& tokens, int64_t blocks, const Scratch& s,
               int threads) {
    const int64_t n = tokens.count;
    Watch watch(net);
    norm_rows(s.x, layer.attention_norm, s.normed, n, net.d, net.epsilon, threads);
    watch.note(REST);
    multiply(net, layer.qkv, s.normed, s.qkv, n, s, threads);
    watch.note(PROJECTIONS);
    (net.is_cache_bf16 ? run_attention<bf16> : run_attention<float>)(net, layer, tokens, blocks, s, threads);
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
    const int64_t blocks = cut_rows(heads_of(*net), tokens, s.blocks);
    for (int64_t i = 0; i < net->n_layers; i++) run_layer(*net, net->layers[i], tokens, blocks, s, threads);
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
