// `swiglu.rs` on the GPU: elementwise, one grid over all elements.
#include "device.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// h = silu(gate) * up.
template <typename T> __device__ void swiglu_forward(const T *gate, const T *up, T *h, u64 n) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = to_float(gate[i]);
    h[i] = from_float<T>(g * sigmoid(g) * to_float(up[i]));
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
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float g = to_float(gate[i]), u = to_float(up[i]), d = to_float(dh[i]);
    const float s = sigmoid(g), silu = g * s;
    gate[i] = from_float<T>(d * u * s * (1.0f + g * (1.0f - s)));
    up[i] = from_float<T>(d * silu);
    dh[i] = from_float<T>(silu * u);
}
ENTRY(swiglu_backward, (T * gate, T *up, T *dh, u64 n), (gate, up, dh, n))
