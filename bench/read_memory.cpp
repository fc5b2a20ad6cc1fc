// How fast memory is read: the limit of decoding. GB/s of summing `bytes` once, from large pages, with `threads`.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef __linux__
#include <sys/mman.h>
#endif

typedef uint64_t Words __attribute__((vector_size(64)));

extern "C" double read_memory(int64_t bytes, int threads) {
    char* memory = static_cast<char*>(std::aligned_alloc(1 << 21, bytes));
#ifdef __linux__
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 1, bytes);
    const auto start = std::chrono::steady_clock::now();
    uint64_t total = 0;
#ifdef _OPENMP
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : total)
#endif
    for (int64_t part = 0; part < threads; part++) {
        const char *from = memory + bytes / threads * part, *to = from + bytes / threads;
        Words sums[4] = {};
        for (; from + 256 <= to; from += 256)
            for (int i = 0; i < 4; i++) {
                __builtin_prefetch(from + 8192 + 64 * i);
                Words next;
                std::memcpy(&next, from + 64 * i, 64);
                sums[i] += next;
            }
        for (int i = 0; i < 4; i++)
            for (int lane = 0; lane < 8; lane++) total += sums[i][lane];
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    volatile uint64_t keep = total;
    (void)keep;
    std::free(memory);
    return bytes / seconds / 1e9;
}
