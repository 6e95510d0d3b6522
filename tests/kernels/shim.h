// CUDA's language for a C++ compiler, so that kernels run on a CPU. A block's threads are fibres: one runs until it meets a barrier
// or a shuffle, then the next. The order in which they run is the caller's choice; a result that depends on it is a race.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#define __global__
#define __device__ static
#define __forceinline__ inline
// All shared memory lies in one section, which is filled with NaN before each block.
#define __shared__ static __attribute__((section("shared_memory")))
#define __syncthreads() shim::meet_block(__LINE__)
#define __shfl_down_sync(mask, value, apart) shim::shuffle(mask, value, (int)(threadIdx.x % 32 + (apart)), __LINE__)
#define __shfl_xor_sync(mask, value, bits) shim::shuffle(mask, value, (int)(threadIdx.x % 32 ^ (bits)), __LINE__)

struct Index {
    unsigned x = 0, y = 0, z = 0;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

inline int min(int a, int b) { return a < b ? a : b; }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678118654752f); }
inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

namespace shim {

enum class Order { Forward, Backward, Shuffled };

// Runs a kernel: all blocks one after the other, in this order, and so the threads of each between two barriers.
void launch(unsigned blocks, unsigned threads, Order order, const std::function<void()> &kernel);

// The thread waits for all threads of its block, which must come to the same line.
void meet_block(int line);

// The thread waits for all 32 lanes of its warp, which must come to the same line, and gets lane `from`'s 8 bytes.
uint64_t exchange(unsigned mask, uint64_t value, int from, int line);

template <class T> T shuffle(unsigned mask, T value, int from, int line) {
    static_assert(sizeof(T) <= 8);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(mask, bits, from < 32 ? from : (int)(threadIdx.x % 32), line);
    memcpy(&value, &bits, sizeof value);
    return value;
}

} // namespace shim
