// Fused loops for training small Transformers on a CPU, where a step is bound by memory passes and not by matmuls.
//
// Compiled on first use by `compiling.py` (a few seconds, kept on disk) and called through ctypes. Each function is the
// forward or backward pass of one torch.autograd.Function in `kernels.py`, and tests compare both with plain torch.
// Elements are float or bfloat16 ("bf16"), statistics and sums always float. Arrays are dense, last axis fastest.
// Axes: n rows, d width, t positions, h query heads, k key/value heads, e head size, f feed-forward width, v vocabulary.
// `threads` bounds the OpenMP team; without OpenMP one thread does all. Nothing here allocates.
// Needs gcc >= 9 or clang (vector extensions, on any processor).

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#define PARALLEL _Pragma("omp parallel for schedule(static) num_threads(threads) if (threads > 1)")
static inline int team_index() { return omp_get_thread_num(); }
#else
#define PARALLEL
static inline int team_index() { return 0; }
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

// y = x / rms(x) * weight; `inverse` keeps 1 / rms(x). With `delta` the input is x + delta, which is written to `total`.
template <typename T>
void norm_forward(const T* x, const T* delta, const float* weight, T* total, T* y, float* inverse, int64_t n, int64_t d,
                  float epsilon, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const T* row = x + i * d;
        Floats squares = {};
        if (delta) {
            T* to = total + i * d;
            sweep(d, [&](int64_t j, int64_t count) {
                store(to + j, load(row + j, count) + load(delta + i * d + j, count), count);
                const Floats a = load(to + j, count);
                squares += a * a;
            });
            row = to;
        } else {
            sweep(d, [&](int64_t j, int64_t count) {
                const Floats a = load(row + j, count);
                squares += a * a;
            });
        }
        const float r = 1.0f / std::sqrt(sum(squares) / d + epsilon);
        sweep(d, [&](int64_t j, int64_t count) {
            store(y + i * d + j, load(row + j, count) * r * load(weight + j, count), count);
        });
        inverse[i] = r;
    }
}

// d_x = d_total (if any) + the derivative of the norm; d_weight is (threads, d) of zeros, one row for each thread.
template <typename T>
void norm_backward(const T* d_y, const T* d_total, const T* x, const float* weight, const float* inverse, T* d_x,
                   float* d_weight, int64_t n, int64_t d, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const T *dy = d_y + i * d, *row = x + i * d;
        float* dw = d_weight + team_index() * d;
        const float r = inverse[i];
        Floats dots = {};
        sweep(d, [&](int64_t j, int64_t count) {
            const Floats g = load(dy + j, count) * load(row + j, count);
            dots += g * load(weight + j, count);
            store(dw + j, load(dw + j, count) + g * r, count);
        });
        const float c = sum(dots) * r * r * r / d;
        sweep(d, [&](int64_t j, int64_t count) {
            Floats g = load(dy + j, count) * load(weight + j, count) * r - load(row + j, count) * c;
            if (d_total) g += load(d_total + i * d + j, count);
            store(d_x + i * d + j, g, count);
        });
    }
}

// One head of one token: RMSNorm (if weight), then rotation; returns 1 / rms.
template <typename T>
inline float turn_forward(const T* x, const float* weight, const float* cosine, const float* sine, T* y, int64_t e,
                          float epsilon) {
    const int64_t half = e / 2;
    float r = 1.0f;
    if (weight) {
        Floats squares = {};
        sweep(e, [&](int64_t j, int64_t count) {
            const Floats a = load(x + j, count);
            squares += a * a;
        });
        r = 1.0f / std::sqrt(sum(squares) / e + epsilon);
    }
    sweep(half, [&](int64_t j, int64_t count) {
        Floats a = load(x + j, count) * r, b = load(x + half + j, count) * r;
        if (weight) a *= load(weight + j, count), b *= load(weight + half + j, count);
        const Floats c = load(cosine + j, count), s = load(sine + j, count);
        store(y + j, a * c - b * s, count);
        store(y + half + j, b * c + a * s, count);
    });
    return r;
}

