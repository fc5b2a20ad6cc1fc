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

// qkv (b, t, h + 2k, e) to q (b, h, t, e), k (b, k, t, e), v (b, k, t, e): queries and keys normed and turned.
template <typename T>
void heads_forward(const T* qkv, const float* q_weight, const float* k_weight, const float* cosine, const float* sine,
                   T* q, T* k, T* v, float* inverse, int64_t rows, int64_t length, int64_t q_heads, int64_t k_heads,
                   int64_t e, float epsilon, int threads) {
    const int64_t turned = q_heads + k_heads, all = turned + k_heads, half = e / 2;
    PARALLEL
    for (int64_t i = 0; i < rows * length; i++) {
        const int64_t row = i / length, t = i % length;
        const T* x = qkv + i * all * e;
        const float *c = cosine + t * half, *s = sine + t * half;
        float* r = inverse + i * turned;
        for (int64_t h = 0; h < q_heads; h++)
            r[h] = turn_forward(x + h * e, q_weight, c, s, q + ((row * q_heads + h) * length + t) * e, e, epsilon);
        for (int64_t h = 0; h < k_heads; h++) {
            const int64_t to = ((row * k_heads + h) * length + t) * e;
            r[q_heads + h] = turn_forward(x + (q_heads + h) * e, k_weight, c, s, k + to, e, epsilon);
            std::memcpy(static_cast<void*>(v + to), x + (turned + h) * e, e * sizeof(T));
        }
    }
}

// The reverse; d_q_weight and d_k_weight are (threads, e) of zeros, one row for each thread.
template <typename T>
void heads_backward(const T* d_q, const T* d_k, const T* d_v, const T* qkv, const float* q_weight,
                    const float* k_weight, const float* cosine, const float* sine, const float* inverse, T* d_qkv,
                    float* d_q_weight, float* d_k_weight, int64_t rows, int64_t length, int64_t q_heads,
                    int64_t k_heads, int64_t e, int threads) {
    const int64_t turned = q_heads + k_heads, all = turned + k_heads, half = e / 2;
    PARALLEL
    for (int64_t i = 0; i < rows * length; i++) {
        const int64_t row = i / length, t = i % length;
        const T* x = qkv + i * all * e;
        T* dx = d_qkv + i * all * e;
        const float *c = cosine + t * half, *s = sine + t * half, *r = inverse + i * turned;
        for (int64_t h = 0; h < q_heads; h++)
            turn_backward(d_q + ((row * q_heads + h) * length + t) * e, x + h * e, q_weight, c, s, r[h], dx + h * e,
                          d_q_weight + team_index() * e, e);
        for (int64_t h = 0; h < k_heads; h++) {
            const int64_t from = ((row * k_heads + h) * length + t) * e, at = (q_heads + h) * e;
            turn_backward(d_k + from, x + at, k_weight, c, s, r[q_heads + h], dx + at, d_k_weight + team_index() * e,
                          e);
            std::memcpy(static_cast<void*>(dx + (turned + h) * e), d_v + from, e * sizeof(T));
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

struct Entry {
    const char* name;
    void* address;
};

#define BOTH(function)                                            \
    {#function "_f32", reinterpret_cast<void*>(function<float>)}, \
        {#function "_bf16", reinterpret_cast<void*>(function<bf16>)}

const Entry entries[] = {
    BOTH(norm_forward),    BOTH(norm_backward),    BOTH(heads_forward),  BOTH(heads_backward),
    BOTH(softmax_forward), BOTH(softmax_backward), BOTH(swiglu_forward), BOTH(swiglu_backward),
    BOTH(cross_entropy),   BOTH(embed_forward),    BOTH(embed_backward),
};

}  // namespace

// The address of a function by name and element type, such as "norm_forward_bf16"; null if there is none.
extern "C" void* find_kernel(const char* name) {
    for (const Entry& entry : entries)
        if (std::strcmp(entry.name, name) == 0) return entry.address;
    return nullptr;
}
