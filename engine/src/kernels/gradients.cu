// `gradients.rs` on the GPU.
#include "device.cuh"

extern "C" __global__ void scale(float *values, float factor, u64 n) {
    const u64 i = first_of_eight();
    if (i >= n) return;
    Eight v;
    v.load(values + i, n - i);
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) v.v[e] *= factor;
    v.store(values + i, n - i);
}
REGISTERED(scale)

// partial[block] = the sum of squares of the block's `run` elements. Grid: ceil(n / run).
template <typename T>
__device__ void sum_of_squares(const T *values, double *partial, u64 n, u64 run) {
    const u64 first = blockIdx.x * run, last = first + run < n ? first + run : n;
    double total = 0.0;
    for (u64 i = first + threadIdx.x * EIGHT; i < last; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(values + i, last - i);
        // Few enough that the float sum loses nothing that matters.
        float sum = 0.0f;
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) sum += v.v[e] * v.v[e];
        total += sum;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}
ENTRY(sum_of_squares, (const T *values, double *partial, u64 n, u64 run), (values, partial, n, run))

// out[0] = the sum of partial, in an order that n alone decides. Grid: 1.
extern "C" __global__ void sum_partials(const double *partial, double *out, u32 n) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) out[0] = sum;
}
REGISTERED(sum_partials)
