// `residual.rs` on the GPU, and the rows of biases and the sums over rows.
#include "device.cuh"

// y += x.
template <typename T> __device__ void add_assign(T *y, const T *x, u64 n) {
    const u64 i = first_of_eight();
    if (i >= n) return;
    Eight ys, xs;
    ys.load(y + i, n - i);
    xs.load(x + i, n - i);
#pragma unroll
    for (u32 e = 0; e < EIGHT; e++) ys.v[e] += xs.v[e];
    ys.store(y + i, n - i);
}
ENTRY(add_assign, (T * y, const T *x, u64 n), (y, x, n))

// y[r] += bias.
template <typename T> __device__ void add_bias(T *y, const T *bias, u64 n, u32 width) {
    const u64 i = static_cast<u64>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < n) y[i] = from_float<T>(to_float(y[i]) + to_float(bias[i % width]));
}
ENTRY(add_bias, (T * y, const T *bias, u64 n, u32 width), (y, bias, n, width))

// partial[run, column] = the sum of x over the run's rows. Grid: (ceil(width / threads), runs).
template <typename T>
__device__ void sum_rows(const T *x, float *partial, u32 rows, u32 width, u32 run) {
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const u32 first = blockIdx.y * run, last = min(first + run, rows);
    float sum = 0.0f;
    for (u32 row = first; row < last; row++) sum += to_float(x[static_cast<u64>(row) * width + column]);
    partial[static_cast<u64>(blockIdx.y) * width + column] = sum;
}
ENTRY(sum_rows, (const T *x, float *partial, u32 rows, u32 width, u32 run), (x, partial, rows, width, run))

// slot[column] += the sum over n of partial[n, column]: warp w of a block adds rows w, w + 32, ... of 32
// columns, and the first warp adds those sums in order. Grid: ceil(width / 32), of 1024 threads.
extern "C" __global__ void add_partial_sums(float *slot, const float *partial, u32 n, u32 width) {
    __shared__ float sums[32][32];
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < width) {
        for (u32 i = warp; i < n; i += 32) sum += partial[static_cast<u64>(i) * width + column];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    if (warp > 0 || column >= width) return;
    sum = slot[column];
    for (u32 i = 0; i < 32; i++) sum += sums[i][lane];
    slot[column] = sum;
}
REGISTERED(add_partial_sums)
