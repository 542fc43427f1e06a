// `swiglu.rs` on the GPU: elementwise, one grid over all elements.
#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// h = silu(gate) * up.
template <typename T> __device__ void swiglu_forward(const T *gate, const T *up, T *h, u64 n) {
    const u64 i = first_of_eight();
    if (i >= n) return;
    Eight g, u;
    g.load(gate + i, n - i);
    u.load(up + i, n - i);
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) u.v[e] *= g.v[e] * sigmoid(g.v[e]);
    u.store(h + i, n - i);
}
ENTRY(swiglu_forward, (const T *gate, const T *up, T *h, u64 n), (gate, up, h, n))

// h[r, i] = silu(both[r, i]) * both[r, hidden + i]: gates and ups of a row side by side. n = elements of h.
template <typename T> __device__ void swiglu_side_by_side(const T *both, T *h, u64 n, u32 hidden) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u64 gate = i + i / hidden * hidden;
    const float g = to_float(both[gate]);
    h[i] = from_float<T>(g * sigmoid(g) * to_float(both[gate + hidden]));
}
ENTRY(swiglu_side_by_side, (const T *both, T *h, u64 n, u32 hidden), (both, h, n, hidden))

// gate becomes its gradient, up becomes its gradient, dh becomes h.
template <typename T> __device__ void swiglu_backward(T *gate, T *up, T *dh, u64 n) {
    const u64 i = first_of_eight();
    if (i >= n) return;
    Eight gates, ups, ds;
    gates.load(gate + i, n - i);
    ups.load(up + i, n - i);
    ds.load(dh + i, n - i);
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) {
        const float g = gates.v[e], u = ups.v[e], d = ds.v[e];
        const float s = sigmoid(g), silu = g * s;
        gates.v[e] = d * u * s * (1.0f + g * (1.0f - s));
        ups.v[e] = d * silu;
        ds.v[e] = silu * u;
    }
    gates.store(gate + i, n - i);
    ups.store(up + i, n - i);
    ds.store(dh + i, n - i);
}
ENTRY(swiglu_backward, (T * gate, T *up, T *dh, u64 n), (gate, up, dh, n))