template <typename T>
inline void turn_backward(const T* d_y, const T* x, const float* weight, const float* cosine, const float* sine,
                          float r, T* d_x, float* d_weight, int64_t e) {
    const int64_t half = e / 2;
    Floats dots = {};
    if (weight)
        sweep(half, [&](int64_t j, int64_t count) {
            const Floats a = load(d_y + j, count), b = load(d_y + half + j, count);
            const Floats c = load(cosine + j, count), s = load(sine + j, count);
            const Floats da = (a * c + b * s) * load(x + j, count), db = (b * c - a * s) * load(x + half + j, count);
            dots += da * load(weight + j, count) + db * load(weight + half + j, count);
            store(d_weight + j, load(d_weight + j, count) + da * r, count);
            store(d_weight + half + j, load(d_weight + half + j, count) + db * r, count);
        });
    const float shrink = sum(dots) * r * r * r / e;
    sweep(half, [&](int64_t j, int64_t count) {
        const Floats a = load(d_y + j, count), b = load(d_y + half + j, count);
        const Floats c = load(cosine + j, count), s = load(sine + j, count);
        Floats da = a * c + b * s, db = b * c - a * s;
        if (weight) {
            da = da * load(weight + j, count) * r - load(x + j, count) * shrink;
            db = db * load(weight + half + j, count) * r - load(x + half + j, count) * shrink;
        }
        store(d_x + j, da, count);
        store(d_x + half + j, db, count);
    });
}

struct Heads {
    int64_t b, t, h, k, e;
};

// qkv (b, t, h + 2k, e) to q (b, h, t, e), k (b, k, t, e), v (b, k, t, e): queries and keys normed and turned.
template <typename T>
void heads_forward(Heads s, const T* qkv, const float* q_weight, const float* k_weight, const float* cosine,
                   const float* sine, T* q, T* k, T* v, float* inverse, float epsilon, int threads) {
    const int64_t all = s.h + 2 * s.k, half = s.e / 2;
    PARALLEL
    for (int64_t i = 0; i < s.b * s.t; i++) {
        const int64_t row = i / s.t, t = i % s.t;
        const T* x = qkv + i * all * s.e;
        const float *c = cosine + t * half, *sn = sine + t * half;
        for (int64_t h = 0; h < s.h; h++)
            inverse[i * (s.h + s.k) + h] = turn_forward(x + h * s.e, q_weight, c, sn,
                                                           q + ((row * s.h + h) * s.t + t) * s.e, s.e, epsilon);
        for (int64_t h = 0; h < s.k; h++) {
            const int64_t to = ((row * s.k + h) * s.t + t) * s.e;
            inverse[i * (s.h + s.k) + s.h + h] =
                turn_forward(x + (s.h + h) * s.e, k_weight, c, sn, k + to, s.e, epsilon);
            std::memcpy(v + to, x + (s.h + s.k + h) * s.e, s.e * sizeof(T));
        }
    }
}

// The reverse; d_q_weight and d_k_weight are (threads, e) of zeros, one row for each thread.
template <typename T>
void heads_backward(Heads s, const T* d_q, const T* d_k, const T* d_v, const T* qkv, const float* q_weight,
                    const float* k_weight, const float* cosine, const float* sine, const float* inverse, T* d_qkv,
                    float* d_q_weight, float* d_k_weight, int threads) {
    const int64_t all = s.h + 2 * s.k, half = s.e / 2;
    PARALLEL
    for (int64_t i = 0; i < s.b * s.t; i++) {
        const int64_t row = i / s.t, t = i % s.t;
        const T* x = qkv + i * all * s.e;
        T* dx = d_qkv + i * all * s.e;
        const float *c = cosine + t * half, *sn = sine + t * half, *r = inverse + i * (s.h + s.k);
        for (int64_t h = 0; h < s.h; h++)
            turn_backward(d_q + ((row * s.h + h) * s.t + t) * s.e, x + h * s.e, q_weight, c, sn, r[h],
                             dx + h * s.e, d_q_weight + team_index() * s.e, s.e);
        for (int64_t h = 0; h < s.k; h++) {
            const int64_t from = ((row * s.k + h) * s.t + t) * s.e;
            turn_backward(d_k + from, x + (s.h + h) * s.e, k_weight, c, sn, r[s.h + h], dx + (s.h + h) * s.e,
                             d_k_weight + team_index() * s.e, s.e);
            std::memcpy(dx + (s.h + s.k + h) * s.e, d_v + from, s.e * sizeof(T));
        }
    }
}

// In place, row i of (rows, t): softmax of scale * score over the first 1 + (i mod t) entries, zero in the others.
// `scratch` is (threads, t).
template <typename T>
void softmax_forward(T* scores, float* scratch, int64_t rows, int64_t t, float scale, int threads) {
    PARALLEL
    for (int64_t i = 0; i < rows; i++) {
        T* row = scores + i * t;
        float* w = scratch + team_index() * t;
        const int64_t seen = i % t + 1, padded = round_up(seen, t);
        Floats tops = Floats{} - INFINITY, sums = {};
        sweep(padded, [&](int64_t j, int64_t count) {
            const Floats a = first_lanes(seen - j) ? load(row + j, count) * scale : Floats{} - INFINITY;
            tops = a > tops ? a : tops;  // a nan is lost here, and comes back in the sum
            store(w + j, a, count);
        });
        const float top = largest(tops);
        sweep(padded, [&](int64_t j, int64_t count) {
            const Floats a = exponential(load(w + j, count) - top);
            const Floats b = first_lanes(seen - j) ? a : Floats{};
            sums += b;
            store(w + j, b, count);
        });
        const float inverse = 1.0f / sum(sums);
        sweep(padded, [&](int64_t j, int64_t count) { store(row + j, load(w + j, count) * inverse, count); });
        std::memset(static_cast<void*>(row + padded), 0, (t - padded) * sizeof(T));
    }
}

