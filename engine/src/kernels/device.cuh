// What every kernel file starts from: number types, reductions, entry points.
//
// Conventions: one thread block is whole warps; offsets into tensors are 64 bits; activations are T
// (float or bfloat16), everything in between is float; no atomics, so that results never depend on
// the order in which blocks run.
#pragma once

#ifdef T3S_EMULATED
#include "cuda/emulate.h"
#else
#include <cuda_bf16.h>
#define DYNAMIC_SHARED(type, name)                                                                     \
    extern __shared__ float4 name##_aligned[];                                                         \
    type *name = reinterpret_cast<type *>(name##_aligned)
__device__ __forceinline__ uint4 load_16_bytes(const void *from) { return *static_cast<const uint4 *>(from); }
__device__ __forceinline__ void store_16_bytes(void *to, uint4 value) { *static_cast<uint4 *>(to) = value; }
#endif

typedef unsigned int u32;
typedef unsigned long long u64;
typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __bfloat162float(x); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

// Two numbers as bfloat16, the first in the lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
           static_cast<u32>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16;
}

// The two numbers of `pack` as floats.
__device__ __forceinline__ void unpack(u32 word, float two[2]) {
    two[0] = __uint_as_float(word << 16);
    two[1] = __uint_as_float(word & 0xffff0000u);
}

// 16 bytes of numbers, four or eight, by one access to memory that is aligned to them.
__device__ __forceinline__ void widen_16_bytes(const float *from, float to[4]) {
    const uint4 raw = load_16_bytes(from);
    to[0] = __uint_as_float(raw.x);
    to[1] = __uint_as_float(raw.y);
    to[2] = __uint_as_float(raw.z);
    to[3] = __uint_as_float(raw.w);
}
__device__ __forceinline__ void widen_16_bytes(const bf16 *from, float to[8]) {
    const uint4 raw = load_16_bytes(from);
    unpack(raw.x, to);
    unpack(raw.y, to + 2);
    unpack(raw.z, to + 4);
    unpack(raw.w, to + 6);
}

// Eight neighbouring elements as floats: what a thread of a kernel that is bound by memory works on.
// Whole 16 bytes are moved where the address allows it and all eight exist; `left` elements exist from
// there on, and those that do not are 0 and are not written.
static const u32 EIGHT = 8;
struct Eight {
    float v[EIGHT];

    template <typename T> static __device__ __forceinline__ bool whole(const T *at, u64 left) {
        return left >= EIGHT && reinterpret_cast<u64>(at) % 16 == 0;
    }
    __device__ __forceinline__ void load(const float *from, u64 left) {
        if (whole(from, left)) {
            widen_16_bytes(from, v);
            widen_16_bytes(from + 4, v + 4);
        } else {
            one_by_one(from, left);
        }
    }
    __device__ __forceinline__ void load(const bf16 *from, u64 left) {
        if (whole(from, left)) {
            widen_16_bytes(from, v);
        } else {
            one_by_one(from, left);
        }
    }
    __device__ __forceinline__ void store(float *to, u64 left) const {
        if (whole(to, left)) {
            store_16_bytes(to, four(v));
            store_16_bytes(to + 4, four(v + 4));
        } else {
            write_one_by_one(to, left);
        }
    }
    __device__ __forceinline__ void store(bf16 *to, u64 left) const {
        if (whole(to, left)) {
            store_16_bytes(to, {pack(v[0], v[1]), pack(v[2], v[3]), pack(v[4], v[5]), pack(v[6], v[7])});
        } else {
            write_one_by_one(to, left);
        }
    }

  private:
    template <typename T> __device__ __forceinline__ void one_by_one(const T *from, u64 left) {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) v[i] = i < left ? to_float(from[i]) : 0.0f;
    }
    template <typename T> __device__ __forceinline__ void write_one_by_one(T *to, u64 left) const {
#pragma unroll
        for (u32 i = 0; i < EIGHT; i++) {
            if (i < left) to[i] = from_float<T>(v[i]);
        }
    }
    static __device__ __forceinline__ uint4 four(const float *v) {
        return {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
    }
};

// The first of this thread's eight elements in a grid over all of them.
__device__ __forceinline__ u64 first_of_eight() {
    return (static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x) * EIGHT;
}

template <typename V> __device__ __forceinline__ V warp_sum(V v) {
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

// The largest over the warp.
__device__ __forceinline__ float warp_max(float v) {
    for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// The sum over the block, the same in every thread. A block has at most 1024 threads.
template <typename V> __device__ __forceinline__ V block_sum(V v) {
    __shared__ V partial[32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    // Whoever still reads `partial` of the call before has to be done.
    __syncthreads();
    if (lane == 0) partial[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? partial[lane] : V(0));
}

// Defines `NAME_f32` and `NAME_bf16`, which call the template NAME<T>; PARAMETERS may use T.
#ifdef T3S_EMULATED
#define REGISTERED(NAME) static emulated::Entry NAME##_entry(#NAME, NAME);
#else
#define REGISTERED(NAME)
#endif
#define ENTRY_OF(NAME, SUFFIX, TYPE, PARAMETERS, ARGUMENTS)                                            \
    namespace NAME##_##SUFFIX##_types {                                                                \
    typedef TYPE T;                                                                                    \
    extern "C" __global__ void NAME##_##SUFFIX PARAMETERS { ::NAME<T> ARGUMENTS; }                     \
    REGISTERED(NAME##_##SUFFIX)                                                                        \
    }
#define ENTRY(NAME, PARAMETERS, ARGUMENTS)                                                             \
    ENTRY_OF(NAME, f32, float, PARAMETERS, ARGUMENTS)                                                  \
    ENTRY_OF(NAME, bf16, bf16, PARAMETERS, ARGUMENTS)
