// `embedding.rs` on the GPU, and the gathers and scatters of rows.
#include "device.cuh"

// y[r] = table[ids[r]]. Grid: rows.
template <typename T> __device__ void gather_rows(const T *table, const u32 *ids, T *y, u32 width) {
    const u64 from = static_cast<u64>(ids[blockIdx.x]) * width, to = static_cast<u64>(blockIdx.x) * width;
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(table + from + i, width - i);
        v.store(y + to + i, width - i);
    }
}
ENTRY(gather_rows, (const T *table, const u32 *ids, T *y, u32 width), (table, ids, y, width))

// y[rows[r]] = factors[r] * x[r]; no row twice. Grid: number of rows.
template <typename T>
__device__ void scatter_scaled(const float *x, const u32 *rows, const float *factors, T *y, u32 width) {
    const u64 from = static_cast<u64>(blockIdx.x) * width, to = static_cast<u64>(rows[blockIdx.x]) * width;
    const float factor = factors[blockIdx.x];
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(x + from + i, width - i);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) v.v[e] *= factor;
        v.store(y + to + i, width - i);
    }
}
ENTRY(scatter_scaled, (const float *x, const u32 *rows, const float *factors, T *y, u32 width),
      (x, rows, factors, y, width))

// x[r] *= factors[r]. Grid: rows.
template <typename T> __device__ void scale_rows(T *x, const float *factors, u32 width) {
    const u64 start = static_cast<u64>(blockIdx.x) * width;
    const float factor = factors[blockIdx.x];
    for (u32 i = threadIdx.x * EIGHT; i < width; i += blockDim.x * EIGHT) {
        Eight v;
        v.load(x + start + i, width - i);
#pragma unroll
        for (u32 e = 0; e < EIGHT; e++) v.v[e] *= factor;
        v.store(x + start + i, width - i);
    }
}
ENTRY(scale_rows, (T * x, const float *factors, u32 width), (x, factors, width))

// slot[ids[s]] += sum over k in starts[s] .. starts[s + 1] of dy[order[k]], in that order: one sum per
// id and column, by one thread. Grid: (number of different ids, ceil(width / threads)).
template <typename T>
__device__ void embedding_backward(const T *dy, const u32 *ids, const u32 *starts, const u32 *order,
                                   float *slot, u32 width) {
    const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    const u32 s = blockIdx.x;
    float *to = slot + static_cast<u64>(ids[s]) * width + column;
    float sum = *to;
    for (u32 k = starts[s]; k < starts[s + 1]; k++) {
        sum += to_float(dy[static_cast<u64>(order[k]) * width + column]);
    }
    *to = sum;
}
ENTRY(embedding_backward,
      (const T *dy, const u32 *ids, const u32 *starts, const u32 *order, float *slot, u32 width),
      (dy, ids, starts, order, slot, width))
