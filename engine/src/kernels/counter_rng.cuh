// `t3s_core::CounterRng` on the GPU: a draw is a hash of what it is for.
#pragma once
#include "device.cuh"

// The finaliser of SplitMix64.
__device__ __forceinline__ u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// The 64 bits of the pair (a, b).
__device__ __forceinline__ u64 random_bits(u64 key, u64 a, u64 b) {
    return mix(mix(key ^ mix(a)) + b * 0x9e3779b97f4a7c15ull);
}
