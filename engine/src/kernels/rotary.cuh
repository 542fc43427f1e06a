// Rotary angles and the norm of a head, by one warp.
#pragma once
#include "device.cuh"

// The angle's cosine and signed sine for element e of a head whose first `dim` elements turn, and the
// element it is paired with.
struct Turn {
    float cos, sin;
    u32 partner;
};
__device__ __forceinline__ Turn turn_of(const float *angles, u32 e, u32 dim) {
    const u32 half = dim / 2;
    if (e >= dim) return {1.0f, 0.0f, e};
    if (e < half) return {angles[e], -angles[half + e], e + half};
    return {angles[e - half], angles[e], e - half};
}

template <typename T> __device__ float warp_inverse_rms(const T *x, u32 head_dim, float eps) {
    float squares = 0.0f;
    for (u32 e = threadIdx.x % 32; e < head_dim; e += 32) {
        const float v = to_float(x[e]);
        squares += v * v;
    }
    return 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(head_dim) + eps);
}