// In place of d_weights: d_scores = scale * weights * (d_weights - sum(weights * d_weights)); 0 where the weights are.
template <typename T>
void softmax_backward(const T* weights, T* d_weights, int64_t rows, int64_t t, float scale, int threads) {
    PARALLEL
    for (int64_t i = 0; i < rows; i++) {
        const T* w = weights + i * t;
        T* d = d_weights + i * t;
        const int64_t padded = round_up(i % t + 1, t);
        Floats dots = {};
        sweep(padded, [&](int64_t j, int64_t count) { dots += load(w + j, count) * load(d + j, count); });
        const float dot = sum(dots);
        sweep(padded, [&](int64_t j, int64_t count) {
            store(d + j, load(w + j, count) * (load(d + j, count) - dot) * scale, count);
        });
        std::memset(static_cast<void*>(d + padded), 0, (t - padded) * sizeof(T));
    }
}

// y = silu(gate) * up, gate and up side by side in rows of 2 f.
template <typename T>
void swiglu_forward(const T* gate_up, T* y, int64_t n, int64_t f, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const T *gate = gate_up + i * 2 * f, *up = gate + f;
        sweep(f, [&](int64_t j, int64_t count) {
            const Floats g = load(gate + j, count);
            store(y + i * f + j, g * sigmoid(g) * load(up + j, count), count);
        });
    }
}

template <typename T>
void swiglu_backward(const T* d_y, const T* gate_up, T* d_gate_up, int64_t n, int64_t f, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        const T *gate = gate_up + i * 2 * f, *up = gate + f, *dy = d_y + i * f;
        T *d_gate = d_gate_up + i * 2 * f, *d_up = d_gate + f;
        sweep(f, [&](int64_t j, int64_t count) {
            const Floats g = load(gate + j, count), d = load(dy + j, count), s = sigmoid(g);
            store(d_gate + j, d * load(up + j, count) * s * (1.0f + g * (1.0f - s)), count);
            store(d_up + j, d * g * s, count);
        });
    }
}

// losses[i] = log(sum(exp(logits[i]))) - logits[i][target]; with `keep` the logits become softmax - one_hot(target).
// A negative target is ignored: loss 0, zeros. `scratch` is (threads, v).
template <typename T>
void cross_entropy(T* logits, const int64_t* targets, float* losses, float* scratch, int64_t n, int64_t v, int keep,
                   int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++) {
        T *row = logits + i * v, *hit = row + targets[i];
        if (targets[i] < 0) {  // ignored
            losses[i] = 0;
            if (keep) std::memset(static_cast<void*>(row), 0, v * sizeof(T));
            continue;
        }
        float* w = scratch + team_index() * v;
        Floats tops = Floats{} - INFINITY, sums = {};
        sweep(v, [&](int64_t j, int64_t count) {
            const Floats a = first_lanes(count) ? load(row + j, count) : Floats{} - INFINITY;
            tops = a > tops ? a : tops;  // a nan is lost here, and comes back in the sum
        });
        const float top = largest(tops), target = load(hit, 1)[0];
        sweep(v, [&](int64_t j, int64_t count) {
            const Floats a = exponential(load(row + j, count) - top);
            sums += first_lanes(count) ? a : Floats{};
            store(w + j, a, count);
        });
        const float total = sum(sums);
        losses[i] = std::log(total) + top - target;
        if (!keep) continue;
        const float scale = 1.0f / total;
        sweep(v, [&](int64_t j, int64_t count) { store(row + j, load(w + j, count) * scale, count); });
        store(hit, load(w + targets[i], 1) * scale - 1.0f, 1);
    }
}

// y[i] = table[ids[i]]
template <typename T>
void embed_forward(const float* table, const int64_t* ids, T* y, int64_t n, int64_t d, int threads) {
    PARALLEL
    for (int64_t i = 0; i < n; i++)
        sweep(d, [&](int64_t j, int64_t count) { store(y + i * d + j, load(table + ids[i] * d + j, count), count); });
}

