// `t3s_core::CounterRng`: draws that are hashes of what they are for.
#pragma once

#include "device.cuh"

// The finaliser of SplitMix64.
__device__ __forceinline__ u64 mix(u64 x) {
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// `CounterRng::bits`; `key` is the stream's.
__device__ __forceinline__ u64 counter_bits(u64 key, u64 a, u64 b) {
    return mix(mix(key ^ mix(a)) + b * 0x9e3779b97f4a7c15ull);
}

// `CounterRng::uniform`: in [0, 1), 53 bits.
__device__ __forceinline__ double counter_uniform(u64 key, u64 a, u64 b) {
    return static_cast<double>(counter_bits(key, a, b) >> 11) * (1.0 / 9007199254740992.0);
}
