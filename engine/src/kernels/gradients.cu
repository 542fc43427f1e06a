// `gradients.rs` on the GPU.
#include "device.cuh"

extern "C" __global__ void scale(float *values, float factor, u64 n) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) values[i] *= factor;
}
REGISTERED(scale)

// partial[block] = the sum of squares of the block's `run` elements. Grid: ceil(n / run).
template <typename T>
__device__ void sum_of_squares(const T *values, double *partial, u64 n, u64 run) {
    const u64 first = blockIdx.x * run, last = first + run < n ? first + run : n;
    double total = 0.0;
    float sum = 0.0f;
    u32 terms = 0;
    for (u64 i = first + threadIdx.x; i < last; i += blockDim.x) {
        const float v = to_float(values[i]);
        sum += v * v;
        // Few enough that the float sum loses nothing that matters.
        if (++terms == 64) {
            total += sum;
            sum = 0.0f;
            terms = 0;
        }
    }
    total = block_sum(total + sum);
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