// d_table[ids[i]] += d_y[i]; d_table starts as zeros. Threads share columns, not rows, so that none writes another's.
template <typename T>
void embed_backward(const T* d_y, const int64_t* ids, float* d_table, int64_t n, int64_t d, int threads) {
    PARALLEL
    for (int64_t part = 0; part < threads; part++) {
        const int64_t from = d * part / threads, to = d * (part + 1) / threads;
        for (int64_t i = 0; i < n; i++) {
            float* row = d_table + ids[i] * d + from;
            sweep(to - from, [&](int64_t j, int64_t count) {
                store(row + j, load(row + j, count) + load(d_y + i * d + from + j, count), count);
            });
        }
    }
}

}  // namespace

#define EXPORT(T, suffix)                                                                                              \
    extern "C" void norm_forward_##suffix(const T* x, const T* delta, const float* weight, T* total, T* y,             \
                                          float* inverse, int64_t n, int64_t d, float epsilon, int threads) {          \
        norm_forward<T>(x, delta, weight, total, y, inverse, n, d, epsilon, threads);                                  \
    }                                                                                                                  \
    extern "C" void norm_backward_##suffix(const T* d_y, const T* d_total, const T* x, const float* weight,            \
                                           const float* inverse, T* d_x, float* d_weight, int64_t n, int64_t d,        \
                                           int threads) {                                                              \
        norm_backward<T>(d_y, d_total, x, weight, inverse, d_x, d_weight, n, d, threads);                              \
    }                                                                                                                  \
    extern "C" void heads_forward_##suffix(const T* qkv, const float* q_weight, const float* k_weight,                 \
                                           const float* cosine, const float* sine, T* q, T* k, T* v, float* inverse,   \
                                           int64_t b, int64_t t, int64_t h, int64_t kv, int64_t e, float epsilon,      \
                                           int threads) {                                                              \
        const Heads s = {b, t, h, kv, e};                                                                              \
        heads_forward<T>(s, qkv, q_weight, k_weight, cosine, sine, q, k, v, inverse, epsilon, threads);                \
    }                                                                                                                  \
    extern "C" void heads_backward_##suffix(const T* d_q, const T* d_k, const T* d_v, const T* qkv,                    \
                                            const float* q_weight, const float* k_weight, const float* cosine,         \
                                            const float* sine, const float* inverse, T* d_qkv, float* d_q_weight,      \
                                            float* d_k_weight, int64_t b, int64_t t, int64_t h, int64_t kv, int64_t e, \
                                            int threads) {                                                             \
        const Heads s = {b, t, h, kv, e};                                                                              \
        heads_backward<T>(s, d_q, d_k, d_v, qkv, q_weight, k_weight, cosine, sine, inverse, d_qkv, d_q_weight,         \
                          d_k_weight, threads);                                                                        \
    }                                                                                                                  \
    extern "C" void softmax_forward_##suffix(T* scores, float* scratch, int64_t rows, int64_t t, float scale,          \
                                             int threads) {                                                            \
        softmax_forward<T>(scores, scratch, rows, t, scale, threads);                                                  \
    }                                                                                                                  \
    extern "C" void softmax_backward_##suffix(const T* weights, T* d_weights, int64_t rows, int64_t t, float scale,    \
                                              int threads) {                                                           \
        softmax_backward<T>(weights, d_weights, rows, t, scale, threads);                                              \
    }                                                                                                                  \
    extern "C" void swiglu_forward_##suffix(const T* gate_up, T* y, int64_t n, int64_t f, int threads) {               \
        swiglu_forward<T>(gate_up, y, n, f, threads);                                                                  \
    }                                                                                                                  \
    extern "C" void swiglu_backward_##suffix(const T* d_y, const T* gate_up, T* d_gate_up, int64_t n, int64_t f,       \
                                             int threads) {                                                            \
        swiglu_backward<T>(d_y, gate_up, d_gate_up, n, f, threads);                                                    \
    }                                                                                                                  \
    extern "C" void cross_entropy_##suffix(T* logits, const int64_t* targets, float* losses, float* scratch,           \
                                           int64_t n, int64_t v, int keep, int threads) {                              \
        cross_entropy<T>(logits, targets, losses, scratch, n, v, keep, threads);                                       \
    }                                                                                                                  \
    extern "C" void embed_forward_##suffix(const float* table, const int64_t* ids, T* y, int64_t n, int64_t d,         \
                                           int threads) {                                                              \
        embed_forward<T>(table, ids, y, n, d, threads);                                                                \
    }                                                                                                                  \
    extern "C" void embed_backward_##suffix(const T* d_y, const int64_t* ids, float* d_table, int64_t n, int64_t d,    \
                                            int threads) {                                                             \
        embed_backward<T>(d_y, ids, d_table, n, d, threads);                                                           \
    }

EXPORT(float, f32)
EXPORT(bf16, bf16)
